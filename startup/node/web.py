"""HTTP as little as is needed: requests whose failures are told apart.

http.client and not urllib: no proxy from the environment, no redirect that would carry a token
to another host, and no header on a command line.
"""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from .retry import FinalError, TemporaryError

# Seconds without a single byte. The metadata server answers in milliseconds, the bucket in tens.
TIMEOUT = 10.0
# Answers that say "later": timeout, too many requests, and every 5xx.
_LATER = frozenset({408, 429})
_CHUNK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An answer that is not "later": any status below 500 but 408 and 429."""

    status: int
    reason: str
    headers: Mapping[str, str]
    """By name in lower case."""
    _response: http.client.HTTPResponse
    _url: str

    def chunks(self, seconds: float) -> Iterator[bytes]:
        """The body in pieces, within `seconds` in all.

        Raises TemporaryError when it stops early or takes longer.
        """
        deadline = time.monotonic() + seconds
        # Counted here: read1() of Python 3.11 neither stops at the end of the body nor tells a
        # closed connection from it. It is still the one that returns what has arrived, so that a
        # body that only drips meets the deadline.
        missing = self._response.length
        try:
            while missing != 0 and (chunk := self._response.read1(_CHUNK)):
                yield chunk
                if missing is not None:
                    missing -= len(chunk)
                if time.monotonic() > deadline:
                    raise TemporaryError(f"{self._url}: not all there after {seconds:.0f} s")
        except (OSError, http.client.HTTPException) as error:
            raise TemporaryError(f"{self._url}: {_reason(error)}") from error
        if missing:
            raise TemporaryError(f"{self._url}: broke off, {missing} bytes are missing")

    def body(self, limit: int) -> bytes:
        """The whole body, at most `limit` bytes of it; TemporaryError as in `chunks`."""
        data = b""
        for chunk in self.chunks(TIMEOUT * 3):
            data += chunk
            if len(data) > limit:
                break
        return data[:limit]


@contextmanager
def get(url: str, headers: Mapping[str, str], timeout: float = TIMEOUT) -> Iterator[Answer]:
    """Open `url` (http or https); raises as `request` does."""
    with request("GET", url, headers, timeout=timeout) as answer:
        yield answer


@contextmanager
def request(
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: bytes | None = None,
    *,
    timeout: float = TIMEOUT,
) -> Iterator[Answer]:
    """Send `method` to `url` (http or https), with `body` where there is one.

    Raises TemporaryError when nothing answers within `timeout` seconds, when an answer does not
    begin within twice that (a byte of a header now and then is no beginning), when the connection
    breaks, and when the answer is 408, 429 or 5xx; FinalError when `url` cannot be one.
    """
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError as error:
        raise FinalError(f"{url}: {error}") from error
    kind: Callable[..., http.client.HTTPConnection] = (
        http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    )
    connection = kind(parts.hostname or "", port, timeout=timeout)
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    try:
        was_cut = threading.Event()
        late = threading.Timer(2 * timeout, _cut, [connection, was_cut])
        late.daemon = True
        late.start()
        try:
            connection.request(method, target, body, headers={"Connection": "close", **headers})
            response = connection.getresponse()
            if was_cut.is_set():
                # To http.client the end of the connection is one of the headers, too.
                raise TimeoutError
        except (OSError, http.client.HTTPException) as error:
            why = "timed out" if was_cut.is_set() else _reason(error)
            raise TemporaryError(f"{url}: {why}") from error
        except ValueError as error:
            # A host that is none: an empty label, one that is too long.
            raise FinalError(f"{url}: {_reason(error)}") from error
        finally:
            late.cancel()
        if response.status in _LATER or response.status >= 500:
            raise TemporaryError(f"{url}: {response.status} {response.reason}")
        yield Answer(
            status=response.status,
            reason=response.reason,
            headers={name.lower(): value for name, value in response.getheaders()},
            _response=response,
            _url=url,
        )
    finally:
        connection.close()


def _cut(connection: http.client.HTTPConnection, was_cut: threading.Event) -> None:
    """End whatever waits for `connection`."""
    was_cut.set()
    with suppress(OSError):
        if connection.sock is not None:
            connection.sock.shutdown(socket.SHUT_RDWR)


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
