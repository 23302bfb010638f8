"""Machine types and accounts are looked up: there, not there, or nobody can tell."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pulumi
import pytest

from components import accounts, google_rest, zone_types
from components.zone_types import NeededMachineType
from lab.cloud.server import Serving, serve
from tests.components.fleet import Recorder
from tests.engine.test_update import make_account

ZONE, OTHER = "us-central1-a", "us-central1-b"


def need(vm: str, machine_type: str, zone: str = ZONE) -> NeededMachineType:
    return NeededMachineType(vm=vm, zone=zone, machine_type=machine_type)


NEEDED = {
    "pilot-fleet:rendezvous.machineType": need("pilot-rendezvous", "n2-standard-4"),
    "pilot-fleet:swarm[0].machineType": need("swarm-1", "m1-megamem-96"),
    "pilot-fleet:swarm[2].machineType": need("swarm-3", "m1-megamem-96"),
}
EMAIL = "vms@project-1.iam.gserviceaccount.com"


@pytest.fixture(autouse=True)
def engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PULUMI_CONFIG", "{}")
    monkeypatch.delenv("GOOGLE_OAUTH_ACCESS_TOKEN", raising=False)
    pulumi.runtime.set_mocks(Recorder(), project="pilot-fleet", stack="test", preview=True)


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serving]:
    with serve(tmp_path / "cloud") as serving:
        monkeypatch.setenv("PULUMI_CONFIG", json.dumps(serving.settings()))
        yield serving


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_type_that_the_zone_has_not_is_a_sentence_for_each_vm(
    dry_run: bool, cloud: Serving
) -> None:
    assert cloud.url
    found = zone_types.problems(NEEDED, zone_types.looker("project-1"), dry_run=dry_run)
    assert [text.partition(". ")[0] for text in found] == [
        f"pilot-fleet:swarm[{index}].machineType: us-central1-a has no machine type "
        f"m1-megamem-96, so {vm} cannot be one"
        for index, vm in ((0, "swarm-1"), (2, "swarm-3"))
    ]
    assert all("gcloud compute machine-types list --zones=us-central1-a" in text for text in found)


def test_each_type_is_asked_for_once_and_a_deprecated_one_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    looked: list[tuple[str, str]] = []

    def look(zone: str, kind: str) -> str:
        looked.append((zone, kind))
        return "DEPRECATED" if kind == "m1-megamem-96" else ""

    assert zone_types.problems(NEEDED, look, dry_run=False) == []
    assert looked == [(ZONE, "n2-standard-4"), (ZONE, "m1-megamem-96")]
    assert [record.message for record in caplog.records] == [
        "Google calls the machine type m1-megamem-96 deprecated"
    ]
    assert zone_types.problems({}, look, dry_run=False) == []
    assert len(looked) == 2


IN_BOTH = NEEDED | {"pilot-fleet:swarm[1].machineType": need("swarm-2", "m1-megamem-96", OTHER)}


def test_each_vm_is_looked_up_in_its_own_zone(caplog: pytest.LogCaptureFixture) -> None:
    def look(zone: str, kind: str) -> str | None:
        return None if (zone, kind) == (OTHER, "m1-megamem-96") else "DEPRECATED"

    (found,) = zone_types.problems(IN_BOTH, look, dry_run=False)
    assert found.startswith("pilot-fleet:swarm[1].machineType: us-central1-b has no machine type")
    assert "--zones=us-central1-b" in found
    # One that several zones call so is said once.
    assert len(caplog.records) == 2


def test_a_zone_that_does_not_answer_hides_nothing_of_another() -> None:
    asked: list[str] = []

    def look(zone: str, _: str) -> str | None:
        asked.append(zone)
        if zone == ZONE:
            raise google_rest.NotLookedUpError("Unknown zone")
        return None

    failed, missing = zone_types.problems(IN_BOTH, look, dry_run=False)
    assert failed == (
        f"{', '.join(NEEDED)}: cannot be looked up, so us-central1-a may not have these machine "
        "types: Unknown zone. Nothing was changed"
    )
    assert missing.startswith("pilot-fleet:swarm[1].machineType: us-central1-b has no")
    assert asked == [ZONE, OTHER]


def test_a_reason_of_several_zones_is_said_once() -> None:
    def look(*_: str) -> str | None:
        raise google_rest.NotLookedUpError("nobody answers")

    (failed,) = zone_types.problems(IN_BOTH, look, dry_run=False)
    assert all(path in failed for path in IN_BOTH)
    assert "so us-central1-a or us-central1-b may not" in failed


def test_a_failed_look_up_is_a_warning_in_a_preview(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_OAUTH_ACCESS_TOKEN", google_rest.PLACEHOLDER_TOKEN)
    look = zone_types.looker("project-1")
    assert zone_types.problems(NEEDED, look, dry_run=True) == []
    assert "pilot-fleet:swarm[2].machineType: cannot be looked up" in caplog.text
    (problem,) = zone_types.problems(NEEDED, look, dry_run=False)
    assert problem.endswith("there are no Google credentials. Nothing was changed")


def test_a_project_or_zone_that_is_not_there_is_not_a_type_that_is_not_sold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def get(_: google_rest.Google, path: str) -> None:
        raise google_rest.GoogleError(
            f"The resource '{path.partition('/zones/')[0]}' was not found", 404
        )

    monkeypatch.setenv("GOOGLE_OAUTH_ACCESS_TOKEN", "anything")
    monkeypatch.setattr(google_rest.Google, "get", get)
    with pytest.raises(google_rest.NotLookedUpError, match="'projects/project-1' was not found"):
        zone_types.looker("project-1")(ZONE, "e2-standard-4")


def test_nobody_that_answers_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = {"gcp:accessToken": "anything", "gcp:computeCustomEndpoint": "http://127.0.0.1:1/"}
    monkeypatch.setenv("PULUMI_CONFIG", json.dumps(nowhere))
    with pytest.raises(google_rest.NotLookedUpError) as caught:
        zone_types.looker("project-1")(ZONE, "e2-standard-4")
    assert "127.0.0.1" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_an_account_that_is_not_there_is_a_sentence(cloud: Serving) -> None:
    (problem,) = accounts.problems(EMAIL, ["swarm-3", "swarm-1"], accounts.look)
    assert problem.startswith(
        f"pilot-fleet:serviceAccount: there is no service account {EMAIL}, so swarm-3, swarm-1 "
        "cannot get it. Nothing was changed"
    )
    make_account(cloud, EMAIL)
    assert accounts.problems(EMAIL, ["swarm-3"], accounts.look) == []
    own, key = "own@cloud-project.iam.gserviceaccount.com", "rendezvous.serviceAccount"
    (problem,) = accounts.problems(own, ["pilot-rendezvous"], accounts.look, key=key)
    assert problem.startswith(f"pilot-fleet:{key}: there is no service account {own}")


def test_an_account_that_nobody_gets_is_not_looked_up() -> None:
    def look(_: str) -> bool:
        raise AssertionError

    assert accounts.problems(EMAIL, [], look) == []
    assert accounts.problems(None, [], look) == []


@pytest.mark.parametrize(
    ("email", "token", "why"),
    [
        (EMAIL, google_rest.PLACEHOLDER_TOKEN, "there are no Google credentials"),
        ("vms@example.com", "anything", "its address does not name its project"),
        (EMAIL, "anything", "Permission 'iam.serviceAccounts.get' denied"),
    ],
)
def test_an_account_that_cannot_be_looked_up_is_a_warning(
    email: str,
    token: str,
    why: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As Google answers without the right: the same for an account that is not there."""

    def get(_: google_rest.Google, path: str) -> None:
        message = f"Permission 'iam.serviceAccounts.get' denied on {path} (or it may not exist)."
        raise google_rest.GoogleError(message, 403)

    monkeypatch.setenv("GOOGLE_OAUTH_ACCESS_TOKEN", token)
    monkeypatch.setattr(google_rest.Google, "get", get)
    assert accounts.problems(email, ["swarm-3"], accounts.look) == []
    assert why in caplog.text
    assert "swarm-3 is stopped before Google says so" in caplog.text
