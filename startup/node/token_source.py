"""Fetches the tokens that the spec names, over and over."""

from __future__ import annotations

from collections.abc import Mapping

from .desired.spec import RendezvousSpec
from .follower import Follower
from .machine.polling import Source, Wake
from .machine.retry import TemporaryError
from .rendezvous.access_tokens import EVERY, Tokens, fetch


class TokenSource:
    """The tokens of the follower's spec, fetched in a thread of its own."""

    def __init__(self, follower: Follower, wake: Wake) -> None:
        self._follower = follower
        # The last answer, also where some tokens are missing in it.
        self._part: Tokens | None = None
        self._source: Source[Tokens] = Source("tokens", self._ask, wake=wake, every=EVERY)

    def start(self) -> None:
        self._source.start()

    def stop(self) -> None:
        self._source.stop()

    def latest(self) -> Tokens | None:
        """The last answer, None before the first one."""
        reading = self._source.latest()
        if not reading.error or self._part is not None:
            return self._part or reading.value
        return Tokens(missing=dict.fromkeys(self._names(), reading.error))

    def _names(self) -> Mapping[str, str]:
        spec = self._follower.known.spec
        return spec.secrets if isinstance(spec, RendezvousSpec) else {}

    def _ask(self) -> Tokens:
        spec = self._follower.known.spec
        if not isinstance(spec, RendezvousSpec) or not spec.secrets:
            return Tokens()
        found = fetch(
            spec.secrets, endpoint=spec.secrets_endpoint, token=self._follower.server.token
        )
        self._part = found
        if found.missing:
            # So that it is asked again soon, and not after EVERY.
            raise TemporaryError(found.problem)
        return found
