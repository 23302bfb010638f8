"""Images are looked up: there, not there, or nobody can tell."""

from __future__ import annotations

import pulumi
import pytest

from components import images
from tests.components.fleet import Recorder
from toolchain import environment

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

    with pytest.raises(pulumi.RunError) as caught:
        images.require(ASKED, look, dry_run=dry_run)
    assert str(caught.value).startswith(
        "pilot-fleet:swarm[1].image: the project corp-images has no"
    )
    assert "Nothing was changed" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert looked == ["corp-images/golden", "corp-images/canary"], "each once"
    sizes = images.require(ASKED, lambda _: 10, dry_run=dry_run)
    assert sizes == {"corp-images/golden": 10, "corp-images/canary": 10}


def test_what_cannot_be_looked_up_is_a_warning_in_a_preview(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def look(_: str) -> int | None:
        raise images.NotLookedUpError("Error 403: no right")

    assert images.require(ASKED, look, dry_run=True) == {}
    assert "not looked up" in caplog.text
    assert "Error 403: no right" in caplog.text
    with pytest.raises(pulumi.RunError, match=r"Error 403: no right\. Nothing was changed"):
        images.require(ASKED, look, dry_run=False)


def test_nothing_is_asked_with_the_placeholder_token(monkeypatch: pytest.MonkeyPatch) -> None:
    assert images.PLACEHOLDER_TOKEN == environment.PLACEHOLDER_TOKEN
    monkeypatch.setenv("GOOGLE_OAUTH_ACCESS_TOKEN", images.PLACEHOLDER_TOKEN)
    with pytest.raises(images.NotLookedUpError, match="no Google credentials"):
        images.look("corp-images/golden")
    monkeypatch.setenv("PULUMI_CONFIG", '{"gcp:accessToken": "anything"}')
    assert images.look("corp-images/golden") == 10
