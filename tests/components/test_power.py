"""Which changes stop a VM, and which VM moves to other disks."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from components import outputs
from components.config_parse import parse_fleet
from components.power import STOPS, stopping
from tests.components.fleet import changed

LINK = "https://www.googleapis.com/compute/v1/projects/p/regions/r/subnetworks/fleet"
OLD: dict[str, Any] = {
    "machineType": "e2-standard-16",
    "serviceAccount": {"email": "a@p.iam.gserviceaccount.com", "scopes": ["x", "y"]},
    "shieldedInstanceConfig": {"enableSecureBoot": True, "enableVtpm": True},
    "networkInterfaces": [{"subnetwork": LINK, "networkIp": "10.10.0.3"}],
    "scheduling": {"onHostMaintenance": "MIGRATE", "automaticRestart": True},
    "metadata": {"pilot-spec": "{}"},
    "labels": {"a": "b"},
}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, []),
        ({"machineType": "e2-standard-8"}, ["machineType"]),
        ({"serviceAccount": OLD["serviceAccount"] | {"email": "b@p"}}, ["serviceAccount"]),
        ({"serviceAccount": OLD["serviceAccount"] | {"scopes": ["x"]}}, ["serviceAccount"]),
        ({"serviceAccount": None}, ["serviceAccount"]),
        ({"shieldedInstanceConfig": {"enableVtpm": True}}, ["shieldedInstanceConfig"]),
        ({"minCpuPlatform": "Intel Ice Lake"}, ["minCpuPlatform"]),
        ({"enableDisplay": True}, ["enableDisplay"]),
        ({"advancedMachineFeatures": {"threadsPerCore": 1}}, ["advancedMachineFeatures"]),
        ({"networkInterfaces": [{"subnetwork": f"{LINK}-2"}]}, ["networkInterfaces"]),
        ({"scheduling": {"nodeAffinities": [{"key": "k"}]}}, ["scheduling"]),
        (
            {"machineType": "e2-standard-8", "serviceAccount": {"email": "b@p"}},
            ["machineType", "serviceAccount"],
        ),
        # The same in another spelling, or in full.
        ({"machineType": "projects/p/zones/z/machineTypes/e2-standard-16"}, []),
        ({"serviceAccount": OLD["serviceAccount"] | {"scopes": ["y", "x"]}}, []),
        ({"networkInterfaces": [{"subnetwork": "projects/p/regions/r/subnetworks/fleet"}]}, []),
        ({"minCpuPlatform": "", "enableDisplay": False, "advancedMachineFeatures": None}, []),
        # Changes while the VM runs.
        ({"metadata": {"pilot-spec": '{"agents": 1}'}, "labels": {}, "tags": ["t"]}, []),
        ({"scheduling": {"onHostMaintenance": "TERMINATE", "automaticRestart": False}}, []),
        ({"desiredStatus": "RUNNING"}, []),
    ],
)
def test_changes_that_stop_a_vm(change: dict[str, Any], expected: list[str]) -> None:
    assert stopping(OLD, OLD | change) == expected


def test_an_unknown_value_counts_as_changed() -> None:
    """In a plan whose account is still to be made."""
    new = copy.deepcopy(OLD)
    new["serviceAccount"]["email"] = object()
    assert stopping(OLD, new) == ["serviceAccount"]


def test_the_contract_lists_them() -> None:
    text = (Path(__file__).parents[2] / "docs/CONTRACT.md").read_text(encoding="utf-8")
    section = text.partition("## What stops a VM")[2].partition("\n## ")[0]
    assert [key for key in STOPS if f"`{key}`" not in section] == []


def moves(machine: str, before: dict[str, str]) -> list[str]:
    values = changed()
    values["swarm"][0]["machineType"] = machine
    config = parse_fleet(values, project="project-1")
    return outputs.disk_type_warnings(config, before)


@pytest.mark.parametrize(
    ("before", "after", "warned"),
    [
        ("e2-standard-16", "n4-standard-16", True),
        ("n4-standard-16", "e2-standard-16", True),
        ("c4-standard-16", "n4-standard-16", False),
        ("e2-standard-16", "n2d-standard-16", False),
    ],
)
def test_a_move_to_other_disks_is_warned_about(before: str, after: str, warned: bool) -> None:
    found = moves(after, {"swarm-1": before})
    assert [text.partition(" ")[0] for text in found] == (["swarm-1"] if warned else [])
    assert all("docs/PRODUCTION.md" in text and "do NOT unprotect" in text for text in found)


def test_a_new_fleet_moves_nothing() -> None:
    assert moves("n4-standard-16", {}) == []
