"""Limits of the kernel: how near they are, and which one a failure has hit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from startup.node.machine.agent_units import OWN
from startup.node.machine.paths import Paths
from startup.node.pressure import kernel_limits
from startup.node.pressure.kernel_limits import LimitUse, explain, used

PROC = {
    "proc/loadavg": "0.10 0.20 0.30 2/1500 4242\n",
    "proc/meminfo": "MemTotal: 1000000 kB\nMemFree: 1 kB\nMemAvailable: 500000 kB\n",
    "proc/net/sockstat": (
        "sockets: used 52\nTCP: inuse 29 orphan 0 tw 80 alloc 33 mem 66\nUDP: inuse 30 mem 100\n"
    ),
    "proc/net/sockstat6": "TCP6: inuse 4\nUDP6: inuse 12\n",
    "proc/sys/fs/file-nr": "1000\t0\t2097152\n",
    "proc/sys/kernel/threads-max": "31000\n",
    "proc/sys/kernel/pid_max": "4194304\n",
    "proc/sys/net/ipv4/udp_mem": "1000 2000 3000\n",
    "proc/sys/net/ipv4/ip_local_port_range": "32768\t60999\n",
    "sys/fs/cgroup/pilot.slice/pids.max": "max\n",
    "sys/fs/cgroup/pilot.slice/pids.current": "1200\n",
    "sys/fs/cgroup/system.slice/google-startup-scripts.service/pids.max": "1138\n",
    "sys/fs/cgroup/system.slice/google-startup-scripts.service/pids.current": "10\n",
}
RUNNER = "sys/fs/cgroup/system.slice/google-startup-scripts.service/"
EAGAIN = "ended (exit-code, status 2): fork: Resource temporarily unavailable"


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    write(tmp_path, PROC)
    return Paths(root=tmp_path)


def write(root: Path, contents: dict[str, str]) -> None:
    for name, text in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="ascii")


def test_none_is_near(paths: Paths) -> None:
    assert used(paths) == ()


@pytest.mark.parametrize(
    ("name", "text", "use"),
    [
        ("proc/loadavg", "0 0 0 1/25000 1", LimitUse(name="threads-max", used=25000, limit=31000)),
        ("proc/sys/kernel/pid_max", "1600", LimitUse(name="pid_max", used=1500, limit=1600)),
        ("proc/sys/fs/file-nr", "1800 0 2000", LimitUse(name="file-max", used=1800, limit=2000)),
        (
            "proc/meminfo",
            "MemTotal: 100 kB\nMemAvailable: 19 kB\n",
            LimitUse(name="memory", used=81 << 10, limit=100 << 10),
        ),
        (
            "proc/net/sockstat",
            "TCP: inuse 1 tw 0\nUDP: inuse 9 mem 900\n",
            LimitUse(name="udp_mem", used=900, limit=1000),
        ),
        (
            "proc/net/sockstat",
            "TCP: inuse 20000 tw 4000\nUDP: inuse 9 mem 0\n",
            LimitUse(name="local ports", used=24000, limit=28232),
        ),
        (
            f"{RUNNER}pids.current",
            "1000",
            LimitUse(
                name="pids.max of system.slice/google-startup-scripts.service",
                used=1000,
                limit=1138,
            ),
        ),
    ],
)
def test_one_is_near(paths: Paths, name: str, text: str, use: LimitUse) -> None:
    write(paths.root, {name: text})
    assert used(paths) == (use,)


def test_the_nearest_first_and_one_of_each_kind(paths: Paths) -> None:
    write(
        paths.root,
        {
            "proc/sys/fs/file-nr": "1700 0 2000",
            f"{RUNNER}pids.current": "1130",
            "sys/fs/cgroup/user.slice/pids.max": "100",
            "sys/fs/cgroup/user.slice/pids.current": "90",
        },
    )
    assert [use.name for use in used(paths)] == [
        "pids.max of system.slice/google-startup-scripts.service",
        "file-max",
    ]


def test_memory_of_the_slice_less_files_that_the_kernel_would_drop(paths: Paths) -> None:
    base = "sys/fs/cgroup/pilot.slice/"
    write(paths.root, {base + "memory.max": "1000", base + "memory.current": "950"})
    assert used(paths) == (LimitUse(name="memory of pilot.slice", used=950, limit=1000),)
    write(paths.root, {base + "memory.stat": "anon 500\nfile 400\nkernel 50\n"})
    assert used(paths) == ()
    # /dev/shm and memfds are counted as files, and stay.
    write(paths.root, {base + "memory.stat": "anon 500\nfile 400\nkernel 50\nshmem 390\n"})
    assert used(paths) == (LimitUse(name="memory of pilot.slice", used=940, limit=1000),)


def test_agents_are_not_looked_at(paths: Paths) -> None:
    base = f"sys/fs/cgroup/pilot.slice/{OWN.cgroup(10001)}/"
    write(paths.root, {base + "pids.max": "10", base + "pids.current": "10"})
    assert used(paths) == ()


def test_a_kernel_that_says_nothing(tmp_path: Path) -> None:
    paths = Paths(root=tmp_path)
    assert used(paths) == ()
    assert explain(EAGAIN, paths).startswith(EAGAIN)
    write(tmp_path, dict.fromkeys(PROC, "rubbish"))
    assert used(paths) == ()


def test_which_of_the_task_limits_it_was(paths: Paths) -> None:
    write(paths.root, {f"{RUNNER}pids.current": "1137"})
    assert explain(EAGAIN, paths) == (
        f"{EAGAIN} [hit pids.max of system.slice/google-startup-scripts.service: 1137 of 1138]"
    )
    write(paths.root, {f"{RUNNER}pids.current": "7", "proc/loadavg": "0 0 0 1/30900 1"})
    assert explain(EAGAIN, paths) == f"{EAGAIN} [hit threads-max: 30900 of 31000]"
    write(paths.root, {"proc/sys/kernel/pid_max": "30950"})
    assert "threads-max: 30900 of 31000" in explain(EAGAIN, paths)
    assert "pid_max: 30900 of 30950" in explain(EAGAIN, paths)


def test_none_of_them_is_full_any_more(paths: Paths) -> None:
    assert explain(EAGAIN, paths) == (
        f"{EAGAIN} [no limit is full now: threads-max: 1500 of 31000 (5%); "
        "pids.max of system.slice/google-startup-scripts.service: 10 of 1138 (1%); "
        "or LimitNPROC of its user]"
    )


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        ("runtime: failed to create new OS thread (have 5 already; errno=11)", "threads-max"),
        ("RuntimeError: can't start new thread", "threads-max"),
        ("ended (resources, status 0)", "threads-max"),
        ("accept4: too many open files in system", "file-max"),
        ("accept4: too many open files", "file-max"),
        ("fork/exec x: cannot allocate memory", "memory"),
        ("fatal error: runtime: out of memory", "memory"),
        ("ended (signal, status 9)", "memory"),
        ("ended (oom-kill, status 9)", "memory"),
        ("write udp: no buffer space available", "udp_mem"),
        ("dial tcp: connect: cannot assign requested address", "local ports"),
    ],
)
def test_a_message_that_sounds_like_a_limit(paths: Paths, failure: str, kind: str) -> None:
    write(
        paths.root,
        {
            "proc/loadavg": "0 0 0 1/31000 1",
            "proc/sys/fs/file-nr": "2097152 0 2097152",
            "proc/meminfo": "MemTotal: 100 kB\nMemAvailable: 1 kB\n",
            "proc/net/sockstat": "TCP: inuse 28000 tw 4000\nUDP: inuse 9 mem 3000\n",
        },
    )
    said = explain(failure, paths)
    assert re.fullmatch(rf"{re.escape(failure)} \[hit {kind}: .*\]", said) or (
        failure.startswith("ended (resources") and kind in said
    )


@pytest.mark.parametrize(
    "failure",
    [
        "ended (exit-code, status 1): register: registry: request failed",
        "fork/exec /opt/x: no such file or directory",
        "no socket after 60 s",
        # Not without a full limit: people use SIGKILL, too.
        "ended (signal, status 9)",
    ],
)
def test_a_message_of_no_limit_is_unchanged(paths: Paths, failure: str) -> None:
    assert explain(failure, paths) == failure


def test_this_machine() -> None:
    """The real /proc: every limit that a kernel has can be read."""
    found = kernel_limits._all(Paths())
    for kind in ("threads-max", "pid_max", "file-max", "memory"):
        assert found[kind], kind
        assert all(0 < use.used <= use.limit for use in found[kind]), found[kind]
