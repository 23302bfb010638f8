"""Images are looked up: there, not there, or nobody can tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pulumi
import pytest

from components import google_rest, images
from components.google_rest import GoogleError
from tests.components.fleet import Recorder
from tools.toolchain import environment

ASKED = {
    "pilot-fleet:image": "corp-images/golden",
    "pilot-fleet:rendezvous.image": "corp-images/golden",
    "pilot-fleet:swarm[1].image": "corp-images/canary",
}


@pytest.fixture(autouse=True)
def engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PULUMI_CONFIG", "{}")
    pulumi.runtime.set_mocks(Recorder(), project="pilot-fleet", stack="test", preview=True)


@pytest.mark.parametrize("dry_run", [True, False])
def test_every_image_that_is_not_there_is_named_with_its_key(dry_run: bool) -> None:
    looked: list[str] = []

    def look(image: str) -> int | None:
        looked.append(image)
        return 10 if image == "corp-images/golden" else None

    sizes, (problem,) = images.look_up(ASKED, set(ASKED), look, dry_run=dry_run)
    assert problem.startswith("pilot-fleet:swarm[1].image: the project corp-images has no")
    assert "Nothing was changed" in problem
    assert looked == ["corp-images/golden", "corp-images/canary"], "each once"
    assert sizes == {"corp-images/golden": 10}
    sizes, problems = images.look_up(ASKED, set(ASKED), lambda _: 10, dry_run=dry_run)
    assert sizes == {"corp-images/golden": 10, "corp-images/canary": 10}
    assert problems == []


@pytest.mark.parametrize("dry_run", [True, False])
def test_one_that_no_boot_disk_is_made_of_is_a_warning(
    dry_run: bool, caplog: pytest.LogCaptureFixture
) -> None:
    needed = {"pilot-fleet:rendezvous.image"}

    def look(image: str) -> int | None:
        return 10 if image == "corp-images/golden" else None

    sizes, problems = images.look_up(ASKED, needed, look, dry_run=dry_run)
    assert (sizes, problems) == ({"corp-images/golden": 10}, [])
    (record,) = caplog.records
    assert record.message.startswith("pilot-fleet:swarm[1].image: the project corp-images has no")
    assert "one that makes a VM with it" in record.message
    caplog.clear()

    def refused(image: str) -> int | None:
        if image == "corp-images/golden":
            return 10
        raise google_rest.NotLookedUpError("Error 403: no right")

    asked = {key: image for key, image in ASKED.items() if key != "pilot-fleet:image"}
    sizes, problems = images.look_up(asked, needed, refused, dry_run=dry_run)
    assert (sizes, problems) == ({"corp-images/golden": 10}, [])
    assert "swarm[1].image: cannot be looked up" in caplog.text


def test_a_failed_look_up_is_a_warning_in_a_preview(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def look(_: str) -> int | None:
        raise google_rest.NotLookedUpError("Error 403: no right")

    assert images.look_up(ASKED, set(ASKED), look, dry_run=True) == ({}, [])
    assert "cannot be looked up" in caplog.text
    assert "Error 403: no right" in caplog.text
    _, (problem,) = images.look_up(ASKED, set(ASKED), look, dry_run=False)
    assert problem.endswith("Error 403: no right. Nothing was changed")


def answering(answer: dict[str, Any] | GoogleError) -> Callable[[str], Any]:
    """Google, which answers that to every question."""

    class Answering:
        def get(self, path: str) -> dict[str, Any]:
            assert path == "projects/corp-images/global/images/golden"
            if isinstance(answer, GoogleError):
                raise answer
            return answer

    return lambda api: Answering()


@pytest.mark.parametrize("state", ["OBSOLETE", "DELETED"])
def test_an_image_that_google_makes_no_disk_from_is_refused(
    monkeypatch: pytest.MonkeyPatch, state: str, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PULUMI_CONFIG", '{"gcp:accessToken": "anything"}')
    monkeypatch.setattr(images, "Google", answering({"deprecated": {"state": state}}))
    asked = {"pilot-fleet:image": "corp-images/golden"}
    sizes, (problem,) = images.look_up(asked, set(asked), images.look, dry_run=True)
    assert sizes == {}
    assert problem.startswith(
        f"pilot-fleet:image: the image golden of the project corp-images is {state}: Google makes "
        "no disk from it. Nothing was changed"
    )
    # VMs that run do not need it.
    assert images.look_up(asked, set(), images.look, dry_run=False) == ({}, [])
    assert f"is {state}: Google makes no disk from it. This update makes no boot" in caplog.text


def test_an_image_that_is_only_deprecated_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PULUMI_CONFIG", '{"gcp:accessToken": "anything"}')
    monkeypatch.setattr(images, "Google", answering({"deprecated": {"state": "DEPRECATED"}}))
    assert images.look("corp-images/golden") == 10
    monkeypatch.setattr(images, "Google", answering(GoogleError("Error 403: no right.", 403)))
    with pytest.raises(google_rest.NotLookedUpError, match="Error 403: no right"):
        images.look("corp-images/golden")


def test_nothing_is_asked_with_the_placeholder_token(monkeypatch: pytest.MonkeyPatch) -> None:
    assert google_rest.PLACEHOLDER_TOKEN == environment.PLACEHOLDER_TOKEN
    monkeypatch.setenv("GOOGLE_OAUTH_ACCESS_TOKEN", google_rest.PLACEHOLDER_TOKEN)
    with pytest.raises(google_rest.NotLookedUpError, match="no Google credentials"):
        images.look("corp-images/golden")
    monkeypatch.setenv("PULUMI_CONFIG", '{"gcp:accessToken": "anything"}')
    monkeypatch.setattr(images, "Google", answering({}))
    assert images.look("corp-images/golden") == 10
