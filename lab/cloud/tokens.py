"""Access tokens of service accounts: the metadata server hands them out, the API tells them apart.

A token names its account and its end, sealed with a key of the lab's state, so it holds across
restarts of the lab and nothing has to be remembered. Any other token is an operator's.
"""

import base64
import hashlib
import hmac
import json
import secrets
import time
from typing import Final

from lab.cloud.errors import ApiError
from lab.cloud.store import Store

_PREFIX: Final = "lab."
_KEYS: Final = "iam/keys"


def make(store: Store, email: str, seconds: float) -> str:
    """Return a new token of the account `email` that is good for `seconds`."""
    claims = {"email": email, "exp": time.time() + seconds, "jti": secrets.token_urlsafe(32)}
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode()
    return f"{_PREFIX}{body}.{_seal(store, body)}"


def account(store: Store, token: str) -> str:
    """Return the account of a token, empty for an operator's; 401 for one that is not valid."""
    if not token.startswith(_PREFIX):
        return ""
    body, _, seal = token.removeprefix(_PREFIX).rpartition(".")
    if not hmac.compare_digest(seal.encode(), _seal(store, body).encode()):
        raise _invalid()
    claims = json.loads(base64.urlsafe_b64decode(body))
    if claims["exp"] < time.time():
        raise _invalid()
    email: str = claims["email"]
    return email


def _invalid() -> ApiError:
    return ApiError(401, "authError", "Invalid Credentials")


def _seal(store: Store, body: str) -> str:
    with store.transaction() as tx:
        held = tx.get(_KEYS, "tokens")
        if held is None:
            held = {"key": secrets.token_hex(32)}
            tx.put(_KEYS, "tokens", held)
    return hmac.new(bytes.fromhex(held["key"]), body.encode(), hashlib.sha256).hexdigest()
