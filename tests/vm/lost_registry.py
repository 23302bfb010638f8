"""The rendezvous loses its disk: all that is left of the registry is in the bucket."""

from __future__ import annotations

import hashlib
import json
import time
from random import Random
from urllib.parse import quote

from tests.lab.cloud.client import multipart
from tests.vm.fleet import CLOUD, DASHBOARD, PATH, RENDEZVOUS, STORE, ZONE, Fleet, Measured

_DISK = f"/compute/v1/projects/{CLOUD}/zones/{ZONE}/disks/{RENDEZVOUS}-state"
# A node that registers, unsigned, and never comes again: its ID.
_REGISTER = r"""
import base64, json, os, socket, struct, sys
where = (sys.argv[1], int(sys.argv[2]))
key = base64.b64encode(os.urandom(32)).decode()
ask = {"type": "register", "listen_addr": "10.10.0.9:1", "owner": "late@x.invalid",
       "public_key": key, "signature": "", "version": "1.18.0"}
body = json.dumps(ask).encode()
with socket.create_connection(where, 10) as stream, stream.makefile("rb") as answer:
    stream.sendall(struct.pack(">I", len(body)) + body)
    size = struct.unpack(">I", answer.read(4))[0]
    print(json.loads(answer.read(size))["node_id"])
"""


def disk_is_empty(fleet: Fleet, vm: str, chance: Random) -> Measured:
    """The rendezvous VM and its disk are deleted, and newer copies in the bucket are truncated and
    nearly empty: the newest good one is restored. All agents have their IDs, and nobody gets one
    that was given after that copy."""
    before, total = fleet.identities(), sum(fleet.wanted.values())
    stored = _newest_in_bucket(fleet)
    host, _, port = fleet.declared(vm)["registry"].rpartition(":")
    late = int(fleet.run(vm, f"python3 - {host} {port} <<'END'\n{_REGISTER}\nEND"))
    spoilt = _spoil(fleet, stored)
    fleet.api.do("DELETE", f"/compute/v1/{PATH}/{RENDEZVOUS}")
    fleet.api.do("DELETE", _DISK)
    start = time.monotonic()
    fleet.up()
    told = fleet.until_status(RENDEZVOUS, lambda told: told["phase"] == "serving", "serving")
    serving = time.monotonic() - start
    fleet.until(
        lambda: (fleet.stats() or (0, 0))[1] >= total,
        f"{total} agents online",
        lambda: f"registered and online: {fleet.stats()}",
    )
    back = time.monotonic() - start
    assert (told["registry"]["restored"], told["registry"]["started_empty"]) == (stored, False)
    assert fleet.identities() == before
    following = json.loads(fleet.run(RENDEZVOUS, f"cat {STORE}/registry.json"))["next_node"]
    # No other agent gets the lost node's ID.
    assert late < following - 900_000, (late, following)
    assert late not in {node for node, _ in before.values()}
    for name in spoilt:
        path = f"/storage/v1/b/{fleet.bucket}/o/{quote(name, '')}"
        assert fleet.api.call("DELETE", path).status == 204
    return {
        "agents": total,
        "serving_s": round(serving, 1),
        "all_back_s": round(back, 1),
        "restored": stored,
    }


def _newest_in_bucket(fleet: Fleet) -> str:
    """Have a copy of now in the bucket; its name."""
    save = f"curl -fsS -X POST http://127.0.0.1:{DASHBOARD}/api/snapshot >/dev/null"
    # A new pilot-node copies at once.
    fleet.run(RENDEZVOUS, f"{save}; systemctl restart pilot-node")
    total = sum(fleet.wanted.values())

    def newest() -> str:
        shown = fleet.run(RENDEZVOUS, f"ls {STORE}/copies | grep 'json$' | tail -n 1").strip()
        keys = int(shown.removesuffix(".json").rpartition("-")[2] or 0)
        return shown if keys >= total and f"registry/{shown}" in _objects(fleet) else ""

    fleet.until(lambda: newest() != "", "the newest copy is in the bucket")
    return newest()


def _objects(fleet: Fleet) -> set[str]:
    listed = fleet.api.get(f"/storage/v1/b/{fleet.bucket}/o?prefix=registry/")
    return {each["name"] for each in listed.get("items", [])}


def _spoil(fleet: Fleet, good: str) -> list[str]:
    """Newer copies than `good`: one is cut short, one knows no key, one is another fleet's. Their
    names."""
    names = []
    path = f"/storage/v1/b/{fleet.bucket}/o/{quote(f'registry/{good}', '')}"
    about = fleet.api.get(path)["metadata"]
    content = fleet.api.call("GET", f"{path}?alt=media").data
    empty = b'{"version":0,"next_node":1,"nodes":{},"pub_key_idx":{}}'
    for number, keys, data, words in (
        (1, 9999, content[:-9], about),
        (2, 0, empty, about | {"sha256": hashlib.sha256(empty).hexdigest()}),
        (3, 9999, content, about | {"vm": "another"}),
    ):
        name = f"registry/2099010{number}T000000Z-{keys}.json"
        done = fleet.api.call(
            "POST",
            f"/upload/storage/v1/b/{fleet.bucket}/o?uploadType=multipart",
            multipart({"name": name, "metadata": words}, data),
            headers={"Content-Type": "multipart/related; boundary=xxx"},
        )
        assert done.status == 200, done
        names.append(name)
    return names
