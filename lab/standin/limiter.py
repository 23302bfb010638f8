"""The limit of new identities per source address, and its exemptions (FACTS, rendezvous)."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

NEW_KEYS_PER_MINUTE: Final = 10
# Requests per second in the whole process, on connections older than 5 s (the public source, 2026).
REQUESTS_PER_SECOND: Final = 1000
WINDOW_SECONDS: Final = 60.0

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class Exemption:
    """A range whose addresses may bring `rate` new keys per minute each."""

    network: Network
    rate: int


def read_whitelist(text: str) -> tuple[Exemption, ...]:
    """`rate-limit-whitelist.json`: a list of {"cidr", "rate"}. ValueError says what is wrong."""
    entries = json.loads(text)
    if not isinstance(entries, list):
        raise ValueError("must be a JSON list of {cidr, rate}")
    found = []
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("cidr"), str):
            raise ValueError(f"entry {index}: must have a cidr")
        rate = entry.get("rate")
        if not isinstance(rate, int) or isinstance(rate, bool) or rate <= 0:
            raise ValueError(f"entry {index}: rate must be a whole number above 0")
        try:
            # Host bits are cut off, as Go's ParseCIDR does.
            network = ipaddress.ip_network(entry["cidr"], strict=False)
        except ValueError as error:
            raise ValueError(f"entry {index}: {error}") from None
        found.append(Exemption(network, rate))
    return tuple(found)


class Bucket:
    """Tokens that come back evenly, `rate` in `seconds`; it starts full."""

    __slots__ = ("last", "rate", "seconds", "tokens")

    def __init__(self, rate: float, seconds: float, now: float) -> None:
        self.rate = rate
        self.seconds = seconds
        self.tokens = rate
        self.last = now

    def take(self, now: float) -> bool:
        self.tokens = min(self.rate, self.tokens + (now - self.last) * self.rate / self.seconds)
        self.last = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


class Limiter:
    """A bucket of new keys for every source address.

    A change of the whitelist holds from the next registration on. (In a part of the public source
    it holds only for a source that has been silent for two minutes: write the file before.)
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._whitelist: tuple[Exemption, ...] = ()
        self._rates: dict[str, int | None] = {}
        self._buckets: dict[str, Bucket] = {}

    @property
    def whitelist(self) -> tuple[Exemption, ...]:
        return self._whitelist

    @whitelist.setter
    def whitelist(self, exemptions: tuple[Exemption, ...]) -> None:
        self._whitelist = exemptions
        self._rates.clear()

    def exempt_rate(self, source: str) -> int | None:
        """New keys per minute of a whitelisted address; None for any other."""
        try:
            return self._rates[source]
        except KeyError:
            rate = self._rates[source] = self._look_up(source)
            return rate

    def _look_up(self, source: str) -> int | None:
        try:
            address = ipaddress.ip_address(source)
        except ValueError:
            return None
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        for exemption in self._whitelist:
            if address in exemption.network:
                return exemption.rate
        return None

    def allow(self, source: str, rate: int, *, ignore_whitelist: bool = False) -> bool:
        """Whether this address may bring one more new key: `rate` per minute, unless exempt."""
        exempt = None if ignore_whitelist else self.exempt_rate(source)
        allowed = rate if exempt is None else exempt
        now = self._clock()
        bucket = self._buckets.get(source)
        if bucket is None or bucket.rate != allowed:
            bucket = self._buckets[source] = Bucket(allowed, WINDOW_SECONDS, now)
        return bucket.take(now)

    def sweep(self) -> None:
        """Forget addresses that have brought nothing for two windows."""
        old = self._clock() - 2 * WINDOW_SECONDS
        self._buckets = {source: b for source, b in self._buckets.items() if b.last >= old}
        if len(self._rates) > 100_000:
            self._rates.clear()
