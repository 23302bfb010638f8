"""Plans that a test carries out on the simulated fleet."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ops import run
from ops.cloud_address import CloudAddress
from ops.google import Cloud
from ops.orders import OrdersBucket
from ops.plan import RestartPlan
from tests.ops.simulated import (
    BUCKET,
    FLEET,
    Simulated,
)

SWARM = ("swarm-3", "swarm-1", "swarm-2")


class Interrupted(KeyboardInterrupt):
    """An operator's Ctrl-C."""


def runner(simulated: Simulated, said: list[str], **changes: Any) -> run.Runner:
    """A runner whose waiting is the fleet's working."""
    url = simulated.serving.url
    cloud = Cloud(CloudAddress(project="p1", compute=url, storage=url, monitoring=url))
    given: dict[str, Any] = {
        "orders": OrdersBucket(cloud=cloud, bucket=BUCKET, by="tester"),
        "fleet": FLEET,
        "dashboard": "",
        "say": said.append,
        "pause": lambda _: simulated.tick(),
        "clock": lambda: float(simulated.ticks),
        "limit": 60.0,
    }
    return run.Runner(cloud=cloud, **{**given, **changes})


def begin(driver: run.Runner, kind: str, vms: Iterable[str] = SWARM, **more: Any) -> Any:
    plan = run.new_plan(kind, vms, by="tester", **more)
    return plan, driver.begin(plan, driver.look())


def carry_out(driver: run.Runner, plan: RestartPlan, generation: int) -> RestartPlan:
    return driver.carry_out(plan, generation, banner="planned", silence=True)
