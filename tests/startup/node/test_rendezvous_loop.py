"""The rendezvous' loop, with the stand-in as its process and a stand-in for systemd."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import resource
import shlex
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, cast

import pytest

from lab.machines import processes
from lab.standin.build import archive
from lab.standin.state import Node, State, sealed
from startup.node.desired.orders import REJECT, Orders, ReleaseVerdict, Standing
from startup.node.desired.spec import RendezvousSpec, parse
from startup.node.follower import Follower, Known
from startup.node.machine import proc
from startup.node.machine.paths import Paths
from startup.node.rendezvous import access_tokens, registry_file
from startup.node.rendezvous.access_tokens import Tokens
from startup.node.rendezvous.process import Health, Judged, Process, SystemdUnit, ask, judge
from startup.node.rendezvous_loop import WATCH, RendezvousLoop, prepare_store, words_of
from startup.node.report.status import OrdersStatus, Published, ScriptStatus, SpecStatus, document
from startup.node.rollout import roll_state
from startup.node.setup import release, units
from startup.node.setup.limits import KernelFacts
from startup.node.setup.release import Fetcher
from tests.lab.standin.client import Client, Identity
from tests.startup import specs

ACTIVE = Process(active="active", pid=7)
WELL = Health(answers=True, why="", online=5, total=5)
MACHINE = KernelFacts(ram=4 << 30, page=4096, threads_max=31000)


# Judging, purely


def test_a_start_that_answers_is_up_and_a_steady_one_is_forgiven() -> None:
    seen = judge(Judged(since=0, failures=1, why="exits"), ACTIVE, WELL, 3.0, 5)
    assert (seen.up, seen.failures) == (3.0, 1)
    assert judge(seen, ACTIVE, WELL, 64.0, 5).failures == 0


def test_one_that_exits_has_failed_each_time() -> None:
    seen = judge(Judged(since=0), replace(ACTIVE, active="activating", restarts=2), WELL, 3.0, 5)
    assert (seen.failures, seen.up) == (2, None)
    again = judge(seen, replace(ACTIVE, active="activating", restarts=2), WELL, 4.0, 5)
    assert again.failures == 2


def test_one_that_never_answers_hangs() -> None:
    mute = Health(why="refused")
    early = judge(Judged(since=0), ACTIVE, mute, 89.0, 5)
    assert early.failures == 0
    late = judge(early, ACTIVE, mute, 91.0, 5)
    assert late.failures == 1
    assert "refused" in late.why
    # One that was up and is busy is not touched.
    busy = judge(Judged(since=0, up=1.0), ACTIVE, mute, 500.0, 0)
    assert (busy.failures, busy.up) == (0, 1.0)


def test_on_trial_it_goes_on_answering() -> None:
    mute = Health(why="refused")
    seen = judge(Judged(since=0, up=1.0), ACTIVE, mute, 10.0, 0, trial=True)
    assert (seen.failures, seen.mute) == (0, 10.0)
    # A word in between, and its time begins anew.
    seen = judge(seen, ACTIVE, WELL, 29.0, 0, trial=True)
    seen = judge(seen, ACTIVE, mute, 31.0, 0, trial=True)
    assert (seen.failures, seen.mute) == (0, 31.0)
    seen = judge(seen, ACTIVE, mute, 51.0, 0, trial=True)
    assert (seen.failures, seen.why) == (2, "no answer for 20 s: refused")


def test_one_that_an_earlier_pilot_node_started_has_to_answer_too() -> None:
    mute = Health(why="refused")
    seen = judge(Judged(), ACTIVE, mute, 500.0, 0)
    assert (seen.since, seen.failures) == (500.0, 0)
    assert judge(seen, ACTIVE, mute, 591.0, 0).hangs


def test_one_that_lost_its_nodes_has_failed_at_once() -> None:
    seen = judge(Judged(since=0), ACTIVE, replace(WELL, total=1), 3.0, 40)
    assert seen.failures == 2
    assert "1 of the 40 nodes" in seen.why
    assert judge(Judged(since=0), ACTIVE, replace(WELL, total=None), 3.0, 40).failures == 0


# With a process


@dataclass(frozen=True, kw_only=True)
class Journal:
    """A journal: systemd's records of ends, the unit's lines, and what it was asked."""

    records: Path
    lines: Path
    asked: Path


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Journal:
    records, lines = tmp_path / "records", tmp_path / "lines"
    found = Journal(records=records, lines=lines, asked=tmp_path / "asked")
    journalctl = tmp_path / "journalctl"
    journalctl.write_text(
        f'#!/bin/sh\necho "$@" " " >>{found.asked}\n'
        f'case "$*" in *--output=json*) /bin/cat {records};; *) /bin/cat {lines};; esac\n'
    )
    journalctl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return found


def free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


@dataclass
class FakeUnit:
    """What systemd does for pilot-rendezvous.service: the command of the unit, with its
    environment, after `pilot-node store`; again when it exits."""

    paths: Paths
    log: Path
    spec: Callable[[], RendezvousSpec]
    child: subprocess.Popen[bytes] | None = None
    wanted: bool = False
    restarts: int = 0
    starts: int = 0
    why: str = ""

    def process(self) -> Process:
        child = self.child
        if child is not None and (status := child.poll()) is not None:
            self.child = None
            name = signal.Signals(-status).name if status < 0 else ""
            self.why = f"killed by {name}" if name else f"exit status {status}"
            if self.wanted:
                self.restarts += 1
                self._spawn()
        if self.child is None:
            return Process(why=self.why, restarts=self.restarts)
        active = "active" if self.wanted else "deactivating"
        return Process(active=active, pid=self.child.pid, restarts=self.restarts, why=self.why)

    def last_end(self) -> str:
        line = (self.log.read_text().splitlines() or [""])[-1]
        return self.why if self.why.startswith("killed") else f"{self.why}: {line}"

    def start(self) -> None:
        # systemd keeps the count while the unit is down, and begins anew at a start.
        self.wanted, self.restarts = True, 0
        self.starts += 1
        if self.child is None:
            self._spawn()

    def stop(self) -> None:
        self.wanted = False
        if self.child is not None:
            self.child.send_signal(signal.SIGTERM)

    def _spawn(self) -> None:
        prepare_store(self.paths, print)
        unit = self.paths.units / "pilot-rendezvous.service"
        line = next(
            line.removeprefix("ExecStart=")
            for line in unit.read_text().splitlines()
            if line.startswith("ExecStart=")
        )
        environment = dict(
            shlex.split(entry)[0].split("=", 1)
            for entry in self.paths.rendezvous_environment.read_text().splitlines()
        )
        words = [
            re.sub(r"^:\$\{(\w+)\}$", lambda match: f"127.0.0.1:{environment[match[1]]}", word)
            for word in line.split()
        ]
        command = [
            str(self.paths.at(word)) if word.startswith(("/run/", "/var/", "/opt/")) else word
            for word in words
        ]
        with self.log.open("ab") as out:
            self.child = subprocess.Popen(
                command, stdout=out, stderr=out, env={**os.environ, **environment}
            )

    def end(self) -> None:
        self.wanted = False
        if self.child is not None:
            processes.end(self.child, signal.SIGKILL)


@dataclass
class FakeFollower:
    """What is declared and ordered, as a test wants it."""

    paths: Paths
    known: Known
    standing: Standing = field(default_factory=lambda: Standing(state="absent"))
    maintenance: str = "NONE"

    def look(self) -> None:
        files_of(self.paths, cast(RendezvousSpec, self.known.spec))

    def is_mounted(self) -> bool:
        return True

    def ensure_state(self) -> None:
        self.paths.node_state.mkdir(parents=True, exist_ok=True)

    def facts(self, now: float) -> dict[str, Any]:
        return {
            "vm": self.known.spec.name,
            "now": now,
            "boot": "b",
            "uptime": 1.0,
            "script": "",
            "orders": OrdersStatus(),
            "spec": SpecStatus(sha256=""),
            "project_script": ScriptStatus(expected=""),
            "ghosts": (),
        }

    def declare(self, **changes: Any) -> None:
        self.known = replace(self.known, spec=replace(self.known.spec, **changes))

    def order(self, **changes: Any) -> None:
        orders = Orders(**changes)
        restarted = orders.restart or self.standing.restarted
        self.standing = replace(self.standing, orders=orders, restarted=restarted)


def files_of(paths: Paths, spec: RendezvousSpec) -> None:
    """The units, as apply.py writes them."""
    units.write_all(paths, units.unit_files(MACHINE, spec))


class Fleet:
    """One rendezvous VM that is a folder. Its clock runs a second a round, and slower while a
    process starts, which takes as long as it takes; but where it is `hurried`."""

    hurried = False

    def __init__(self, folder: Path) -> None:
        self.paths = Paths(root=folder / "root")
        self.said: list[str] = []
        self.now = 1000.0
        self.tokens: Tokens | None = Tokens()
        self.ports = free_ports(3)
        (self.paths.registry).mkdir(parents=True)
        self.paths.run.mkdir(parents=True)
        for name, content in (
            ("meminfo", "MemTotal: 4194304 kB\nMemAvailable: 4000000 kB\n"),
            ("sys/kernel/threads-max", "31000\n"),
        ):
            path = self.paths.at("/proc") / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        spec = parse(specs.text(specs.rendezvous(secrets={}, agents=50)))
        assert isinstance(spec, RendezvousSpec)
        registry_port, beacon, dashboard = self.ports
        good = self.binary(archive())
        spec = replace(
            spec,
            registry_port=registry_port,
            beacon_port=beacon,
            dashboard_port=dashboard,
            subnet="127.0.0.0/8",
            binary=replace(spec.binary, sha256=good),
        )
        self.good = good
        units_ = units.whitelist(spec)
        (self.paths.registry / "rate-limit-whitelist.json").write_text(units_)
        self.follower = FakeFollower(
            paths=self.paths, known=Known(text="", spec=spec, script=spec.script)
        )
        self.unit = FakeUnit(self.paths, folder / "log", lambda: self.spec)
        self.it = self.service()

    def service(self) -> RendezvousLoop:
        """Another pilot-node on the same VM."""
        return RendezvousLoop(
            paths=self.paths,
            follower=cast(Follower, self.follower),
            unit=self.unit,
            fetcher=self.fetcher(),
            tokens=lambda: self.tokens,
            say=self.said.append,
            clock=lambda: self.now,
        )

    def fetcher(self) -> Fetcher:
        found = Fetcher(
            opt=self.paths.opt, token=lambda: "", say=self.said.append, wake=lambda: None
        )
        found._there = {
            path.parent.name: path for path in self.paths.opt.glob("releases/*/pilot-rendezvous")
        }
        return found

    def binary(self, content: bytes) -> str:
        """A verified release; its sha256."""
        sha256 = hashlib.sha256(content).hexdigest()
        path = self.paths.opt / "releases" / sha256 / "pilot-rendezvous"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(0o755)
        return sha256

    @property
    def spec(self) -> RendezvousSpec:
        return cast(RendezvousSpec, self.follower.known.spec)

    def declare_binary(self, content: bytes, version: str) -> str:
        sha256 = self.binary(content)
        self.follower.declare(version=version, binary=replace(self.spec.binary, sha256=sha256))
        self.it.fetcher = self.fetcher()
        return sha256

    def round(self) -> None:
        self.it.round()
        starting = self.unit.child is not None and self.it.judged.up is None
        self.now += 0.1 if starting and not self.hurried else 1

    def until(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + 40
        while not condition():
            assert time.monotonic() < end, (
                f"not seen: {what}: {self.said[-20:]}\n{self.unit.log.read_text()[-2000:]}"
            )
            self.round()
            time.sleep(0.02)

    def serving(self) -> bool:
        return self.it.phase() == "serving"

    def register(self, count: int, first: int = 0) -> dict[str, int]:
        with Client(("127.0.0.1", self.ports[0])) as client:
            found = {}
            for number in range(first, first + count):
                agent = Identity(owner=f"agent-{number}@x.invalid")
                found[agent.key] = int(client.ask(agent.register())["node_id"])
        return found

    def pid(self) -> int:
        assert self.unit.child is not None
        return self.unit.child.pid

    def health(self) -> Health:
        return ask(self.spec, Health(), numbers=True)

    def health_answers(self) -> bool:
        return self.health().answers

    def status(self) -> Mapping[str, Any]:
        return document(self.it.facts(Published(), started=1.0))


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    found = Fleet(tmp_path)
    try:
        yield found
    finally:
        found.unit.end()


def test_it_is_started_and_known_again(fleet: Fleet) -> None:
    fleet.until(fleet.serving, "a rendezvous that serves")
    fleet.register(4)
    before = fleet.pid()
    fleet.it = fleet.service()
    fleet.until(fleet.serving, "the same one, by another pilot-node")
    assert (fleet.pid(), fleet.unit.starts) == (before, 1)
    fleet.it.copy()
    fleet.it.health = fleet.health()
    found = fleet.status()
    assert found["registry"]["total"] == 4
    assert found["release"]["sha256"] == fleet.good
    assert found["phase"] == "serving"


def test_both_numbers_are_of_one_answer(fleet: Fleet) -> None:
    fleet.until(fleet.serving, "a rendezvous that serves")
    fleet.register(2)
    before = fleet.health()
    assert (before.online, before.total) == (2, 2)
    assert ask(fleet.spec, before, numbers=False) == before
    fleet.register(3, first=2)
    # Its nodes are not due, but another number is online.
    after = ask(fleet.spec, before, numbers=False)
    assert (after.online, after.total) == (5, 5)


@pytest.mark.parametrize(("has", "error"), [(2248, False), (2247, True)], ids=["enough", "too few"])
def test_a_host_that_gives_no_more_descriptors_is_said_once(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, has: int, error: bool
) -> None:
    fleet.until(fleet.serving, "a rendezvous that serves")
    fleet.said.clear()

    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    # On another user's process it is refused altogether where the host keeps the capability.
    monkeypatch.setattr(resource, "prlimit", refused)
    monkeypatch.setattr(proc, "most_descriptors", lambda pid: has)
    for _ in range(100):
        fleet.round()
    (said,) = [line for line in fleet.said if "descriptors" in line]
    assert said.startswith(f"the rendezvous has {has} descriptors and cannot have 4496: ")
    assert (fleet.status()["last_error"] is not None) == error


def test_few_descriptors_that_are_left_are_said_once(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.until(fleet.serving, "a rendezvous that serves")
    fleet.said.clear()
    monkeypatch.setattr(proc, "most_descriptors", lambda pid: 5000.0)
    monkeypatch.setattr(proc, "descriptors", lambda pid: 4000)
    for _ in range(40):
        fleet.round()
    assert fleet.it.last_error is None
    counts = iter(range(4001, 4900))
    monkeypatch.setattr(proc, "descriptors", lambda pid: next(counts))
    for _ in range(100):
        fleet.round()
    (said,) = [line for line in fleet.said if "LimitNOFILE" in line]
    assert said.startswith("LimitNOFILE of pilot-rendezvous.service: more than 80% of 5000: ")
    assert fleet.status()["last_error"]["text"] == said


def test_descriptors_are_counted() -> None:
    before = proc.descriptors(os.getpid())
    assert before
    with Path("/dev/null").open(encoding="ascii"):
        assert proc.descriptors(os.getpid()) == before + 1
    with pytest.raises(ProcessLookupError):
        proc.descriptors(1 << 30)


def test_an_exit_says_its_last_line_and_the_wall(fleet: Fleet) -> None:
    fleet.until(fleet.serving, "serving")
    path = fleet.paths.at("/proc/sys/fs/file-nr")
    path.parent.mkdir(parents=True)
    path.write_text("1990 0 2000\n")
    fleet.declare_binary(
        b"#!/bin/sh\necho accept: too many open files in system >&2\nexit 3\n", "2"
    )
    fleet.until(lambda: rejected(fleet), "rejected")
    assert fleet.it.roll is not None
    said = "exits: exit status 3: accept: too many open files in system [hit file-max: "
    assert said in fleet.it.roll.reason
    assert any(line.startswith(f"the rendezvous {said}1990 of 2000]") for line in fleet.said)


EXIT = {"MESSAGE_ID": "98e322203f7a4ed290d09fe03c09fe15", "INVOCATION_ID": "b"}
RESULT = {"MESSAGE_ID": "d9b373ed55a64feb8242e02dbe79a49c", "INVOCATION_ID": "b"}
KILLED = {**EXIT, "EXIT_CODE": "killed", "EXIT_STATUS": "9"}
EXITED = {**EXIT, "EXIT_CODE": "exited", "EXIT_STATUS": "3"}


@pytest.mark.parametrize(
    ("records", "why"),
    [
        ([], ""),
        ([KILLED], "killed by SIGKILL"),
        ([KILLED, {**RESULT, "UNIT_RESULT": "signal"}], "killed by SIGKILL"),
        (
            [KILLED, {**RESULT, "UNIT_RESULT": "oom-kill"}],
            "killed by SIGKILL (the VM had no memory left)",
        ),
        (
            [KILLED, {**RESULT, "UNIT_RESULT": "oom-kill", "INVOCATION_ID": "a"}],
            "killed by SIGKILL",
        ),
        ([{**KILLED, "EXIT_STATUS": "15"}], "killed by SIGTERM"),
        ([{**KILLED, "EXIT_STATUS": "77"}], "killed by signal 77"),
        (
            [{**KILLED, "EXIT_CODE": "dumped", "EXIT_STATUS": "6"}],
            "killed by SIGABRT, dumping core: two",
        ),
        ([EXITED], "exit status 3: two"),
        ([KILLED, EXITED], "exit status 3: two"),
        ([EXITED, KILLED], "killed by SIGKILL"),
        ([{"EXIT_CODE": "exited", "EXIT_STATUS": "2"}], "exit status 2: two"),
        ([{**EXIT, "EXIT_CODE": ["binary"]}, 7], ""),
    ],
)
def test_how_a_process_ended_is_systemds_word_and_its_own_last_line(
    journal: Journal, records: list[Any], why: str
) -> None:
    journal.records.write_text("\n".join(["no json", *map(json.dumps, records)]))
    journal.lines.write_text("one\ntwo\n")
    assert SystemdUnit().last_end() == why
    asked = journal.asked.read_text().splitlines()
    assert {"UNIT=pilot-rendezvous.service", "--since=-90s"} < {*asked[0].split()}
    run = records[-1].get("INVOCATION_ID", "") if why.endswith("two") else ""
    # Whatever an earlier or a later one said is no reason for this end.
    assert f"_SYSTEMD_INVOCATION_ID={run} " in asked[-1] or not why.endswith("two")


def test_the_last_line_is_its_own_or_why_store_let_it_not_start(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal.records.write_text(json.dumps(EXITED))
    journal.lines.write_text(f"one\ntwo\033[1m{1:0300}\n")
    found = SystemdUnit().last_end().removeprefix("exit status 3: ")
    assert len(found) == 200
    assert found.isprintable()
    words = journal.asked.read_text().split()
    assert {"--since=-90s", "--lines=100", "SYSLOG_IDENTIFIER=pilot-rendezvous"} < {*words}
    for lines, why in (
        ("one\npilot:   registry.json: 5 keys\n", "exit status 3: one"),
        (
            "one\npilot:   r: 5 keys\npilot: store: no room\n",
            "exit status 3: pilot: store: no room",
        ),
        ("pilot:   registry.json: 5 keys\n", "exit status 3"),
    ):
        journal.lines.write_text(lines)
        assert SystemdUnit().last_end() == why
    (journal.asked.parent / "journalctl").unlink()
    monkeypatch.setenv("PATH", str(journal.asked.parent))
    assert not SystemdUnit().last_end()


def test_one_that_was_killed_is_said_to_be_and_by_what(fleet: Fleet) -> None:
    fleet.until(fleet.serving, "serving")
    before = len(fleet.said)
    with fleet.unit.log.open("a") as log:
        log.write('{"level":"WARN","msg":"unknown message type"}\n')
    assert processes.tell(fleet.pid(), signal.SIGKILL)
    fleet.until(lambda: any("exits" in line for line in fleet.said[before:]), "said")
    assert "the rendezvous exits: killed by SIGKILL" in fleet.said[before:]
    found = document(fleet.it.facts(Published(), started=1.0))
    assert found["last_error"]["text"] == "the rendezvous exits: killed by SIGKILL"


def test_what_is_declared_and_the_binary_does_not_know_is_in_the_status(fleet: Fleet) -> None:
    def unsupported() -> Any:
        return document(fleet.it.facts(Published(), started=1.0))["registry"]["unsupported"]

    names = ("admin", "dashboard", "replication")
    fleet.tokens = Tokens(values=dict.fromkeys(names, "t0ken"))
    fleet.follower.declare(secrets={name: f"projects/p/secrets/{name}" for name in names})
    fleet.follower.order(banner="planned")
    assert unsupported() == [], "nothing is known of what does not run"
    fleet.until(fleet.serving, "serving")
    assert unsupported() == []
    # As the rendezvous of February 2026: no such flags, and any configuration taken in silence.
    old = archive().replace(b"admin-token", b"xdmin-token").replace(b"repl-token", b"rexl-token")
    old = old.replace(b"banner.txt", b"bxnner.txt").replace(b"dashboard-token", b"dxshboard-token")
    path = release.path_of(fleet.spec.binary, fleet.paths.opt)
    path.unlink()
    path.write_bytes(old)
    fleet.it = fleet.service()
    fleet.round()
    everything = ["banner", "tokens.admin", "tokens.dashboard", "tokens.replication"]
    assert unsupported() == everything
    fleet.follower.order()
    fleet.follower.declare(secrets={"dashboard": "projects/p/secrets/d"})
    assert unsupported() == ["tokens.dashboard"]


@pytest.mark.parametrize("content", [b"", b"\x7fELF packed", None])
def test_a_binary_that_tells_nothing_is_blamed_for_nothing(
    tmp_path: Path, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "b").write_bytes(content)
    assert words_of(tmp_path / "b") is None


def test_what_is_accepted_and_cannot_be_had_is_in_the_status(fleet: Fleet) -> None:
    fleet.until(fleet.serving, "serving")
    assert fleet.status()["last_error"] is None
    problem = "releases/pilot-rendezvous: no answer from the bucket"
    fleet.it.fetcher._problems[fleet.good] = problem
    fleet.round()
    assert fleet.status()["last_error"]["text"] == problem


def test_another_order_of_its_unit_takes_nobody_offline(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = units.unit_files

    def without(lines: str) -> Callable[..., dict[str, str]]:
        return lambda *given: {
            path: re.sub(rf"^(?:{lines})=.*\n", "", text, flags=re.MULTILINE)
            for path, text in real(*given).items()
        }

    monkeypatch.setattr(units, "unit_files", without("Before|SyslogIdentifier"))
    fleet.until(fleet.serving, "serving")
    monkeypatch.setattr(units, "unit_files", real)
    for _ in range(5):
        fleet.round()
    assert not [line for line in fleet.said if "another unit" in line]
    monkeypatch.setattr(units, "unit_files", without("UMask"))
    fleet.until(lambda: "another unit" in "".join(fleet.said), "that it is another unit")


def test_what_it_runs_with_is_roots_alone_to_read(fleet: Fleet) -> None:
    """A hash of its tokens is in it."""
    fleet.until(fleet.serving, "serving")
    assert (fleet.paths.run / "rendezvous-run.json").stat().st_mode & 0o777 == 0o600


def test_hold_saves_and_stops_and_going_on_starts(fleet: Fleet) -> None:
    fleet.until(fleet.serving, "serving")
    fleet.register(5)
    fleet.follower.order(hold=True)
    fleet.until(lambda: fleet.it.phase() == "held", "held")
    assert registry_file.copies(fleet.paths)[-1].keys == 5
    fleet.round()
    assert fleet.unit.starts == 1
    fleet.follower.order()
    fleet.until(fleet.serving, "serving again")
    assert fleet.health().total == 5


def test_a_restart_is_once_and_saves_first(fleet: Fleet) -> None:
    fleet.until(fleet.serving, "serving")
    fleet.register(5)
    fleet.follower.order(restart="r1")
    fleet.until(lambda: fleet.unit.starts == 2 and fleet.serving(), "a second start")
    assert fleet.health().total == 5
    assert registry_file.copies(fleet.paths)[-1].keys == 5
    for _ in range(5):
        fleet.round()
    # Its object is gone: nothing is ordered, and nothing changes.
    fleet.follower.standing = replace(fleet.follower.standing, orders=Orders())
    for _ in range(5):
        fleet.round()
    assert fleet.unit.starts == 2


def test_clean_is_an_empty_registry_once(fleet: Fleet) -> None:
    fleet.until(fleet.serving, "serving")
    fleet.register(5)
    fleet.follower.order(restart="r1", clean=True)
    fleet.until(lambda: fleet.unit.starts == 2 and fleet.serving(), "a second start")
    assert fleet.health().total == 0
    assert (fleet.paths.registry / "rate-limit-whitelist.json").exists()
    fleet.register(2)
    fleet.unit.stop()
    fleet.it = fleet.service()
    fleet.until(lambda: fleet.unit.starts == 3 and fleet.serving(), "a third start")
    assert fleet.health().total == 2
    assert list((fleet.paths.registry / "copies").glob("*.before-clean"))


def test_what_it_runs_with_changes_it_and_nothing_else_does(fleet: Fleet) -> None:
    fleet.until(fleet.serving, "serving")
    fleet.follower.declare(agents=60)
    for _ in range(40):
        fleet.round()
    assert fleet.unit.starts == 1
    fleet.follower.declare(environment={"GOGC": "50"})
    fleet.until(lambda: fleet.unit.starts == 2 and fleet.serving(), "another environment")
    (port,) = free_ports(1)
    fleet.follower.declare(dashboard_port=port)
    fleet.until(lambda: fleet.unit.starts == 3 and fleet.serving(), "another port")


def test_a_banner_comes_and_goes(fleet: Fleet) -> None:
    fleet.tokens = Tokens(values={"admin": "adm1n"})
    fleet.follower.declare(secrets={"admin": "projects/p/secrets/a/versions/latest"})
    fleet.until(fleet.serving, "serving")
    path = fleet.paths.registry / "banner.txt"
    fleet.follower.order(banner="Maintenance at 9")
    fleet.until(
        lambda: path.exists() and path.read_text().strip() == "Maintenance at 9", "a banner"
    )
    fleet.follower.order()
    fleet.until(lambda: not path.exists() or not path.read_text().strip(), "no banner")


def test_a_maintenance_event_saves_and_is_shown(fleet: Fleet) -> None:
    fleet.until(fleet.serving, "serving")
    fleet.register(3)
    fleet.follower.maintenance = "MIGRATE_ON_HOST_MAINTENANCE"
    fleet.until(lambda: len(registry_file.copies(fleet.paths)) > 0, "a copy")
    fleet.until((fleet.paths.registry / "banner.txt").exists, "a banner")
    assert registry_file.copies(fleet.paths)[-1].keys == 3
    fleet.follower.maintenance = "NONE"
    fleet.until(lambda: not (fleet.paths.registry / "banner.txt").exists(), "no banner")


# Rolls


def test_a_good_binary_is_accepted(fleet: Fleet) -> None:
    fleet.until(fleet.serving, "serving")
    fleet.register(5)
    new = fleet.declare_binary(archive() + b"\n", "2.0")
    fleet.until(
        lambda: (
            fleet.it.roll is not None
            and fleet.it.roll.accepted == roll_state.Release(version="2.0", sha256=new)
        ),
        "the new binary accepted",
    )
    assert fleet.serving()
    assert fleet.health().total == 5
    assert os.readlink(fleet.paths.opt / "current").endswith(new)  # noqa: PTH115
    assert fleet.unit.starts == 2


BAD = {
    "exits": b"#!/bin/sh\nexit 3\n",
    "hangs": b"#!/bin/sh\nexec sleep 600\n",
    "empties the store": b"",
}


@pytest.mark.parametrize("how", BAD)
def test_a_bad_binary_goes_back_and_stays_rejected(fleet: Fleet, how: str) -> None:
    fleet.until(fleet.serving, "serving")
    known = fleet.register(8)
    good = fleet.paths.opt / "releases" / fleet.good / "pilot-rendezvous"
    store = fleet.paths.registry / registry_file.NAME
    content = BAD[how] or f'#!/bin/sh\nrm -f {store}\nexec {good} "$@"\n'.encode()
    fleet.declare_binary(content, "2.0")
    fleet.hurried = how == "hangs"
    fleet.until(lambda: rejected(fleet), "rejected")
    fleet.hurried = False
    fleet.until(lambda: back(fleet), "back on the old binary")
    assert fleet.health().total == 8
    read = json.loads(store.read_bytes())["pub_key_idx"]
    assert {key: read.get(key) for key in known} == known
    starts = fleet.unit.starts
    # A reboot: what was rejected stays so.
    fleet.unit.end()
    (fleet.paths.run / "rendezvous-run.json").unlink()
    fleet.it = fleet.service()
    fleet.until(fleet.serving, "serving after a reboot")
    for _ in range(10):
        fleet.round()
    assert fleet.unit.starts == starts + 1
    assert fleet.status()["roll"]["state"] == "halted"


def emptied(fleet: Fleet) -> None:
    """A power-off after the store was emptied: a whole file without a node."""
    fleet.unit.end()
    store = fleet.paths.registry / registry_file.NAME
    store.write_bytes(sealed(State(started=time.time()).snapshot()))
    (fleet.paths.run / "rendezvous-run.json").unlink()
    fleet.it = fleet.service()


def rejected(fleet: Fleet) -> bool:
    return fleet.it.roll is not None and bool(fleet.it.roll.rejected)


def back(fleet: Fleet) -> bool:
    running = fleet.it._running()
    return (
        rejected(fleet)
        and running is not None
        and running.release == fleet.good
        and fleet.serving()
    )


def emptying(fleet: Fleet) -> bytes:
    good = fleet.paths.opt / "releases" / fleet.good / "pilot-rendezvous"
    store = fleet.paths.registry / registry_file.NAME
    return f'#!/bin/sh\nrm -f {store}\nexec {good} "$@"\n'.encode()


@pytest.mark.parametrize("when", ["before it is rejected", "once it is rejected"])
def test_a_power_off_hides_no_emptied_store(fleet: Fleet, when: str) -> None:
    fleet.until(fleet.serving, "serving")
    fleet.register(8)
    fleet.declare_binary(emptying(fleet), "2.0")
    if when == "once it is rejected":
        fleet.until(lambda: rejected(fleet), "rejected")
    else:
        fleet.until(lambda: fleet.unit.starts == 2, "on trial")
    emptied(fleet)
    fleet.until(lambda: back(fleet), "back on the old binary")
    assert fleet.health().total == 8
    assert not (fleet.paths.node_state / "trial.json").exists()


def test_a_restart_of_pilot_node_hides_no_emptied_store(fleet: Fleet) -> None:
    fleet.until(fleet.serving, "serving")
    fleet.register(8)
    fleet.declare_binary(emptying(fleet), "2.0")
    fleet.until(lambda: fleet.unit.starts == 2, "on trial")
    fleet.until(fleet.health_answers, "an answer")
    store = fleet.paths.registry / registry_file.NAME
    store.write_bytes(sealed(State(started=time.time()).snapshot()))
    fleet.it = fleet.service()
    fleet.until(lambda: back(fleet), "back on the old binary")
    assert fleet.health().total == 8


def aged(fleet: Fleet) -> set[str]:
    """The releases on disk, an hour old from here on."""
    then = time.time() - 3600
    for path in (fleet.paths.opt / "releases").iterdir():
        os.utime(path, (then, then))
    return {path.name for path in (fleet.paths.opt / "releases").iterdir()}


def test_releases_that_nobody_needs_are_removed(fleet: Fleet) -> None:
    gone = [fleet.binary(b"older %d" % number) for number in range(3)]
    fleet.until(fleet.serving, "serving")
    new = fleet.declare_binary(archive() + b"\n", "2.0")
    fleet.until(lambda: fleet.unit.starts == 2 and fleet.serving(), "on trial")
    assert aged(fleet) == {*gone, fleet.good, new}
    fleet.it.at_once("prune")
    fleet.round()
    # What is on trial, and the way back from it.
    assert aged(fleet) == {fleet.good, new}
    accepted = roll_state.Release(version="2.0", sha256=new)
    fleet.until(lambda: fleet.it.accepted(fleet.spec) == accepted, "accepted")
    newer = fleet.declare_binary(archive() + b"\n\n", "3.0")
    fleet.until(lambda: fleet.it.accepted(fleet.spec).sha256 == newer, "the next one accepted")
    aged(fleet)
    fleet.it.at_once("prune")
    fleet.round()
    # The one before, as on swarm VMs, and no more.
    assert aged(fleet) == {new, newer}
    fleet.now += 61
    late = fleet.binary(b"late")
    aged(fleet)
    fleet.round()
    assert late not in aged(fleet)


@pytest.mark.parametrize("how", ["timer", "maintenance", "restart of pilot-node", "reboot"])
@pytest.mark.parametrize("what", ["another format", "fewer keys"])
def test_nothing_is_copied_in_a_trial(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, how: str, what: str
) -> None:
    """The way back is the store as it was before, whatever the new binary saved in between."""
    fleet.until(fleet.serving, "serving")
    known = fleet.register(10)
    fleet.declare_binary(archive() + b"\n", "2.0")
    fleet.until(lambda: fleet.unit.starts == 2 and fleet.serving(), "on trial")
    before = [copy.name for copy in registry_file.copies(fleet.paths)]
    assert before
    # What it makes of the store, and the log that it leaves.
    store = fleet.paths.registry / registry_file.NAME
    log = fleet.paths.registry / registry_file.LOG
    if what == "another format":
        content = store.read_bytes().replace(b'"version":1', b'"version":2', 1)
        document = content[: content.rindex(b',"checksum"')] + b"}"
        content = document[:-1] + b',"checksum":"' + hashlib.sha256(document).hexdigest().encode()
        content += b'"}'
    else:
        lost = State(started=time.time())
        for number, key in enumerate(list(known)[:6], 1):
            lost.add(
                Node(
                    id=number,
                    key=key,
                    owner=f"a-{number}@x.invalid",
                    address="10.0.0.2:1",
                    version="2.0",
                    created=time.time(),
                    last_seen=time.time(),
                )
            )
        content = sealed(lost.snapshot())
    temporary = store.with_suffix(".new")
    temporary.write_bytes(content)
    temporary.replace(store)
    log.write_bytes(b"what it did since")
    saved = registry_file.examine(store)
    assert saved is not None
    assert (saved.version, saved.keys) == ((2, 10) if what == "another format" else (1, 6))
    if how == "timer":
        fleet.it.at_once("copy")
        fleet.round()
    elif how == "maintenance":
        # What runs would save; the file is to stay as it was "left".
        with monkeypatch.context() as patched:
            patched.setattr("startup.node.rendezvous_loop.post", lambda *_: 200)
            fleet.follower.maintenance = "MIGRATE_ON_HOST_MAINTENANCE"
            fleet.round()
    elif how == "restart of pilot-node":
        fleet.it = fleet.service()
        fleet.round()
    else:
        fleet.unit.end()
        (fleet.paths.run / "rendezvous-run.json").unlink()
        fleet.it = fleet.service()
        fleet.it.roll = roll_state.recall(fleet.paths, print)
        fleet.it.copy()
    assert [copy.name for copy in registry_file.copies(fleet.paths)] == before
    # It is killed, for it would save what it knows, and rejected.
    fleet.unit.end()
    sha256 = fleet.spec.binary.sha256
    fleet.follower.standing = replace(
        fleet.follower.standing, orders=Orders(roll=ReleaseVerdict(sha256=sha256, verdict=REJECT))
    )
    fleet.until(lambda: back(fleet), "back on the old binary")
    assert fleet.health().total == 10
    read = json.loads(store.read_bytes())["pub_key_idx"]
    assert {key: read.get(key) for key in known} == known
    assert not log.exists()
    assert any(
        name.startswith(registry_file.LOG) for name in registry_file.set_aside_names(fleet.paths)
    )
    # And then they are again.
    fleet.register(1, first=20)
    fleet.it.save()
    assert registry_file.copies(fleet.paths)[-1].keys == 11


def test_a_trial_goes_back_to_what_was_before_it_and_no_further(fleet: Fleet) -> None:
    """A registry that has started empty is not the release's fault, nor mended by the way back."""
    fleet.until(fleet.serving, "serving")
    fleet.register(9)
    fleet.it.save()
    fleet.unit.end()
    store = fleet.paths.registry / registry_file.NAME
    store.write_bytes(sealed(State(started=time.time()).snapshot()))
    fleet.until(lambda: fleet.unit.starts == 2 and fleet.serving(), "started empty")
    fleet.register(2, first=20)
    new = fleet.declare_binary(archive() + b"\n", "2.0")
    fleet.until(lambda: fleet.unit.starts == 3, "on trial")
    assert json.loads((fleet.paths.node_state / "trial.json").read_bytes())["keys"] == 2
    fleet.until(
        lambda: rejected(fleet) or fleet.it.accepted(fleet.spec).sha256 == new, "the end of it"
    )
    assert not rejected(fleet)
    assert fleet.health().total == 2


def test_there_is_no_trial_without_a_copy(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet.until(fleet.serving, "serving")
    fleet.register(5)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "copies")

    monkeypatch.setattr(registry_file, "take_copy", full)
    fleet.declare_binary(archive() + b"\n", "2.0")
    for _ in range(10):
        fleet.round()
    assert fleet.unit.starts == 1
    assert fleet.unit.wanted
    assert not (fleet.paths.node_state / "trial.json").exists()
    assert not any("is stopped" in line for line in fleet.said)
    assert "No space left" in str(fleet.status()["last_error"])
    monkeypatch.undo()
    fleet.now += 60
    fleet.until(lambda: fleet.unit.starts == 2, "on trial")
    assert registry_file.copies(fleet.paths)[-1].keys == 5


def test_a_copy_that_came_to_harm_is_passed_over_on_the_way_back(fleet: Fleet) -> None:
    fleet.until(fleet.serving, "serving")
    for count, first in ((8, 0), (1, 8)):
        fleet.register(count, first)
        fleet.it.save()
    newest = fleet.paths.registry / "copies" / registry_file.copies(fleet.paths)[-1].name
    newest.write_bytes(b"{")
    (fleet.paths.node_state / "trial.json").write_text('{"release": "another", "keys": 9}')
    emptied(fleet)
    fleet.until(fleet.serving, "serving")
    assert fleet.health().total == 8


def test_a_trial_that_was_accepted_is_over(fleet: Fleet) -> None:
    fleet.until(fleet.serving, "serving")
    fleet.register(5)
    new = fleet.declare_binary(archive() + b"\n", "2.0")
    record = fleet.paths.node_state / "trial.json"
    fleet.until(record.exists, "what is tried, on disk")
    assert fleet.unit.starts == 1
    fleet.until(lambda: fleet.unit.starts == 2, "on trial")
    assert json.loads(record.read_bytes()) == {"keys": 5, "release": new}
    fleet.until(lambda: not record.exists(), "the end of the trial")
    assert fleet.it.roll is not None
    assert fleet.it.roll.accepted == roll_state.Release(version="2.0", sha256=new)


@pytest.mark.parametrize(
    ("failures", "after"),
    [(0, 0), (1, 0), (0, WATCH * 2 // 3)],
    ids=["at once", "the old one had failed", "near its end"],
)
def test_one_that_falls_silent_is_not_accepted(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, failures: int, after: int
) -> None:
    fleet.until(fleet.serving, "serving")
    silent = False

    def ask_(spec: RendezvousSpec, before: Health, *, numbers: bool) -> Health:
        return Health(why="timed out") if silent else ask(spec, before, numbers=numbers)

    monkeypatch.setattr("startup.node.rendezvous_loop.ask", ask_)
    fleet.declare_binary(archive() + b"\n", "2.0")
    if failures:
        # What the old one did is not the new one's merit either.
        fleet.it.judged = replace(fleet.it.judged, up=None, failures=failures, why="exits")
        silent = True
        fleet.round()
        assert fleet.it.roll is not None
        assert fleet.it.roll.watch is not None
        silent = False
    fleet.until(lambda: fleet.unit.starts == 2 and fleet.serving(), "on trial, and answering")
    for _ in range(after):
        fleet.round()
    silent = True
    fleet.until(lambda: rejected(fleet), "rejected")
    silent = False
    fleet.until(lambda: back(fleet), "back on the old binary")
    assert fleet.it.roll is not None
    assert "no answer for 20 s: timed out" in fleet.it.roll.reason


@pytest.mark.parametrize("who", ["the same pilot-node", "another pilot-node"])
def test_an_accepted_one_that_falls_silent_is_said_and_not_stopped(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    fleet.until(fleet.serving, "serving")
    pid = fleet.pid()
    silent = Health(why="/healthz: timed out")
    monkeypatch.setattr("startup.node.rendezvous_loop.ask", lambda *_, **__: silent)
    if who == "another pilot-node":
        fleet.it = fleet.service()
    for _ in range(10):
        fleet.round()
    assert fleet.status()["phase"] == "starting"
    assert fleet.it.last_error is None
    begun = fleet.now
    while fleet.now < begun + 120:
        fleet.round()
    assert (fleet.pid(), fleet.unit.starts) == (pid, 1)
    assert fleet.unit.wanted
    assert fleet.status()["phase"] == "failed"
    text = fleet.status()["last_error"]["text"]
    assert text.startswith("the rendezvous does not answer: /healthz: timed out: ")
    assert f"`ops undrain {fleet.spec.name}`" in text
    assert len([line for line in fleet.said if "does not answer" in line]) == 1
    monkeypatch.undo()
    fleet.until(fleet.serving, "serving again")
    assert (fleet.pid(), fleet.unit.starts) == (pid, 1)


def test_one_that_never_answered_hangs_whoever_sees_it(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("startup.node.rendezvous_loop.ask", lambda *_, **__: Health(why="refused"))
    fleet.until(lambda: fleet.unit.child is not None, "a process")
    fleet.it = fleet.service()
    begun = fleet.now
    fleet.hurried = True
    while fleet.now < begun + 95:
        fleet.round()
    assert any("hangs" in line for line in fleet.said)


# A disk that refuses


@pytest.fixture
def refusing(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From when it is called on, nothing is written to the state disk."""

    def refuse() -> None:
        real_make, real_unlink = tempfile.mkstemp, Path.unlink

        def make(*args: Any, **named: Any) -> Any:
            if Path(named["dir"]).is_relative_to(fleet.paths.state):
                raise OSError(28, "No space left on device", str(named["dir"]))
            return real_make(*args, **named)

        def unlink(path: Path, *, missing_ok: bool = False) -> None:
            if path.is_relative_to(fleet.paths.state):
                raise OSError(30, "Read-only file system", str(path))
            real_unlink(path, missing_ok=missing_ok)

        monkeypatch.setattr(tempfile, "mkstemp", make)
        monkeypatch.setattr(Path, "unlink", unlink)

    return refuse


def test_orders_are_obeyed_on_a_disk_that_refuses(
    fleet: Fleet, refusing: Callable[[], None]
) -> None:
    fleet.until(fleet.serving, "serving")
    fleet.register(5)
    refusing()
    fleet.follower.order(restart="r1")
    fleet.until(lambda: fleet.unit.starts == 2 and fleet.serving(), "a second start")
    assert fleet.health().total == 5
    fleet.follower.order(restart="r1", hold=True)
    fleet.until(lambda: fleet.it.phase() == "held", "held")
    assert "No space left on device" in "\n".join(fleet.said)


def test_the_way_back_needs_no_disk(
    fleet: Fleet, refusing: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.until(fleet.serving, "serving")
    fleet.register(5)
    bad = fleet.declare_binary(BAD["exits"], "2.0")
    fleet.until(lambda: fleet.unit.starts == 2, "on trial")
    refusing()
    fleet.until(lambda: back(fleet), "back on the old binary")
    assert fleet.health().total == 5
    monkeypatch.undo()
    fleet.round()
    assert bad in {each.sha256 for each in roll_state.recall(fleet.paths, print).rejected}


def test_a_roll_that_cannot_begin_holds_up_nothing_else(
    fleet: Fleet, refusing: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.until(fleet.serving, "serving")
    fleet.register(5)
    new = fleet.declare_binary(archive() + b"\n", "2.0")
    refusing()
    fleet.follower.order(restart="r1")
    fleet.until(lambda: fleet.unit.starts == 2 and fleet.serving(), "a second start")
    fleet.tokens = Tokens(values={"admin": "secret"})
    fleet.follower.declare(secrets={"admin": "projects/p/secrets/admin"})
    fleet.until(lambda: fleet.unit.starts == 3 and fleet.serving(), "a third start")
    saved: list[bool] = []
    monkeypatch.setattr(fleet.it, "save", lambda: saved.append(True))
    fleet.follower.maintenance = "MIGRATE_ON_HOST_MAINTENANCE"
    for _ in range(10):
        fleet.round()
    assert saved
    running = fleet.it._running()
    assert running is not None
    assert running.release == fleet.good
    assert fleet.status()["roll"]["state"] == "waiting"
    assert "No space left on device" in "\n".join(fleet.said)
    monkeypatch.undo()
    fleet.until(lambda: fleet.it.accepted(fleet.spec).sha256 == new, "the new release")


def test_a_trial_that_has_begun_is_watched_without_a_disk(
    fleet: Fleet, refusing: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.until(fleet.serving, "serving")
    new = fleet.declare_binary(archive() + b"\n", "2.0")
    fleet.until(lambda: fleet.unit.starts == 2, "on trial")
    refusing()
    fleet.until(lambda: fleet.status()["roll"]["state"] == "watching", "watched")
    fleet.until(lambda: fleet.it.accepted(fleet.spec).sha256 == new, "the new release")
    assert roll_state.recall(fleet.paths, print).state == "rolling"
    monkeypatch.undo()
    fleet.round()
    accepted = roll_state.recall(fleet.paths, print).accepted
    assert accepted is not None
    assert accepted.sha256 == new


def test_a_trial_that_cannot_be_kept_on_disk_does_not_begin(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.until(fleet.serving, "serving")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "trial.json")

    monkeypatch.setattr(RendezvousLoop, "_begin_trial", full)
    fleet.declare_binary(archive() + b"\n", "2.0")
    for _ in range(10):
        fleet.round()
    assert fleet.unit.starts == 1
    assert fleet.unit.wanted
    assert "trial.json" in str(fleet.status()["last_error"])


def test_a_directory_for_a_banner_stops_nothing(fleet: Fleet) -> None:
    fleet.until(fleet.serving, "serving")
    fleet.register(5)
    (fleet.paths.registry / "banner.txt").mkdir()
    fleet.follower.order(restart="r1")
    fleet.until(lambda: fleet.unit.starts == 2 and fleet.serving(), "a second start")
    assert registry_file.copies(fleet.paths)[-1].keys == 5
    assert "banner.txt" in str(fleet.status()["last_error"])


def test_copies_are_taken_whatever_else_fails(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.until(fleet.serving, "serving")
    fleet.register(5)
    fleet.it.save()
    for path in (fleet.paths.registry / "copies").iterdir():
        path.unlink()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "roll.json")

    monkeypatch.setattr(RendezvousLoop, "_advance", full)
    fleet.now += 300
    fleet.round()
    assert fleet.it.last_error is not None
    assert "roll.json" in fleet.it.last_error.text
    assert registry_file.copies(fleet.paths)[-1].keys == 5


def test_a_registry_that_cannot_be_read_is_named(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.until(fleet.serving, "serving")

    def broken(paths: Paths) -> list[registry_file.Copy]:
        raise OSError(5, "Input/output error", str(paths.registry))

    monkeypatch.setattr(registry_file, "copies", broken)
    assert "Input/output error" in fleet.status()["last_error"]["text"]


# What it says


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/stats", b'{"total_nodes": ' + b"9" * 5000 + b', "active_nodes": 4 }'),
        ("/healthz", b'{"nodes_online": ' + b"9" * 4000 + b"}"),
        ("/healthz", b"[" * 60_000),
    ],
    ids=["total", "online", "nested"],
)
def test_a_number_that_is_none_is_not_known(path: str, body: bytes) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path == path
            self.send_response(200 if found else 404)
            self.end_headers()
            self.wfile.write(body if found else b"")

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        spec = parse(specs.text(specs.rendezvous()))
        assert isinstance(spec, RendezvousSpec)
        port = server.server_port
        found = ask(replace(spec, registry_port=port, dashboard_port=port), Health(), numbers=True)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert found.answers
    assert (found.online, found.total) == (4 if path == "/api/stats" else None, None)


# Tokens


def test_a_token_that_cannot_be_had_closes_the_dashboard_and_not_the_registry(
    fleet: Fleet,
) -> None:
    name = "projects/p/secrets/d/versions/latest"
    fleet.follower.declare(secrets={"dashboard": name})
    fleet.tokens = Tokens(missing={"dashboard": "403"})
    fleet.until(fleet.serving, "serving all the same")
    assert fleet.now >= 1030
    given = json.loads(fleet.paths.rendezvous_config.read_text())
    assert len(given["dashboard-token"]) > 30
    assert "dashboard token: 403" in str(fleet.status()["last_error"])
    before = fleet.unit.starts
    for _ in range(5):
        fleet.round()
    assert fleet.unit.starts == before
    fleet.tokens = Tokens(values={"dashboard": "t0ken"})
    fleet.until(lambda: fleet.unit.starts == before + 1 and fleet.serving(), "with the token")
    assert json.loads(fleet.paths.rendezvous_config.read_text()) == {"dashboard-token": "t0ken"}
    # It is away again: what was known stays.
    fleet.tokens = Tokens(missing={"dashboard": "503"})
    for _ in range(5):
        fleet.round()
    assert fleet.unit.starts == before + 1
    assert "t0ken" not in "\n".join(fleet.said)
    assert not re.search("t0ken", Path(f"/proc/{fleet.pid()}/cmdline").read_text())


def test_another_pilot_node_that_has_no_tokens_yet_leaves_what_runs_alone(fleet: Fleet) -> None:
    names = {what: f"projects/p/secrets/{what}/versions/latest" for what in ("admin", "dashboard")}
    known = {"admin": "adm1n", "dashboard": "t0ken"}
    fleet.follower.declare(secrets=names)
    fleet.tokens = Tokens(values=known)
    fleet.until(fleet.serving, "serving")
    pid, away = fleet.pid(), Tokens(missing=dict.fromkeys(names, "503"))
    for tokens in (None, away, Tokens(values=known)):
        fleet.tokens, fleet.it = tokens, fleet.service()
        for _ in range(5):
            fleet.round()
        assert fleet.pid() == pid, f"it was started again with {tokens}"
    fleet.tokens = Tokens(values={**known, "dashboard": "an0ther"})
    fleet.until(lambda: fleet.serving() and fleet.pid() != pid, "with another token")
    # Disabled: whoever fetched it goes on with it, and another pilot-node does not.
    pid = fleet.pid()
    fleet.tokens = Tokens(
        values={"admin": "adm1n"},
        missing={"dashboard": "400"},
        refused=frozenset({"dashboard"}),
    )
    for _ in range(5):
        fleet.round()
    assert fleet.pid() == pid
    fleet.it = fleet.service()
    fleet.until(lambda: fleet.serving() and fleet.pid() != pid, "closed")
    given = json.loads(fleet.paths.rendezvous_config.read_text())
    assert given["admin-token"] == "adm1n"
    assert given["dashboard-token"] not in known.values()
    assert len(given["dashboard-token"]) > 30
    # The one that nobody knows is no reason for another restart.
    pid, fleet.it = fleet.pid(), fleet.service()
    for _ in range(5):
        fleet.round()
    assert fleet.pid() == pid


class SecretManager:
    """Answers `:access` of `held`; 404 for others, 401 without the VM's token."""

    def __init__(self) -> None:
        held: dict[str, bytes] = {}
        self.held = held

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.removeprefix("/v1/").removesuffix(":access")
                status, body = 404, b"{}"
                if self.headers["Authorization"] != "Bearer vm-token":
                    status = 401
                elif name in held:
                    data = base64.b64encode(held[name]).decode()
                    status, body = 200, json.dumps({"payload": {"data": data}}).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def manager() -> Iterator[SecretManager]:
    found = SecretManager()
    yield found
    found.stop()


def test_tokens_are_fetched_and_what_is_none_is_said(manager: SecretManager) -> None:
    base = "projects/p/secrets"
    manager.held[f"{base}/a/versions/latest"] = b"adm1n\n"
    manager.held[f"{base}/r/versions/3"] = b"two\nlines"
    names = {
        "admin": f"{base}/a/versions/latest",
        "dashboard": f"{base}/d/versions/latest",
        "replication": f"{base}/r/versions/3",
    }
    found = access_tokens.fetch(names, endpoint=manager.endpoint, token=lambda: "vm-token")
    assert found.values == {"admin": "adm1n"}
    assert "no version yet" in found.missing["dashboard"]
    assert "no token" in found.missing["replication"]
    assert found.refused == {"dashboard", "replication"}
    assert "two" not in found.problem
    assert "adm1n" not in repr(found)
    refused = access_tokens.fetch(names, endpoint=manager.endpoint, token=lambda: "other")
    assert "token is not accepted" in refused.missing["admin"]
    assert access_tokens.kept(refused, found).values == {"admin": "adm1n"}


def test_the_file_of_tokens_is_for_two(tmp_path: Path) -> None:
    path = tmp_path / "rendezvous.json"
    access_tokens.write(path, {"admin-token": "x"})
    assert path.stat().st_mode & 0o777 == 0o640
    if os.geteuid() == 0:
        assert (path.stat().st_uid, path.stat().st_gid) == (0, 610)
