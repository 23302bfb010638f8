"""The metadata server. Absent (404), unreachable (TemporaryError) and a value are three results."""

from __future__ import annotations

import json
from dataclasses import dataclass
from urllib.parse import quote

from . import http_client
from .retry import FinalError

# Most bytes of an answer. Compute Engine allows 512 KiB for all values of an instance, and JSON may
# take six characters for one.
_LIMIT = 4 << 20


# Seconds after the requested end of a long poll until it is given up.
_GRACE = 10.0
_HEADERS = {"Metadata-Flavor": "Google"}


@dataclass(frozen=True, kw_only=True)
class Value:
    """A value of the metadata server."""

    text: str
    etag: str
    """For `wait`, which waits for another one."""


@dataclass(frozen=True, kw_only=True)
class MetadataServer:
    """The server at `host` (HOST[:PORT])."""

    host: str

    def value(self, path: str) -> str | None:
        """The value at `path` below `/computeMetadata/v1/`, None where there is none.

        Raises TemporaryError when the server cannot be asked, FinalError when it refuses.
        """
        found = self._get(path, http_client.TIMEOUT)
        return None if found is None else found.text

    def tree(self, path: str) -> Value:
        """Everything below the directory `path`, as JSON. Raises as `value` does."""
        found = self._get(f"{path}/?recursive=true&alt=json", http_client.TIMEOUT)
        return self._there(path, found)

    def wait(self, path: str, etag: str, seconds: int, *, tree: bool = False) -> Value:
        """Wait until the value at `path` has another tag than `etag`, at most `seconds`; the value,
        which may be the same. With `tree`: as `tree`. Raises as `value` does, and FinalError where
        there is no value."""
        query = f"wait_for_change=true&last_etag={quote(etag, safe='')}&timeout_sec={seconds}"
        query = f"/?recursive=true&alt=json&{query}" if tree else f"?{query}"
        return self._there(path, self._get(path + query, seconds + _GRACE))

    def put_guest_attribute(self, name: str, value: str) -> None:
        """Set the guest attribute `name` (NAMESPACE/KEY). Raises as `value` does."""
        url = self._url(f"instance/guest-attributes/{name}")
        with http_client.request("PUT", url, _HEADERS, value.encode()) as answer:
            if answer.status != 200:
                why = answer.body(200).decode(errors="replace").strip()
                raise FinalError(
                    f"{url}: {answer.status} {answer.reason}: {why or 'no reason given'}: is the "
                    "instance's metadata key enable-guest-attributes TRUE?"
                )

    def _url(self, path: str) -> str:
        return f"http://{self.host}/computeMetadata/v1/{path}"

    def _there(self, path: str, found: Value | None) -> Value:
        if found is None:
            raise FinalError(f"{self._url(path)}: 404: a VM always has it: is this Google's?")
        return found

    def _get(self, path: str, timeout: float) -> Value | None:
        url = self._url(path)
        with http_client.get(url, _HEADERS, timeout) as answer:
            if answer.status == 404:
                return None
            if answer.status != 200:
                raise FinalError(
                    f"{url}: {answer.status} {answer.reason}: "
                    "this does not look like Google's metadata server"
                )
            try:
                text = answer.body(_LIMIT).decode()
            except UnicodeDecodeError as error:
                raise FinalError(f"{url}: not UTF-8 ({error.reason})") from error
            return Value(text=text, etag=answer.headers.get("etag", ""))

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
        except (ValueError, RecursionError, KeyError, TypeError):
            token = None
        if not isinstance(token, str) or not token.isprintable() or not token:
            raise FinalError(f"the metadata server's answer to {path} holds no access_token")
        return token
