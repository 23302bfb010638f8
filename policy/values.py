"""Property values as a policy gets them, and findings about them.

What the engine (3.259) and pulumi-policy (1.21) pass on, seen on the wire:

* a value that is not known yet is a string that means "unknown", the same one for strings, lists
  and maps (a Python program cannot say more). Touching it through the SDK's proxy raises, which in
  a preview the SDK turns into a mere warning, so no rule touches the proxy;
* a secret arrives wrapped and the SDK unwraps it: rules see the plain text, at any depth;
* an update has no unknown values: those that stay unknown are dropped before the policy runs;
* numbers are floats; an input that is `None` in the program is absent.

`plain` turns all of that into dicts, lists, strings, numbers, booleans, `None` and `UNKNOWN`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pulumi_policy import proxy

_SENTINELS: Final = frozenset(
    {
        proxy.UNKNOWN_ARCHIVE_VALUE,
        proxy.UNKNOWN_ARRAY_VALUE,
        proxy.UNKNOWN_ASSET_VALUE,
        proxy.UNKNOWN_BOOLEAN_VALUE,
        proxy.UNKNOWN_NUMBER_VALUE,
        proxy.UNKNOWN_OBJECT_VALUE,
        proxy.UNKNOWN_STRING_VALUE,
    }
)
# How a wrapped value is marked on the wire (sdk/go/common/resource/properties.go). The SDK
# unwraps both kinds; this handles one that it misses.
_SIGNATURE: Final = "4dabf18193072939515e22adb298388d"
_SECRET: Final = "1b47061264138c4ac30d75fd1eb44270"  # noqa: S105 - a type mark, not a password
_OUTPUT: Final = "d0e6a833031e9bbcd3f4e8bde6ca49a4"


class _Unknown(enum.Enum):
    """The one value of its type: there is a value, but it is not known."""

    UNKNOWN = "unknown"


UNKNOWN: Final = _Unknown.UNKNOWN


@dataclass(frozen=True, kw_only=True)
class Violation:
    """A rule's finding about a property."""

    # Where, such as `metadata["startup-script"]`.
    path: str
    # The problem, in words.
    problem: str
    # The solution, in words.
    remedy: str
    # The value is not known yet: a remark in a preview, a refusal in an update.
    unjudged: bool = False

    def __str__(self) -> str:
        where = f"{self.path}: " if self.path else ""
        return f"{where}{self.problem}. {self.remedy}."


@dataclass(frozen=True, kw_only=True)
class Resource:
    """A planned resource: type token, name, URN, plain properties, and whether it is protected."""

    type: str
    name: str
    urn: str
    props: Mapping[str, Any]
    protect: bool = False

    @property
    def package(self) -> str:
        """The provider's name: `gcp` of `gcp:compute/instance:Instance`."""
        return self.type.partition(":")[0]

    @property
    def kind(self) -> str:
        """The last part of the type: `Instance` of `gcp:compute/instance:Instance`."""
        return self.type.rpartition(":")[2]

    @property
    def stack(self) -> str:
        """The stack's name, from the URN (`urn:pulumi:STACK::PROJECT::…`)."""
        return self.urn.removeprefix("urn:pulumi:").partition("::")[0]


def plain(value: Any) -> Any:
    """`value` without proxies, wrappers and sentinels: see the module's docstring. Never raises."""
    if isinstance(value, str) and value in _SENTINELS:
        return UNKNOWN
    if isinstance(value, proxy._DictProxy | proxy._ListProxy):
        # The proxies raise on unknown items; their target, under this name, does not.
        return plain(value["__target"])
    if isinstance(value, Mapping):
        mark = value.get(_SIGNATURE)
        if mark in (_SECRET, _OUTPUT):
            return plain(value["value"]) if "value" in value else UNKNOWN
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def join(path: str, key: str | int) -> str:
    """`path` with one more step, in the form `a.b[0]["c-d"]`."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    if key.isidentifier():
        return f"{path}.{key}" if path else key
    return f'{path}["{key}"]'


def walk(
    value: Any, path: str = "", prune: Callable[[str], bool] = lambda _: False
) -> Iterator[tuple[str, str, Any]]:
    """Every (path, key, value) inside `value`, outermost first, at any depth.

    An item of a list has the list's key. A key for which `prune` is true is left out, with
    everything below it.
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not prune(key):
                here = join(path, key)
                yield here, key, item
                for below, name, inner in walk(item, here, prune):
                    yield below, name or key, inner
    elif isinstance(value, list):
        for index, item in enumerate(value):
            here = join(path, index)
            yield here, "", item
            yield from walk(item, here, prune)
