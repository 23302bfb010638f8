"""Machine types carried out: the real engine, and a Compute Engine that refuses as Google does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.cloud.server import Serving, serve
from tests.components.fleet import changed
from tests.engine.project import Project
from tests.engine.test_update import FLEET, call, instances

pytestmark = pytest.mark.engine

ZONE = "projects/project-1/zones/us-central1-a"
# Machine type, its size where the program's table has none, and what Google does for maintenance.
MACHINES: dict[str, tuple[dict[str, Any], str]] = {
    "e2-standard-16": ({}, "MIGRATE"),
    "n2d-highcpu-128": ({}, "MIGRATE"),
    "h3-standard-88": ({}, "MIGRATE"),
    "z3-highmem-88-standardlssd": ({}, "MIGRATE"),
    "c3-standard-8-lssd": ({}, "MIGRATE"),
    "n4-standard-16": ({}, "MIGRATE"),
    "c4-highcpu-32": ({}, "MIGRATE"),
    "z3-highmem-88-highlssd": ({}, "TERMINATE"),
    "a2-highgpu-1g": ({"memoryGb": 85, "vcpus": 12}, "TERMINATE"),
    "ct5lp-hightpu-1t": ({"memoryGb": 48, "vcpus": 24}, "TERMINATE"),
    "h4d-standard-192": ({}, "TERMINATE"),
    "c3-standard-192-metal": ({}, "TERMINATE"),
}
HYPERDISK = {"n4-standard-16", "c4-highcpu-32", "h4d-standard-192", "c3-standard-192-metal"}


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Serving]:
    with serve(tmp_path / "cloud") as serving:
        yield serving


def test_every_kind_of_machine_is_made_as_google_takes_it(
    tmp_path: Path, pulumi_env: dict[str, str], cloud: Serving
) -> None:
    """With the disks and the way of maintenance that its type has; the plan says which of them
    Google stops and starts again."""
    project = Project(folder=tmp_path / "fleet", environment=pulumi_env, extra=cloud.settings())
    swarm = [
        {"name": f"swarm-{index}", "machineType": name, "agents": 10} | size
        for index, (name, (size, _)) in enumerate(MACHINES.items())
    ]
    project.configure(changed(swarm=swarm, **FLEET))
    # What the policies do not know has to be told to them, and is not what is tested here.
    up = project.up("--skip-preview", policies=False).no_traceback()
    assert up.code == 0, up.text
    made = instances(cloud)
    found = {
        vm["machineType"].rpartition("/")[2]: vm["scheduling"]["onHostMaintenance"]
        for vm in made.values()
    }
    assert {name: found[name] for name in MACHINES} == {
        name: way for name, (_, way) in MACHINES.items()
    }
    told = {
        name for name in MACHINES if f"({name}) is stopped and started again by Google" in up.text
    }
    assert told == {name for name, way in found.items() if way == "TERMINATE"}
    for index, name in enumerate(MACHINES):
        for disk in (f"swarm-{index}", f"swarm-{index}-state"):
            kind = call(cloud, f"{ZONE}/disks/{disk}")["type"].rpartition("/")[2]
            assert kind == ("hyperdisk-balanced" if name in HYPERDISK else "pd-balanced")
    again = project.up("--skip-preview", "--expect-no-changes", policies=False).no_traceback()
    assert again.code == 0, again.text


def test_what_is_not_sold_is_refused_in_the_plan(
    tmp_path: Path, pulumi_env: dict[str, str]
) -> None:
    project = Project(folder=tmp_path / "fleet", environment=pulumi_env)
    names = [
        "e2-standard-16-lssd",
        "n2d-custom-6-8192",
        "c3-highcpu-4-lssd",
        "c4a-highmem-96-metal",
    ]
    project.configure(
        changed(
            zone="mars-north1-z",
            image="windows-cloud/windows-2022",
            bucket="a..b",
            subnetCidr="35.235.240.0/20",
            swarm=[
                {"name": f"s-{i}", "machineType": name, "agents": 1, "memoryGb": 64, "vcpus": 16}
                for i, name in enumerate(names)
            ],
        ),
        gcp__project="example.com:project-1",
    )
    answer = project.preview(policies=False).no_traceback()
    assert answer.code != 0
    for path in (
        "gcp:project: 'example.com:project-1' is a project with a domain",
        "pilot-fleet:zone: 'mars-north1-z' is not a zone of Google's",
        "pilot-fleet:image: windows-cloud/windows-2022 has no Python 3.11",
        "pilot-fleet:bucket: 'a..b' has a dot beside",
        "pilot-fleet:subnetCidr: 35.235.240.0/20 overlaps",
        "pilot-fleet:swarm[0].machineType: 'e2-standard-16-lssd' is not sold",
        "pilot-fleet:swarm[1].machineType: 'n2d-custom-6-8192' is not sold",
        "pilot-fleet:swarm[2].machineType: 'c3-highcpu-4-lssd' is not sold",
        "pilot-fleet:swarm[3].machineType: 'c4a-highmem-96-metal' is an Arm machine",
    ):
        assert path in answer.text, answer.text
