"""Simulated host maintenance: the API begins it, the metadata server tells the guest.

An event is written with its end when it begins, so it ends on time even if the lab is killed.
The machine itself is left alone. On Google it is moved to another host when the notice ends, or
stopped, as its scheduling says.
"""

import time
from typing import Final

from lab.cloud import Json, links
from lab.cloud.errors import not_ready
from lab.cloud.links import Scope
from lab.cloud.store import Transaction

NOTICE_SECONDS: float = 60.0
"""How long a guest sees the event: Google gives live migration 60 s of notice."""

_COLLECTION: Final = "maintenance"


def simulate(transaction: Transaction, _: Scope, instance: Json, __: Json) -> None:
    """Begin a maintenance event (`simulateMaintenanceEvent`); 400 where the machine is off."""
    if instance["status"] != "RUNNING":
        path = links.path_of(instance["selfLink"], Scope(project=""))
        raise not_ready(path, f"it is {instance['status']}")
    for name, each in transaction.documents(_COLLECTION).items():
        if each["until"] < time.time():
            transaction.delete(_COLLECTION, name)
    action = instance["scheduling"]["onHostMaintenance"]
    notice = {"event": f"{action}_ON_HOST_MAINTENANCE", "until": time.time() + NOTICE_SECONDS}
    transaction.put(_COLLECTION, instance["id"], notice)


def current(transaction: Transaction, identity: str) -> tuple[str, float] | None:
    """Return an instance's event and the seconds until it ends; None where there is none."""
    notice = transaction.get(_COLLECTION, identity)
    if notice is None:
        return None
    left = notice["until"] - time.time()
    return (notice["event"], left) if left > 0 else None
