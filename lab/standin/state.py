"""The registered nodes, keys and ids, and their snapshot; no I/O.

The snapshot has the field names of the real one's (public source, 2026), of what a fleet uses:
`version, next_node, next_net, nodes, networks, trust_pairs, pub_key_idx, total_requests,
start_time, checksum`.
`checksum` is the last field: the SHA-256 of the document as it would be without it.
"""

from __future__ import annotations

import base64
import binascii
import calendar
import hashlib
import json
import re
import time
from typing import Final, TypeGuard

SNAPSHOT_VERSION: Final = 1
MAX_NODE: Final = 2**32 - 1
_CHECKSUM_FIELD: Final = b',"checksum":"'


class CorruptSnapshotError(ValueError):
    """A store that cannot be read; the text says where it is broken."""


def address_of(node: int) -> str:
    """A node's address in network 0, the backbone."""
    return f"0:0000.{node >> 16:04X}.{node & 0xFFFF:04X}"


def decoded(text: str, size: int) -> bytes | None:
    """The bytes of strict base64 text, or None where it is not exactly `size` bytes."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if len(data) == size else None


class Node:
    """One registered daemon. `last_seen` and `created` are Unix seconds."""

    __slots__ = (
        "_written",
        "address",
        "created",
        "hostname",
        "id",
        "key",
        "last_seen",
        "owner",
        "proofs",
        "version",
    )

    def __init__(
        self,
        *,
        id: int,  # noqa: A002 - the name it has on the wire
        key: str,
        owner: str,
        address: str,
        version: str,
        created: float,
        last_seen: float,
        hostname: str = "",
    ) -> None:
        self.id = id
        self.key = key
        self.owner = owner
        self.address = address
        self.version = version
        self.hostname = hostname
        self.created = created
        self.last_seen = last_seen
        # By kind of message, the text and signature of it that were verified last.
        self.proofs: dict[str, tuple[str, str]] | None = None
        self._written: tuple[str, str] | None = None

    def seen(self, *, address: str, version: str, hostname: str, now: float) -> None:
        """It registered again."""
        self.address = address
        self.version = version or self.version
        self.hostname = hostname or self.hostname
        self.last_seen = now
        self._written = None

    def rename(self, hostname: str) -> None:
        self.hostname = hostname
        self._written = None

    def written(self, last_seen: str) -> str:
        """`"ID": {…}` for the snapshot; what seldom changes is kept as text."""
        if self._written is None:
            fields: dict[str, object] = {
                "id": self.id,
                "owner": self.owner,
                "public_key": self.key,
                "real_addr": self.address,
                "networks": [0],
                "hostname": self.hostname,
                "key_created": _rfc3339(int(self.created)),
                "version": self.version,
                "last_seen": "\0",
            }
            text = json.dumps({k: v for k, v in fields.items() if v != ""}, separators=(",", ":"))
            before, _, after = text.partition("\\u0000")
            self._written = (f'"{self.id}":{before}', after)
        return last_seen.join(self._written)


class State:
    """All nodes, the keys that ever had an id, and the owners of those that are here."""

    def __init__(self, *, started: float) -> None:
        self.nodes: dict[int, Node] = {}
        # Kept when a node is gone, so that it comes back with its id and without a limit.
        self.ids: dict[str, int] = {}
        self.owners: dict[str, int] = {}
        # Pairs of nodes that trust each other, the lower id first.
        self.trust_pairs: set[tuple[int, int]] = set()
        self.next_node = 1
        self.total_requests = 0
        self.started = started

    def add(self, node: Node) -> None:
        self.nodes[node.id] = node
        self.ids[node.key] = node.id
        if node.owner:
            self.owners[node.owner] = node.id
        self.next_node = max(self.next_node, node.id + 1)

    def trust(self, one: int, other: int) -> None:
        self.trust_pairs.add((min(one, other), max(one, other)))

    def distrust(self, one: int, other: int) -> None:
        self.trust_pairs.discard((min(one, other), max(one, other)))

    def trusted(self, one: int, other: int) -> bool:
        return (min(one, other), max(one, other)) in self.trust_pairs

    def active(self, since: float) -> int:
        """How many nodes were heard of at or after that time."""
        return sum(node.last_seen >= since for node in self.nodes.values())

    def reap(self, before: float) -> list[Node]:
        """Remove and return nodes last heard of before that time; their keys keep the ids."""
        gone = [node for node in self.nodes.values() if node.last_seen < before]
        for node in gone:
            del self.nodes[node.id]
        return gone

    def snapshot(self, padding: int = 0) -> bytes:
        """The document without its checksum (some 10 ms for 10,000 nodes), `padding` MiB larger
        than it has to be."""
        stamps = _Stamps()
        nodes = ",".join(node.written(stamps.of(node.last_seen)) for node in self.nodes.values())
        members = ",".join(map(str, self.nodes))
        ids = json.dumps(self.ids, separators=(",", ":"))
        # Absent where there are none, as in the real one's.
        pairs = json.dumps([f"{one}:{other}" for one, other in sorted(self.trust_pairs)])
        trust = f'"trust_pairs":{pairs},' if self.trust_pairs else ""
        start = _rfc3339(int(self.started))
        more = f'"padding":"{" " * (padding << 20)}",' if padding else ""
        return (
            f'{{"version":{SNAPSHOT_VERSION},{more}"next_node":{self.next_node},"next_net":1,'
            f'"nodes":{{{nodes}}},"networks":{{"0":{{"id":0,"name":"backbone","join_rule":"open",'
            f'"members":[{members}],"created":"{start}"}}}},{trust}"pub_key_idx":{ids},'
            f'"total_requests":{self.total_requests},"start_time":"{start}"}}'
        ).encode()


class _Stamps:
    """RFC 3339 of a time, remembered by the second: thousands of nodes share a few."""

    def __init__(self) -> None:
        self._known: dict[int, str] = {}

    def of(self, moment: float) -> str:
        second = int(moment)
        text = self._known.get(second)
        if text is None:
            text = self._known[second] = _rfc3339(second)
        return text


def _rfc3339(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(second))


def sealed(document: bytes) -> bytes:
    """A snapshot with its checksum as last field."""
    digest = hashlib.sha256(document).hexdigest()
    return document[:-1] + _CHECKSUM_FIELD + digest.encode() + b'"}'


def read_snapshot(content: bytes, *, started: float) -> State:
    """The state in a store. CorruptSnapshotError: truncated, damaged, or something else."""
    try:
        document = json.loads(content)
    except ValueError as error:
        raise CorruptSnapshotError(f"no JSON: {error}") from None
    if not isinstance(document, dict):
        raise CorruptSnapshotError("must be a JSON object")
    version = document.get("version")
    if not _whole(version, 0) or version > SNAPSHOT_VERSION:
        raise CorruptSnapshotError(f"version {version!r}, this program reads {SNAPSHOT_VERSION}")
    # Version 0 is older than checksums.
    if version > 0:
        _check_sum(content.strip(), document.get("checksum"))
    state = State(started=started)
    nodes = _mapping(document, "nodes")
    for where, fields in nodes.items():
        state.add(_node(f"nodes.{where}", fields, started))
    for key, node in _mapping(document, "pub_key_idx").items():
        if not _whole(node, 1):
            raise CorruptSnapshotError(f"pub_key_idx: {node!r} is no node id")
        state.ids[key] = node
    _read_trust(state, document.get("trust_pairs", []))
    following = document.get("next_node", 1)
    if not _whole(following, 1):
        raise CorruptSnapshotError(f"next_node: {following!r} is no node id")
    highest = max(state.ids.values(), default=0)
    state.next_node = max(state.next_node, following, highest + 1)
    total = document.get("total_requests", 0)
    state.total_requests = total if _whole(total, 0) else 0
    return state


def _read_trust(state: State, pairs: object) -> None:
    if not isinstance(pairs, list):
        raise CorruptSnapshotError("trust_pairs: must be a list")
    for pair in pairs:
        found = re.fullmatch(r"(\d{1,10}):(\d{1,10})", str(pair), re.ASCII)
        if not found:
            raise CorruptSnapshotError(f"trust_pairs: {pair!r} is no pair of node ids")
        state.trust(int(found[1]), int(found[2]))


def _check_sum(content: bytes, checksum: object) -> None:
    at = content.rfind(_CHECKSUM_FIELD)
    if at < 0:
        raise CorruptSnapshotError("no checksum as last field")
    if hashlib.sha256(content[:at] + b"}").hexdigest() != checksum:
        raise CorruptSnapshotError("checksum does not match")


def _mapping(document: dict[str, object], name: str) -> dict[str, object]:
    value = document.get(name, {})
    if not isinstance(value, dict):
        raise CorruptSnapshotError(f"{name}: must be an object")
    return value


def _whole(value: object, least: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _node(where: str, fields: object, now: float) -> Node:
    if not isinstance(fields, dict):
        raise CorruptSnapshotError(f"{where}: must be an object")
    number, key = fields.get("id"), fields.get("public_key")
    if not _whole(number, 1) or number > MAX_NODE:
        raise CorruptSnapshotError(f"{where}.id: {number!r} is no node id")
    if not isinstance(key, str) or decoded(key, 32) is None:
        raise CorruptSnapshotError(f"{where}.public_key: no Ed25519 key in base64")
    texts = {}
    for name in ("owner", "real_addr", "version", "hostname"):
        texts[name] = fields.get(name, "")
        if not isinstance(texts[name], str):
            raise CorruptSnapshotError(f"{where}.{name}: must be text")
    return Node(
        id=number,
        key=key,
        owner=texts["owner"],
        address=texts["real_addr"],
        version=texts["version"],
        hostname=texts["hostname"],
        created=_moment(fields.get("key_created"), now),
        last_seen=_moment(fields.get("last_seen"), now),
    )


def _moment(text: object, otherwise: float) -> float:
    """Unix seconds of an RFC 3339 time in UTC, which is what is written here."""
    try:
        return calendar.timegm(time.strptime(str(text)[:19] + "Z", "%Y-%m-%dT%H:%M:%SZ"))
    except ValueError:
        return otherwise
