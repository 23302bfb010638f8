"""Names, users and cgroups of agents, in both layouts."""

from __future__ import annotations

from pathlib import Path

import pytest

from startup.node.machine import agent_units
from startup.node.machine.agent_units import OWN, SHARED, Layout
from startup.node.machine.paths import Paths
from startup.node.setup import units


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(root=tmp_path)


def add(paths: Paths, layout: Layout, port: int, *processes: int) -> Path:
    folder = paths.at("/sys/fs/cgroup/pilot.slice") / layout.cgroup(port)
    folder.mkdir(parents=True)
    (folder / "cgroup.procs").write_text("".join(f"{each}\n" for each in processes))
    return folder


def test_names() -> None:
    assert SHARED.unit(10345) == "pilot-agent@10345.service"
    assert SHARED.cgroup(10345) == "pilot-agent@10345.service"
    assert OWN.unit(10345) == "pilot-agent-05@10345.service"
    assert OWN.cgroup(10345) == "pilot-05.slice/pilot-agent-05@10345.service"
    assert SHARED.templates == ("pilot-agent@.service",)
    assert len(set(OWN.templates)) == agent_units.SLICES
    assert {OWN.template(port) + "@.service" for port in range(1024, 65536)} == set(OWN.templates)


def test_no_two_agents_share_a_user_of_their_own() -> None:
    assert OWN.user(10345) == 1_900_010_345
    assert OWN.user(2001) == 190_002_001
    users = {OWN.user(port) for port in range(1024, 65536)}
    assert len(users) == 65536 - 1024
    # What a process may be, and nobody whom a system or its containers know (0 to 65,536).
    assert min(users) > 1 << 16
    assert max(users) < 1 << 31
    assert {SHARED.user(10001), SHARED.user(10002)} == {610}


def test_both_are_found_by_their_cgroups(paths: Paths) -> None:
    assert agent_units.running(paths) == {}
    assert agent_units.processes_of(paths, 10001) == []
    add(paths, SHARED, 10001, 11)
    add(paths, OWN, 10002, 12, 13)
    add(paths, OWN, 10003)
    top = paths.at("/sys/fs/cgroup/pilot.slice")
    for name in ("pilot-agent@010004.service", "pilot-agent@x.service", "other@10005.service"):
        (top / name).mkdir()
    # The wrong slice: its unit is none of ours.
    (top / "pilot-07.slice" / OWN.unit(10006)).mkdir(parents=True)
    (top / "pilot-agent-00@10009.service").mkdir()
    assert agent_units.running(paths) == {10001: SHARED, 10002: OWN, 10003: OWN}
    assert agent_units.processes(paths) == {10001: [11], 10002: [12, 13]}
    assert agent_units.processes_of(paths, 10002) == [12, 13]
    assert agent_units.layout_of(paths, 10002) is OWN
    assert agent_units.layout_of(paths, 10004) is None
    assert agent_units.socket_of(paths, 10001) == paths.sockets / "10001.sock"
    assert agent_units.socket_of(paths, 10002) == paths.home(10002) / "daemon.sock"


def test_unit_files_of_the_release_before_go_once_no_agent_needs_them(paths: Paths) -> None:
    paths.units.mkdir(parents=True)
    for each in (OWN, SHARED):
        for name in each.templates:
            (paths.units / name).touch()
    running = add(paths, SHARED, 10001, 11)
    add(paths, OWN, 10002, 12)
    assert units.remove_unused(paths) == []
    (running / "cgroup.procs").unlink()
    running.rmdir()
    assert units.remove_unused(paths) == [str(paths.units / "pilot-agent@.service")]
    assert {path.name for path in paths.units.iterdir()} == set(OWN.templates)
