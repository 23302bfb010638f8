"""The fleet carried out: the real engine, a real provider, and a local Compute Engine API.

The API is lab/, a stand-in that boots no machines here: what is tested is what Pulumi asks of
Google, and that a change of what an operator changes every day replaces no VM and no disk.
"""

from __future__ import annotations

import copy
import hashlib
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.cloud.server import Serving, serve
from tests.components.fleet import changed
from tests.engine.project import Project

pytestmark = pytest.mark.engine

CLOUD = "project-1"
# The lab's storage cannot be told from Google's but by its address. Creating a service account
# cannot be sent elsewhere than to Google, so the configuration names one.
FLEET: dict[str, Any] = {"serviceAccount": f"vms@{CLOUD}.iam.gserviceaccount.com"}


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Serving]:
    with serve(tmp_path / "cloud") as serving:
        yield serving


@pytest.fixture
def project(tmp_path: Path, pulumi_env: dict[str, str], cloud: Serving) -> Project:
    made = Project(folder=tmp_path / "fleet", environment=pulumi_env, extra=cloud.settings())
    made.configure(changed(**FLEET))
    return made


def call(cloud: Serving, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """One request to the compute API, in the way of any client."""
    request = urllib.request.Request(
        f"{cloud.url}/compute/v1/{path}",
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": "Bearer anything", "Content-Type": "application/json"},
        method="GET" if body is None else "POST",
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        answer = json.load(response)
    assert isinstance(answer, dict)
    return answer


def delete(cloud: Serving, path: str) -> None:
    request = urllib.request.Request(
        f"{cloud.url}/compute/v1/{path}",
        headers={"Authorization": "Bearer anything"},
        method="DELETE",
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        assert response.status == 200


def make_account(cloud: Serving, email: str) -> None:
    """The service account of that address (`NAME@PROJECT.iam.gserviceaccount.com`)."""
    name, _, domain = email.partition("@")
    request = urllib.request.Request(
        f"{cloud.url}/v1/projects/{domain.partition('.')[0]}/serviceAccounts",
        data=json.dumps({"accountId": name}).encode(),
        headers={"Authorization": "Bearer anything", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        assert json.load(response)["email"] == email


def instances(cloud: Serving) -> dict[str, dict[str, Any]]:
    listed = call(cloud, f"projects/{CLOUD}/zones/us-central1-a/instances")
    return {instance["name"]: instance for instance in listed.get("items", [])}


def metadata(instance: dict[str, Any]) -> dict[str, str]:
    return {item["key"]: item["value"] for item in instance["metadata"]["items"]}


def project_script(cloud: Serving) -> str:
    items = call(cloud, f"projects/{CLOUD}")["commonInstanceMetadata"]["items"]
    (script,) = [item["value"] for item in items if item["key"] == "startup-script"]
    assert isinstance(script, str)
    return script


def test_a_fleets_life(project: Project, cloud: Serving) -> None:
    made = project.up().no_traceback()
    assert made.code == 0, made.text
    vms = instances(cloud)
    assert set(vms) == {"pilot-rendezvous", "swarm-1", "swarm-2", "swarm-3"}
    assert vms["pilot-rendezvous"]["networkInterfaces"][0]["networkIP"] == "10.10.0.2"
    assert all(disk["deviceName"] for vm in vms.values() for disk in vm["disks"])
    script = project_script(cloud)

    # A second run, also one that has asked Google again, changes nothing.
    assert project.steps() == {}
    assert project.steps("--refresh") == {}

    # What operators change every day, and what Google changes for them: all at once, all in place.
    values = changed(**FLEET)
    values["swarm"] = copy.deepcopy(values["swarm"])
    values["swarm"][0] |= {"agents": 3100, "env": {"GOGC": "75"}}
    project.configure(values)
    template = project.folder / "startup" / "startup.sh.j2"
    template.write_text(template.read_text().rstrip("\n") + "\n# a change\n")
    newer = {"name": "debian-12-bookworm-v20990101", "family": "debian-12"}
    call(cloud, "projects/debian-cloud/global/images", newer)
    family = call(cloud, "projects/debian-cloud/global/images/family/debian-12")
    assert family["name"] == newer["name"]
    steps = project.steps("--refresh")
    assert set(steps.values()) == {"update"}, steps
    assert set(steps) == {
        "pilot-fleet-item",  # the script
        "pilot-rendezvous-vm",  # specs: the script's hash, and the fleet's number of agents
        "swarm-1-vm",
        "swarm-2-vm",
        "swarm-3-vm",
    }
    assert project.up("--skip-preview").code == 0
    after = instances(cloud)
    assert {name: vm["id"] for name, vm in after.items()} == {
        name: vm["id"] for name, vm in vms.items()
    }
    assert json.loads(metadata(after["swarm-1"])["pilot-spec"])["agents"] == 3100
    assert project_script(cloud) != script

    # A VM less: its disk is held until somebody says which.
    values["swarm"] = values["swarm"][:2]
    project.configure(values)
    held = project.preview().no_traceback()
    assert held.code != 0
    assert "swarm-3-disk" in held.text
    disk = "pilot:fleet:SwarmVm$gcp:compute/disk:Disk::swarm-3-disk"
    urn = f"urn:pulumi:{project.stack}::pilot-fleet::{disk}"
    let_go = project.pulumi("state", "unprotect", urn, "-s", project.stack, "--yes")
    assert let_go.code == 0, let_go.text
    less = project.up()
    assert less.code == 0, less.text
    assert set(instances(cloud)) == {"pilot-rendezvous", "swarm-1", "swarm-2"}

    # Protected things stay, whatever is typed.
    refused = project.pulumi("destroy", "-s", project.stack, "--yes").no_traceback()
    assert refused.code != 0
    assert "protect" in refused.text
    project.configure(values | {"protect": False})
    assert "stateful-protected" in project.preview().text
    settings = project.folder / "policy" / "settings.json"
    settings.write_text('{"stateful-protected": {"exemptStacks": ["test"]}}')
    unprotected = project.up()
    assert unprotected.code == 0, unprotected.text
    gone = project.pulumi("destroy", "-s", project.stack, "--yes").no_traceback()
    assert gone.code == 0, gone.text
    assert instances(cloud) == {}
    for kind in ("global/networks", "global/firewalls", "zones/us-central1-a/disks"):
        assert not call(cloud, f"projects/{CLOUD}/{kind}").get("items"), kind


def test_a_foreign_startup_script_stops_the_first_update(project: Project, cloud: Serving) -> None:
    foreign = {"items": [{"key": "startup-script", "value": "#!/bin/sh\necho theirs\n"}]}
    fingerprint = call(cloud, f"projects/{CLOUD}")["commonInstanceMetadata"]["fingerprint"]
    call(
        cloud,
        f"projects/{CLOUD}/setCommonInstanceMetadata",
        foreign | {"fingerprint": fingerprint},
    )
    refused = project.up().no_traceback()
    assert refused.code != 0
    assert "already has a startup-script in its metadata" in refused.text
    for what in ("look:", "adopt:", "remove:"):
        assert what in refused.text, refused.text
    assert "theirs" in project_script(cloud)
    assert instances(cloud) == {}

    # The way that the message names.
    (adopt,) = {
        line.split("adopt:", 1)[1].strip() for line in refused.text.splitlines() if "adopt:" in line
    }
    words = adopt.split()
    assert words[:2] == ["pulumi", "import"]
    adopted = project.pulumi(*words[1:], "-s", project.stack, "--yes")
    assert adopted.code == 0, adopted.text
    assert "theirs" in project_script(cloud)
    assert project.steps()["pilot-fleet-item"] == "update"
    done = project.up()
    assert done.code == 0, done.text
    assert "# pilot-fleet startup script" in project_script(cloud)


def test_the_plan_of_an_update_without_the_binaries(project: Project) -> None:
    """Their sha256 stand in the stack file: what a change of it does is planned without them."""
    digests = {}
    for what in ("daemon", "rendezvous"):
        binary = project.folder / "artifacts" / "1.18.0" / f"pilot-{what}"
        digests[what] = hashlib.sha256(binary.read_bytes()).hexdigest()
    values = changed(**FLEET)
    values["release"] = values["release"] | {"sha256": digests}
    project.configure(values)
    binaries = project.folder / "artifacts"
    elsewhere = binaries.rename(project.folder / "elsewhere")
    first = project.preview().no_traceback()
    assert first.code == 0, first.text
    assert "warning: not built: artifacts/1.18.0/pilot-daemon" in first.text
    elsewhere.rename(binaries)
    assert project.up("--skip-preview").code == 0
    binaries.rename(elsewhere)
    again = project.preview("--diff").no_traceback()
    assert again.code == 0, again.text
    assert project.steps() == {}
    # A release that is nowhere yet: its object is new, the VMs are told of it.
    values["release"]["sha256"] = digests | {"daemon": "0" * 64}
    project.configure(values)
    steps = project.steps()
    assert steps.pop("pilot-fleet-pilot-daemon-000000000000") == "create"
    assert {name for name, step in steps.items() if step == "update"} == {
        "swarm-1-vm",
        "swarm-2-vm",
        "swarm-3-vm",
    }
    refused = project.up().no_traceback()
    assert refused.code != 0
    assert "not built: artifacts/1.18.0/pilot-daemon" in refused.text


def test_a_disk_that_would_be_smaller_is_refused(project: Project, cloud: Serving) -> None:
    """By the state, so whatever a provider makes of it: an update that fails, or another disk."""
    values = changed(**FLEET, protect=False)
    values["swarm"][0] |= {"diskGb": 20, "bootDiskGb": 30}
    project.configure(values)
    assert project.up("--skip-preview", policies=False).no_traceback().code == 0
    before = instances(cloud)
    values["swarm"][0] |= {"diskGb": 19, "bootDiskGb": 29}
    values["rendezvous"]["bootDiskGb"] = 19
    project.configure(values)
    for answer in (project.preview(policies=False), project.up("--skip-preview", policies=False)):
        assert answer.no_traceback().code != 0
        for path, size in (
            ("rendezvous.bootDiskGb", "19 is less than the 20 GB"),
            ("swarm[0].bootDiskGb", "29 is less than the 30 GB"),
            ("swarm[0].diskGb", "19 is less than the 20 GB"),
        ):
            assert f"pilot-fleet:{path}: {size}" in answer.text, answer.text
        assert "unprotect" not in answer.text
    assert instances(cloud) == before
