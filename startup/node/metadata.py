"""The metadata server. Absent (404), unreachable (TemporaryError) and a value are three results."""

from __future__ import annotations

import json
from dataclasses import dataclass

from . import web
from .retry import FinalError

# Compute Engine allows 256 KiB for a value; anything longer is not from there.
_LIMIT = 1 << 20


@dataclass(frozen=True, kw_only=True)
class MetadataServer:
    """The server at `host` (HOST[:PORT])."""

    host: str

    def value(self, path: str) -> str | None:
        """What stands at `path` below `/computeMetadata/v1/`, or None when nothing does.

        Raises TemporaryError when the server cannot be asked, FinalError when it refuses.
        """
        url = f"http://{self.host}/computeMetadata/v1/{path}"
        with web.get(url, {"Metadata-Flavor": "Google"}) as answer:
            if answer.status == 404:
                return None
            if answer.status != 200:
                raise FinalError(
                    f"{url}: {answer.status} {answer.reason}: "
                    "this does not look like Google's metadata server"
                )
            try:
                return answer.body(_LIMIT).decode()
            except UnicodeDecodeError as error:
                raise FinalError(f"{url}: not UTF-8 ({error.reason})") from error

    def token(self) -> str:
        """An access token of the VM's service account. Never print it.

        Raises as `value` does, and FinalError when the VM has no service account.
        """
        path = "instance/service-accounts/default/token"
        text = self.value(path)
        if text is None:
            raise FinalError(
                "the VM has no service account (metadata server: 404 for its token): give it one "
                "that may read the fleet's bucket"
            )
        try:
            token = json.loads(text)["access_token"]
        except (ValueError, KeyError, TypeError):
            token = None
        if not isinstance(token, str) or not token.isprintable() or not token:
            raise FinalError(f"the metadata server's answer to {path} holds no access_token")
        return token
