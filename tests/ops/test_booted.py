"""The command line on a fleet of containers with real agents; the other tests simulate it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from textual.pilot import Pilot

from lab.machines.processes import ending
from ops import fleet as fleets
from ops import holds
from ops.cli import main
from ops.cloud_address import CloudAddress
from ops.google import Cloud
from ops.looks import FleetLooks
from ops.watch import Limits
from tests.components.fleet import ROOT
from tests.ops.conftest import Said
from tests.ops.recorded import drive, live, screen
from tests.ops.recorded import until as until_shown
from tests.vm.conftest import Boot
from tests.vm.fleet import CLOUD, RENDEZVOUS, Fleet

pytestmark = pytest.mark.engine

WANTED = {"swarm-1": 30, "swarm-2": 50, "swarm-3": 15}
_HIDING = "startup-script"
Run = Callable[..., Said]


@pytest.fixture(scope="module")
def fleet(booted: Boot) -> Iterator[Fleet]:
    with booted("container", WANTED, 240) as made:
        yield made


@pytest.fixture
def place(fleet: Fleet) -> Iterator[Cloud]:
    url = fleet.serving.url
    made = Cloud(CloudAddress(project=CLOUD, compute=url, storage=url, monitoring=url))
    yield made
    # Its connections each keep a thread of the lab, which waits for them at its end.
    vars(made).clear()


@pytest.fixture
def ops(fleet: Fleet, capfd: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> Said:
        capfd.readouterr()
        code = main([*before(fleet), *arguments])
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        return Said(code=code, out=out, err=err)

    return run


def before(fleet: Fleet) -> list[str]:
    return ["--endpoint", fleet.serving.url, "--project", CLOUD, "--poll", "0.5"]


def until(fleet: Fleet, ops: Run, code: int, *arguments: str) -> Said:
    """Repeat a look until it ends with this code: a status takes seconds to be published."""
    last: list[Said] = []

    def looked() -> bool:
        last.append(ops(*arguments))
        return last[-1].code == code

    fleet.until(looked, " ".join(arguments), lambda: str(last[-1]))
    return last[-1]


def test_status_right_after_up(fleet: Fleet, ops: Run) -> None:
    # A published number may be a minute old.
    fleet.until_status(
        RENDEZVOUS, lambda seen: seen["registry"]["online"] == 95, "its registry counts 95"
    )
    found = until(fleet, ops, 0, "status", "--json").json
    assert {row["vm"]: row["running"] for row in found["rows"]} == {RENDEZVOUS: None, **WANTED}
    assert (found["wanted"], found["running"], found["online"]) == (95, 95, 95)
    assert found["registry_source"] == RENDEZVOUS
    assert all(row["memory_left"] for row in found["rows"])
    assert "Errno" not in json.dumps(found), found
    if picture := os.environ.get("PILOT_STATUS_SVG"):
        assert ops("status", "--svg", str(Path(picture))).code == 0


def test_a_quiet_watch_a_clean_audit_and_a_top(fleet: Fleet, ops: Run) -> None:
    quiet = until(fleet, ops, 0, "watch", "--once")
    assert quiet.out == ""
    clean = ops("audit", "--json")
    assert (clean.code, clean.json["findings"]) == (0, [])
    assert "startup-script exit status 0" in ops("logs", "swarm-1", "--no-follow", "--all").out
    assert "http://127.0.0.1:" in ops("dashboard").out


def test_a_restart_that_is_interrupted_and_resumed(fleet: Fleet, ops: Run) -> None:
    """With the registry. The agents keep their identities, and Pulumi sees no change."""
    until(fleet, ops, 0, "status")
    known = fleet.identities()
    command = [sys.executable, "-m", "ops", *before(fleet), "restart", "--yes", "--rendezvous"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    said = []
    with ending(process):
        for line in process.stdout:
            said.append(line)
            if "swarm-1: drain" in line:
                process.send_signal(signal.SIGTERM)
                break
        rest, _ = process.communicate(timeout=60)
    assert process.returncode == 130, [*said, rest]
    assert fleet.running("swarm-3") == 0
    resumed = ops("restart", "--resume")
    assert resumed.code == 0, resumed
    print(resumed.out)
    assert fleet.identities().keys() == known.keys()
    assert fleet.identities() == known
    assert until(fleet, ops, 0, "status", "--json").json["running"] == 95
    assert fleet.project.steps() == {}


def test_a_reboot(fleet: Fleet, ops: Run) -> None:
    known = fleet.identities()
    boot = fleet.run("swarm-3", "cat /proc/sys/kernel/random/boot_id; uptime -s; stat -c %Z /run")
    done = ops("reboot", "--yes", "swarm-3")
    assert done.code == 0, done
    assert fleet.run("swarm-3", "stat -c %Z /run") not in boot.splitlines()
    assert fleet.running("swarm-3") == 15
    assert fleet.identities() == known


def test_benchmarks_pause(fleet: Fleet, ops: Run) -> None:
    assert ops("pause").code == 0
    assert fleet.project.steps() == {}
    assert ops("unpause").code == 0


def test_a_vm_that_dies_and_agents_that_vanish_are_seen(fleet: Fleet, ops: Run) -> None:
    fleet.act("swarm-3", "stop")
    found = ops("watch", "--once", "--json")
    keys = [json.loads(line)["key"] for line in found.out.splitlines()]
    assert (found.code, "swarm-3/off" in keys) == (1, True)
    off = ops("status", "--json")
    assert (off.code, off.json["rows"][3]["phase"]) == (1, "off")
    fleet.act("swarm-3", "start")
    until(fleet, ops, 0, "status")
    assert ops("drain", "swarm-2").code == 0
    assert "fleet/running" in ops("watch", "--once").out
    assert fleet.running("swarm-2") == 0
    assert ops("undrain", "swarm-2").code == 0
    until(fleet, ops, 0, "watch", "--once")


def test_a_ghost_is_found_twice(fleet: Fleet, ops: Run) -> None:
    """By the audit, and by the VM that runs under it."""
    items = fleet.metadata("swarm-1")
    fleet.set_metadata("swarm-1", items | {_HIDING: "#!/bin/sh\n"})
    try:
        found = ops("audit", "--json")
        assert found.code == 1
        assert [each["rule"] for each in found.json["findings"]] == ["ghost-instance"]
        fleet.until(
            lambda: "ghost script at the instance" in ops("status").out, "the VM sees its ghost"
        )
    finally:
        fleet.set_metadata("swarm-1", items)
    until(fleet, ops, 0, "status")


def test_live_from_a_drain_to_a_ghost(fleet: Fleet, place: Cloud) -> None:
    """What an operator sees and does on its screen, with real agents."""
    alerts, limits = partial(holds.alerts, place), Limits()
    app = live(FleetLooks(lambda: fleets.read(place), alerts, limits), at=place, every=1.0)

    def row(vm: str) -> str:
        return next((line for line in screen(app) if line.startswith(vm)), "")

    async def comes(pilot: Pilot[int], what: Callable[[], bool]) -> None:
        # A status is published every five seconds at most, and agents take their time.
        await until_shown(pilot, what, 120)

    async def steps(pilot: Pilot[int]) -> None:
        await comes(pilot, lambda: "95 of 95 online" in screen(app)[0])
        await pilot.press("down")
        await pilot.press("d")
        await comes(pilot, lambda: any("Drain swarm-1" in line for line in screen(app)))
        await pilot.press("y")
        await comes(pilot, lambda: "held" in row("swarm-1"))
        assert fleet.running("swarm-1") == 0
        await pilot.press("u", "y")
        await comes(pilot, lambda: "whole" in row("swarm-1"))
        fleet.act("swarm-3", "stop")
        await comes(pilot, lambda: "off" in row("swarm-3"))
        items = fleet.metadata("swarm-2")
        fleet.set_metadata("swarm-2", items | {_HIDING: "#!/bin/sh\n"})
        ghost = "ALERT swarm-2/ghost"
        await comes(pilot, lambda: any(ghost in line for line in screen(app)))
        fleet.set_metadata("swarm-2", items)
        fleet.act("swarm-3", "start")
        await comes(pilot, lambda: "whole" in row("swarm-3"))
        await pilot.press("q")

    assert drive(app, steps, (160, 50)) == 0


def test_a_registry_that_is_down(fleet: Fleet, ops: Run) -> None:
    assert ops("drain", RENDEZVOUS).code == 0
    down = ops("status", "--json")
    assert (down.code, down.json["online"]) == (1, None)
    assert "registry/down" in ops("watch", "--once").out
    assert ops("undrain", RENDEZVOUS).code == 0
    fleet.all_online()
    until(fleet, ops, 0, "status")
