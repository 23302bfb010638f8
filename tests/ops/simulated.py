"""A fleet without guests: instances of a lab that boots nothing, whose status is pilot-node's own
document of made-up facts, and which follow their orders as pilot-node reads them, a tick at a time.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from components import spec
from lab.cloud.server import Serving
from lab.machines.driver import Machine
from startup.node.desired import orders as node_orders
from startup.node.pressure.sampler import Heavy, Sample
from startup.node.report.status import OrdersStatus, RegistryStatus, RollStatus, document, encode
from tests.lab.cloud.client import COMPUTE, Client, make_network, vm
from tests.lab.cloud.guest import publish
from tests.startup import facts

BUCKET = "p1-pilot-fleet"
FLEET = "swarm"
SCRIPT = "#!/bin/bash\n# the fleet's"
RENDEZVOUS = "pilot-rendezvous"
OLD, NEW = "aa" * 32, "bb" * 32
# Memory of every VM, as in the lab's stack.
TOTAL, AVAILABLE = 1 << 30, 640 << 20
# Agents that start or stop in a tick.
_STEP = 40


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def swarm_spec(name: str, agents: int, **changes: Any) -> dict[str, Any]:
    """A spec with the fields that `ops` reads, and some more."""
    return {
        "schema": 1,
        "name": name,
        "role": "swarm",
        "agents": agents,
        "bucket": BUCKET,
        "release": {
            "version": "1.18.0",
            "daemon": {"object": f"releases/{OLD}/pilot-daemon", "sha256": OLD},
        },
        "script": {"sha256": sha256(SCRIPT)},
        **changes,
    }


def rendezvous_spec(agents: int) -> dict[str, Any]:
    return {
        **swarm_spec(RENDEZVOUS, agents),
        "role": "rendezvous",
        "release": {"version": "1.18.0", "rendezvous": None},
    }


@dataclass
class Node:
    """A VM. `changes` are of the facts of its document; where `quiet`, it says nothing any more."""

    name: str
    agents: int
    zone: str = "us-central1-a"
    running: int = 0
    boot: int = 1
    started: str = ""
    quiet: bool = False
    holds: bool = False
    held_here: bool = False
    """By `pilot-node drain` on it."""
    restart: str = ""
    cleaned: int = 0
    put_back: str = ""
    """The copy of the registry that was ordered back."""
    pausing: bool = False
    banner: str = ""
    release: str = OLD
    roll: RollStatus = field(default_factory=RollStatus)
    changes: dict[str, Any] = field(default_factory=dict)
    changes_of_registry: dict[str, Any] = field(default_factory=dict)
    orders: OrdersStatus = field(default_factory=OrdersStatus)
    away: int = 0
    """Ticks for which its registry does not answer."""

    @property
    def is_swarm(self) -> bool:
        return self.name != RENDEZVOUS

    def obey(self, text: bytes | None, generation: int | None) -> None:
        role = "swarm" if self.is_swarm else "rendezvous"
        found = node_orders.parse(text, role) if text is not None else node_orders.Orders()
        if found.restart and found.restart != self.restart:
            self.restart, self.running, self.away = found.restart, 0, 2
            self.cleaned += found.clean
            self.put_back = found.restore or self.put_back
        if found.roll and found.roll.sha256 == self.roll.sha256:
            self._rule(found.roll.verdict)
        self.holds = found.hold or self.held_here
        self.pausing, self.banner = found.pause_benchmarks, found.banner
        self.orders = OrdersStatus(
            generation=generation,
            state="absent" if text is None else "read",
            hold=self.holds,
            restart=self.restart,
        )

    def _rule(self, verdict: str) -> None:
        if verdict == "go":
            self.release, self.roll = self.roll.sha256, RollStatus()
        else:
            self.roll = RollStatus()

    def work(self) -> None:
        self.away = max(0, self.away - 1)
        wanted = 0 if self.holds else self.agents
        step = max(-_STEP, min(_STEP, wanted - self.running))
        self.running += step

    def document(self, online: int) -> dict[str, Any]:
        common = {
            "vm": self.name,
            "now": time.time(),
            "boot": f"boot-{self.boot}",
            "orders": self.orders,
            "roll": self.roll,
            "sha256": self.release,
            "script": sha256(SCRIPT),
        }
        if not self.is_swarm:
            serves = not self.holds and not self.away
            registry = RegistryStatus(
                online=online if serves else None,
                total=online + 5,
                store=1 << 20,
                store_time=time.time(),
                copies=3,
                newest_copy=time.time(),
                **self.changes_of_registry,
            )
            phase = "held" if self.holds else "serving" if serves else "starting"
            return document(
                facts.rendezvous(
                    **common,
                    phase=phase,
                    registry=registry,
                    memory_total=TOTAL,
                    memory_available=AVAILABLE,
                    **self.changes,
                )
            )
        ready = frozenset(range(10_001, 10_001 + self.running))
        goal = range(10_001, 10_001 + (0 if self.holds else self.agents))
        given = {
            "goal": dict.fromkeys(goal, "v-old"),
            "view": facts.View(ready=ready, variant=dict.fromkeys(ready, "v-old")),
            "drained": self.holds,
            "sample": Sample(
                total=TOTAL,
                available=AVAILABLE,
                agent_limit=20 << 20,
                agent_mean=2 << 20,
                over=0,
                top=(Heavy(port=10_001, node_id=7, bytes=9 << 20),),
                benchmarks="paused" if self.pausing else "none",
            ),
            **self.changes,
        }
        return document(facts.swarm(**common, **given))


class Simulated:
    """The fleet in a lab that is served."""

    def __init__(
        self, serving: Serving, agents: Mapping[str, int], zones: Mapping[str, str] | None = None
    ) -> None:
        """`zones`: those of VMs that are not in the lab's usual one."""
        self.serving = serving
        self.client = Client(serving.url)
        make_network(self.client, cidr="10.10.0.0/20")
        self.client.call("POST", "/storage/v1/b?project=p1", {"name": BUCKET})
        self.set_project({"startup-script": SCRIPT})
        self.nodes = {RENDEZVOUS: Node(name=RENDEZVOUS, agents=sum(agents.values()))}
        self.nodes |= {
            name: Node(name=name, agents=count, running=count) for name, count in agents.items()
        }
        for node in self.nodes.values():
            node.zone = (zones or {}).get(node.name, node.zone)
            self.make(node)
        self.ticks = 0
        self.dead = 0
        """Agents that the registry still counts."""
        self.after_tick: Callable[[], None] = lambda: None
        self.asked: list[str] = []
        self._lock = threading.Lock()
        answer = serving.lab.answer

        def counted(request: Any) -> Any:
            self.asked.append(f"{request.method} {request.path}")
            return answer(request)

        serving.lab.answer = counted  # type: ignore[method-assign]

    def make(self, node: Node) -> None:
        given = (
            swarm_spec(node.name, node.agents) if node.is_swarm else rendezvous_spec(node.agents)
        )
        labels = {"pilot-fleet": FLEET, "pilot-role": given["role"]}
        items = spec.metadata(given)
        metadata = {"items": [{"key": key, "value": text} for key, text in items.items()]}
        machine = f"zones/{node.zone}/machineTypes/e2-standard-2"
        body = vm(node.name, labels=labels, metadata=metadata, machineType=machine)
        self.client.do("POST", f"{COMPUTE}/zones/{node.zone}/instances", body)

    def path(self, name: str) -> str:
        """The path of a VM in the API."""
        return f"{COMPUTE}/zones/{self.nodes[name].zone}/instances/{name}"

    def instance(self, name: str) -> dict[str, Any]:
        found = self.client.get(self.path(name))
        assert isinstance(found, dict)
        return found

    def set_metadata(self, name: str, changes: Mapping[str, str | None]) -> None:
        held = self.instance(name)["metadata"]
        items = {each["key"]: each["value"] for each in held.get("items", [])}
        self._set(f"{self.path(name)}/setMetadata", held["fingerprint"], items, changes)

    def set_project(self, changes: Mapping[str, str | None]) -> None:
        held = self.client.get(COMPUTE)["commonInstanceMetadata"]
        items = {each["key"]: each["value"] for each in held.get("items", [])}
        self._set(f"{COMPUTE}/setCommonInstanceMetadata", held["fingerprint"], items, changes)

    def _set(
        self,
        path: str,
        fingerprint: str,
        items: Mapping[str, str],
        changes: Mapping[str, str | None],
    ) -> None:
        after = {**items, **changes}
        pairs = [{"key": key, "value": text} for key, text in after.items() if text is not None]
        self.client.do("POST", path, {"fingerprint": fingerprint, "items": pairs})

    @property
    def online(self) -> int:
        return self.dead + sum(node.running for node in self.nodes.values() if node.is_swarm)

    def order(self, name: str) -> dict[str, Any]:
        """The order of a VM; empty for none."""
        path = f"/storage/v1/b/{BUCKET}/o/orders%2F{name}.json?alt=media"
        answer = self.client.call("GET", path)
        return dict(json.loads(answer.data)) if answer.status == 200 else {}

    def tick(self) -> None:
        """Each VM reads its orders, does a step, and publishes its status."""
        with self._lock:
            self.ticks += 1
            for node in sorted(self.nodes.values(), key=lambda node: not node.is_swarm):
                self._tick(node)
        self.after_tick()

    def _tick(self, node: Node) -> None:
        found = self.client.call("GET", self.path(node.name)).json
        if found is None or found.get("status") != "RUNNING" or node.quiet:
            node.running = 0 if found is None or found.get("status") != "RUNNING" else node.running
            return
        if node.started and node.started != found["lastStartTimestamp"]:
            node.boot, node.running = node.boot + 1, 0
        node.started = found["lastStartTimestamp"]
        path = f"/storage/v1/b/{BUCKET}/o/orders%2F{node.name}.json"
        listed = self.client.call("GET", path)
        if listed.status == 200:
            text = self.client.call("GET", f"{path}?alt=media").data
            node.obey(text, int(listed.json["generation"]))
        else:
            node.obey(None, None)
        node.work()
        self.publish(node.name, encode(node.document(self.online)))

    def publish(self, name: str, text: str) -> None:
        where = f"projects/p1/zones/{self.nodes[name].zone}/instances/{name}"
        publish(self.serving.lab.store, where, "pilot/status", text)

    def console(self, text: bytes) -> None:
        def output(machine: Machine) -> bytes:
            return text

        self.serving.lab.driver.serial_output = output  # type: ignore[method-assign]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Tick in the background."""
        over = threading.Event()

        def go() -> None:
            while not over.wait(0.01):
                self.tick()

        thread = threading.Thread(target=go)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def rolling(version: str = "1.19.0", **changes: Any) -> RollStatus:
    """A roll to NEW."""
    return replace(RollStatus(version=version, sha256=NEW), **changes)
