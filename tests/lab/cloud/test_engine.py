"""The real Pulumi engine and provider against the lab: one of each resource, through its life."""

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab.cloud.server import Serving
from tests.lab.cloud.client import COMPUTE, ZONE, Client

PROGRAM = Path(__file__).parent / "program"
LONG = 300
"""Seconds after which a run of the CLI is broken; an `up` of all takes about 10."""


@dataclass(frozen=True)
class Stack:
    """A stack of the program in a directory of its own."""

    directory: Path
    environment: dict[str, str]

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            ["pulumi", *arguments, "--non-interactive", "--stack", "test"],
            cwd=self.directory,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=LONG,
            check=False,
        )

    def must(self, *arguments: str) -> str:
        run = self.run(*arguments)
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout

    def set(self, values: dict[str, str]) -> None:
        for key, value in values.items():
            self.must("config", "set", "--plaintext", key, value)

    def steps(self, *arguments: str) -> dict[str, int]:
        """Run an `up`, a `refresh` or a `destroy`; return how many resources it changed, how."""
        self.must(*arguments, "--yes", "--skip-preview")
        history = json.loads(self.must("stack", "history", "--json", "--page-size", "1"))
        changes: dict[str, int] = history[0].get("resourceChanges") or {}
        return {kind: count for kind, count in changes.items() if kind != "same" and count}


@pytest.fixture
def stack(tmp_path: Path, serving: Serving, pulumi_env: dict[str, str]) -> Stack:
    directory = tmp_path / "program"
    shutil.copytree(PROGRAM, directory)
    backend = tmp_path / "backend"
    backend.mkdir()
    environment = {**pulumi_env, "PULUMI_BACKEND_URL": f"file://{backend}"}
    stack = Stack(directory, environment)
    stack.must("stack", "init")
    place = {"gcp:project": "p1", "gcp:region": "us-central1", "gcp:zone": "us-central1-a"}
    stack.set({**place, **serving.settings()})
    return stack


def everything(serving: Serving) -> dict[str, list[str]]:
    """Return the resources in the lab that a program declared."""
    with serving.lab.store.transaction() as tx:
        found = {
            each: list(tx.documents(each))
            for each in tx.collections("")
            if not each.endswith("/operations") and not each.startswith("compute/projects/debian-")
        }
        # What is left of a project that is empty again: its policy and its metadata.
        policy = tx.get("iam/policies", "projects/p1") or {}
        project = tx.get("compute/projects", "p1") or {}
    if "bindings" not in policy:
        found.pop("iam/policies", None)
    if "items" not in project.get("commonInstanceMetadata", {}):
        found.pop("compute/projects", None)
    return found


@pytest.mark.engine
def test_one_of_each_resource_through_its_life(
    stack: Stack, serving: Serving, client: Client
) -> None:
    created = stack.steps("up")
    assert list(created) == ["create"]
    before = client.get(f"{ZONE}/instances/vm")
    assert before["networkInterfaces"][0]["networkIP"] == "10.10.0.2"
    assert len(client.get(f"{ZONE}/disks/state")["resourcePolicies"]) == 2

    assert stack.steps("up") == {}
    assert stack.steps("refresh") == {}

    # In place: the same VM, the same disks.
    stack.set({"value": "2", "label": "two"})
    assert list(stack.steps("up")) == ["update"]
    stack.set({"machineType": "e2-custom-2-1024"})
    assert stack.steps("up") == {"update": 1}
    after = client.get(f"{ZONE}/instances/vm")
    assert after["id"] == before["id"]
    assert after["machineType"].endswith("/e2-custom-2-1024")
    assert after["labels"]["team"] == "two"
    assert {"key": "spec", "value": "2"} in after["metadata"]["items"]
    assert after["status"] == "RUNNING"

    # A newer image in the family is for VMs that are yet to come.
    images = "/compute/v1/projects/debian-cloud/global/images"
    client.do("POST", images, {"name": "debian-12-bookworm-v20270101", "family": "debian-12"})
    assert stack.steps("up") == {}
    assert stack.steps("refresh") == {}

    # A refresh sees another client's change, and the next up reverts it.
    labels = {"labels": {"team": "stranger"}, "labelFingerprint": after["labelFingerprint"]}
    client.do("POST", f"{ZONE}/instances/vm/setLabels", labels)
    assert stack.steps("refresh") == {"update": 1}
    assert stack.steps("up") == {"update": 1}
    assert client.get(f"{ZONE}/instances/vm")["labels"]["team"] == "two"

    assert list(stack.steps("destroy")) == ["delete"]
    assert everything(serving) == {}
    assert serving.lab.unknown == []


@pytest.mark.engine
def test_a_startup_script_of_someone_else_is_not_overwritten(stack: Stack, client: Client) -> None:
    foreign = [{"key": "startup-script", "value": "#!/bin/bash\necho someone else's\n"}]
    held = client.get(COMPUTE)["commonInstanceMetadata"]
    change = {"items": foreign, "fingerprint": held["fingerprint"]}
    client.do("POST", f"{COMPUTE}/setCommonInstanceMetadata", change)
    target = "urn:pulumi:test::everything::gcp:compute/projectMetadataItem:ProjectMetadataItem"
    run = stack.run("up", "--yes", "--skip-preview", "--target", f"{target}::script")
    assert run.returncode != 0
    assert 'key "startup-script" already present in metadata for project "p1"' in run.stdout
    assert client.get(COMPUTE)["commonInstanceMetadata"]["items"] == foreign
