"""A fleet of QEMU guests, for what only a kernel of their own can show.

One fleet for all of it: a guest keeps a processor busy, and two fleets at once starve each other.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from startup.node.machine.agent_units import OWN
from tests.components.fleet import ROOT
from tests.conftest import measured
from tests.vm.as_agent import FORKS, NEIGHBOUR, as_agent
from tests.vm.conftest import Boot
from tests.vm.fleet import CLOUD, RENDEZVOUS, ZONE, Fleet
from tests.vm.rows import QEMU, Row
from tests.vm.update import NO_COMMIT, carried_over, told_since

pytestmark = pytest.mark.engine

VM, AGENTS = "swarm-1", 20
SETTINGS = {"window": 15, "programStagger": 10}
DONE = "pilot: done: swarm"
RESERVE_MB = 384  # the lab's stack
TOKEN = "http://169.254.169.254/computeMetadata/v1/instance/service-accounts/default/token"
ASK = f"curl --silent --show-error --max-time 5 --header 'Metadata-Flavor: Google' {TOKEN}"


@pytest.fixture(scope="module")
def unnoticed(before: Path | None, commit: str) -> Path | None:
    """The tree to come from, where the way from there restarts no agent."""
    return None if before is None or told_since(commit).agents else before


@pytest.fixture(scope="module")
def fleet(booted: Boot, unnoticed: Path | None) -> Iterator[Fleet]:
    # Of the commit before: all that follows is true of guests that were updated.
    with booted("qemu", {VM: AGENTS}, 420, tree=unnoticed or ROOT, settings=SETTINGS) as made:
        yield made


def test_nobody_notices_an_update(
    fleet: Fleet, before: Path | None, unnoticed: Path | None, commit: str
) -> None:
    if before is None:
        pytest.skip(NO_COMMIT)
    if unnoticed is None:
        pytest.skip(
            "the update restarts agents, for which an emulated processor is too slow: see "
            "test_update.py"
        )
    carried_over(fleet, ROOT, commit, window=SETTINGS["window"])


def test_the_kernels_numbers_are_the_designs(fleet: Fleet) -> None:
    memory = int(fleet.run(VM, "sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo"))
    pages = memory // 4
    wanted = {
        "kernel.pid_max": "4194304",
        # Of a VM with so many MiB there are no more agents than that.
        "kernel.threads-max": str((memory >> 10) * 8 + 32768),
        "fs.file-max": "2097152",
        "net.core.rmem_max": "16777216",
        "net.core.wmem_max": "16777216",
        "net.core.rmem_default": "1048576",
        "net.core.wmem_default": "1048576",
        "kernel.shm_rmid_forced": "1",
        "kernel.sem": "250 4096 100 128",
        "kernel.msgmni": "32",
        # A sixteenth, an eighth and three sixteenths of RAM, in pages.
        "net.ipv4.udp_mem": f"{pages // 16} {pages // 8} {pages * 3 // 16}",
        # As the kernel prints them: the Ops Agent's are among those of 11,483 agents.
        "net.ipv4.ip_local_reserved_ports": "3000,9000-9001,9090-9100,10001-21483",
        "net.ipv4.ip_local_port_range": "1024 65535",
    }
    assert _sysctls(fleet, VM, list(wanted)) == wanted
    huge = fleet.run(VM, "cat /sys/kernel/mm/transparent_hugepage/enabled")
    assert huge == "always [madvise] never"
    kernels = ("kernel.threads-max", "net.ipv4.udp_mem")
    common = {name: n for name, n in wanted.items() if "_port" not in name and name not in kernels}
    assert _sysctls(fleet, RENDEZVOUS, list(common)) == common
    (ports,) = _sysctls(fleet, RENDEZVOUS, ["net.ipv4.ip_local_port_range"]).values()
    assert ports == "32768 60999"
    for vm in (VM, RENDEZVOUS):
        assert "left as they are" not in fleet.console(vm)
        told = fleet.status(vm)
        assert told is not None
        assert "kernel: " not in str(told["last_error"])


def test_agents_live_in_their_slice_with_its_limits(fleet: Fleet) -> None:
    told = fleet.run(VM, "for p in $(pgrep -x pilot-daemon); do cat /proc/$p/cgroup; done")
    assert set(told.splitlines()) == {
        f"0::/pilot.slice/{OWN.cgroup(10000 + index)}" for index in range(1, AGENTS + 1)
    }
    memory = int(fleet.run(VM, "sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo"))
    group = "/sys/fs/cgroup/pilot.slice"
    limits = fleet.run(VM, f"cat {group}/pids.max {group}/memory.max {group}/cpu.weight")
    assert limits.split() == ["max", str((memory << 10) - (RESERVE_MB << 20)), "100"]
    # One group of the scheduler's for all, and no controller for each.
    assert "cpu" not in fleet.run(VM, f"cat {group}/cgroup.subtree_control").split()
    assert fleet.run(VM, "systemctl show -P TasksMax pilot.slice") == "infinity"
    agent = fleet.run(VM, "grep 'open files' /proc/$(pgrep -ox pilot-daemon)/limits")
    assert agent.split()[3:5] == ["4096", "4096"]
    score = (
        "cat /proc/$(pgrep -ox pilot-daemon)/oom_score_adj /proc/$(pgrep -ox sshd)/oom_score_adj"
    )
    theirs, sshds = map(int, fleet.run(VM, score).split())
    assert theirs == 500 > sshds


def test_agents_cannot_reach_the_metadata_server(fleet: Fleet) -> None:
    unit = "systemd-run --quiet --wait --pipe"
    others = fleet.attempt(VM, f"{unit} --uid=nobody {ASK}")
    assert others.returncode == 0
    assert "access_token" in others.stdout, others
    agent = f"{unit} --uid=pilot --slice=pilot.slice"
    device = fleet.run(
        VM, "ip -4 route get 169.254.169.254 | sed -n 's/.* dev \\([^ ]*\\).*/\\1/p'"
    )
    # Bound to its device, a socket asks no rule of the routing.
    for how in ("", f"--interface {device}"):
        refused = fleet.attempt(VM, f"{agent} {ASK} {how}")
        # 28: no answer. What it sends does not leave.
        assert (refused.returncode, refused.stdout) == (28, ""), refused
        assert "access_token" in fleet.run(VM, f"{unit} --uid=nobody {ASK} {how}")
    # Not because an agent reaches nothing.
    registry = f"curl --silent --max-time 5 http://{_address(fleet)}:3000/healthz"
    assert '"status"' in fleet.run(VM, f"{agent} {registry}")


def test_an_agent_can_do_nothing_to_its_neighbour(fleet: Fleet) -> None:
    ports = (10001, 10002)
    processes = fleet.processes(VM)
    mine, other = (processes[port][0] for port in ports)
    for port, pid in zip(ports, (mine, other), strict=True):
        status = dict(
            line.split(":\t", 1) for line in fleet.run(VM, f"cat /proc/{pid}/status").splitlines()
        )
        assert status["Uid"].split() == [str(1_900_000_000 + port)] * 4
        assert status["Gid"].split() == ["610"] * 4
        assert status["Groups"].strip() == ""
        assert {int(status[name], 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
        assert status["NoNewPrivs"] == "1"
    can = as_agent(fleet, VM, ports[0], [NEIGHBOUR, *map(str, (*ports, mine, other))])
    assert {what for what, done in can.items() if done} == {
        *("own identity", "own socket", "own socket's place", "own process"),
        # A daemon may be traced by its own user alone.
        "own memory",
    }
    assert "unit     pilot-agent-01@10001.service" in fleet.run(VM, "pilot-node agent 10001")


def test_a_fork_bomb_in_one_agent_is_its_own(fleet: Fleet) -> None:
    before = fleet.processes(VM)
    forks, kib = as_agent(fleet, VM, 10001, [FORKS])
    measured(f"a fork bomb in one agent: {forks} processes, {kib >> 10} MiB")
    # Of its 256 processes the daemon has some, and the bomb's first.
    assert 200 < forks < 256
    fleet.whole(VM)
    after = fleet.processes(VM)
    # Its own daemon dies where it needs a thread just then.
    assert {port for port in before if after[port] != before[port]} <= {10001}


def test_a_login_has_no_task_limit(fleet: Fleet) -> None:
    # A command over SSH is a login session: it is asked what it is in.
    group = fleet.run(VM, "sed -n 's/^0:://p' /proc/self/cgroup")
    assert group.startswith("/user.slice/user-0.slice/session-"), group
    assert fleet.run(VM, "systemctl show -P TasksMax user-0.slice") == "infinity"
    above = "g=$(sed -n 's/^0:://p' /proc/self/cgroup); while [ -n \"$g\" ]; do"
    above += " cat /sys/fs/cgroup$g/pids.max; g=${g%/*}; done"
    assert set(fleet.run(VM, above).split()) == {"max"}
    people = "su --shell /bin/bash --command 'ulimit -Sn; ulimit -Hn' nobody"
    assert fleet.run(VM, people).split() == ["1048576", "1048576"]
    root = "su --login --command 'ulimit -Sn; ulimit -Hn'"
    assert fleet.run(VM, root).split() == ["1048576", "1048576"]


def test_a_state_disk_that_is_made_larger_is_grown_while_the_vm_runs(fleet: Fleet) -> None:
    before, boot = fleet.processes(VM), fleet.boot(VM)
    told = fleet.until_status(VM, lambda told: told["disk"]["size"] is not None, "its state disk")
    old, size_gb = told["disk"], (told["disk"]["device"] >> 30) + 10
    disk = f"/compute/v1/projects/{CLOUD}/zones/{ZONE}/disks/{VM}-state/resize"
    # As `up` does for another `diskGb`.
    fleet.api.do("POST", disk, {"sizeGb": str(size_gb)})
    larger = old["size"] + (9 << 30)
    told = fleet.until_status(
        VM, lambda told: told["disk"]["size"] > larger, "a larger file system"
    )
    assert told["disk"]["device"] == size_gb << 30
    assert told["disk"]["free"] > old["free"] + (9 << 30)
    # What is said is so.
    blocks = fleet.run(VM, "stat --file-system --format '%b %S' /var/lib/pilot").split()
    assert int(blocks[0]) * int(blocks[1]) == told["disk"]["size"]
    assert (fleet.boot(VM), fleet.processes(VM)) == (boot, before)


def test_a_power_cut_brings_back_the_same_agents(fleet: Fleet) -> None:
    before = fleet.identities()
    assert len(before) == AGENTS
    boot, runs = fleet.boot(VM), fleet.console(VM).count(DONE)
    fleet.act(VM, "reset")  # kill -9 of its process, and a new one
    fleet.heard_since(time.monotonic(), VM)
    assert fleet.boot(VM) != boot
    assert fleet.running(VM) == AGENTS
    assert fleet.identities() == before
    assert fleet.stats() == (AGENTS, AGENTS)
    assert fleet.console(VM).count(DONE) == runs + 1


@pytest.mark.parametrize("row", QEMU, ids=lambda row: row.name)
def test_it_does_not_happen(fleet: Fleet, row: Row) -> None:
    """A few rounds of each row that needs a kernel; `make campaign` makes the full counts."""
    chance = Random(row.name)
    for _ in range(row.short):
        measured(f"{row.name}: {row.round(fleet, VM, chance)}")


def _sysctls(fleet: Fleet, vm: str, names: list[str]) -> dict[str, str]:
    told = fleet.run(vm, f"sysctl --values {' '.join(names)}").splitlines()
    return {name: " ".join(value.split()) for name, value in zip(names, told, strict=True)}


def _address(fleet: Fleet) -> str:
    return str(fleet.instance(RENDEZVOUS)["networkInterfaces"][0]["networkIP"])
