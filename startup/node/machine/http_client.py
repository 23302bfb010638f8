"""HTTP requests, with temporary and final failures told apart.

By http.client and not urllib: no proxy from the environment, and no redirect that would carry a
token to another host.
"""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from .retry import FinalError, TemporaryError

# Seconds without a single byte. The metadata server answers in milliseconds, the bucket in tens.
TIMEOUT = 10.0
# Answers that mean "try later", with every 5xx: timeout, and too many requests.
_LATER = frozenset({408, 429})
_CHUNK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class HttpAnswer:
    """An answer with any status below 500 but 408 and 429."""

    status: int
    reason: str
    headers: Mapping[str, str]
    """By name in lower case."""
    _response: http.client.HTTPResponse
    _socket: socket.socket
    _url: str

    def chunks(self, seconds: float) -> Iterator[bytes]:
        """The body in pieces, within `seconds` in all.

        Raises TemporaryError when it stops early or takes longer.
        """
        late = f"{self._url}: not all there after {seconds:.0f} s"
        # Counted here: read1() of Python 3.11 does not stop at the end of the body, and does not
        # tell a closed connection from it. It returns what has arrived. While the lines around the
        # chunks of a body only drip in, it goes on until the deadline cuts it.
        missing = self._response.length
        with _deadline(seconds, self._url) as deadline:
            deadline.watch(self._socket)
            try:
                while missing != 0 and (chunk := self._response.read1(_CHUNK)):
                    if deadline.passed:
                        raise TemporaryError(late)
                    yield chunk
                    if missing is not None:
                        missing -= len(chunk)
            except (OSError, http.client.HTTPException) as error:
                why = late if deadline.passed else f"{self._url}: {_reason(error)}"
                raise TemporaryError(why) from error
            if deadline.passed and missing != 0:
                # Cut off while it waited for a trailer: http.client takes that for the end.
                raise TemporaryError(late)
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
def get(url: str, headers: Mapping[str, str], timeout: float = TIMEOUT) -> Iterator[HttpAnswer]:
    """GET `url` (http or https). Raises as `request` does."""
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
) -> Iterator[HttpAnswer]:
    """Send `method` to `url` (http or https), with `body` where there is one.

    Raises TemporaryError when nothing answers within `timeout` seconds, when the headers are not
    complete within twice that, when the connection breaks, and when the answer is 408, 429 or 5xx.
    Raises FinalError when `url` is invalid.
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
        with _deadline(2 * timeout, url) as deadline:
            try:
                connection.connect()
                # Kept here: an answer takes the socket out of a connection that closes.
                opened = connection.sock
                deadline.watch(opened)
                connection.request(method, target, body, headers={"Connection": "close", **headers})
                response = connection.getresponse()
                if deadline.passed:
                    # http.client takes the end of the connection for the end of the headers.
                    raise TimeoutError
            except (OSError, http.client.HTTPException) as error:
                why = "timed out" if deadline.passed else _reason(error)
                raise TemporaryError(f"{url}: {why}") from error
            except ValueError as error:
                # An invalid host: a label that is empty or too long.
                raise FinalError(f"{url}: {_reason(error)}") from error
        if response.status in _LATER or response.status >= 500:
            raise TemporaryError(f"{url}: {response.status} {response.reason}")
        yield HttpAnswer(
            status=response.status,
            reason=response.reason,
            headers={name.lower(): value for name, value in response.getheaders()},
            _response=response,
            _socket=opened,
            _url=url,
        )
    finally:
        connection.close()


class _Deadline:
    """Shuts the watched socket down once the time has `passed`."""

    def __init__(self) -> None:
        self.passed = False
        self._socket: socket.socket | None = None

    def watch(self, opened: socket.socket) -> None:
        self._socket = opened
        if self.passed:
            self.cut()

    def cut(self) -> None:
        self.passed = True
        if self._socket is not None:
            with suppress(OSError):
                # TCP's shutdown: TLS's own would break a read in another thread.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


@contextmanager
def _deadline(seconds: float, url: str) -> Iterator[_Deadline]:
    """A deadline `seconds` from now, for the block. Raises TemporaryError where no thread can be
    started for it."""
    found = _Deadline()
    late = threading.Timer(seconds, found.cut)
    late.daemon = True
    try:
        late.start()
    except RuntimeError as error:
        raise TemporaryError(f"{url}: not asked: {error}") from error
    try:
        yield found
    finally:
        late.cancel()


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
