"""Looks at the production fleet, from statuses of made-up facts and at fixed times, and what
`live` shows of them."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any
from xml.etree import ElementTree

from textual.pilot import Pilot

from ops.cloud_address import CloudAddress
from ops.fleet import Fleet, Instance, Vm, listen
from ops.google import Cloud
from ops.live import LiveApp
from ops.live_orders import OrderDesk
from ops.looks import FleetLooks
from ops.registry_counts import RegistryCounts
from ops.watch import Limits
from startup.node.pressure.sampler import Heavy, Sample
from startup.node.report.status import OrdersStatus, RollStatus, document, encode
from tests.conftest import run_async
from tests.ops.simulated import NEW, rendezvous_spec, swarm_spec
from tests.startup import facts

NOW = facts.NOW
MACHINES = {
    "pilot-rendezvous": ("n2-standard-4", 16),
    "swarm-1": ("e2-standard-16", 64),
    "swarm-2": ("n2d-highcpu-128", 128),
    "swarm-3": ("e2-standard-8", 32),
}
AGENTS = {"swarm-1": 3000, "swarm-2": 5000, "swarm-3": 1500}


def swarm_vm(name: str, running: int, *, now: float = NOW, **changes: Any) -> Vm:
    """A VM of which so many agents run. `changes` are of its facts."""
    machine, memory = MACHINES[name]
    agents = AGENTS[name]
    ports = range(10_001, 10_001 + agents)
    ready = frozenset(ports[:running])
    given = {
        "vm": name,
        "now": now,
        "goal": dict.fromkeys(ports, "v-old"),
        "view": facts.View(ready=ready, variant=dict.fromkeys(ready, "v-old")),
        "sample": Sample(
            total=memory << 30,
            available=int(memory * 0.62) << 30,
            agent_limit=20 << 20,
            agent_mean=2 << 20,
            over=0,
            top=(Heavy(port=10_007, node_id=4711, bytes=9 << 20),),
        ),
        **changes,
    }
    spec = swarm_spec(name, agents, roll={"auto": False, "batch": 500, "watchSeconds": 60})
    return _vm(name, spec, machine, encode(document(facts.swarm(**given))), now)


def rendezvous_vm(*, now: float = NOW, **changes: Any) -> Vm:
    """The VM of the rendezvous."""
    text = encode(document(facts.rendezvous(now=now, **changes)))
    name = "pilot-rendezvous"
    return _vm(name, rendezvous_spec(9500), MACHINES[name][0], text, now)


def _vm(name: str, spec: dict[str, Any], machine: str, text: str, now: float) -> Vm:
    metadata = {"pilot-role": spec["role"], "pilot-spec": json.dumps(spec)}
    instance = Instance(
        name=name, zone="us-central1-a", state="RUNNING", machine=machine, metadata=metadata
    )
    return listen(instance, text, now)


def fleet(*vms: Vm, online: int | None = 9500, now: float = NOW) -> Fleet:
    """The production fleet with these VMs, and the others whole."""
    given = {vm.name: vm for vm in vms}
    whole = {name: swarm_vm(name, agents, now=now) for name, agents in AGENTS.items()}
    everyone = {"pilot-rendezvous": rendezvous_vm(now=now), **whole, **given}
    counted = RegistryCounts(online=online, problem="" if online is not None else "it is down")
    return Fleet(
        name="swarm",
        project="vulture-vision-cloud",
        time=now,
        vms=tuple(everyone.values()),
        registry=counted,
    )


def busy(online: int, *, now: float = NOW) -> Fleet:
    """A fleet at work: a VM rolls, one fills, and some of its agents fail."""
    ports = range(10_001, 11_501)
    ready = frozenset(ports[:1180])
    fills = facts.View(
        ready=ready,
        starting=dict.fromkeys(ports[1180:1192], 100.0),
        trouble={
            port: facts.Trouble(failures=4, until=220.0, why="no socket after 60 s")
            for port in ports[1192:1204]
        },
        variant=dict.fromkeys(ready, "v-old"),
        window=facts.Window(size=8, why="a start has failed"),
    )
    rolls = RollStatus(state="watching", version="1.19.0", sha256=NEW, done=1500, of=5000)
    return fleet(
        swarm_vm("swarm-2", 5000, now=now, roll=rolls),
        swarm_vm("swarm-3", 0, now=now, view=fills),
        online=online,
        now=now,
    )


def held(name: str) -> Vm:
    """A VM that an order holds."""
    return swarm_vm(name, 0, goal={}, drained=True, orders=OrdersStatus(generation=7, hold=True))


# `live` on them


def looks(
    found: Iterable[Fleet | Exception], alerts: dict[str, str] | None = None, failed: float = NOW
) -> FleetLooks:
    """The looks that find these fleets, one after the other; one that fails does so at `failed`."""
    waiting = iter(found)

    def ask() -> Fleet:
        one = next(waiting)
        if isinstance(one, Exception):
            raise one
        return one

    return FleetLooks(ask, lambda _: alerts or {}, Limits(), lambda: failed)


def cloud(url: str = "http://127.0.0.1:9") -> Cloud:
    """Google's clients; by default at an address where nobody listens."""
    return Cloud(CloudAddress(project="p1", compute=url, storage=url, monitoring=url))


def live(
    source: FleetLooks, *, at: Cloud | None = None, every: float = 1e6, poll: float = 1.0
) -> LiveApp:
    """The program of `live`, after its first look. By itself it looks no more."""
    desk = OrderDesk(cloud=at or cloud(), by="tester", poll=poll)
    return LiveApp(
        first=source.next(), every=every, look=source.next, desk=desk, context="production"
    )


def drive(
    app: LiveApp,
    steps: Callable[[Pilot[int]], Awaitable[None]],
    size: tuple[int, int] = (80, 24),
) -> int | None:
    """Run the program without a terminal while `steps` press its keys; its exit code."""

    async def go() -> None:
        async with app.run_test(size=size, notifications=True) as pilot:
            await pilot.pause()
            await steps(pilot)

    run_async(go())
    return app.return_value


async def until(pilot: Pilot[int], holds: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        await pilot.pause(0.01)
        if holds():
            return
    raise AssertionError("it does not come about; the screen is\n" + "\n".join(screen(pilot.app)))


def picture(app: Any) -> str:
    """The screen as an SVG, without what another run names otherwise, and without the fonts that a
    viewer would fetch from somebody else's server."""
    found = re.sub(r"terminal-\d+", "terminal-1", app.export_screenshot(title="pilot-fleet live"))
    return re.sub(r"\n *@font-face \{.*?\n *\}", "", found, flags=re.DOTALL) + "\n"


def screen(app: Any) -> list[str]:
    """The screen's lines of text, read in its picture."""
    width, height = app.size
    rows = [[" "] * width for _ in range(height)]
    for each in ElementTree.fromstring(app.export_screenshot()).iter():
        if each.tag.endswith("text") and "clip-path" in each.attrib:
            row = int(re.search(r"line-(\d+)", each.attrib["clip-path"])[1])  # type: ignore[index]
            at = round(float(each.attrib["x"]) / 12.2)
            text = (each.text or "").replace("\xa0", " ")
            rows[row][at : at + len(text)] = text
    return ["".join(row).rstrip() for row in rows]
