"""Raises the counter of node IDs in a registry's file that is put back.

A copy is older than the registry was. IDs that were given after it would be given again, to other
keys: the counter skips them. Only the counter is edited (and the seal made anew), in the bytes of
the file: what this program does not know of it stays as it is.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from typing import Any, Final

from .registry_file import SEAL, BadRegistryError, UnknownVersionError, version_of

# IDs that are skipped: more than a fleet registers between two copies.
SKIPPED: Final = 1_000_000
# IDs have 32 bits.
MOST: Final = (1 << 32) - 1
# The formats in which the counter is known.
VERSIONS: Final = frozenset({0, 1})
_SPACE: Final = re.compile(r"[ \t\r\n]*")


def raised(content: bytes) -> bytes:
    """The whole registry file `content` with `next_node` SKIPPED above the highest of it and of all
    IDs in `nodes` and `pub_key_idx`.

    Raises UnknownVersionError for a format that is not known, BadRegistryError for a file without
    the shape of its format, and where no IDs are left.
    """
    version = version_of(content)
    if version not in VERSIONS:
        raise UnknownVersionError(version)
    seal = SEAL.search(content) if version else None
    body = content[: seal.start()] + b"}" if seal else content.strip()
    # As latin-1 each byte is a character: positions are those of the bytes.
    text = body.decode("latin-1")
    fields = _fields(text)
    following, begin, end = fields.get("next_node", (0, len(text) - 1, len(text) - 1))
    nodes, keys = (fields.get(name, ((), 0, 0))[0] for name in ("nodes", "pub_key_idx"))
    if type(following) is not int:
        raise BadRegistryError("its next_node is no number")
    highest = max(following, *_ids(nodes, "nodes"), *_ids(keys, "pub_key_idx"), 0)
    if highest + SKIPPED > MOST:
        raise BadRegistryError(f"its IDs end at {highest}, and {SKIPPED:,} must be left above that")
    number = str(highest + SKIPPED)
    if begin == end:
        number = f',"next_node":{number}'
    body = (text[:begin] + number + text[end:]).encode("latin-1")
    if seal is None:
        return body
    digest = hashlib.sha256(body).hexdigest()
    return body[:-1] + f',"checksum":"{digest}"}}'.encode()


def _fields(text: str) -> dict[str, tuple[Any, int, int]]:
    """The fields of the JSON object `text`: value, and where that begins and ends. An object in it
    is reduced to its `id`, or to its names and numbers."""
    decoder = json.JSONDecoder(object_pairs_hook=_reduced)
    found = {}
    try:
        at = _skip(text, _skip(text, 0, "{"), "")
        while text[at] != "}":
            name, at = decoder.raw_decode(text, _skip(text, at, '"') - 1)
            begin = _skip(text, _skip(text, at, ":"), "")
            value, end = decoder.raw_decode(text, begin)
            found[name] = value, begin, end
            at = _skip(text, end, "")
            if text[at] != "}":
                at = _skip(text, _skip(text, at, ","), "")
    except (ValueError, IndexError, RecursionError) as error:
        raise BadRegistryError(f"it is no JSON object: {str(error)[:200]}") from error
    return found


def _skip(text: str, at: int, word: str) -> int:
    """The position after the space and the `word` at `at`. Raises ValueError."""
    match = _SPACE.match(text, at)
    at = match.end() if match else at
    if not text.startswith(word, at):
        raise ValueError(f"{word} expected at {at}")
    return at + len(word)


def _reduced(pairs: list[tuple[str, Any]]) -> Any:
    for name, value in pairs:
        if name == "id" and type(value) is int:
            return value
    return [(name, value if type(value) is int else 0) for name, value in pairs]


def _ids(value: Any, where: str) -> Iterable[int]:
    """The IDs in a field: of `nodes` the names are IDs as well, which another field may repeat."""
    if value is None:
        # Go writes an empty map so.
        return
    if not isinstance(value, list | tuple):
        raise BadRegistryError(f"its {where} is no object")
    for each in value:
        # An element of a list is no pair of a name and a number.
        if not (isinstance(each, tuple) and len(each) == 2 and type(each[1]) is int):
            raise BadRegistryError(f"its {where} is no object of numbers")
        name, number = each
        yield number
        if where == "nodes" and re.fullmatch("[0-9]{1,10}", name):
            yield int(name)
