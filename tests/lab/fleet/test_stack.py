"""The lab's stack: what a `pulumi up` that was cut off has left."""

import json
from pathlib import Path
from typing import IO, Any

import pytest

from lab.fleet import checkout, cloud, sessions, stack
from lab.fleet.errors import DemoError
from tests.lab.cloud.client import Client, vm
from tests.lab.cloud.fake_drivers import PATIENCE, Gated
from tests.lab.fleet.conftest import Served
from tests.lab.fleet.fleet import CONFIG, ZONE
from tools.toolchain import commands


def write_pending(state: Path, *operations: dict[str, Any]) -> None:
    file = state / "pulumi" / ".pulumi" / "stacks" / "pilot-fleet" / "lab.json"
    file.parent.mkdir(parents=True)
    latest = {"resources": [], "pending_operations": list(operations)}
    file.write_text(json.dumps({"version": 3, "checkpoint": {"latest": latest}}))


def creating(kind: str, **inputs: str) -> dict[str, Any]:
    return {"type": "creating", "resource": {"type": kind, "inputs": inputs}}


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What is run, and is not."""
    commands_run: list[list[str]] = []

    def run(command: list[str], *, holding: IO[str], log: Path, **environment: str) -> None:
        assert environment["PULUMI_BACKEND_URL"] == f"file://{stack.backend()}"
        commands_run.append(command[2:])

    monkeypatch.setattr(sessions, "run", run)
    return commands_run


def test_a_half_made_resource_is_deleted_and_forgotten(
    served: Client, state: Path, tmp_path: Path, ran: list[list[str]]
) -> None:
    write_pending(
        state,
        creating("gcp:compute/instance:Instance", name="swarm-2", zone=CONFIG.zone),
        creating("gcp:compute/instance:Instance", name="swarm-3", zone=CONFIG.zone),
        creating("gcp:compute/address:Address", name="swarm-3", region="us-central1"),
        creating("gcp:compute/routerNat:RouterNat", name="nat", region="us-central1"),
        creating("gcp:compute/projectMetadataItem:ProjectMetadataItem", key="startup-script"),
        creating("gcp:storage/bucket:Bucket", name="a-bucket"),
        {**creating("gcp:compute/instance:Instance", name="swarm-1", zone=CONFIG.zone),
         "type": "deleting"},
    )  # fmt: skip
    with (tmp_path / "lock").open("w") as lock:
        stack.carry_out(lock, state / "up.log")
    assert cloud.states(CONFIG) == {"swarm-1": "RUNNING"}
    assert [words[:4] for words in ran] == [["exec", "--", "pulumi", "refresh"], ["up", "lab"]]
    assert "--clear-pending-creates" in ran[0]


def test_a_resource_in_creation_is_awaited_before_it_is_deleted(
    serving: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Gated()
    with serving(driver=driver) as client:
        client.call("POST", f"{ZONE}/instances", vm("swarm-1"))
        assert driver.started.wait(PATIENCE)
        fetch = cloud.fetch

        def waited(url: str, *words: Any, **more: Any) -> dict[str, Any]:
            if url.endswith("/wait"):
                driver.go.set()
            return fetch(url, *words, **more)

        monkeypatch.setattr(cloud, "fetch", waited)
        try:
            stack.take_away(
                creating("gcp:compute/instance:Instance", name="swarm-1", zone=CONFIG.zone)
            )
        finally:
            driver.go.set()
        assert cloud.states(CONFIG) == {}


@pytest.mark.parametrize("there", [True, False])
def test_after_an_orderly_end_nothing_is_looked_for(
    state: Path, tmp_path: Path, ran: list[list[str]], there: bool
) -> None:
    if there:
        write_pending(state)
    with (tmp_path / "lock").open("w") as lock:
        stack.carry_out(lock, state / "up.log")
    assert ran == [["up", "lab"]]


def test_names_of_kinds_in_paths() -> None:
    kinds = ("instance", "address", "resourcePolicy", "network", "disk")
    plurals = ["instances", "addresses", "resourcePolicies", "networks", "disks"]
    assert [stack._plural(kind) for kind in kinds] == plurals


def test_an_up_that_fails_says_what_ends_a_conflict(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object, **__: object) -> None:
        raise DemoError("this failed")

    monkeypatch.setattr(sessions, "run", run)
    with (
        (tmp_path / "lock").open("w") as lock,
        pytest.raises(DemoError, match=r"this failed\n.*409.*`make lab-down`, then `make lab`"),
    ):
        stack.carry_out(lock, state / "up.log")


def test_a_path_that_is_no_state_is_told_in_a_sentence(state: Path) -> None:
    write_pending(state)
    file = next((state / "pulumi").rglob("lab.json"))
    file.write_text("{")
    with pytest.raises(DemoError, match="is no state of a stack"):
        stack.pending()


def test_the_lab_keeps_its_state_where_the_toolchain_looks_for_it() -> None:
    assert checkout.STATE / "pulumi" == commands.LAB_BACKEND
    assert checkout.STACK == commands.LAB
