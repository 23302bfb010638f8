"""The rows of the acceptance table: faults on booted VMs, and what must hold while they happen.

A round takes a whole fleet and a source of random choices, does one thing to the fleet, leaves it
whole, and returns its measurements. `make test` makes a few rounds of each row, the campaign as
many as the table asks for. A failed row raises AssertionError.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random
from typing import Any

from lab.machines import processes
from tests.vm.fleet import BOOT_ID, DASHBOARD, RENDEZVOUS, STORE, Fleet, Measured
from tests.vm.kernel_limits import pid_walls, pid_walls_of_a_container
from tests.vm.lost_registry import account_is_refused, copies_are_lost, disk_is_empty
from tests.vm.moved_registry import zone_changes, zone_dies

RUNNER = "google_metadata_script_runner startup"
# Seconds within which the registry's dashboard, or an sshd that is up, has to answer.
ANSWERS = 10.0


# 1. A mass stop takes network or session down


def drained_by_a_session_that_ends(fleet: Fleet, vm: str, chance: Random) -> Measured:
    """`pilot-node drain` in an SSH session that is killed while it drains: it completes, and
    registry and SSH answer throughout."""
    line = fleet.ssh(vm, "pilot-node drain")
    # With a terminal, as a person's session: its end ends the programs in it.
    line.insert(1, "-tt")
    start = time.monotonic()
    session = subprocess.Popen(
        line,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    slowest = 0.0
    with processes.ending(session):
        assert session.stdout is not None
        # Its first line says that the drain is ordered.
        said = session.stdout.readline()
    seen: list[int] = []
    while (not seen or seen[-1]) and time.monotonic() - start < fleet.patience:
        began = time.monotonic()
        done = fleet.once(vm, "pgrep -cx pilot-daemon; true")
        assert done.returncode == 0, f"no login while agents are stopped: {done}"
        assert fleet.stats() is not None, "the registry does not answer while agents are stopped"
        slowest = max(slowest, time.monotonic() - began)
        seen.append(int(done.stdout))
    assert seen[0] > 0, "all had stopped before the session was ended"
    assert seen[-1] == 0, f"{seen[-1]} agents run on {vm}; the session said {said.decode()!r}"
    drained = time.monotonic() - start
    assert slowest < 2 * ANSWERS, f"an answer took {slowest:.1f} s"
    fleet.until_status(vm, lambda told: told["phase"] == "held", "held")
    # The old word, for `undrain`: it has to work on a booted VM as well.
    fleet.run(vm, "pilot-node resume")
    fleet.whole(vm)
    fleet.all_online()
    return {
        "drained_s": round(drained, 1),
        "session_ended_with": seen[0],
        "looks": len(seen),
        "slowest_answers_s": round(slowest, 2),
    }


# 2. Agents double


@contextmanager
def never_more(fleet: Fleet, vm: str) -> Iterator[Callable[[], int]]:
    """Watches a VM's agents: never two on one port, never more than wanted.

    Yields a function that returns how many looks there were.
    """
    over, looks = threading.Event(), 0
    wrong: list[str] = []

    def look() -> None:
        nonlocal looks
        while not over.is_set():
            # While the VM is off there is no login, and nothing to see.
            try:
                done = fleet.once(vm, WATCH)
            except subprocess.TimeoutExpired:
                continue
            for line in done.stdout.splitlines():
                looks += 1
                ports = line.split()
                if len(ports) != len(set(ports)) or len(ports) > fleet.wanted[vm]:
                    wrong.append(f"agents doubled: ports {line}")
            over.wait(0.2)

    def looking() -> None:
        try:
            look()
        except Exception as problem:  # noqa: BLE001 - a thread has nobody else to tell
            wrong.append(f"nobody could look: {problem!r}")

    thread = threading.Thread(target=looking)
    thread.start()
    try:
        yield lambda: looks
        # So that it also sees the agents of the time of the wait.
        reached = looks
        fleet.until(lambda: looks > reached + LOOKS or bool(wrong), "looks at the agents")
    finally:
        over.set()
        thread.join()
    assert not wrong, f"{vm}: {len(wrong)} times: {wrong[0]}"


# So many looks per call: a line with the ports of all agents, also of those just exec'd.
LOOKS = 20
WATCH = (
    f"i=0; while [ $i -lt {LOOKS} ]; do i=$((i+1)); pgrep -ax pilot-daemon |"
    " sed -n 's/.* -listen :\\([0-9]*\\).*/\\1/p' | tr '\\n' ' '; echo; sleep 0.1; done"
)


def kill_pilot_node(fleet: Fleet, vm: str, chance: Random) -> Measured:
    """pilot-node ends by SIGKILL at a random moment: no agent notices. Again while it starts them
    all: it continues from there."""
    before, identities = fleet.processes(vm), fleet.identities()
    with never_more(fleet, vm) as looks:
        time.sleep(chance.uniform(0, 3))
        _kill(fleet, vm)
        fleet.whole(vm)
    assert fleet.processes(vm) == before, "agents were touched"
    fleet.order(vm, hold=True)
    fleet.until_status(vm, lambda told: told["phase"] == "held", "held")
    some = chance.randrange(1, fleet.wanted[vm] // 2)
    with never_more(fleet, vm) as more:
        fleet.order(vm)
        at = _kill(fleet, vm, some)
        fleet.whole(vm)
        fleet.all_online()
    assert at < fleet.wanted[vm], "all had started before pilot-node was killed"
    assert fleet.identities() == identities, "node ids changed"
    return {"looks": looks() + more(), "killed_at": at}


def _kill(fleet: Fleet, vm: str, some: int = 0) -> int:
    """Kill pilot-node once `some` agents run, and wait for the first status of the next one. How
    many agents ran."""
    started = (fleet.status(vm) or {})["node"]["started"]
    count = "pgrep -cx pilot-daemon"
    at = fleet.run(
        vm,
        f'until [ "$({count})" -ge {some} ]; do sleep 0.05; done; {count};'
        " kill -9 $(systemctl show -P MainPID pilot-node.service)",
    )
    fleet.until_status(
        vm, lambda told: bool(told["node"]["started"] != started), "another pilot-node"
    )
    return int(at)


def scripts_in_parallel(fleet: Fleet, vm: str, chance: Random) -> Measured:
    """The startup script run by hand, twice at a time, with the guard removed."""
    before = fleet.processes(vm)
    with never_more(fleet, vm) as looks:
        with ExitStack() as ends:
            runs = []
            for _ in range(2):
                line = f"rm -f /run/pilot/guard; sleep {chance.uniform(0, 1)}; {RUNNER}"
                run = subprocess.Popen(
                    fleet.ssh(vm, line),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
                runs.append(ends.enter_context(processes.ending(run)))
            said = [run.communicate(timeout=fleet.patience)[0] for run in runs]
        assert all("exit status 0" in each for each in said), said
        fleet.whole(vm)
    assert fleet.processes(vm) == before, "agents were touched"
    return {"looks": looks()}


def reboot(fleet: Fleet, vm: str, chance: Random) -> Measured:
    """A reset or a clean reboot of a VM: the same agents, with the same IDs."""
    return _reset(fleet, vm, None, orderly=chance.choice([True, False]))


def reset_during_start(fleet: Fleet, vm: str, chance: Random) -> Measured:
    """A reset, and another one while the VM comes up."""
    return _reset(fleet, vm, chance.uniform(1, 12), orderly=False)


def _reset(fleet: Fleet, vm: str, again: float | None, *, orderly: bool) -> Measured:
    before = fleet.identities()
    with never_more(fleet, vm) as looks:
        if orderly:
            boot = fleet.boot(vm)
            # Once, however often it is asked for: it ends its own session.
            fleet.attempt(vm, f'[ "$({BOOT_ID})" != {boot} ] || systemctl reboot')
            fleet.until(
                lambda: fleet.attempt(vm, BOOT_ID).stdout.strip() not in ("", boot), "another boot"
            )
        else:
            fleet.act(vm, "reset")
        if again is not None:
            # Any moment of its start.
            time.sleep(again)
            fleet.act(vm, "reset")
        moment = time.monotonic()
        fleet.heard_since(moment, vm)
        back = time.monotonic() - moment
        fleet.whole(vm)
    assert fleet.running(vm) == fleet.wanted[vm]
    assert fleet.identities() == before, "node ids changed"
    told: Measured = {"looks": looks(), "orderly": int(orderly), "back_s": round(back, 1)}
    return told | ({} if again is None else {"again_after_s": round(again, 1)})


# 3. Memory takes the machine

# Takes so many MiB, 8 at a time, and keeps them; each page is written to.
HOG = (
    "import sys,time\n"
    "kept=[]\n"
    "for _ in range(int(sys.argv[1])//8):\n"
    "    kept.append(bytearray(b'x')*(8<<20)); time.sleep(float(sys.argv[2]))\n"
    "time.sleep(3600)\n"
)


def memory_runs_out(fleet: Fleet, vm: str, chance: Random) -> Measured:
    """A hog in the benchmarks' slice and 30 % of the agents growing: benchmarks are frozen and
    thawed, sshd and pilot-node live, the agents are back at their number."""
    fleet.whole(vm)
    ours = "systemctl show -P MainPID ssh.service pilot-node.service"
    before = fleet.run(vm, ours)
    fleet.run(vm, f"cat >/run/hog.py <<'END'\n{HOG}END")
    # Not from the status: its figures can be from before the end of an earlier round.
    figures = "sed -n 's/^Mem\\(Total\\|Available\\): *\\([0-9]*\\) kB/\\2/p' /proc/meminfo"
    total, available = (int(kib) >> 10 for kib in fleet.run(vm, figures).split())
    # With the ballast 15 % of the memory are left to it, without 35 %: frozen, and thawed.
    bench, ballast = available - total * 35 // 100, total * 20 // 100
    run = "systemd-run --quiet --collect --unit={} {}python3 /run/hog.py {} 0.1"
    try:
        fleet.run(vm, run.format("ballast", "", ballast))
        fleet.run(vm, run.format("a-benchmark", "pilot-node bench -- ", bench))
        frozen = fleet.until_status(vm, lambda told: told["benchmarks"] == "frozen", "frozen")
        fleet.run(vm, "systemctl stop ballast.service")
        fleet.until_status(vm, lambda told: told["benchmarks"] == "running", "thawed")
        agents = sorted(fleet.processes(vm))
        growing = chance.sample(agents, max(1, len(agents) * 3 // 10))
        # A daemon cannot be made to grow, so a process of its unit does, and it is the daemon that
        # the kernel ends for it: with this score it counts as larger than all of its slice.
        group = "/sys/fs/cgroup/pilot.slice/*/pilot-agent-*@$p.service/cgroup.procs"
        user = "unshare --setgid 610 --setuid 19000$p"
        take = f"exec {user} python3 /run/hog.py {total} 0.1"
        line = f"for d in $(cat {group}); do echo 1000 >/proc/$d/oom_score_adj; done; "
        line += f"echo $$ >$(echo {group}); echo 0 >/proc/self/oom_score_adj; {take}"
        processes = fleet.processes(vm)
        ports = " ".join(map(str, growing))
        killed = "sed -n 's/^oom_kill //p' /proc/vmstat"
        kills = int(fleet.run(vm, killed))
        fleet.run(
            vm,
            f"for p in {ports}; do p=$p setsid sh -c {shlex.quote(line)}"
            " >/dev/null 2>&1 </dev/null & done",
        )
        places = " ".join(f"/proc/{processes[port][0]}" for port in growing)
        gone = f'[ -z "$(ls -d {places} 2>/dev/null)" ]'
        fleet.until_there(vm, gone, "memory has run out, and those who grew are ended")
        kills = int(fleet.run(vm, killed)) - kills
    finally:
        # A benchmark is a unit of its own: it outlives the command that began it.
        fleet.attempt(
            vm, "systemctl stop 'pilotbench-*.service' ballast.service; pkill -9 -f '[/]run/hog.py'"
        )
    fleet.until_status(vm, lambda told: told["benchmarks"] == "none", "no benchmarks")
    fleet.whole(vm)
    fleet.all_online()
    assert fleet.once(vm, "true").returncode == 0, "no login"
    assert fleet.run(vm, ours) == before, "sshd or pilot-node was ended"
    now = fleet.processes(vm)
    ended = {port for port, process in now.items() if process != processes[port]}
    assert ended >= set(growing), f"ended: {sorted(ended)}; growing: {growing}"
    return {
        "available_when_frozen": round(frozen["memory"]["available"] / (total << 20), 3),
        "growing": len(growing),
        "ended": len(ended),
        "oom_kills": kills,
    }


# 4. The registry file is lost

SAVE = f"curl -fsS -X POST http://127.0.0.1:{DASHBOARD}/api/snapshot >/dev/null"
# MiB: so large that most of the time goes into writing it. 9,500 agents have 45.
LARGE = 16


def power_cut_while_it_writes(fleet: Fleet, vm: str, chance: Random) -> Measured:
    """Power is cut while the registry writes its file, as the real one does: beside the old one,
    and in its place once it is whole. It starts, with all that it knew."""
    moment = chance.uniform(0, 4)
    fleet.knobs(padding=LARGE)
    # Not before the first: a login takes seconds, and there would be nothing to cut.
    writes, told = _power_cut(fleet, f"while :; do {SAVE} && echo; done", moment)
    restored = told.pop("restored")
    assert not restored, f"{restored} was restored: a file that is replaced whole was not whole"
    return {"cut_after_s": round(moment, 2), "writes": writes} | told


def power_cut_while_it_writes_over(fleet: Fleet, vm: str, chance: Random) -> Measured:
    """The same with a registry that writes over its only file, cut when part of it is there. That
    is kept aside, and the newest good copy is started from."""
    newest = _copied(fleet, sum(fleet.wanted.values()))
    bad = _files(fleet, "registry.json.bad-*")
    part = int(chance.uniform(0.05, 0.6) * (LARGE << 20))
    size = f'"$(stat -c %s {STORE}/registry.json)"'
    # Not a whole one, which it may have written by itself just before.
    writing = f"{SAVE} & until [ {size} -lt {part} ]; do :; done;"
    writing += f" until [ {size} -ge {part} ]; do :; done; echo"
    fleet.knobs(padding=LARGE, in_place=True)
    _, told = _power_cut(fleet, writing, 0)
    restored = told.pop("restored")
    assert restored == newest, f"{restored!r} was restored, and {newest} was the newest good copy"
    aside = _files(fleet, "registry.json.bad-*")
    assert len(set(aside) - set(bad)) == 1, f"set aside: {aside}, and before: {bad}"
    return {"cut_at_mib": round(part / (1 << 20), 1)} | told


def _power_cut(fleet: Fleet, writing: str, moment: float) -> tuple[int, Measured]:
    """Cut the rendezvous' power so many seconds after `writing`, a command there, has said its
    first line. How many lines it said, how long it took, and the copy that was restored."""
    before = fleet.identities()
    total = sum(fleet.wanted.values())
    process = subprocess.Popen(
        fleet.ssh(RENDEZVOUS, f"timeout 120 sh -c {shlex.quote(writing)}"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    with processes.ending(process):
        assert process.stdout
        assert process.stdout.readline(), "no snapshot was written"
        time.sleep(moment)
        fleet.act(RENDEZVOUS, "reset")
        process.kill()
        lines = 1 + process.stdout.read().count(b"\n")
    start = time.monotonic()
    fleet.until(
        lambda: (fleet.stats() or (0, 0))[0] == total,
        f"{total} nodes are known after the cut",
        lambda: f"registered and online: {fleet.stats()}",
    )
    back = time.monotonic() - start
    fleet.all_online()
    assert fleet.identities() == before, "node ids changed"
    told = fleet.until_status(RENDEZVOUS, lambda told: told["phase"] == "serving", "serving")
    restored = str(told["registry"]["restored"])
    return lines, {"serving_after_s": round(back, 1), "restored": restored}


def _copied(fleet: Fleet, total: int) -> str:
    """Have the rendezvous take a copy that knows all agents, now and not within five minutes."""
    # Their names begin with their time.
    last = max(_files(fleet, "copies/*.json"), default="")
    fleet.run(RENDEZVOUS, f"{SAVE}; systemctl restart pilot-node")
    newer = f'[ "$(ls {STORE}/copies | grep json$ | tail -n 1)" != "{last}" ]'
    fleet.until_there(RENDEZVOUS, newer, f"a copy of the registry after {last or 'none'}")
    copy = max(_files(fleet, "copies/*.json"))
    assert int(copy.removesuffix(".json").rpartition("-")[2]) >= total, f"too old: {copy}"
    return copy


def _files(fleet: Fleet, pattern: str) -> list[str]:
    """The names of the files in the registry's folder."""
    return fleet.run(
        RENDEZVOUS, f"cd {STORE} && ls -d {pattern} 2>/dev/null | sed 's:.*/::'"
    ).split()


# 5. Sockets run out

# Binds so many UDP sockets, sends to them until the kernel takes no more, and prints the counts.
FLOOD = (
    "import json,resource,socket,sys,time\n"
    "count=int(sys.argv[1])\n"
    "resource.setrlimit(resource.RLIMIT_NOFILE,(count+64,count+64))\n"
    "bound=[socket.socket(socket.AF_INET,socket.SOCK_DGRAM) for _ in range(count)]\n"
    "for each in bound: each.bind(('127.0.0.1',0))\n"
    "out=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\n"
    "def refused():\n"
    "    rows=[line.split() for line in open('/proc/net/snmp') if line.startswith('Udp:')]\n"
    "    return int(dict(zip(*rows))['MemErrors'])\n"
    "before,sent=refused(),0\n"
    "while refused()-before<1000 and sent<200:\n"
    "    sent+=1\n"
    "    for each in bound: out.sendto(b'x'*8192,each.getsockname())\n"
    "print(json.dumps({'bound':count,'refused':refused()-before,'sent':sent*count}),flush=True)\n"
    "time.sleep(3600)\n"
)
# Answers each question for an address with 192.0.2.7, as a name server does.
NAMES = (
    "import socket\n"
    "s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.bind(('',53))\n"
    "while True:\n"
    "    q,who=s.recvfrom(512)\n"
    "    end=q.index(b'\\0',12)+5\n"
    "    known=q[end-4:end-2]==b'\\0\\1'\n"
    "    head=q[:2]+b'\\x81\\x80\\0\\1'+(b'\\0\\1' if known else b'\\0\\0')+b'\\0\\0\\0\\0'\n"
    "    answer=b'\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\1\\0\\4\\xc0\\0\\2\\7' if known else b''\n"
    "    s.sendto(head+q[12:end]+answer,who)\n"
)
SOCKETS = 6000


def sockets_run_out(fleet: Fleet, vm: str, chance: Random) -> Measured:
    """6,000 UDP sockets bound and filled until udp_mem refuses: SSH and DNS still work."""
    address = fleet.instance(RENDEZVOUS)["networkInterfaces"][0]["networkIP"]
    fleet.run(RENDEZVOUS, f"cat >/run/names.py <<'END'\n{NAMES}END")
    fleet.run(RENDEZVOUS, "systemd-run --quiet --collect --unit=names python3 /run/names.py")
    asked = "python3 -c 'import socket,sys; print(socket.gethostbyname(sys.argv[1]))' {}.invalid"
    try:
        fleet.run(vm, f"echo nameserver {address} >/etc/resolv.conf")
        assert fleet.run(vm, asked.format("before")) == "192.0.2.7"
        fleet.run(vm, f"cat >/run/flood.py <<'END'\n{FLOOD}END")
        fleet.run(
            vm,
            "systemd-run --quiet --collect --unit=flood -p LimitNOFILE=16384"
            f" -p StandardOutput=file:/run/flood.json python3 /run/flood.py {SOCKETS}",
        )
        fleet.until_there(vm, "[ -s /run/flood.json ]", "UDP sockets are full")
        told = json.loads(fleet.run(vm, "cat /run/flood.json"))
        assert told["refused"] >= 1000, f"udp_mem refused nothing: {told}"
        began = time.monotonic()
        for index in range(5):
            done = fleet.once(vm, asked.format(f"name-{index}"))
            assert done.stdout.strip() == "192.0.2.7", done
        took = time.monotonic() - began
        used = fleet.run(vm, "sed -n 's/^UDP: .* mem \\([0-9]*\\).*/\\1/p' /proc/net/sockstat")
        # From the first of the three on, Linux takes no more than 4 KiB for a UDP socket.
        least = fleet.run(vm, "sysctl -n net.ipv4.udp_mem").split()[0]
        assert int(used) >= int(least) * 0.9, f"{used} pages of {least}"
    finally:
        fleet.attempt(vm, "systemctl stop flood.service; rm -f /etc/resolv.conf /run/flood.json")
        fleet.attempt(RENDEZVOUS, "systemctl stop names.service")
    fleet.whole(vm)
    fleet.all_online()
    return {
        "bound": SOCKETS,
        "refused": int(told["refused"]),
        "udp_pages": int(used),
        "udp_mem_first_pages": int(least),
        "five_logins_and_names_s": round(took, 1),
    }


# The registry starts empty under a living fleet


def registry_starts_empty(fleet: Fleet, vm: str, chance: Random) -> Measured:
    """The rendezvous is restarted without its store: all agents are back, none is gone."""
    before = {each: fleet.processes(each) for each in fleet.wanted}
    failures = {each: _failures(fleet, each) for each in fleet.wanted}
    known = {owner: agent.key for owner, agent in fleet.agents().items()}
    fleet.order(RENDEZVOUS, restart=f"empty-{chance.randrange(1 << 30)}", clean=True)
    start = time.monotonic()
    total = sum(fleet.wanted.values())
    fleet.until(lambda: (fleet.stats() or (total, 0))[0] < total, "an empty registry")
    first = None
    end = time.monotonic() + max(fleet.patience, 600)
    while (online := (fleet.stats() or (0, 0))[1]) < total:
        if online and first is None:
            first = time.monotonic() - start
        assert time.monotonic() < end, f"{online} of {total} are back"
        time.sleep(0.5)
    back = time.monotonic() - start
    assert {owner: agent.key for owner, agent in fleet.agents().items()} == known
    for each in fleet.wanted:
        fleet.whole(each)
    after = {each: fleet.processes(each) for each in fleet.wanted}
    restarted = sum(
        after[each][port] != process
        for each, all_ in before.items()
        for port, process in all_.items()
    )
    failed = sum(_failures(fleet, each) for each in fleet.wanted)
    fleet.order(RENDEZVOUS)
    return {
        "agents": total,
        "first_back_s": round(first or back, 1),
        "all_back_s": round(back, 1),
        "failures": failed - sum(failures.values()),
        "agents_restarted": restarted,
    }


# A bad release spreads

EXITS = b"#!/bin/sh\nexit 3\n"
HANGS = b"#!/bin/sh\nexec sleep 1000000\n"


def growing(accepted: str) -> bytes:
    """A daemon that works and grows 5 MB per minute: the accepted one, and a process beside it."""
    return (
        "#!/bin/sh\n"
        "python3 -c 'import time\nkept=[]\n"
        'while True: kept.append(bytearray(b"x")*(1<<19)); time.sleep(6)\' &\n'
        f'exec /opt/pilot/releases/{accepted}/pilot-daemon "$@"\n'
    ).encode()


def bad_release(fleet: Fleet, vm: str, chance: Random, kind: str) -> Measured:
    """A release that exits, hangs or grows: at most a batch is affected, all go back to the old
    one, and it stays rejected over a reboot."""
    fleet.whole(vm)
    before = fleet.declared(vm)
    good = before["release"]["daemon"]["sha256"]
    batch = before["roll"]["batch"]
    mark = f"# {chance.randrange(1 << 60)}\n".encode()  # each is one that no VM has rejected yet
    body = {"exits": EXITS, "hangs": HANGS, "grows": growing(good)}[kind] + mark
    release = fleet.release(f"9.9.9-{kind}", body)
    bad = release["daemon"]["sha256"]
    old = fleet.processes(vm)
    start = time.monotonic()
    # Less than 20 s of watching cannot tell growth from warming up (rollout.py); 60 is
    # production's.
    watch = 60 if kind == "grows" else before["roll"]["watchSeconds"]
    fleet.change_spec(vm, release=release, roll=before["roll"] | {"watchSeconds": watch})
    try:
        most = 0
        end = time.monotonic() + max(fleet.patience, 420)
        while True:
            told = fleet.status(vm) or {}
            most = max(most, told["release"]["agents"].get(bad, 0))
            assert fleet.wanted[vm] - told["agents"]["running"] <= batch, told
            if (told["roll"]["state"], told["roll"]["sha256"]) == ("halted", bad):
                break
            assert time.monotonic() < end, f"nothing halts the roll: {json.dumps(told)}"
            time.sleep(1)
        halted = time.monotonic() - start
        assert most <= batch, f"{most} agents had it at once, a batch is {batch}"
        assert told["roll"]["reason"], told["roll"]
        assert bad in [each["sha256"] for each in told["roll"]["rejected"]], told["roll"]
        told = fleet.until_status(
            vm, lambda told: told["release"]["agents"] == {good: fleet.wanted[vm]}, "all are back"
        )
        assert told["release"]["sha256"] == good
        back = time.monotonic() - start
        new = fleet.processes(vm)
        touched = sum(new[port] != old[port] for port in old)
        assert touched <= batch, f"{touched} agents were touched, a batch is {batch}"
        fleet.act(vm, "reset")
        fleet.heard_since(time.monotonic(), vm)
        told = fleet.until_status(
            vm,
            lambda told: told["release"]["agents"] == {good: fleet.wanted[vm]},
            "the old release after a reboot",
        )
        assert bad in [each["sha256"] for each in told["roll"]["rejected"]], told["roll"]
        # A batch would have been tried by then, if it were to be tried again.
        later = datetime.fromisoformat(told["time"]) + timedelta(seconds=watch)
        told = fleet.until_status(
            vm, lambda told: datetime.fromisoformat(told["time"]) > later, "watched for a while"
        )
        assert told["roll"]["state"] == "halted", told["roll"]
        # A start that was slow is made again; one of another release would be one more.
        totals = told["totals"]
        assert totals["starts"] - totals["failures"] == fleet.wanted[vm], totals
    finally:
        fleet.change_spec(vm, release=before["release"], roll=before["roll"])
    fleet.whole(vm)
    fleet.all_online()
    reason = str(told["roll"]["reason"])
    return {
        "kind": kind,
        "affected": touched,
        "batch": batch,
        "halted_s": round(halted, 1),
        "back_s": round(back, 1),
        "reason": reason,
    }


# The registry is flooded


A_MINUTE = 10  # new keys of an address, as the real one
# A registry that is always slow leaves this part of a window: one in so many.
SLOW_SHARE = 4


def registry_flooded(fleet: Fleet, vm: str, chance: Random) -> Measured:
    """All VMs start at once at a registry that answers in 0.6 s, in 5 s, refuses: never more
    registrations open than the windows allow, also when a slow registry has made them narrow, and
    the fleet is complete in the end."""
    told: Measured = {"agents": sum(fleet.wanted.values())}
    phases: dict[str, dict[str, Any]] = {
        "0.6 s": {"delay": 0.6},
        "5 s": {"delay": 5},
        # Each is open for a while, so that it can be counted.
        "refused": {"delay": 0.2, "refuse": "error"},
    }
    try:
        for name, turned in phases.items():
            _all_held(fleet)
            before = {each: _failures(fleet, each) for each in fleet.wanted}
            fleet.knobs(**turned, reset_peak=True)
            start = time.monotonic()
            _all_released(fleet)
            if name == "refused":
                for each, failed in before.items():
                    _fails(fleet, each, failed)
                assert fleet.stats() is not None
                fleet.knobs(refuse="no")
            share = 1
            if name == "5 s":
                for each in fleet.wanted:
                    _narrow(fleet, each)
                told[f"most open at {name}, at first"] = _most_open(fleet)
                fleet.knobs(reset_peak=True)
                share = SLOW_SHARE
            for each in fleet.wanted:
                fleet.until_status(each, lambda told: told["phase"] == "whole", f"whole at {name}")
            took = time.monotonic() - start
            told[f"complete at {name}, s"] = round(took, 1)
            told[f"most open at {name}"] = _most_open(fleet, share)
            fleet.knobs(delay=0, refuse="no")
        fleet.all_online()
    finally:
        fleet.knobs(delay=0, refuse="no")
        _all_released(fleet)
    for each in fleet.wanted:
        status = fleet.status(each) or {}
        assert status["agents"]["failed"] == 0, status
    return told


def _failures(fleet: Fleet, vm: str) -> int:
    return int((fleet.status(vm) or {})["totals"]["failures"])


def _fails(fleet: Fleet, vm: str, before: int) -> None:
    fleet.until_status(
        vm, lambda told: bool(told["totals"]["failures"] > before), "a start that is refused"
    )


def new_keys_limited(fleet: Fleet, vm: str, chance: Random) -> Measured:
    """As many new keys as agents, at a registry that takes 10 per minute and address."""
    total = sum(fleet.wanted.values())
    _all_held(fleet)
    for each in fleet.wanted:
        fleet.run(each, "rm -rf /var/lib/pilot/agents/*")
    fleet.order(RENDEZVOUS, restart=f"new-{chance.randrange(1 << 30)}", clean=True)
    try:
        fleet.until(lambda: (fleet.stats() or (total, 0))[0] == 0, "an empty registry")
        turned = {"new_keys_per_minute": A_MINUTE, "ignore_whitelist": True, "delay": 0.2}
        fleet.knobs(**turned, reset_peak=True)
        start = time.monotonic()
        _all_released(fleet)
        end = time.monotonic() + 120 + 60 * max(fleet.wanted.values()) / 5
        while (online := (fleet.stats() or (0, 0))[1]) < total:
            assert time.monotonic() < end, f"{online} of {total} online"
            time.sleep(1)
        took = time.monotonic() - start
        peak = _most_open(fleet)
    finally:
        fleet.knobs(ignore_whitelist=False, delay=0)
        _all_released(fleet)
        fleet.order(RENDEZVOUS)
    for each in fleet.wanted:
        fleet.whole(each)
    # The first ten are taken at once.
    least = (max(fleet.wanted.values()) / A_MINUTE - 1) * 60
    assert took > least * 0.9, f"{total} new keys in {took:.0f} s: the limit was none"
    return {"agents": total, "complete_s": round(took, 1), "most_open": peak}


def _window(fleet: Fleet, vm: str, share: int) -> int:
    """A VM's window, as declared, or this share of it."""
    return max(1, int(fleet.declared(vm)["window"]) // share)


def _narrow(fleet: Fleet, vm: str) -> None:
    """Wait until the starts in flight fit the window that a slow registry has narrowed."""
    window = _window(fleet, vm, SLOW_SHARE)

    def is_narrow(told: dict[str, Any]) -> bool:
        # Not the status of before the order: there was nothing on its way then.
        begun = told["phase"] == "converging" and told["agents"]["running"] > 0
        return bool(begun and max(told["window"]["size"], told["agents"]["starting"]) <= window)

    fleet.until_status(vm, is_narrow, f"a window of {window}")


def _most_open(fleet: Fleet, share: int = 1) -> int:
    """The most registrations that were open at once, in all; no VM had more than its window, or
    this share of it, and none had none."""
    seen = fleet.knobs()["registrations"]
    for each in fleet.wanted:
        window = _window(fleet, each, share)
        address = fleet.instance(each)["networkInterfaces"][0]["networkIP"]
        open_here = seen["peak_by_source"].get(address, 0)
        assert 0 < open_here <= window, f"{each}: {open_here} open at once, {window} may be"
    return int(seen["peak"])


def _all_held(fleet: Fleet) -> None:
    for each in fleet.wanted:
        fleet.order(each, hold=True)
    for each in fleet.wanted:
        fleet.until_status(each, lambda told: told["phase"] == "held", "held")


def _all_released(fleet: Fleet) -> None:
    for each in fleet.wanted:
        fleet.order(each)


@dataclass(frozen=True)
class Row:
    """One thing that must not happen. `short` and `campaign`: how many rounds each makes.

    `few`: so many agents on each VM are enough for a short round; None: it wants all of them.
    """

    name: str
    what: str
    round: Callable[[Fleet, str, Random], Measured]
    short: int
    campaign: int
    few: int | None = None


def _bad(kind: str) -> Callable[[Fleet, str, Random], Measured]:
    def one(fleet: Fleet, vm: str, chance: Random) -> Measured:
        return bad_release(fleet, vm, chance, kind)

    return one


CONTAINER = (
    Row("drain", "a mass stop", drained_by_a_session_that_ends, 1, 5),
    Row("kills", "agents double", kill_pilot_node, 3, 20),
    Row("scripts", "agents double", scripts_in_parallel, 1, 5),
    Row("reboots", "agents double", reboot, 2, 20),
    Row("resets", "agents double", reset_during_start, 1, 5),
    # One of the three kinds in a short run, all in a campaign.
    Row("exits", "a bad release", _bad("exits"), 1, 1),
    Row("hangs", "a bad release", _bad("hangs"), 0, 1),
    Row("grows", "a bad release", _bad("grows"), 0, 1),
    Row("new-keys", "the registry is flooded", new_keys_limited, 1, 1, few=20),
    # So many that some are left to start when the windows have become narrow.
    Row("flood", "the registry is flooded", registry_flooded, 1, 1, few=40),
    Row("empty", "the registry is empty", registry_starts_empty, 1, 1),
    Row("disk", "the registry is lost", disk_is_empty, 1, 3),
    # Of the bucket tests/startup tries the same in a second.
    Row("copies", "the registry is lost", copies_are_lost, 0, 3),
    Row("zone", "the registry is lost", zone_changes, 0, 3),
    # In a short run: the engine's part (tests/engine/test_zones.py).
    Row("dead-zone", "the registry is lost", zone_dies, 0, 3),
    # In a short run it is tests/vm/test_container.py's.
    Row("account", "the registry is lost", account_is_refused, 0, 3),
    # Its short form is a guest's: `walls`.
    Row("crowd", "the PID walls", pid_walls_of_a_container, 0, 1),
)
QEMU = (
    Row("memory", "memory takes the machine", memory_runs_out, 1, 5),
    Row("sockets", "sockets run out", sockets_run_out, 1, 1),
    Row("cuts", "the registry file is lost", power_cut_while_it_writes, 1, 15),
    Row("torn", "the registry file is lost", power_cut_while_it_writes_over, 1, 15),
    Row("walls", "the PID walls", pid_walls, 1, 1),
)
