"""`audit`: every way to smuggle in a script that the API shows, and nothing on a clean fleet."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from components import startup
from ops import audit
from ops.audit import Bag, Declared, ProjectMetadata
from ops.fleet import Fleet
from ops.registry_counts import RegistryCounts
from tests.components.fleet import ROOT
from tests.lab.cloud.client import COMPUTE, ZONE, vm
from tests.ops.conftest import Ops
from tests.ops.simulated import FLEET, RENDEZVOUS, SCRIPT, Simulated, sha256

KEYS = ("startup-script", "shutdown-script", "Startup-Script", "user-data")
AUDIT = ("audit", "--json")


def rules(ops: Ops, *more: str) -> list[str]:
    found = ops(*AUDIT, *more)
    assert found.code == bool(found.json["findings"]), found
    return [each["rule"] for each in found.json["findings"]]


def test_a_clean_fleet(ops: Ops) -> None:
    found = ops(*AUDIT)
    assert (found.code, found.json["findings"]) == (0, [])
    assert found.json["looked_at"] == {"project": 1, "instance": 4, "zone": 1}
    # A part that the API does not have is named.
    assert "managed instance groups (this API does not have them)" in found.json["unread"]


@pytest.mark.parametrize("key", KEYS)
def test_an_instance_level_script(ops: Ops, simulated: Simulated, key: str) -> None:
    simulated.set_metadata("swarm-2", {key: "echo ghost"})
    assert rules(ops) == ["ghost-instance"]
    text = ops("audit").out
    assert f"zones/us-central1-a/instances/swarm-2 [{key}]" in text
    assert f"remove-metadata swarm-2 --zone=us-central1-a --keys={key}" in text
    simulated.set_metadata("swarm-2", {key: None})
    assert rules(ops) == []


def test_a_vm_outside_the_fleet_is_audited(ops: Ops, simulated: Simulated) -> None:
    items = [{"key": "startup-script", "value": "echo mine"}]
    simulated.client.do("POST", f"{ZONE}/instances", vm("builder", metadata={"items": items}))
    assert rules(ops) == ["ghost-instance"]
    assert "; where it is wanted, --allow builder" in ops("audit").out
    assert rules(ops, "--allow", "builder") == []


def test_what_the_checkout_allows(ops: Ops, simulated: Simulated, tmp_path: Path) -> None:
    items = [{"key": "startup-script", "value": "echo mine"}]
    simulated.client.do("POST", f"{ZONE}/instances", vm("builder", metadata={"items": items}))
    file = tmp_path / "declared.json"
    for allowed, found in (([], 1), (["builder"], 0)):
        file.write_text(json.dumps({"script": sha256(SCRIPT), "metadata": {}, "allowed": allowed}))
        everything = rules(ops, "--declared", str(file))
        assert everything.count("ghost-instance") == found


def test_a_script_on_the_fleets_vms_cannot_be_allowed(ops: Ops, simulated: Simulated) -> None:
    simulated.set_metadata("swarm-2", {"startup-script": "echo ghost"})
    assert rules(ops, "--allow", "swarm-2") == ["ghost-instance"]
    text = ops("audit", "--allow", "swarm-2").out
    assert "(a script that the fleet's VMs run cannot be allowed)" in text
    simulated.set_metadata("swarm-2", {"startup-script": None})
    # A stranger that says that it is of the fleet is not let off either.
    items = [{"key": "startup-script", "value": "x"}, {"key": "pilot-role", "value": "swarm"}]
    simulated.client.do("POST", f"{ZONE}/instances", vm("builder", metadata={"items": items}))
    assert "ghost-instance" in rules(ops, "--allow", "builder")
    # Nor is a script that reaches all of them.
    simulated.set_project({"shutdown-script": "x"})
    assert "ghost-project" in rules(ops, "--allow", "builder", "--allow", "shutdown-script")


def test_a_template(ops: Ops, simulated: Simulated) -> None:
    metadata = {"items": [{"key": "startup-script", "value": ""}]}
    body = {"name": "old", "properties": {"machineType": "e2-small", "metadata": metadata}}
    simulated.client.do("POST", f"{COMPUTE}/global/instanceTemplates", body)
    found = ops(*AUDIT).json["findings"]
    assert [(each["rule"], each["where"]) for each in found] == [
        ("ghost-template", "global/instanceTemplates/old [startup-script]")
    ]


def test_a_zone(ops: Ops, simulated: Simulated) -> None:
    path = f"{ZONE}/instanceSettings"
    held = simulated.client.get(path)
    body = {
        "fingerprint": held["fingerprint"],
        "metadata": {"items": {"startup-script": "echo zonal"}},
    }
    simulated.client.do("PATCH", path, body)
    assert rules(ops) == ["ghost-zone"]


@pytest.mark.parametrize("key", ["startup-script-url", "shutdown-script", "user-data"])
def test_another_key_of_the_project(ops: Ops, simulated: Simulated, key: str) -> None:
    simulated.set_project({key: "gs://x"})
    assert rules(ops) == ["ghost-project"]


def test_a_foreign_project_script(ops: Ops, simulated: Simulated) -> None:
    simulated.set_project({"startup-script": f"{SCRIPT} # and more"})
    assert rules(ops) == ["script-foreign"]
    simulated.set_project({"startup-script": f"{SCRIPT}\n"})
    assert rules(ops) == [], "white space at the end is what some tools add"
    simulated.set_project({"startup-script": None})
    assert rules(ops) == ["script-missing"]


@pytest.mark.parametrize("change", ["script", "another script", "key", "value"])
def test_a_remedy_has_pulumi_ask_google(ops: Ops, simulated: Simulated, change: str) -> None:
    """Without --refresh it compares with its state, and finds nothing to change."""
    if change == "script":
        simulated.set_project({"startup-script": None})
    elif change == "another script":
        simulated.set_project({"startup-script": f"{SCRIPT} # and more"})
    elif change == "key":
        simulated.set_metadata("swarm-3", {"ssh-keys": "root:x"})
    else:
        simulated.set_metadata("swarm-3", {"enable-oslogin": "FALSE"})
    (found,) = ops(*AUDIT, "--expected-sha256", sha256(SCRIPT)).json["findings"]
    assert "make up ARGS=--refresh" in found["remedy"], found


def test_the_script_against_the_checkout(ops: Ops) -> None:
    assert rules(ops, "--expected-sha256", sha256(SCRIPT)) == []
    assert rules(ops, "--expected-sha256", "0" * 64) == ["script-differs", "script-foreign"]
    assert ops(*AUDIT, "--expected-sha256", "12").code == 2


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"ssh-keys": "root:x"}, ["undeclared-key"]),
        ({"enable-guest-attributes": None}, ["metadata"]),
        ({"enable-oslogin": "FALSE"}, ["metadata"]),
        # Its agents are then wanted by nobody.
        ({"pilot-spec": "{"}, ["metadata", "missing"]),
        ({"pilot-role": "rendezvous"}, ["metadata", "missing"]),
    ],
)
def test_metadata_that_nobody_declared(
    ops: Ops, simulated: Simulated, changes: dict[str, str | None], expected: list[str]
) -> None:
    simulated.set_metadata("swarm-3", changes)
    assert sorted(set(rules(ops))) == expected


def test_another_vms_spec(ops: Ops, simulated: Simulated) -> None:
    items = simulated.instance("swarm-1")["metadata"]["items"]
    stolen = next(each["value"] for each in items if each["key"] == "pilot-spec")
    simulated.set_metadata("swarm-3", {"pilot-spec": stolen})
    assert rules(ops) == ["metadata"]


def test_a_vm_that_saw_a_ghost_in_its_project(ops: Ops, simulated: Simulated) -> None:
    simulated.nodes["swarm-1"].changes["ghosts"] = ("project/shutdown-script",)
    simulated.tick()
    assert rules(ops) == ["ghost-instance"]
    simulated.set_project({"shutdown-script": "x"})
    assert rules(ops) == ["ghost-project"], "the API shows it: once is enough"


def test_a_silent_vm_and_one_that_saw_a_ghost(ops: Ops, simulated: Simulated) -> None:
    simulated.nodes["swarm-1"].changes["ghosts"] = ("startup-script",)
    simulated.tick()
    simulated.publish("swarm-3", "{}")
    assert rules(ops) == ["ghost-instance", "silent"]


def test_a_vm_without_the_fleets_label_that_runs_agents(ops: Ops, simulated: Simulated) -> None:
    items = [{"key": "pilot-role", "value": "swarm"}]
    simulated.client.do("POST", f"{ZONE}/instances", vm("shadow", metadata={"items": items}))
    assert rules(ops) == ["stranger"]


def test_what_the_checkout_declares(ops: Ops, simulated: Simulated, tmp_path: Path) -> None:
    """As the program declares it, read without an engine and without state."""
    command = [sys.executable, "-m", "components.declared"]
    done = subprocess.run([*command, "lab"], cwd=ROOT, capture_output=True, check=True)
    file = tmp_path / "declared.json"
    file.write_bytes(done.stdout)
    declared = json.loads(done.stdout)
    assert declared["script"] == startup.render(10_000).sha256
    assert set(declared["metadata"]) == {RENDEZVOUS, "swarm-1", "swarm-2", "swarm-3"}
    assert declared["zones"] == dict.fromkeys(declared["metadata"], "us-central1-a")
    found = ops(*AUDIT, "--declared", str(file)).json["findings"]
    assert {each["rule"] for each in found} == {
        "script-differs",
        "script-foreign",
        "metadata-differs",
    }
    differing = {each["where"]: each["what"] for each in found}
    assert "agents" in differing["zones/us-central1-a/instances/swarm-1 [pilot-spec]"]
    for name, metadata in declared["metadata"].items():
        simulated.set_metadata(name, dict(metadata))
    simulated.set_project({"startup-script": startup.render(10_000).text})
    assert rules(ops, "--declared", str(file)) == []
    assert rules(ops) == [], "95 agents are declared, and wanted"
    simulated.client.do("DELETE", f"{ZONE}/instances/swarm-2")
    (found,) = ops(*AUDIT, "--declared", str(file)).json["findings"]
    assert found["rule"] == "missing"
    assert found["what"].startswith("swarm-2 is declared and not there")
    assert "make up ARGS=--refresh" in found["remedy"]
    (found,) = ops(*AUDIT).json["findings"]
    assert (found["rule"], found["what"][:18]) == ("missing", "50 of 95 agents th")
    file.write_text("{}")
    assert ops(*AUDIT, "--declared", str(file)).code == 2
    assert ops(*AUDIT, "--declared", str(tmp_path / "none")).code == 2
    nowhere = subprocess.run([*command, "nowhere"], cwd=ROOT, capture_output=True, check=False)
    assert (nowhere.returncode, b"Pulumi.nowhere.yaml" in nowhere.stderr) == (2, True)


def test_a_release_unknown_to_the_checkout_is_no_difference() -> None:
    one = json.dumps({"release": {"version": "1", "daemon": {"sha256": "a"}}, "agents": 3})
    null = json.dumps({"release": {"version": "1", "daemon": None}, "agents": 3})
    other = json.dumps({"release": {"version": "2", "daemon": None}, "agents": 3})
    assert audit._same(one, null)
    assert not audit._same(one, other)
    assert not audit._same(null, one)


def test_machine_images_and_groups_with_metadata() -> None:
    """Kinds that the lab does not have: the same rule."""
    bags = tuple(
        Bag(kind=kind, where=f"zones/z/{kind}s/x", metadata={"user-data": "#cloud-config"})
        for kind in ("image", "group")
    )
    project = ProjectMetadata(
        name="p", instances=(), bags=bags, metadata={"startup-script": SCRIPT}
    )
    fleet = Fleet(name=FLEET, project="p", time=0, vms=(), registry=RegistryCounts())
    report = audit.audit(project, fleet, Declared(script=sha256(SCRIPT)))
    found: list[Any] = [each.rule for each in report.findings]
    assert found == ["ghost-image", "ghost-group", "no-rendezvous"]


def test_the_scheduled_job_runs_this_command() -> None:
    text = (ROOT / ".github" / "workflows" / "audit.yml").read_text()
    assert "python -m ops" in text
    assert "schedule:" in text
