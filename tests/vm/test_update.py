"""An update that nobody notices: a fleet of the commit before, this one, and back.

The tests share one fleet and go on from each other: forward, a script that fails, and the way back.
PILOT_UPDATE_FROM=COMMIT names another commit to come from. A commit that restarts agents says so in
its text, with their number here: `Restarts-agents: 50` (or PILOT_UPDATE_RESTARTS=50).
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.components.fleet import ROOT
from tests.vm.conftest import Boot
from tests.vm.fleet import CLOUD, RENDEZVOUS, Fleet, said
from tests.vm.rows import EXITS
from tests.vm.update import NO_COMMIT, Looks, carried_over, has_the_script

pytestmark = pytest.mark.engine

WANTED = {"swarm-1": 15, "swarm-2": 35}
VMS = (*WANTED, RENDEZVOUS)
WINDOW = 15
# Seconds from one VM's turn to the next, where they are waited for; and where nobody should.
TURN, LONG = 10, 3600


@pytest.fixture(scope="module")
def fleet(booted: Boot, before: Path | None) -> Iterator[Fleet]:
    settings = {"programStagger": TURN, "window": WINDOW}
    with booted("container", WANTED, 240, tree=before or ROOT, settings=settings) as made:
        with said("orders that must not be carried out twice"):
            _give_orders(made)
        yield made


@pytest.fixture(scope="module")
def broken() -> dict[str, dict[str, str]]:
    """What the `up` of a script that fails has written, once it has: metadata by VM."""
    return {}


def _give_orders(fleet: Fleet) -> None:
    """A store set aside, a restart whose order is gone, and a rejected release that is still the
    declared one: carried out, all of them."""
    fleet.order(RENDEZVOUS, restart="once", clean=True)
    fleet.until_status(RENDEZVOUS, lambda told: bool(told["registry"]["set_aside"]), "set aside")
    fleet.all_online()
    processes = fleet.processes("swarm-1")
    fleet.order("swarm-1", restart="once")
    # By the API, as `up` does; the next `up` declares the same.
    fleet.change_spec("swarm-2", release=fleet.release("9.9.9", EXITS))
    path = fleet.project.folder / "artifacts" / "bad" / "pilot-daemon"
    path.parent.mkdir()
    path.write_bytes(EXITS)
    fleet.releases["swarm-2"] = {"version": "9.9.9", "daemon": "artifacts/bad/pilot-daemon"}
    fleet.until(
        lambda: not set(fleet.processes("swarm-1").values()) & set(processes.values()),
        "an ordered restart",
    )
    fleet.whole("swarm-1")
    fleet.order("swarm-1")
    fleet.until_status(
        "swarm-2",
        lambda told: (told["roll"]["state"], told["phase"]) == ("halted", "whole"),
        "back",
    )
    fleet.until_status("swarm-1", lambda told: told["orders"]["state"] == "absent", "no order")
    fleet.all_online()


def operated_by(fleet: Fleet, tree: Path) -> None:
    """`ops` of `tree` understands the VMs that there are, and they its orders."""
    command = [str(tree / ".venv/bin/python"), "-m", "ops", "--endpoint", fleet.serving.url]

    def ops(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, "--project", CLOUD, *arguments],
            cwd=tree,
            capture_output=True,
            text=True,
            check=False,
        )

    told = ops("status", "--json")
    # 1: the roll of swarm-2 has halted.
    assert told.returncode == 1, told
    rows = {row["vm"]: row for row in json.loads(told.stdout)["rows"]}
    assert {vm: rows[vm]["running"] for vm in WANTED} == WANTED
    assert {row["phase"] for row in rows.values()} == {"whole", "serving"}
    for verb in ("pause", "resume"):
        # It waits until the VMs have read it.
        done = ops(verb)
        assert done.returncode == 0, done


def test_nobody_notices_the_way_forward(fleet: Fleet, before: Path | None, commit: str) -> None:
    if before is None:
        pytest.skip(NO_COMMIT)
    operated_by(fleet, ROOT)
    # That nobody notices who of the two commits gives orders is looked at as well.
    operated = partial(operated_by, fleet, before)
    carried_over(fleet, ROOT, commit, window=WINDOW, after=operated)


def break_units(fleet: Fleet) -> None:
    """`up` of this commit with a script that fails in "units"."""
    fleet.take(ROOT)
    file = fleet.project.folder / "startup" / "node" / "setup" / "apply.py"
    line = "    changed = _write(paths, units.unit_files(kernel.machine(paths), spec), "
    text = file.read_text()
    assert text.count(line) == 1
    file.write_text(text.replace(line, f'    raise limits.LimitsError("no unit fits")\n{line}'))
    fleet.settings["programStagger"] = LONG
    fleet.update(WANTED)
    fleet.settings["programStagger"] = TURN


def the_first_fails_and_the_second_waits(fleet: Fleet) -> None:
    expected = fleet.declared("swarm-1")["script"]["sha256"]
    told = fleet.until_status(
        "swarm-1",
        lambda told: (told["script"]["state"], told["script"]["expected"]) == ("failed", expected),
        "its new script failed",
    )
    assert told["node"]["script"] == ""
    assert told["phase"] == "whole"
    why = fleet.run("swarm-1", "journalctl --unit pilot-script --output cat --lines 12")
    assert 'FAILED in step "program, spec, release, units"' in why
    assert "no unit fits" in why
    told = fleet.until_status(
        "swarm-2",
        lambda told: (told["script"]["state"], told["script"]["expected"]) == ("waiting", expected),
        "it waits for its turn",
    )
    assert told["script"]["turn"] > told["time"]


def touched(fleet: Fleet, *vms: str) -> dict[str, Any]:
    found: dict[str, Any] = {vm: fleet.processes(vm) for vm in vms}
    found[RENDEZVOUS] = fleet.run(RENDEZVOUS, "systemctl show -P MainPID pilot-rendezvous.service")
    return found


def test_a_script_that_fails_and_a_vm_that_boots_into_it_are_mended_by_the_commit_before(
    fleet: Fleet, broken: dict[str, dict[str, str]]
) -> None:
    good = fleet.all_metadata()
    identities, running = fleet.identities(), touched(fleet, *WANTED)
    break_units(fleet)
    broken |= fleet.all_metadata()
    the_first_fails_and_the_second_waits(fleet)
    assert touched(fleet, *WANTED) == running
    runs = len(fleet.ended("swarm-2"))
    fleet.act("swarm-2", "reset")
    assert fleet.until_ended("swarm-2", runs + 1) == 1
    # It fails before any agent is started.
    assert fleet.running("swarm-2") == 0
    # What the `up` of that commit wrote; an `up` itself ends the next test's.
    fleet.write_metadata(good)
    # No pilot-node is there to do it; what does in ten minutes is started now.
    fleet.run("swarm-2", "systemctl start pilot-script-again.service")
    fleet.heard_since(time.monotonic(), "swarm-2")
    for vm in VMS:
        has_the_script(fleet, vm)
    del running["swarm-2"]
    assert touched(fleet, "swarm-1") == running
    # processes() sees that no port has two.
    assert {vm: len(fleet.processes(vm)) for vm in WANTED} == WANTED
    assert fleet.identities() == identities


def test_nobody_notices_a_script_that_fails_and_the_way_back(
    fleet: Fleet, broken: dict[str, dict[str, str]], before: Path | None, commit: str
) -> None:
    """`up` of the commit before comes before the second VM's turn."""
    if not broken:
        pytest.skip("the test before did not come to its script that fails")
    looks, running = Looks(fleet), touched(fleet, *WANTED)
    fleet.write_metadata(broken)
    the_first_fails_and_the_second_waits(fleet)
    assert touched(fleet, *WANTED) == running
    carried_over(fleet, before or ROOT, commit, window=WINDOW, looks=looks)
