"""The kernel tuning of the startup script: its numbers, their sources, what cannot be set."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from components import capacity
from components.startup import render
from startup.node.desired.spec import SwarmSpec, parse
from startup.node.machine.paths import Paths
from startup.node.setup import kernel, limits
from tests.components.fleet import changed, run_program
from tests.startup import specs
from tests.startup.conftest import Vm

GIB = 1 << 30
MOST = limits.MOST_AGENTS
FILE = "/etc/sysctl.d/60-pilot.conf"
HUGE = "sys/kernel/mm/transparent_hugepage/enabled"
# Upstream's machines (docs/FACTS.md): RAM in GiB, and agents.
FLEET = {"swarm-1": (64, 3000), "swarm-2": (125, 5000), "swarm-3": (32, 1500)}


def tuned(vm: Vm, role: str = "swarm", *, mib: float = 4096, before: str = "") -> str:
    """The output of the script's step on a VM with so much RAM."""
    meminfo = vm.root / "proc/meminfo"
    meminfo.write_text(f"MemTotal:  {int(mib * 1024)} kB\nMemFree: 1 kB\n", encoding="ascii")
    (vm.root / "run/pilot").mkdir(parents=True, exist_ok=True)
    status, output = vm.call(f"umask 022; ROLE={role}; {before}\nensure_kernel")
    assert status == 0, output
    return output


def number(vm: Vm, name: str) -> str:
    return " ".join(vm.read(f"proc/sys/{name.replace('.', '/')}").split())


def with_port(vm: Vm, base_port: int) -> None:
    vm.script.write_text(render(base_port).text, encoding="utf-8")


def test_the_table_of_design(vm: Vm) -> None:
    assert tuned(vm) == ""
    wanted = {
        "kernel.pid_max": "4194304",
        # Of 4 GiB: 4,096 agents at most.
        "kernel.threads-max": str(4096 * 8 + 32768),
        "fs.file-max": "2097152",
        "net.core.rmem_max": "16777216",
        "net.core.wmem_max": "16777216",
        "net.core.rmem_default": "1048576",
        "net.core.wmem_default": "1048576",
        # 4 GiB are 1,048,576 pages.
        "net.ipv4.udp_mem": "65536 131072 196608",
        "kernel.shm_rmid_forced": "1",
        "kernel.sem": "250 4096 100 128",
        "kernel.msgmni": "32",
        "net.ipv4.ip_local_reserved_ports": "3000,9000-9001,9090-9100,20201-20202,10001-21483",
        "net.ipv4.ip_local_port_range": "1024 65535",
    }
    assert {name: number(vm, name) for name in wanted} == wanted
    # The same for `sysctl --system`.
    lines = vm.read(FILE).splitlines()
    assert dict(line.split(" = ") for line in lines if not line.startswith("#")) == wanted


def test_the_rendezvous_keeps_its_ports_and_huge_pages(vm: Vm) -> None:
    (vm.root / HUGE).parent.mkdir(parents=True)
    (vm.root / HUGE).write_text("[always] madvise never\n")
    assert tuned(vm, "rendezvous", mib=16384) == ""
    assert number(vm, "net.ipv4.udp_mem") == "262144 524288 786432"
    assert number(vm, "net.core.rmem_default") == "1048576"
    assert number(vm, "net.ipv4.ip_local_port_range") == "32768 60999"
    assert "ports" not in vm.read(FILE)
    assert vm.read(HUGE) == "[always] madvise never\n"


@pytest.mark.parametrize("mib", [614, 1024, 4096, 32768, 131072])
@pytest.mark.parametrize("page", [4096, 65536])
def test_udp_mem_is_pages_and_leaves_the_system_its_memory(vm: Vm, mib: int, page: int) -> None:
    vm.stub("getconf", f"echo {page}")
    tuned(vm, mib=mib)
    low, pressure, high = map(int, number(vm, "net.ipv4.udp_mem").split())
    assert 0 < low < pressure < high
    ram = mib << 20
    # The kernel's own ceiling, 18.75 %: in bytes it is never the machine.
    assert ram // 6 < high * page <= ram * 3 // 16
    # Between a flood and the ceiling 6,000 sockets have room for their first packets (8 KiB each).
    assert ram < GIB or (high - low) * page >= 6000 * 8192


@pytest.mark.parametrize("name", FLEET)
def test_udp_mem_holds_the_default_buffers_of_all_agents(vm: Vm, name: str) -> None:
    gib, agents = FLEET[name]
    tuned(vm, mib=gib * 1024)
    low, _, _ = map(int, number(vm, "net.ipv4.udp_mem").split())
    assert low * 4096 >= agents * 1048576


@pytest.mark.parametrize(
    ("own", "mib", "expected"),
    [
        # More agents than MiB there are not.
        (5576, 768, 768 * 8 + 32768),
        (31000, 4096, 65536),
        (131072, 131072, 131072),
        (5576, 131072, MOST * 8 + 32768),
        (1_000_000, 131072, 1_000_000),
    ],
)
def test_threads_max(vm: Vm, own: int, mib: int, expected: int) -> None:
    (vm.root / "proc/sys/kernel/threads-max").write_text(f"{own}\n", encoding="ascii")
    tuned(vm, mib=mib)
    assert number(vm, "kernel.threads-max") == str(expected)
    # Applied once more it is the same.
    tuned(vm, mib=mib)
    assert number(vm, "kernel.threads-max") == str(expected)


@pytest.mark.parametrize(
    ("base_port", "agents"),
    [
        (10_000, "10001-21483"),
        (1024, "1025-12507"),
        # The services' ports are among them: the kernel merges ranges.
        (9050, "9051-20533"),
        (54_052, "54053-65535"),
        (54_053, "54054-65535"),
        (65_000, "65001-65535"),
    ],
)
def test_reserved_ports_follow_the_fleets_base_port(vm: Vm, base_port: int, agents: str) -> None:
    with_port(vm, base_port)
    tuned(vm)
    found = number(vm, "net.ipv4.ip_local_reserved_ports")
    assert found == f"3000,9000-9001,9090-9100,20201-20202,{agents}"


def test_every_connection_of_the_most_agents_has_a_local_port(vm: Vm) -> None:
    """Four to one address and port, so each needs its own; and 4,096 for the system."""
    tuned(vm)
    low, high = map(int, number(vm, "net.ipv4.ip_local_port_range").split())
    taken: set[int] = set()
    for part in number(vm, "net.ipv4.ip_local_reserved_ports").split(","):
        first, _, last = part.partition("-")
        taken |= set(range(int(first), int(last or first) + 1))
    free = high - low + 1 - len(taken & set(range(low, high + 1)))
    assert free >= MOST * limits.CONNECTIONS_PER_AGENT + 4096


def test_plan_script_and_program_agree_on_the_most_agents() -> None:
    found = re.findall(r"^readonly MOST_AGENTS=(\d+)$", render(10_000).text, re.MULTILINE)
    assert found == [str(MOST)]
    assert capacity.LOCAL_PORTS * 4 // capacity.LOCAL_PORT_QUARTERS_PER_AGENT == MOST


def script_of(**values: object) -> str:
    fleet = run_program(changed(**values))
    (item,) = fleet.of("compute/projectMetadataItem:ProjectMetadataItem").values()
    return str(item["value"])


def test_a_change_of_agents_changes_no_script() -> None:
    vm = {"name": "swarm-1", "machineType": "n2d-highcpu-128"}
    few, many = (script_of(swarm=[vm | {"agents": count}]) for count in (10, 9000))
    assert few == many == script_of()
    assert script_of(basePort=20_000) != few


def test_grep_finds_every_sysctl() -> None:
    """Those of the design: a reader sees all of them, without unpacking anything."""
    found = [line for line in render(10_000).text.splitlines() if "sysctl" in line]
    for name in (
        *("kernel.pid_max", "kernel.threads-max", "fs.file-max"),
        *("net.core.rmem_max", "net.core.wmem_max"),
        *("net.core.rmem_default", "net.core.wmem_default"),
        *("net.ipv4.udp_mem", "net.ipv4.ip_local_reserved_ports", "net.ipv4.ip_local_port_range"),
        *("kernel.shm_rmid_forced", "kernel.sem", "kernel.msgmni"),
    ):
        assert len([line for line in found if f"ensure_sysctl {name} " in line]) == 1, name


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("[always] madvise never\n", "madvise\n"),
        ("always [madvise] never\n", "always [madvise] never\n"),
        # Somebody's own choice, and less still.
        ("always madvise [never]\n", "always madvise [never]\n"),
        # A kernel without them.
        ("", ""),
    ],
)
def test_huge_pages_are_given_on_request(vm: Vm, before: str, after: str) -> None:
    path = vm.root / HUGE
    if before:
        path.parent.mkdir(parents=True)
        path.write_text(before)
    assert tuned(vm) == ""
    assert (path.read_text() if path.exists() else "") == after


# What cannot be set.


def test_a_number_that_the_kernel_refuses_is_named_and_ends_nothing(vm: Vm) -> None:
    for name in ("kernel/pid_max", "net/core/rmem_max"):
        path = vm.root / "proc/sys" / name
        path.unlink()
        # One that nobody may write.
        path.symlink_to("/proc/sys/kernel/ostype")
    assert tuned(vm) == (
        "pilot:   left as they are: kernel.pid_max (Permission denied), net.core.rmem_max"
        " (Permission denied)\n"
    )
    assert number(vm, "kernel.msgmni") == "32"
    # It is wanted all the same: pilot-node looks for it.
    assert "kernel.pid_max = 4194304\n" in vm.read(FILE)


def test_a_number_that_is_right_need_not_be_written(vm: Vm) -> None:
    path = vm.root / "proc/sys/kernel/shm_rmid_forced"
    path.unlink()
    path.symlink_to("/proc/sys/kernel/ostype")
    name = Path("/proc/sys/kernel/ostype").read_text(encoding="ascii").strip()
    code = f'ensure_sysctl kernel.shm_rmid_forced {name}; echo "left: $LEFT"'
    assert vm.call(code) == (0, "left: \n")


def test_a_number_that_this_kernel_has_not_is_not_made_up(vm: Vm) -> None:
    (vm.root / "proc/sys/net/ipv4/udp_mem").unlink()
    assert tuned(vm) == "pilot:   left as they are: net.ipv4.udp_mem (there is none)\n"
    assert not (vm.root / "proc/sys/net/ipv4/udp_mem").exists()


def test_huge_pages_that_cannot_be_had_otherwise_are_named(vm: Vm) -> None:
    (vm.root / HUGE).parent.mkdir(parents=True)
    (vm.root / HUGE).write_text("[always] madvise never\n")
    refuse = (
        'printf() { [[ $1 != madvise* ]] || { echo "x: Read-only file system" >&2; return 1; }; '
    )
    output = tuned(vm, before=f'{refuse} builtin printf "$@"; }}')
    assert output == (
        "pilot:   left as they are: huge pages, so that agents need more memory (Read-only file"
        " system)\n"
    )


# Files.


def test_people_and_root_may_open_a_million_files(vm: Vm) -> None:
    tuned(vm)
    lines = vm.read("/etc/security/limits.d/60-pilot.conf").splitlines()
    # The wildcard leaves root out.
    assert lines == [
        f"{who} {kind} nofile 1048576" for who in ("*", "root") for kind in ("soft", "hard")
    ]


def test_people_have_no_task_limit_once_systemd_has_read_it(vm: Vm) -> None:
    path = vm.root / "etc/systemd/system/user-.slice.d/60-pilot.conf"
    untold = vm.root / "run/pilot/untold-daemon-reload"
    tuned(vm)
    assert path.read_text().endswith("[Slice]\nTasksMax=infinity\n")
    assert path.stat().st_mode & 0o777 == 0o644
    assert untold.exists()
    # pilot-node removes it once systemd has been told; nothing differs then.
    untold.unlink()
    before = {p: p.stat().st_ino for p in (vm.root / "etc").rglob("*")}
    tuned(vm)
    assert not untold.exists()
    assert {p: p.stat().st_ino for p in (vm.root / "etc").rglob("*")} == before


# pilot-node


def booted(vm: Vm) -> None:
    vm.use_swarm()
    vm.attach_disk()
    status, output = vm.run()
    assert status == 0, output


def told(vm: Vm, *, has_agents: bool = True) -> str:
    return kernel.problem(Paths(root=vm.root), has_agents=has_agents)


def test_pilot_node_finds_all_numbers_and_sets_none(vm: Vm) -> None:
    booted(vm)
    assert told(vm) == ""
    # As the kernel prints it.
    path = vm.root / "proc/sys/net/ipv4/ip_local_reserved_ports"
    path.write_text("3000,9000-9001,9090-9100,10001-21483\n", encoding="ascii")
    assert told(vm) == ""
    (vm.root / "proc/sys/net/ipv4/udp_mem").write_text("4096\t87380\t16777216\n", encoding="ascii")
    before = vm.tree()
    status, output = vm.call("ensure_node spec swarm release units")
    assert status == 0, output
    assert vm.tree() == before
    assert told(vm) == (
        "kernel: net.ipv4.udp_mem is 4096 87380 16777216, not 65536 131072 196608:"
        f" `sysctl --load={FILE}` sets it, or says why not"
    )


def test_pilot_node_names_what_is_not_there(vm: Vm) -> None:
    booted(vm)
    (vm.root / "proc/sys/kernel/msgmni").unlink()
    (vm.root / "proc/sys/net/ipv4/ip_local_reserved_ports").write_text("\n", encoding="ascii")
    assert told(vm).startswith(
        "kernel: kernel.msgmni is not there, not 32, net.ipv4.ip_local_reserved_ports is not"
        " there, not 3000,9000"
    )
    (vm.root / FILE.lstrip("/")).unlink()
    assert told(vm).startswith(f"kernel: {FILE}: No such file or directory; run `rm /run/pilot/gua")


def test_a_file_that_somebody_edited_ends_nothing(vm: Vm) -> None:
    booted(vm)
    with (vm.root / FILE.lstrip("/")).open("ab") as stream:
        stream.write(b"; x = 1\nfs.file-max=7\nno equals\n\nnet.x_ports = a-b\n\xff = 1\n")
    assert told(vm).startswith("kernel: fs.file-max is 2097152, not 7, ")


def test_pilot_node_names_huge_pages_where_it_has_agents(vm: Vm) -> None:
    booted(vm)
    (vm.root / HUGE).parent.mkdir(parents=True)
    (vm.root / HUGE).write_text("[always] madvise never\n")
    assert told(vm, has_agents=False) == ""
    assert told(vm) == f"kernel: huge pages double the agents' memory: `echo madvise >/{HUGE}`"


def test_in_a_container_the_numbers_are_its_hosts(vm: Vm, monkeypatch: pytest.MonkeyPatch) -> None:
    (vm.root / "etc").mkdir()
    assert told(vm) != ""
    # Root may write everywhere but on a read-only file system.
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert told(vm) == ""


def test_more_agents_than_a_vm_has_ports_for_are_refused() -> None:
    for agents in (MOST, MOST + 1):
        spec = parse(specs.text(specs.swarm(agents=agents)))
        assert isinstance(spec, SwarmSpec)
        if agents == MOST:
            limits.check_agents(spec)
        else:
            with pytest.raises(limits.LimitsError, match=f"agents: {agents} .* {MOST} fit"):
                limits.check_agents(spec)
    # The rendezvous' spec has the whole fleet's.
    limits.check_agents(parse(specs.text(specs.rendezvous(agents=50_000))))
