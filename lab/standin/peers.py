"""What two daemons ask to meet: trust, each other's address, a name; no I/O.

An agent's address is told to those that it trusts. Trust is asked for and given through inboxes
here, which daemons poll, and reported by those that agreed without them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Final

from .state import MAX_NODE, Node, State

Message = Mapping[str, object]

_HOSTNAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_MOST_REQUESTS: Final = 100
_MOST_JUSTIFICATION: Final = 1024


class RefusedError(Exception):
    """A request that is answered with an error; the text goes to the client."""


class Peers:
    """Answers messages on a State. `prove` raises RefusedError for a signature that is not the
    node's over that text; `changed` is called when the snapshot has to be written."""

    def __init__(
        self,
        state: State,
        *,
        prove: Callable[[Node, str, Message], None],
        changed: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self._state = state
        self._prove = prove
        self._changed = changed
        self._clock = clock
        # By node: who asks for its trust, and with which words; who answered it, and how. Both are
        # emptied by a poll. A request may be answered as long as it is in `_open`.
        self._requests: dict[int, dict[int, tuple[str, int]]] = {}
        self._responses: dict[int, list[tuple[int, bool, int]]] = {}
        self._open: set[tuple[int, int]] = set()
        self.answers: Mapping[str, Callable[[Message, str], dict[str, object]]] = {
            "resolve": self._resolve,
            "set_hostname": self._set_hostname,
            "request_handshake": self._request,
            "poll_handshakes": self._poll,
            "respond_handshake": self._respond,
            "report_trust": self._report,
            "revoke_trust": self._revoke,
            "check_trust": self._check,
            "punch": self._punch,
        }

    def forget(self, gone: Collection[int]) -> None:
        """These nodes are gone, and their inboxes with them. Trust stays, as their ids do."""
        for node in gone:
            self._requests.pop(node, None)
            self._responses.pop(node, None)
        if gone:
            self._open = {pair for pair in self._open if not set(pair) & set(gone)}

    def _resolve(self, message: Message, _: str) -> dict[str, object]:
        asks = self._state.nodes.get(number(message, "requester_id"))
        if asks is None:
            raise RefusedError("resolve denied: the requester is not registered")
        wanted = number(message, "node_id")
        self._prove(asks, f"resolve:{asks.id}:{wanted}", message)
        node = self.node(message, "node_id")
        if not self._state.trusted(asks.id, node.id):
            raise RefusedError(
                f"resolve denied: node {node.id} is private (establish mutual trust first)"
            )
        return {"type": "resolve_ok", "node_id": node.id, "real_addr": node.address}

    def _set_hostname(self, message: Message, _: str) -> dict[str, object]:
        node, name = self.node(message, "node_id"), text(message, "hostname")
        if name and not _HOSTNAME.fullmatch(name):
            raise RefusedError(
                "invalid hostname: must be lowercase letters, digits and hyphens, 63 at most"
            )
        self._prove(node, f"set_hostname:{node.id}", message)
        # A walk: names are set seldom, and agents of a fleet have none.
        for other in self._state.nodes.values() if name else ():
            if other.hostname == name and other is not node:
                raise RefusedError(f'hostname "{name}" already in use by node {other.id}')
        node.rename(name)
        self._changed()
        return {"type": "set_hostname_ok", "node_id": node.id, "hostname": name}

    def _request(self, message: Message, _: str) -> dict[str, object]:
        asks, asked = self.node(message, "from_node_id"), self.node(message, "to_node_id")
        words = text(message, "justification")
        if len(words) > _MOST_JUSTIFICATION:
            raise RefusedError(f"justification too large: {_MOST_JUSTIFICATION} at most")
        self._prove(asks, f"handshake:{asks.id}:{asked.id}", message)
        inbox = self._requests.setdefault(asked.id, {})
        if asks.id in inbox:
            raise RefusedError(f"handshake request already pending from node {asks.id}")
        if len(inbox) >= _MOST_REQUESTS:
            raise RefusedError(f"handshake inbox full for node {asked.id}")
        inbox[asks.id] = words, int(self._clock())
        self._open.add((asked.id, asks.id))
        return {"type": "request_handshake_ok", "status": "delivered"}

    def _poll(self, message: Message, _: str) -> dict[str, object]:
        node = self.node(message, "node_id")
        self._prove(node, f"poll_handshakes:{node.id}", message)
        requests = self._requests.pop(node.id, {}).items()
        return {
            "type": "poll_handshakes_ok",
            "requests": [
                {"from_node_id": asks, "justification": words, "timestamp": when}
                for asks, (words, when) in requests
            ],
            "responses": [
                {"from_node_id": peer, "accept": accept, "timestamp": when}
                for peer, accept, when in self._responses.pop(node.id, [])
            ],
        }

    def _respond(self, message: Message, _: str) -> dict[str, object]:
        node, peer = self.node(message, "node_id"), self.node(message, "peer_id")
        self._prove(node, f"respond:{node.id}:{peer.id}", message)
        accept = message.get("accept") is True
        if accept:
            if (node.id, peer.id) not in self._open:
                raise RefusedError(f"no pending handshake request from node {peer.id}")
            self._state.trust(node.id, peer.id)
            self._changed()
        self._open.discard((node.id, peer.id))
        answered = (node.id, accept, int(self._clock()))
        self._responses.setdefault(peer.id, []).append(answered)
        return {"type": "respond_handshake_ok", "accept": accept, "peer_id": peer.id}

    def _report(self, message: Message, _: str) -> dict[str, object]:
        node, peer = self.node(message, "node_id"), self.node(message, "peer_id")
        self._prove(node, f"report_trust:{node.id}:{peer.id}", message)
        self._state.trust(node.id, peer.id)
        self._changed()
        return {"type": "report_trust_ok"}

    def _revoke(self, message: Message, _: str) -> dict[str, object]:
        node, peer = self.node(message, "node_id"), number(message, "peer_id")
        self._prove(node, f"revoke_trust:{node.id}:{peer}", message)
        if not self._state.trusted(node.id, peer):
            raise RefusedError(f"no trust pair between {node.id} and {peer}")
        self._state.distrust(node.id, peer)
        self._changed()
        return {"type": "revoke_trust_ok"}

    def _check(self, message: Message, _: str) -> dict[str, object]:
        trusted = self._state.trusted(number(message, "node_id"), number(message, "peer_id"))
        return {"type": "check_trust_ok", "trusted": trusted}

    def _punch(self, message: Message, _: str) -> dict[str, object]:
        asks = number(message, "requester_id")
        pair = number(message, "node_a"), number(message, "node_b")
        if asks not in pair:
            raise RefusedError("punch denied: requester must be participant")
        node = self.node(message, "requester_id")
        self._prove(node, f"punch:{pair[0]}:{pair[1]}", message)
        one, other = self.node(message, "node_a"), self.node(message, "node_b")
        return {
            "type": "punch_ok",
            "node_a": one.id,
            "node_a_addr": one.address,
            "node_b": other.id,
            "node_b_addr": other.address,
        }

    def node(self, message: Message, name: str) -> Node:
        """The node that a field names. RefusedError where it is not registered."""
        wanted = number(message, name)
        node = self._state.nodes.get(wanted)
        if node is None:
            raise RefusedError(f"node {wanted}: node not found")
        return node


def text(message: Message, name: str) -> str:
    value = message.get(name)
    return value if isinstance(value, str) else ""


def number(message: Message, name: str) -> int:
    """A node id; 0, which no node has, for anything else."""
    value = message.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0
    return int(value) if 0 <= value <= MAX_NODE else 0
