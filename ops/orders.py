"""Orders: objects `orders/VM.json` in the fleet's bucket (docs/CONTRACT.md, "Orders").

A change is written on the generation that was read. Where somebody else wrote meanwhile, it is made
again on the newer one, so that two operators' orders both count.
"""

from __future__ import annotations

import getpass
import json
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final

from ops.errors import ClashError, OpsError, UsageError
from ops.google import Cloud
from ops.json_document import Doc

SCHEMA: Final = 1
FOLDER: Final = "orders/"
_ATTEMPTS: Final = 5
_ID = re.compile(r"[-0-9A-Za-z_.:]{1,64}")
BANNER_LIMIT: Final = 200  # characters (docs/CONTRACT.md)

# Changes of an order, for `OrdersBucket.give`.
DRAIN: Final[Mapping[str, Any]] = MappingProxyType({"hold": True})
UNDRAIN: Final[Mapping[str, Any]] = MappingProxyType({"hold": None})
PAUSE: Final[Mapping[str, Any]] = MappingProxyType({"benchmarks": "pause"})
UNPAUSE: Final[Mapping[str, Any]] = MappingProxyType({"benchmarks": None})


@dataclass(frozen=True, kw_only=True)
class Order:
    """The order of a VM."""

    content: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    generation: int = 0
    """The object's generation; 0: there is no order."""

    @property
    def doc(self) -> Doc:
        """Its fields."""
        return Doc(self.content)

    @property
    def hold(self) -> bool:
        """Whether the VM is to run no agent."""
        return self.doc.flag("hold")


def name(vm: str) -> str:
    """The name of a VM's order object."""
    return f"{FOLDER}{vm}.json"


def now() -> str:
    """The time in UTC, for the field `at`."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def new_id(what: str) -> str:
    """A new ID, in the form that the field `restart` has to have."""
    found = f"{what}-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
    assert _ID.fullmatch(found)
    return found


def roll_go(sha256: str) -> dict[str, Any]:
    """The change by which the roll to a release begins, or tries again."""
    return {"roll": {"sha256": sha256, "verdict": "go", "id": new_id("go")}}


def roll_reject(sha256: str) -> dict[str, Any]:
    """The change that ends the roll to a release."""
    return {"roll": {"sha256": sha256, "verdict": "reject"}}


def changed(before: Order, changes: Mapping[str, Any], *, by: str) -> bytes | None:
    """The order's new text with `changes` made (None removes a field). None where nothing
    changes."""
    after = {key: value for key, value in before.content.items() if key not in changes}
    after |= {key: value for key, value in changes.items() if value is not None}
    meant = {key for key in {**before.content, **after} if key not in ("by", "at")}
    if all(before.content.get(key) == after.get(key) for key in meant):
        return None
    after |= {"schema": SCHEMA, "by": by[:200], "at": now()}
    return json.dumps(after, sort_keys=True, indent=1).encode() + b"\n"


@dataclass(frozen=True, kw_only=True)
class OrdersBucket:
    """The orders in one bucket."""

    cloud: Cloud
    bucket: str
    by: str
    """The name that new orders carry."""

    def read(self, vm: str) -> Order:
        """The order of a VM. OpsError where the object is not an order of this schema."""
        found = self.cloud.read(self.bucket, name(vm))
        if not found.generation:
            return Order()
        try:
            content = json.loads(found.data)
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict) or content.get("schema") != SCHEMA:
            raise OpsError(
                f"gs://{self.bucket}/{name(vm)} is no order of schema {SCHEMA}: the VM keeps its "
                "last good one. Restore its last good version (the bucket keeps them); a deleted "
                "order also ends a hold"
            )
        return Order(content=content, generation=found.generation)

    def give(self, vm: str, changes: Mapping[str, Any]) -> Order:
        """Change the order of a VM; the new order. ClashError where others keep writing."""
        banner = changes.get("banner")
        if isinstance(banner, str) and (len(banner) > BANNER_LIMIT or not banner.isprintable()):
            raise UsageError(f"a banner is one line of {BANNER_LIMIT} characters at most")
        for _ in range(_ATTEMPTS):
            before = self.read(vm)
            data = changed(before, changes, by=self.by)
            if data is None:
                return before
            try:
                generation = self.cloud.write(
                    self.bucket, name(vm), data, generation=before.generation
                )
            except ClashError:
                continue
            return Order(content=json.loads(data), generation=generation)
        raise ClashError(f"gs://{self.bucket}/{name(vm)}: others keep changing it")


def this_operator() -> str:
    """The name on orders where none is given: USER@HOST."""
    return f"{getpass.getuser()}@{socket.gethostname()}"
