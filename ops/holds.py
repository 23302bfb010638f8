"""Holds that somebody may have forgotten: no plan that is under way will end them.

What a VM says tells that it is held, and the fleet's bucket who ordered it.
"""

from __future__ import annotations

from ops import plan as plans
from ops.errors import OpsError
from ops.fleet import Fleet, Vm
from ops.google import Cloud
from ops.orders import OrdersBucket
from ops.plan import VmInPlan


def alerts(cloud: Cloud, fleet: Fleet) -> dict[str, str]:
    """A sentence, under `VM/held`, for each VM that is held and not by a plan that is open. The
    bucket is asked only where a VM says that it is held; what it does not tell is in the sentence.
    """
    found: dict[str, str] = {}
    for vm in fleet.vms:
        if vm.speaks and vm.status.flag("orders.hold"):
            try:
                text = _held(cloud, vm)
            except OpsError as error:
                text = f"it is held, and by whom is not to be read: {error}"
            if text:
                found[f"{vm.name}/held"] = text
    return found


def _held(cloud: Cloud, vm: Vm) -> str:
    """Who holds a VM, "" where a plan does, or where it has not read yet that nobody does."""
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
        f"it is held by an order of {by or 'somebody'} ({at or 'at no time known'}): "
        f"`ops undrain {vm.name}` ends that"
    )
