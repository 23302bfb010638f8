"""The sources that pilot-node follows: metadata, maintenance and orders.

Each is asked over and over (machine/polling.py), by a long poll where there is one. Values are
checked by their readers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import quote

from ..machine import cloud_storage, http_client
from ..machine.metadata import MetadataServer
from ..machine.retry import FinalError

# Seconds that a long poll may take, as in Google's own agent.
POLL_SECONDS = 60
# Seconds between two looks at the orders (docs/CONTRACT.md).
ORDERS_SECONDS = 10.0
# Bytes of an orders object; the fields of a real one take a few hundred.
_ORDERS_LIMIT = 64 << 10


@dataclass(kw_only=True)
class Attributes:
    """The custom metadata below `path` (`instance/attributes`, `project/attributes`). One long poll
    for all keys, which sees new and removed keys as well."""

    server: MetadataServer
    path: str
    seconds: int = POLL_SECONDS
    _etag: str = ""

    def __call__(self) -> Mapping[str, str]:
        if self._etag:
            found = self.server.wait(self.path, self._etag, self.seconds, tree=True)
        else:
            found = self.server.tree(self.path)
        try:
            values = json.loads(found.text)
        except (ValueError, RecursionError) as error:
            raise FinalError(f"{self.path}: not JSON: {error}") from error
        if not isinstance(values, dict):
            raise FinalError(f"{self.path}: not an object")
        # Set last: a value that could not be read is asked for again.
        self._etag = found.etag
        return {key: value for key, value in values.items() if isinstance(value, str)}


@dataclass(kw_only=True)
class Maintenance:
    """`instance/maintenance-event`: `NONE`, `MIGRATE_ON_HOST_MAINTENANCE`, or
    `TERMINATE_ON_HOST_MAINTENANCE`, from a minute before it happens."""

    server: MetadataServer
    seconds: int = POLL_SECONDS
    _etag: str = ""

    def __call__(self) -> str | None:
        path = "instance/maintenance-event"
        if not self._etag:
            # A server without the key has no events.
            if self.server.value(path) is None:
                return None
            self._etag = "0"
        found = self.server.wait(path, self._etag, self.seconds)
        self._etag = found.etag
        return found.text.strip()


@dataclass(frozen=True, kw_only=True)
class OrdersPlace:
    """Where the orders of a VM are."""

    endpoint: str
    """Of Cloud Storage."""
    bucket: str
    vm: str
    """The VM's name."""

    @property
    def url(self) -> str:
        name = quote(f"orders/{self.vm}.json", safe="")
        return f"{self.endpoint}/storage/v1/b/{quote(self.bucket, safe='')}/o/{name}"

    def __str__(self) -> str:
        return f"gs://{self.bucket}/orders/{self.vm}.json"


@dataclass(frozen=True, kw_only=True)
class OrdersObject:
    """The orders object."""

    generation: str
    text: str


@dataclass(kw_only=True)
class OrdersPoller:
    """Reads the orders object of the VM. `where` follows the spec."""

    server: MetadataServer
    where: Callable[[], OrdersPlace]
    _last: tuple[OrdersPlace, OrdersObject] | None = None

    def __call__(self) -> OrdersObject | None:
        where = self.where()
        known = self._last[1] if self._last and self._last[0] == where else None
        query = "alt=media" + (f"&ifGenerationNotMatch={known.generation}" if known else "")
        headers = {"Authorization": f"Bearer {self.server.token()}"}
        with http_client.get(f"{where.url}?{query}", headers) as answer:
            if answer.status == 304 and known:
                return known
            gone = cloud_storage.what_is_gone(answer)
            if gone == "object":
                self._last = None
                return None
            if gone == "bucket":
                raise FinalError(
                    f"{where}: there is no such bucket: run `pulumi up`, or check the spec's bucket"
                )
            if answer.status != 200:
                raise FinalError(f"{where}: {_refused(answer.status, answer.reason)}")
            found = OrdersObject(
                generation=answer.headers.get("x-goog-generation", ""),
                # Where it is not UTF-8, parsing it reports that.
                text=answer.body(_ORDERS_LIMIT).decode(errors="replace"),
            )
        self._last = (where, found) if found.generation else None
        return found


def _refused(status: int, reason: str) -> str:
    advice = {
        401: "the VM's token is not accepted",
        403: "the VM's service account may not read it: grant it roles/storage.objectViewer on "
        "the bucket",
    }.get(status, "not an answer of Cloud Storage: check the spec's endpoints.storage")
    return f"{status} {reason}: {advice}"
