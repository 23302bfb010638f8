"""Orders: objects `orders/VM.json` in the fleet's bucket (docs/CONTRACT.md, "Orders").

An object says what is to be. A change of one is made on the generation that was read, and made
again on the newer one where somebody else wrote meanwhile: two operators' orders both count.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final

from ops.errors import ClashError, OpsError, UsageError
from ops.fleet import Doc
from ops.google import Cloud

SCHEMA: Final = 1
FOLDER: Final = "orders/"
_ATTEMPTS: Final = 5
_ID = re.compile(r"[-0-9A-Za-z_.:]{1,64}")
BANNER_LIMIT: Final = 200  # characters (docs/CONTRACT.md)


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is ordered of a VM, and the generation of the object that says so (0: there is none)."""

    content: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    generation: int = 0

    @property
    def doc(self) -> Doc:
        """Its fields."""
        return Doc(self.content)

    @property
    def hold(self) -> bool:
        """Is the VM to be at no agent?"""
        return self.doc.flag("hold")


def name(vm: str) -> str:
    """The object of a VM's orders."""
    return f"{FOLDER}{vm}.json"


def now() -> str:
    """The time, in UTC, for `at`."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def new_id(what: str) -> str:
    """An ID that was not given before, of the form that a restart has to have."""
    found = f"{what}-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
    assert _ID.fullmatch(found)
    return found


def changed(before: Order, changes: Mapping[str, Any], *, by: str) -> bytes | None:
    """The object's new text: `changes` made, None taking a field away; None where it says all
    that already."""
    after = {key: value for key, value in before.content.items() if key not in changes}
    after |= {key: value for key, value in changes.items() if value is not None}
    meant = {key for key in {**before.content, **after} if key not in ("by", "at")}
    if all(before.content.get(key) == after.get(key) for key in meant):
        return None
    after |= {"schema": SCHEMA, "by": by[:200], "at": now()}
    return json.dumps(after, sort_keys=True, indent=1).encode() + b"\n"


@dataclass(frozen=True, kw_only=True)
class OrdersBucket:
    """The orders in one bucket; `by` is who gives them."""

    cloud: Cloud
    bucket: str
    by: str

    def read(self, vm: str) -> Order:
        """What is ordered of a VM. OpsError where the object is none that this command wrote."""
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
        """Change what is ordered of a VM; what then is. ClashError where others write all the
        time."""
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
        raise ClashError(f"gs://{self.bucket}/{name(vm)} is changed by others all the time")
