"""Zones that do not answer: found in the state, asked, told."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pulumi
import pytest

from components import dead_zones
from components.dead_zones import InZone, by_zone, dead, sentence
from lab.cloud.server import serve
from tests.lab.cloud.client import Client

A, B = "us-central1-a", "us-central1-b"
INSTANCE, DISK = "gcp:compute/instance:Instance", "gcp:compute/disk:Disk"


def resource(type_: str, name: str, **values: Any) -> dict[str, Any]:
    return {"urn": f"urn:{name}", "type": type_, "inputs": {"name": name}, **values}


STATE = {
    "deployment": {
        "resources": [
            resource("pulumi:pulumi:Stack", "stack", outputs={"zone": A}),
            resource(INSTANCE, "pilot-rendezvous", outputs={"zone": A}),
            resource(DISK, "pilot-rendezvous-state", outputs={"zone": f"https://x/zones/{A}"}),
            resource(INSTANCE, "swarm-1", outputs={"zone": B}),
            # Half made: no outputs.
            {"urn": "urn:new", "type": INSTANCE, "inputs": {"name": "swarm-2", "zone": B}},
            resource("gcp:compute/network:Network", "network", outputs={}),
        ]
    }
}


def test_what_is_in_each_zone_is_found_in_the_state() -> None:
    assert by_zone(STATE) == {
        A: InZone(
            urns=("urn:pilot-rendezvous", "urn:pilot-rendezvous-state"),
            vms=("pilot-rendezvous",),
        ),
        B: InZone(urns=("urn:swarm-1", "urn:new"), vms=("swarm-1", "swarm-2")),
    }
    # A new stack's export.
    for empty in ({}, {"deployment": None}, {"deployment": {"resources": None}}):
        assert by_zone(empty) == {}


def test_one_answer_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_zones, "_APART", 0)
    answers = {A: ["Backend Error", "Backend Error", ""], B: ["one", "two", "three", ""]}
    assert dead([A, B], lambda zone: answers[zone].pop(0)) == {B: "three"}
    assert answers == {A: [], B: [""]}


def test_the_sentence_says_what_is_left_and_what_to_do() -> None:
    text = sentence(A, "Backend Error. ", by_zone(STATE)[A])
    assert text.startswith(f"{A} does not answer (Backend Error): ")
    assert "stays as it is (pilot-rendezvous; resources: 2)" in text
    assert f"Run `make up` again when {A} answers" in text


@pytest.fixture
def settings() -> Iterator[None]:
    """`main` sets those of its process, which is one of its own elsewhere."""
    yield
    pulumi.runtime.set_all_config({})


def told(
    url: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> dict[str, Any]:
    config = f"gcp:project: p1\n  gcp:accessToken: x\n  gcp:computeCustomEndpoint: {url}"
    (folder / "Pulumi.test.yaml").write_text(f"config:\n  {config}/compute/v1/\n")
    monkeypatch.setattr(dead_zones, "ROOT", folder)
    monkeypatch.setattr(dead_zones, "_APART", 0)
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(STATE)))
    assert dead_zones.main("test") == 0
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


@pytest.mark.usefixtures("settings")
def test_a_zone_that_is_dead_is_told_by_its_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve(tmp_path / "cloud") as serving:
        assert told(serving.url, tmp_path, monkeypatch, capsys) == {"exclude": [], "sentences": []}
        client = Client(serving.url)
        client.do("POST", f"/lab/zones/{A}", {"away": True})
        found = told(serving.url, tmp_path, monkeypatch, capsys)
        assert found["exclude"] == ["urn:pilot-rendezvous", "urn:pilot-rendezvous-state"]
        (text,) = found["sentences"]
        assert text.startswith(f"{A} does not answer (Zone {A}: Backend Error): ")
        gone = serving.url
    # The network goes while zones are asked: no zone is to blame.
    answers = iter([lambda _: "nobody answers", None])
    with monkeypatch.context() as network:
        network.setattr(dead_zones, "look", lambda *_: next(answers))
        assert told(gone, tmp_path, monkeypatch, capsys) == {"exclude": [], "sentences": []}
    # Nobody answers at all.
    assert told(gone, tmp_path, monkeypatch, capsys) == {"exclude": [], "sentences": []}
