"""Names of compute resources: `projects/P/zones/Z/instances/I`, and links to them.

Links start with Google's own address, not with the stand-in's: providers recognise them, and they
stay valid when the stand-in comes back on another port.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

from lab.cloud.errors import invalid

PREFIX: Final = "https://www.googleapis.com/compute/v1/"
STORE: Final = "compute/"
"""Prefix of the store's collections of compute resources."""

_URL = re.compile(r"(?:https?:)?//[^/]+/(?:compute/)?(?:v1|beta|alpha)/")
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")

Level = Literal["global", "regions", "zones"]


@dataclass(frozen=True, kw_only=True)
class Scope:
    """Where a resource lives: a project, and in it a region, a zone, or neither."""

    project: str
    level: Level = "global"
    place: str = ""

    @property
    def path(self) -> str:
        """Return `projects/P/global` or `projects/P/zones/Z`."""
        return f"projects/{self.project}/{self.short}"

    @property
    def short(self) -> str:
        """Return `global` or `zones/Z`, as aggregated lists name it."""
        return self.level if self.level == "global" else f"{self.level}/{self.place}"

    def collection(self, name: str) -> str:
        """Return the store's name of a collection here."""
        return f"{STORE}{self.path}/{name}"


def link(path: str) -> str:
    """Return the link to the resource at `path`."""
    return PREFIX + path


def path_of(value: str, scope: Scope) -> str:
    """Return the path that a reference names: a link, a path, or one relative to the project."""
    path = _URL.sub("", value).strip("/")
    if path.startswith(("zones/", "regions/", "global/")):
        path = f"projects/{scope.project}/{path}"
    return path


def reference(value: object, field: str, scope: Scope, collection: str) -> str:
    """Return the path that a field's value names: a bare name is in `collection`."""
    if not isinstance(value, str) or not value:
        raise invalid(field, value, "The URL is malformed.")
    if "/" not in value:
        return f"{scope.path}/{collection}/{value}"
    return path_of(value, scope)


def split(path: str) -> tuple[str, str]:
    """Return the store's collection and name of the resource at `path`."""
    head, _, name = path.rpartition("/")
    return STORE + head, name


def last(value: str) -> str:
    """Return the last part of a link or path: the resource's name."""
    return value.rsplit("/", 1)[-1]


def valid_name(name: object, field: str = "resource.name") -> str:
    """Return a resource's name; 400 where it is none (RFC 1035, at most 63 characters)."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        why = "Must be a match of regex '(?:[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?)'"
        raise invalid(field, name, why)
    return name


def now() -> str:
    """Return the time as compute writes it: RFC 3339 with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
