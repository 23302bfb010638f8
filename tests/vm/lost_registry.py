"""The rendezvous loses its disk: all that is left of the registry is in the bucket."""

from __future__ import annotations

import hashlib
import json
import time
from random import Random
from typing import Any
from urllib.parse import quote

from tests.lab.cloud.client import multipart
from tests.vm.fleet import DASHBOARD, RENDEZVOUS, STORE, Fleet, Measured

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
    stored = newest_in_bucket(fleet)
    host, _, port = fleet.declared(vm)["registry"].rpartition(":")
    late = int(fleet.run(vm, f"python3 - {host} {port} <<'END'\n{_REGISTER}\nEND"))
    spoilt = _spoil(fleet, stored)
    _delete_vm_and_disk(fleet)
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


def copies_are_lost(fleet: Fleet, vm: str, chance: Random) -> Measured:
    """The registry and its copies on the disk are lost, and the bucket is away: it waits, and takes
    the newest copy when the bucket is back. All copies in the bucket are cut short: it waits and
    says so, and starts empty by order. There are none: it starts empty and says so."""
    total = sum(fleet.wanted.values())
    stored, known = newest_in_bucket(fleet), fleet.identities()
    with fleet.bucket_away() as refused:
        _lose_registry(fleet)
        told = fleet.until_status(RENDEZVOUS, lambda told: told["phase"] == "failed", "failed")
        fleet.until(lambda: bool(refused), "a copy was asked for")
        assert fleet.stats() is None
    start = time.monotonic()
    told = _serving(fleet, stored)
    back = time.monotonic() - start
    assert not told["registry"]["started_empty"]
    fleet.all_online()
    assert fleet.identities() == known

    _cut_all_short(fleet)
    seen = len(fleet.console(RENDEZVOUS))
    _lose_registry(fleet)
    fleet.until_status(RENDEZVOUS, lambda told: told["phase"] == "failed", "failed")
    fleet.until(
        lambda: "pilot: no registry: " in fleet.console(RENDEZVOUS)[seen:], "the console says so"
    )
    fleet.order(RENDEZVOUS, restart=f"empty-{chance.randrange(1 << 30)}", clean=True)
    started = time.monotonic()
    _started_empty(fleet, seen)
    fleet.all_online()
    ordered = time.monotonic() - started

    fleet.order(RENDEZVOUS)
    newest_in_bucket(fleet)
    seen = len(fleet.console(RENDEZVOUS))
    _lose_registry(fleet, also_in_bucket=True)
    started = time.monotonic()
    _started_empty(fleet, seen)
    fleet.all_online()
    return {
        "agents": total,
        "serving_after_bucket_s": round(back, 1),
        "all_back_after_order_s": round(ordered, 1),
        "all_back_after_empty_s": round(time.monotonic() - started, 1),
    }


def _serving(fleet: Fleet, restored: str) -> dict[str, Any]:
    return fleet.until_status(
        RENDEZVOUS,
        lambda told: told["phase"] == "serving" and told["registry"]["restored"] == restored,
        f"serving {restored or 'an empty registry'}",
    )


def _started_empty(fleet: Fleet, seen: int) -> None:
    """Wait for that, said on the console after its first `seen` characters."""
    said = "THE REGISTRY MAY START EMPTY"
    fleet.until(lambda: said in fleet.console(RENDEZVOUS)[seen:], "the console says so")
    fleet.until_status(
        RENDEZVOUS,
        lambda told: told["phase"] == "serving" and told["registry"]["started_empty"],
        "serving an empty registry",
    )


def _lose_registry(fleet: Fleet, *, also_in_bucket: bool = False) -> None:
    """The registry ends by SIGKILL, and has neither its file nor a copy when it starts again."""
    lost = f"rm -rf {STORE}/registry.json* {STORE}/copies/*"
    # pilot-node stores no copy meanwhile.
    fleet.run(RENDEZVOUS, "systemctl stop pilot-node")
    if also_in_bucket:
        for name in _objects(fleet):
            path = f"/storage/v1/b/{fleet.bucket}/o/{quote(name, '')}"
            assert fleet.api.call("DELETE", path).status == 204
    fleet.run(
        RENDEZVOUS,
        f"{lost}; systemctl kill -s KILL pilot-rendezvous; {lost}; systemctl start pilot-node",
    )


def _cut_all_short(fleet: Fleet) -> None:
    for name in _objects(fleet):
        path = f"/storage/v1/b/{fleet.bucket}/o/{quote(name, '')}"
        about = fleet.api.get(path)["metadata"]
        content = fleet.api.call("GET", f"{path}?alt=media").data[:-9]
        _put(fleet, name, content, about)


def account_is_refused(fleet: Fleet, vm: str, chance: Random) -> Measured:
    """A swarm VM's account writes nothing to the bucket, and the rendezvous' only its copies."""
    storage = fleet.declared(vm)["endpoints"]["storage"]
    token = (
        "curl -fsS -H 'Metadata-Flavor: Google' http://169.254.169.254/computeMetadata/v1/"
        "instance/service-accounts/default/token | python3 -c"
        " 'import json,sys; print(json.load(sys.stdin)[\"access_token\"])'"
    )
    release = fleet.declared(vm)["release"]["daemon"]["object"]
    refused = 0
    for who, name, status in (
        (vm, "registry/20990101T000000Z-1.json", "403"),
        (vm, f"orders/{RENDEZVOUS}.json", "403"),
        (vm, release, "403"),
        (RENDEZVOUS, f"orders/{RENDEZVOUS}.json", "403"),
        (RENDEZVOUS, release, "403"),
        (RENDEZVOUS, "registry/test.txt", "200"),
    ):
        url = f"{storage}/upload/storage/v1/b/{fleet.bucket}/o?uploadType=media&name={quote(name)}"
        told = fleet.run(
            who,
            f"curl -sS -o /dev/null -w '%{{http_code}}' -H \"Authorization: Bearer $({token})\""
            f" --data-binary x '{url}'",
        )
        assert told == status, (who, name, told)
        refused += told == "403"
    path = f"/storage/v1/b/{fleet.bucket}/o/{quote('registry/test.txt', '')}"
    assert fleet.api.call("DELETE", path).status == 204
    return {"refused": refused}


def _delete_vm_and_disk(fleet: Fleet) -> None:
    disks = fleet.instance(RENDEZVOUS)["disks"]
    (disk,) = (each["source"] for each in disks if each["deviceName"] == "pilot-state")
    fleet.api.do("DELETE", f"/compute/v1/{fleet.path(RENDEZVOUS)}")
    fleet.api.do("DELETE", f"/compute/v1/projects/{disk.partition('/projects/')[2]}")


def newest_in_bucket(fleet: Fleet) -> str:
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
        _put(fleet, name, data, words)
        names.append(name)
    return names


def _put(fleet: Fleet, name: str, data: bytes, words: dict[str, str]) -> None:
    done = fleet.api.call(
        "POST",
        f"/upload/storage/v1/b/{fleet.bucket}/o?uploadType=multipart",
        multipart({"name": name, "metadata": words}, data),
        headers={"Content-Type": "multipart/related; boundary=xxx"},
    )
    assert done.status == 200, done
