"""Where a fleet's Google Cloud is: its project, and the base URLs of its APIs. Pure.

Endpoints may be others than Google's (a lab). A plain-http endpoint has to be on loopback, because
a token is sent along; there the token is not a real one.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from ops.errors import UsageError

COMPUTE: Final = "https://compute.googleapis.com"
STORAGE: Final = "https://storage.googleapis.com"
MONITORING: Final = "https://monitoring.googleapis.com"


@dataclass(frozen=True, kw_only=True)
class CloudAddress:
    """A fleet's Google Cloud project ("": that of the credentials), and the APIs' base URLs."""

    project: str = ""
    compute: str = COMPUTE
    storage: str = STORAGE
    monitoring: str = MONITORING

    def check(self) -> None:
        """UsageError where a token would be sent in clear text."""
        self.check_urls()
        if is_loopback(self.compute) and not self.project:
            raise UsageError("which project? Give --project (or set PILOT_PROJECT)")

    def check_urls(self) -> None:
        """The same, whatever the project."""
        for url in (self.compute, self.storage, self.monitoring):
            parts = urlsplit(url)
            if parts.scheme == "https" and parts.hostname:
                continue
            if parts.scheme != "http" or not is_loopback(url):
                raise UsageError(
                    f"{url!r} is no endpoint: give https://HOST, or http:// and a loopback "
                    "address, because a token is sent along"
                )
        if len({is_loopback(url) for url in (self.compute, self.storage)}) > 1:
            raise UsageError(
                "one endpoint is on this machine and the other is not: give --endpoint for all"
            )

    @property
    def is_here(self) -> bool:
        """Whether the cloud is on this machine."""
        return is_loopback(self.compute)


def is_loopback(url: str) -> bool:
    """Whether the host of `url` is a loopback address or `localhost`."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
