"""Requests and answers, without sockets, and the table that finds the handler of a request."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from lab.cloud import Json
from lab.cloud.errors import ApiError


@dataclass(frozen=True, kw_only=True)
class Request:
    """A client's request."""

    method: str
    path: str
    """As it was sent: still percent-encoded."""
    query: dict[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    """By names in lower case."""
    body: bytes = b""
    base: str = ""
    """`http://HOST:PORT`, as the client calls this server."""
    params: dict[str, str] = field(default_factory=dict)
    """The parameters of the route's template, percent-decoded."""
    caller: str = ""
    """The service account whose token was sent; empty for an operator."""

    def json(self) -> Json:
        """Return the body as a JSON object; an absent body is an empty one; 400 otherwise.

        Null elements of lists are dropped, as Google does: older providers send them.
        """
        if not self.body:
            return {}
        try:
            value: Any = json.loads(self.body)
        except ValueError as error:
            raise ApiError(400, "parseError", f"Parse Error: {error}") from error
        if not isinstance(value, dict):
            raise ApiError(400, "parseError", "Parse Error: the body must be a JSON object")
        result: Json = _without_nulls(value)
        return result

    def header(self, name: str) -> str:
        """Return a header, empty where there is none."""
        return self.headers.get(name.lower(), "")


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_nulls(each) for each in value if each is not None]
    return value


@dataclass(frozen=True, kw_only=True)
class FileSlice:
    """A part of an open file: `length` bytes from `start`. The sender closes the file."""

    file: BinaryIO
    start: int
    length: int


@dataclass(frozen=True, kw_only=True)
class Response:
    """An answer: a JSON document, bytes, or a part of a file."""

    body: Json | bytes | FileSlice = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


Handler = Callable[[Request], Json | Response]


@dataclass(frozen=True, kw_only=True)
class Route:
    """`template` is a path with `{name}` for one segment and `{name*}` for the rest."""

    method: str
    template: str
    handler: Handler

    def pattern(self) -> re.Pattern[str]:
        """Return the template as a pattern of the raw (still percent-encoded) path."""
        parts = re.split(r"(\{\w+\*?\})", self.template)
        text = "".join(
            f"(?P<{part[1:-1].rstrip('*')}>{'.+' if part.endswith('*}') else '[^/:]+'})"
            if part.startswith("{")
            else re.escape(part)
            for part in parts
        )
        return re.compile(text)


class Router:
    """Routes, first match wins."""

    def __init__(self, routes: list[Route]) -> None:
        self._routes = [(route.method, route.pattern(), route.handler) for route in routes]

    def find(self, method: str, path: str) -> tuple[Handler, dict[str, str]] | None:
        """Return the handler and the still encoded parameters, or None."""
        for wanted, pattern, handler in self._routes:
            if wanted == method and (match := pattern.fullmatch(path)):
                return handler, match.groupdict()
        return None
