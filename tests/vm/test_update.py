"""An update that nobody notices: a fleet of the commit before, this one, and back.

The tests share one fleet and go on from each other: forward, a script that fails, and the way back.
PILOT_UPDATE_FROM=COMMIT names another commit to come from. A commit that restarts agents says so in
its text, with their number here: `Restarts-agents: 50` (or PILOT_UPDATE_RESTARTS=50).
"""

from __future__ import annotations

import json
import shlex
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from startup.node.machine.agent_units import OWN
from tests.components.fleet import ROOT
from tests.conftest import measured
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


# Runs on a VM as an agent, in its slice: what it can do to itself and to its neighbour.
_AS_AN_AGENT = r"""
import json, os, signal, socket, sys, urllib.request
from pathlib import Path

mine, other = sys.argv[1:3]
ours, theirs = map(int, sys.argv[3:5])
can = {}


def attempt(what, do):
    try:
        do()
        can[what] = True
    except OSError:
        can[what] = False


def swap(path):
    path.rename(path.with_name("d"))
    path.with_name("d").rename(path)


def connect(path):
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(path)


for who, port, pid in (("own", mine, ours), ("other's", other, theirs)):
    home = Path("/var/lib/pilot/agents", port)
    attempt(f"{who} identity", lambda: (home / "identity.json").read_bytes())
    attempt(f"{who} socket", lambda: connect(str(home / "daemon.sock")))
    attempt(f"{who} socket's place", lambda: swap(home / "daemon.sock"))
    attempt(f"{who} process", lambda: os.kill(pid, 0))
    # The kernel asks here what it asks of one who wants to trace it.
    attempt(f"{who} memory", lambda: open(f"/proc/{pid}/mem", "rb").close())
address = "http://169.254.169.254/computeMetadata/v1/instance/name"
asked = urllib.request.Request(address, headers={"Metadata-Flavor": "Google"})
attempt("metadata", lambda: urllib.request.urlopen(asked, timeout=3))
attempt("journald", lambda: connect("/run/systemd/journal/stdout"))
attempt("D-Bus", lambda: connect("/run/dbus/system_bus_socket"))
attempt("shared memory", lambda: Path("/dev/shm/x").write_text("x"))
print(json.dumps(can))
"""


# Runs on a VM as an agent: forks as long as it may. Prints how many, and the KiB that they take.
_FORKS = r"""
import json, os, re, signal
from pathlib import Path


def available():
    return int(re.search(r"MemAvailable: *(\d+)", Path("/proc/meminfo").read_text())[1])


before, count = available(), 0
while True:
    try:
        if not os.fork():
            signal.pause()
    except BlockingIOError:
        break
    count += 1
print(json.dumps([count, before - available()]))
"""


def as_agent(fleet: Fleet, vm: str, port: int, words: list[str]) -> Any:
    """What a Python program says that runs with an agent's user, slice and limit of processes."""
    limit = fleet.run(vm, f"systemctl show -P LimitNPROC {OWN.unit(port)}").strip()
    run = f"systemd-run --quiet --pipe --wait --collect -p LimitNPROC={limit}"
    slice_ = OWN.cgroup(port).partition("/")[0]
    user = f"unshare --setgid 610 --setuid {OWN.user(port)} python3 -c"
    line = f"{run} --slice={slice_} {user} {shlex.join(words)}"
    return json.loads(fleet.run(vm, line.replace("%", "%%")))


def neighbours_are_strangers(fleet: Fleet) -> None:
    """Agents of two users: what one can do to the other, and what a running one may."""
    vm, ports = "swarm-1", (10001, 10002)
    processes = fleet.processes(vm)
    mine, other = (processes[port][0] for port in ports)
    for port, pid in zip(ports, (mine, other), strict=True):
        status = dict(
            line.split(":\t", 1) for line in fleet.run(vm, f"cat /proc/{pid}/status").splitlines()
        )
        assert status["Uid"].split() == [str(1_900_000_000 + port)] * 4
        assert status["Gid"].split() == ["610"] * 4
        assert status["Groups"].strip() == ""
        assert {int(status[name], 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
        assert status["NoNewPrivs"] == "1"
    can = as_agent(fleet, vm, ports[0], [_AS_AN_AGENT, *map(str, (*ports, mine, other))])
    assert {what for what, done in can.items() if done} == {
        *("own identity", "own socket", "own socket's place", "own process"),
        # A daemon may be traced by its own user alone.
        "own memory",
    }


def test_an_agent_can_do_nothing_to_its_neighbour(fleet: Fleet) -> None:
    neighbours_are_strangers(fleet)
    assert "unit     pilot-agent-01@10001.service" in fleet.run("swarm-1", "pilot-node agent 10001")


def test_a_fork_bomb_in_one_agent_is_its_own(fleet: Fleet) -> None:
    """Of its 256 processes the daemon and the bomb's first have some."""
    forks, kib = as_agent(fleet, "swarm-1", 10001, [_FORKS])
    measured(f"a fork bomb in one agent: {forks} processes, {kib >> 10} MiB")
    assert 200 < forks < 256
    told = fleet.until_status("swarm-1", lambda told: told["phase"] == "whole", "whole")
    assert told["totals"]["failures"] == 0


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
