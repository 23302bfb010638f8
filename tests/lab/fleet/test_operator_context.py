"""The context that `make lab` makes for the operator, and `make lab-down` removes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lab.fleet import checkout, cloud, operator_context
from lab.fleet.errors import DemoError

URL = "http://127.0.0.1:8480"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The operator's file, which is not there; a lab that does not answer."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(cloud, "API", URL)
    monkeypatch.setattr(cloud, "lab_status", lambda: None)
    return tmp_path / "pilot-fleet" / "contexts.json"


def written(file: Path, current: str, **contexts: dict[str, str]) -> None:
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"current": current, "contexts": contexts}))


def test_the_lab_is_the_current_context_where_there_is_no_other(file: Path) -> None:
    lab = {"project": "lab-project", "endpoint": URL}
    for _ in range(2):
        assert operator_context.make(checkout.fleet()) == ".venv/bin/pilot-fleet live"
        assert json.loads(file.read_text()) == {"current": "lab", "contexts": {"lab": lab}}
    operator_context.forget()
    assert not file.exists()


@pytest.mark.parametrize("current", ["prod", ""])
def test_it_does_not_take_the_place_of_the_current_one(file: Path, current: str) -> None:
    written(file, current, prod={"project": "p"})
    shows = operator_context.make(checkout.fleet())
    assert shows == ".venv/bin/pilot-fleet --context lab live"
    assert json.loads(file.read_text())["current"] == current
    operator_context.forget()
    assert json.loads(file.read_text()) == {
        "current": current,
        "contexts": {"prod": {"project": "p"}},
    }


def test_a_context_of_that_name_for_another_place_is_left_alone(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(file, "lab", lab={"project": "ours", "endpoint": "https://lab.example"})
    before = file.read_text()
    shows = operator_context.make(checkout.fleet())
    assert shows == f".venv/bin/pilot-fleet --project lab-project --endpoint {URL} live"
    assert "no context for `pilot-fleet`: there is a context lab" in capsys.readouterr().out
    operator_context.forget()
    assert file.read_text() == before


def test_a_broken_file_is_a_line_and_no_error(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.parent.mkdir(parents=True)
    file.write_text("{")
    assert "--endpoint" in operator_context.make(checkout.fleet())
    assert f"no context for `pilot-fleet`: {file} is no JSON" in capsys.readouterr().out
    operator_context.forget()
    assert file.read_text() == "{"


def test_the_lab_of_another_checkout_keeps_its_context(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator_context.make(checkout.fleet())

    def others() -> None:
        raise DemoError("the lab in /elsewhere")

    monkeypatch.setattr(cloud, "lab_status", others)
    operator_context.forget()
    monkeypatch.setattr(cloud, "lab_status", lambda: {"driver": "containers"})
    operator_context.forget()
    assert file.exists()
