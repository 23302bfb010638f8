"""HTTP requests, with temporary and final failures told apart.

By http.client and not urllib: no proxy from the environment, and no redirect that would carry a
token to another host. The peers are Google's, and the rendezvous on loopback: against one that
sends a byte now and then, for ever, only bodies have an end.
"""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
    _url: str

    def chunks(self, seconds: float) -> Iterator[bytes]:
        """The body in pieces, within `seconds` in all.

        Raises TemporaryError when it stops early or takes longer.
        """
        late = f"{self._url}: not all there after {seconds:.0f} s"
        # Counted here: read1() of Python 3.11 does not stop at the end of the body, and does not
        # tell a closed connection from it. It returns what has arrived.
        missing = self._response.length
        end = time.monotonic() + seconds
        try:
            while missing != 0 and (chunk := self._response.read1(_CHUNK)):
                if time.monotonic() > end:
                    raise TemporaryError(late)
                yield chunk
                if missing is not None:
                    missing -= len(chunk)
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

    Raises TemporaryError when nothing comes for `timeout` seconds, when the connection breaks, and
    when the answer is 408, 429 or 5xx. Raises FinalError when `url` is invalid.
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
        try:
            connection.request(method, target, body, headers={"Connection": "close", **headers})
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise TemporaryError(f"{url}: {_reason(error)}") from error
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
            _url=url,
        )
    finally:
        connection.close()


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
