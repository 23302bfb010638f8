"""Alerts on VMs that are held and that no open plan will start again: somebody may have forgotten.

The status says that a VM is held, the order in the fleet's bucket says by whom.
"""

from __future__ import annotations

from ops import plan as plans
from ops.errors import OpsError
from ops.fleet import Fleet, Vm
from ops.google import Cloud
from ops.orders import OrdersBucket
from ops.plan import VmInPlan


def alerts(cloud: Cloud, fleet: Fleet) -> dict[str, str]:
    """`VM/held` -> a sentence, for each VM that is held and not by an open plan. The bucket is
    read for held VMs only."""
    found: dict[str, str] = {}
    for vm in fleet.vms:
        if vm.speaks and vm.status.flag("orders.hold"):
            try:
                text = _held(cloud, vm)
            except OpsError as error:
                text = f"it is held, and nobody can tell by whom: {error}"
            if text:
                found[f"{vm.name}/held"] = text
    return found


def _held(cloud: Cloud, vm: Vm) -> str:
    """By whom a VM is held, as a sentence. "" where a plan holds it, or where the order has ended
    and the VM has not read that yet."""
    bucket = vm.instance.spec.text("bucket")
    seen = VmInPlan(vm=vm, order=OrdersBucket(cloud=cloud, bucket=bucket, by="").read(vm.name))
    if seen.holds_itself:
        return "it is held on the VM itself: `sudo pilot-node undrain` on it ends that"
    if not seen.order.hold:
        return ""
    plan = plans.decode(cloud.read(bucket, plans.OBJECT).data)
    if plan is not None and not plan.is_over and vm.name in plan.held:
        return ""
    by, at = seen.order.doc.text("by"), seen.order.doc.text("at")
    return (
        f"it is held by an order of {by or 'somebody'} ({at or 'time unknown'}): "
        f"`ops undrain {vm.name}` ends that"
    )
