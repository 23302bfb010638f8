"""The rendezvous' tokens: from Secret Manager, with the VM's own account, into its `-config` file.

They are never on a command line, a disk or in a log. A declared token that cannot be fetched must
not leave open what it closes. Without an admin or a replication token the rendezvous refuses these
requests (upstream: "empty = disabled"). A missing dashboard token is replaced by a random one. So
the registry never waits for Secret Manager.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from ..machine import files, http_client
from ..machine.retry import FinalError, TemporaryError
from ..machine.user import UID

# Purpose of a token -> the rendezvous' flag, which is also the key in its `-config`.
FLAGS: Final[Mapping[str, str]] = {
    "admin": "admin-token",
    "dashboard": "dashboard-token",
    "replication": "repl-token",
}
# Secret Manager gives at most 64 KiB; a token is one line of it.
_LIMIT: Final = 128 << 10
_MOST: Final = 512
# Seconds from one question to the next.
EVERY = 60.0
# How the random stand-in for a missing token begins.
_NOBODY: Final = "nobody-knows-"


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Tokens by their purpose."""

    values: Mapping[str, str] = field(default_factory=dict, repr=False)
    missing: Mapping[str, str] = field(default_factory=dict)
    """Why the others could not be fetched."""
    refused: frozenset[str] = frozenset()
    """Those of `missing` that Secret Manager itself refused."""

    @property
    def problem(self) -> str:
        return "; ".join(f"{name} token: {why}" for name, why in sorted(self.missing.items()))


def fetch(names: Mapping[str, str], *, endpoint: str, token: Callable[[], str]) -> Tokens:
    """Fetch the tokens of a spec. `names`: purpose -> version in Secret Manager
    (`projects/P/secrets/N/versions/V`). Never raises for what a server says."""
    values: dict[str, str] = {}
    missing: dict[str, str] = {}
    refused: set[str] = set()
    for what, name in sorted(names.items()):
        try:
            values[what] = _access(name, endpoint, token())
        except TemporaryError as error:
            missing[what] = str(error)
        except FinalError as error:
            missing[what] = str(error)
            refused.add(what)
    return Tokens(values=values, missing=missing, refused=frozenset(refused))


def kept(new: Tokens, old: Tokens) -> Tokens:
    """`new`, with the values of `old` for tokens that could not be fetched again."""
    again = {what: old.values[what] for what in new.missing if what in old.values}
    return replace(new, values={**again, **new.values})


def config(tokens: Tokens) -> dict[str, str]:
    """The content of `-config`. A missing dashboard token is replaced by a random one."""
    found = {FLAGS[what]: value for what, value in sorted(tokens.values.items())}
    if "dashboard" in tokens.missing and "dashboard" not in tokens.values:
        found[FLAGS["dashboard"]] = _NOBODY + secrets.token_urlsafe(32)
    return found


def recall(path: Path) -> dict[str, str]:
    """The content that `write` wrote in this boot; empty where it did not, or the file is bad."""
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    items = found.items() if isinstance(found, dict) else ()
    return {str(flag): str(value) for flag, value in items}


def held(content: Mapping[str, str]) -> Tokens:
    """The tokens in the content of `-config`, without a random stand-in."""
    known = {what: content.get(flag, _NOBODY) for what, flag in FLAGS.items()}
    return Tokens(
        values={what: token for what, token in known.items() if not token.startswith(_NOBODY)}
    )


def write(path: Path, content: Mapping[str, str]) -> None:
    """Write `content`, readable for root and the rendezvous only (root:pilot 0640). Raises
    OSError."""
    files.write(path, json.dumps(content, sort_keys=True) + "\n", 0o640)
    if os.geteuid() == 0:
        os.chown(path, 0, UID)


def _access(name: str, endpoint: str, token: str) -> str:
    headers = {"Authorization": f"Bearer {token}"}
    with http_client.get(f"{endpoint}/v1/{name}:access", headers) as answer:
        if answer.status != 200:
            raise FinalError(f"{name}: {answer.status} {answer.reason}: {_advice(answer.status)}")
        body = answer.body(_LIMIT)
    try:
        value = base64.b64decode(json.loads(body)["payload"]["data"], validate=True).decode()
    except (ValueError, LookupError, TypeError, binascii.Error):
        # Not with the answer: it may hold the token.
        raise FinalError(f"{name}: the answer holds no text in payload.data") from None
    value = value.strip()
    if not value or len(value) > _MOST or not value.isprintable() or not value.isascii():
        raise FinalError(
            f"{name}: its content is no token: one line of printable ASCII, 1 to {_MOST} characters"
        )
    return value


def _advice(status: int) -> str:
    return {
        400: "its version is disabled or destroyed: add one (docs/PRODUCTION.md)",
        401: "the VM's token is not accepted",
        403: "the VM's account may not read it: grant it roles/secretmanager.secretAccessor on it",
        404: "there is no such secret, or it has no version yet: add one (docs/PRODUCTION.md)",
    }.get(status, "not an answer of Secret Manager: check the spec's endpoints.secrets")
