"""The registry's answers to what a daemon asks to start and to live, on a State; no I/O.

What it asks to reach another one is in peers.py.
"""

from __future__ import annotations

import ipaddress
import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final

from .ed25519 import KEY_BYTES, SIGNATURE_BYTES, Verifier
from .knobs import Knobs
from .limiter import Limiter
from .log import Log
from .peers import Message, Peers, RefusedError, number, text
from .state import MAX_NODE, Node, State, address_of, decoded

# All that the real one of February 2026 says of any refusal; later ones give most reasons.
PLAIN: Final = "request failed"
_POLICY: Final = {
    "type": "get_network_policy_ok",
    "network_id": 0,
    "max_members": 0,
    "allowed_ports": [],
    "description": "",
}


def encoded(answer: Mapping[str, object]) -> bytes:
    return json.dumps(answer, separators=(",", ":")).encode()


class Registry:
    """Answers messages. `clock` gives Unix seconds; `stale` is the threshold in seconds."""

    def __init__(
        self,
        state: State,
        *,
        verifier: Verifier,
        limiter: Limiter,
        log: Log,
        clock: Callable[[], float],
        stale: float,
    ) -> None:
        self.state = state
        self.limiter = limiter
        self.knobs = Knobs()
        self.stale = stale
        self.dirty = False
        self.requests: Counter[str] = Counter()
        self.events: Counter[str] = Counter()
        self._verify = verifier
        self._log = log
        self._clock = clock
        self._heartbeat: tuple[int, bytes] = (0, b"")
        self._peers = Peers(state, prove=self._prove, changed=self._changed, clock=clock)
        self._answers: Mapping[str, Callable[[Message, str], bytes | dict[str, object]]] = {
            "register": self._register,
            "lookup": self._lookup,
            "heartbeat": self._heartbeat_of,
            "deregister": self._deregister,
            "get_network_policy": self._policy,
            "list_networks": self._networks,
            "beacon_list": self._beacons,
            **self._peers.answers,
        }

    def answer(self, message: Message, source: str) -> bytes:
        """The JSON to send back to `source`, an IP address. Never raises for a bad message."""
        self.state.total_requests += 1
        kind = message.get("type")
        answer = self._answers.get(kind) if isinstance(kind, str) else None
        self.requests["unknown" if answer is None else str(kind)] += 1
        try:
            if answer is None:
                raise RefusedError(f"unknown message type: {kind}")
            found = answer(message, source)
        except RefusedError as error:
            self.events["errors"] += 1
            self._log.debug("request refused", remote=source, type=kind, err=error)
            return self.refusal(str(error))
        return found if isinstance(found, bytes) else encoded(found)

    def refusal(self, why: str) -> bytes:
        """The answer to a request that is refused."""
        return encoded({"type": "error", "error": PLAIN if self.knobs.plain_refusals else why})

    def active(self) -> int:
        """Nodes heard of within the stale threshold, connected or not."""
        return self.state.active(self._clock() - self.stale)

    def reap(self) -> None:
        """Remove nodes that have been silent for longer than the threshold."""
        gone = self.state.reap(self._clock() - self.stale)
        for node in gone:
            self.dirty = True
            self.events["reaped"] += 1
            self._log.info("stale node reaped", node_id=node.id, endpoint=node.address)
        self._peers.forget([node.id for node in gone])

    # -- messages ---------------------------------------------------------------------------

    def _register(self, message: Message, source: str) -> bytes:
        key = text(message, "public_key")
        if not key:
            raise RefusedError("registration requires public_key")
        raw = decoded(key, KEY_BYTES)
        if raw is None:
            raise RefusedError("invalid public key: not 32 bytes in base64")
        known = self.state.ids.get(key)
        if known is None and not self.limiter.allow(
            source,
            self.knobs.new_keys_per_minute,
            ignore_whitelist=self.knobs.ignore_whitelist,
        ):
            self.events["rate_limited"] += 1
            raise RefusedError("rate limited: too many new keys from this address")
        listen = text(message, "listen_addr")
        signature = text(message, "signature")
        proof = (f"register:{listen}:{key}", signature)
        node = self.state.nodes.get(known) if known is not None else None
        # An unsigned registration is still taken (FACTS); a wrong signature never is.
        if signature and not self._proven(node, "register", raw, proof):
            raise RefusedError("registration signature verification failed")
        owner, now = text(message, "owner"), self._clock()
        endpoint = _endpoint(listen, source)
        version, hostname = text(message, "version"), text(message, "hostname")
        if node is None:
            node = Node(
                id=self._free_id(known, owner),
                key=key,
                owner=owner,
                address=endpoint,
                version=version,
                hostname=hostname,
                created=now,
                last_seen=now,
            )
            self.state.add(node)
            self.events["registered_new" if known is None else "registered_back"] += 1
            self._log.info(
                "registered node",
                node_id=node.id,
                listen=endpoint,
                mode="new_node" if known is None else "reclaimed_identity",
            )
        else:
            node.seen(address=endpoint, version=version, hostname=hostname, now=now)
            self.events["registered_again"] += 1
            self._log.debug("registered node", node_id=node.id, listen=endpoint, mode="known")
        if signature:
            _remember(node, "register", proof)
        self.dirty = True
        return encoded(
            {
                "type": "register_ok",
                "node_id": node.id,
                "address": address_of(node.id),
                "network_id": 0,
                "public_key": key,
                "observed_addr": endpoint,
            }
        )

    def _free_id(self, known: int | None, owner: str) -> int:
        """The id for a key that has no node: its own, its owner's if that is free, or a new one.

        One owner (the daemon's -email), one node: while it is here, another key of the same owner
        is refused, as in the public source of 2026 (older ones gave it the node, which then had
        two daemons). Agents of one fleet need an address each.
        """
        if known is not None:
            return known
        here = self.state.owners.get(owner) if owner else None
        if here is not None and here in self.state.nodes:
            self.events["owner_refused"] += 1
            raise RefusedError(
                f"owner is already bound to node {here} with another key:"
                " use recover_identity to rotate the key"
            )
        if here is not None:
            return here
        if self.state.next_node > MAX_NODE:
            raise RefusedError("too many nodes: node ids are used up")
        return self.state.next_node

    def _lookup(self, message: Message, _: str) -> bytes:
        node = self._peers.node(message, "node_id")
        answer: dict[str, object] = {
            "type": "lookup_ok",
            "node_id": node.id,
            "address": address_of(node.id),
            "networks": [0],
            "public": False,
            "public_key": node.key,
            "polo_score": 0,
            "version": node.version,
        }
        if node.hostname:
            answer["hostname"] = node.hostname
        return encoded(answer)

    def _heartbeat_of(self, message: Message, _: str) -> bytes:
        node = self._peers.node(message, "node_id")
        self._prove(node, f"heartbeat:{node.id}", message)
        now = self._clock()
        node.last_seen = now
        second = int(now)
        if self._heartbeat[0] != second:
            self._heartbeat = second, encoded({"type": "heartbeat_ok", "time": second})
        return self._heartbeat[1]

    def _deregister(self, message: Message, _: str) -> bytes:
        node = self.state.nodes.get(number(message, "node_id"))
        if node is not None:
            self._prove(node, f"deregister:{node.id}", message)
            del self.state.nodes[node.id]
            self._peers.forget([node.id])
            self.dirty = True
            self.events["deregistered"] += 1
            self._log.info("deregistered node", node_id=node.id)
        return encoded({"type": "deregister_ok"})

    def _policy(self, message: Message, _: str) -> bytes:
        network = message.get("network_id", 0)
        if network != 0:
            raise RefusedError(f"network {network}: network not found")
        return encoded(_POLICY)

    def _networks(self, _: Message, __: str) -> bytes:
        backbone = {
            "id": 0,
            "name": "backbone",
            "join_rule": "open",
            "members": len(self.state.nodes),
        }
        return encoded({"type": "list_networks_ok", "networks": [backbone]})

    def _beacons(self, _: Message, __: str) -> bytes:
        return encoded({"type": "beacon_list_ok", "beacons": []})

    # -- signatures ------------------------------------------------------------------------

    def _prove(self, node: Node, words: str, message: Message) -> None:
        """RefusedError unless the message has the node's signature over these words."""
        signature = text(message, "signature")
        if not signature:
            raise RefusedError("signature required for authenticated node")
        raw = decoded(node.key, KEY_BYTES)
        proof, kind = (words, signature), words.partition(":")[0]
        if raw is None or not self._proven(node, kind, raw, proof):
            raise RefusedError("signature verification failed")
        _remember(node, kind, proof)

    def _changed(self) -> None:
        self.dirty = True

    def _proven(self, node: Node | None, kind: str, key: bytes, proof: tuple[str, str]) -> bool:
        """Whether this is the key's signature over this text.

        Ed25519 is deterministic: a daemon's heartbeats all carry the same signature. The same
        text with the same signature under the same key needs no second verification; anything
        else is verified, always.
        """
        if node is not None and node.proofs is not None and node.proofs.get(kind) == proof:
            self.events["signatures_known"] += 1
            return True
        signature = decoded(proof[1], SIGNATURE_BYTES)
        good = signature is not None and self._verify(key, proof[0].encode(), signature)
        self.events["signatures_verified" if good else "signatures_wrong"] += 1
        return good


def _remember(node: Node, kind: str, proof: tuple[str, str]) -> None:
    if node.proofs is None:
        node.proofs = {}
    node.proofs[kind] = proof


def _endpoint(listen: str, source: str) -> str:
    """Where a daemon is reached: an address of its own that is no public one becomes `source`."""
    host, colon, port = listen.rpartition(":")
    if not colon:
        return listen or source
    host = host.removeprefix("[").removesuffix("]")
    try:
        own = ipaddress.ip_address(host)
        foreign = own.is_private or own.is_loopback or own.is_link_local or own.is_unspecified
    except ValueError:
        foreign = not host
    if not foreign:
        return listen
    return f"[{source}]:{port}" if ":" in source else f"{source}:{port}"
