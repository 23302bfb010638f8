"""A rendezvous VM that is a folder, with the stand-in as its process and a stand-in for systemd."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, cast

from lab.machines import processes
from lab.standin.build import archive
from lab.standin.state import State, sealed
from startup.node.desired.orders import Orders, Standing
from startup.node.desired.spec import RendezvousSpec, parse
from startup.node.follower import Follower, Known
from startup.node.machine.paths import Paths
from startup.node.machine.polling import Wake
from startup.node.machine.retry import FinalError, TemporaryError
from startup.node.rendezvous import registry_copies, registry_file, runs
from startup.node.rendezvous.access_tokens import Tokens
from startup.node.rendezvous.bucket_copies import BucketCopies
from startup.node.rendezvous.copies_bucket import CopiesBucket, Place, StoredCopy
from startup.node.rendezvous.process import Health, Process, ask
from startup.node.rendezvous_loop import RendezvousLoop
from startup.node.report.status import OrdersStatus, Published, ScriptStatus, SpecStatus, document
from startup.node.setup import units
from startup.node.setup.limits import KernelFacts
from startup.node.setup.release import Fetcher
from tests.lab.standin.client import Client, Identity
from tests.startup import specs

MACHINE = KernelFacts(ram=4 << 30, page=4096)


def free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


@dataclass
class FakeUnit:
    """Does as systemd with pilot-rendezvous.service: runs the command of the unit, with its
    environment, after `pilot-node store`; again when it exits."""

    paths: Paths
    log: Path
    spec: Callable[[], RendezvousSpec]
    child: subprocess.Popen[bytes] | None = None
    wanted: bool = False
    restarts: int = 0
    starts: int = 0
    why: str = ""
    refusals: int = 0

    def process(self) -> Process:
        child = self.child
        if child is not None and (status := child.poll()) is not None:
            self.child = None
            name = signal.Signals(-status).name if status < 0 else ""
            self.why = f"killed by {name}" if name else f"exit status {status}"
            if self.wanted:
                self.restarts += 1
                self._spawn()
        if self.child is None and self.wanted and self.refusals:
            # `store` has refused: systemd tries again.
            self._spawn()
        if self.child is None:
            active = "activating" if self.wanted else "inactive"
            return Process(active=active, why=self.why, restarts=self.restarts)
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

    def kill(self) -> None:
        assert self.child is not None
        self.child.kill()
        self.child.wait()

    def _spawn(self) -> None:
        try:
            registry_copies.prepare_store(self.paths, print)
        except FinalError as error:
            self.refusals += 1
            self.why = str(error)
            return
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
    """A spec and orders, as a test sets them."""

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


@dataclass
class MemoryBucket:
    """The bucket's copies, in memory. `away`: why it does not answer."""

    where: Place
    held: dict[str, tuple[StoredCopy, bytes]] = field(default_factory=dict)
    strange: int = 0
    away: str = ""

    def place(self) -> Place:
        return self.where

    def copies(self) -> tuple[list[StoredCopy], int]:
        self._ask()
        found = sorted((each for each, _ in self.held.values()), key=lambda each: each.generation)
        return found, self.strange

    def store(self, name: str, content: bytes, cleaned: str) -> None:
        self._ask()
        copy = registry_copies.named(name, len(content))
        assert copy is not None
        stored = StoredCopy(
            copy=copy,
            generation=1 + max((each[0].generation for each in self.held.values()), default=0),
            bucket=self.where.bucket,
            vm=self.where.vm,
            sha256=hashlib.sha256(content).hexdigest(),
            cleaned=cleaned,
        )
        self.held[name] = (stored, content)

    def fetch(self, stored: StoredCopy, out: IO[bytes]) -> None:
        self._ask()
        content = self.held[stored.copy.name][1]
        out.write(content)
        if hashlib.sha256(content).hexdigest() != stored.sha256:
            raise FinalError("its bytes are not those that its sha256 is of")

    def remove(self, stored: StoredCopy) -> None:
        self._ask()
        del self.held[stored.copy.name]

    def _ask(self) -> None:
        if self.away:
            raise TemporaryError(self.away)


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
        for name, content in (("meminfo", "MemTotal: 4194304 kB\nMemAvailable: 4000000 kB\n"),):
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
        self.bucket = MemoryBucket(Place(endpoint="", bucket=spec.bucket, vm=spec.name))
        self.wake = Wake()
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
            bucket=self.bucket_copies(),
            say=self.said.append,
            clock=lambda: self.now,
        )

    def bucket_copies(self) -> BucketCopies:
        """Without a thread: `round` has it work."""
        return BucketCopies(
            self.paths,
            cast(CopiesBucket, self.bucket),
            uploads=lambda: self.spec.upload_copies,
            say=self.said.append,
            wake=self.wake,
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
        self.it.bucket.step()
        self.it.round()
        starting = self.unit.child is not None and self.it.observer.judged.up is None
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


BAD = {
    "exits": b"#!/bin/sh\nexit 3\n",
    "hangs": b"#!/bin/sh\nexec sleep 600\n",
    "empties the store": b"",
}


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
    running = runs.running(fleet.paths)
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


def aged(fleet: Fleet) -> set[str]:
    """The releases on disk, an hour old from here on."""
    then = time.time() - 3600
    for path in (fleet.paths.opt / "releases").iterdir():
        os.utime(path, (then, then))
    return {path.name for path in (fleet.paths.opt / "releases").iterdir()}
