"""Which tokens the process is started with, as Secret Manager's answers come and go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from . import access_tokens, runs
from .access_tokens import Tokens
from .context import LoopContext

# Seconds. The first start waits so long for the tokens: IAM lets a new binding in after minutes.
PATIENCE = 30.0


@dataclass(kw_only=True)
class TokenKeeper:
    """Keeps `config`, which the process should be started with."""

    loop: LoopContext
    config: Mapping[str, str] = field(default_factory=dict)
    """The content of `-config`: a token by its flag."""
    first_turn_at: float | None = None
    _known: Tokens = field(default_factory=Tokens)
    # Tokens that only an earlier pilot-node has fetched.
    _recalled: set[str] = field(default_factory=set)

    @property
    def admin(self) -> str:
        """The admin token, "" where there is none."""
        return self.config.get(access_tokens.FLAGS["admin"], "")

    def recall(self) -> None:
        """Take over the tokens of the running process. Raises OSError."""
        self.config = access_tokens.recall(self.loop.paths.rendezvous_config)
        self._known = access_tokens.held(self.config)
        self._recalled = set(self._known.values)

    def take(self, new: Tokens | None) -> None:
        """Take what Secret Manager said last, None before it said anything."""
        secrets = self.loop.spec.secrets
        if not secrets:
            self._known, self.config = Tokens(), {}
            return
        answered = new is not None
        if new is None:
            new = Tokens(missing=dict.fromkeys(secrets, "Secret Manager has not answered yet"))
        # A token that it refuses now is dropped, but only where an earlier pilot-node fetched it.
        for what in self._recalled & new.refused:
            self._known = replace(self._known, values=_without(self._known.values, what))
            self.config = _without(self.config, access_tokens.FLAGS[what])
        self._recalled -= {*new.values, *new.refused}
        new = access_tokens.kept(new, self._known)
        if new != self._known or not self.config:
            before = dict(self.config)
            self.config = access_tokens.config(new)
            flag = access_tokens.FLAGS["dashboard"]
            if "dashboard" in new.missing and flag in before:
                # The random stand-in stays the same: another one would be a restart.
                self.config = {**self.config, flag: before[flag]}
            self._known = new
        # Before the first answer nothing has gone wrong.
        if new.problem and answered:
            stays = set(new.missing) <= set(new.values)
            rest = "the one that is known stays" if stays else "closed until the token can be read"
            self.loop.fault(f"{new.problem}: {rest}")

    def is_worth_waiting_for(self, now: float) -> bool:
        """Whether the first start waits for a token: each that comes later is a restart."""
        began = self.first_turn_at if self.first_turn_at is not None else now
        first = not runs.record(self.loop.paths).exists()
        return bool(self._known.missing) and now - began < PATIENCE and first


def _without(known: Mapping[str, str], name: str) -> dict[str, str]:
    return {each: value for each, value in known.items() if each != name}
