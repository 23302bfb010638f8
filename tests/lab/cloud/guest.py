"""A VM's side of its metadata server, for tests."""

import json
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from http.client import HTTPConnection
from typing import Any

import pytest

from lab.cloud.compute import lookups
from lab.cloud.store import Store
from tests.lab.cloud.client import COMPUTE, ZONE, Answer, Client

PATIENCE = 30.0  # seconds after which a test that waits has failed
ROOT = "/computeMetadata/v1/"
PATH = "projects/p1/zones/us-central1-a/instances/vm"
ACCOUNT = "fleet@p1.iam.gserviceaccount.com"
FLAVOR = {"Metadata-Flavor": "Google"}
WAIT = "wait_for_change=true&timeout_sec=600"


class Guest:
    """A VM's requests to its metadata server, on one connection."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.connection = HTTPConnection(*address, timeout=PATIENCE)

    def call(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        target = path if path.startswith("/") else ROOT + path
        sent = FLAVOR if headers is None else headers
        self.connection.request(method, target, body=body, headers=sent)
        response = self.connection.getresponse()
        data = response.read()
        kept = {key.lower(): value for key, value in response.getheaders()}
        parsed = json.loads(data) if kept.get("content-type") == "application/json" else None
        return Answer(status=response.status, headers=kept, data=data, json=parsed)

    def get(self, path: str) -> Answer:
        answer = self.call("GET", path)
        assert answer.status == 200, answer
        return answer

    def text(self, path: str) -> str:
        return self.get(path).data.decode()


def publish(store: Store, path: str, name: str, value: str) -> None:
    """Write a guest attribute of the instance at `path`, without a metadata server."""
    with store.transaction() as tx:
        lookups.find(tx, path)
        tx.put(f"guest/{path}", name, {"value": value})


def metadata(**given: str) -> dict[str, Any]:
    return {"items": [{"key": key.replace("_", "-"), "value": each} for key, each in given.items()]}


class Looks:
    """Counts how often long polls went to wait."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        self._changed = threading.Condition()
        self.count = 0
        self._wait = store.wait
        monkeypatch.setattr(store, "wait", self._counted)

    def _counted(self, after: int, timeout: float) -> int:
        with self._changed:
            self.count += 1
            self._changed.notify_all()
        return self._wait(after, timeout)

    def reach(self, number: int) -> None:
        """Wait until there were that many."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.count >= number, PATIENCE)


def set_metadata(cloud: Client, **given: str) -> None:
    held = cloud.get(f"{ZONE}/instances/vm")["metadata"]["fingerprint"]
    body = {"fingerprint": held, **metadata(**given)}
    cloud.do("POST", f"{ZONE}/instances/vm/setMetadata", body)


def set_project(cloud: Client, **given: str) -> None:
    held = cloud.get(COMPUTE)["commonInstanceMetadata"]["fingerprint"]
    body = {"fingerprint": held, **metadata(**given)}
    cloud.do("POST", f"{COMPUTE}/setCommonInstanceMetadata", body)


def set_zone(cloud: Client, **given: str) -> None:
    held = cloud.get(f"{ZONE}/instanceSettings")["fingerprint"]
    body = {"fingerprint": held, "metadata": {"items": given}}
    cloud.do("PATCH", f"{ZONE}/instanceSettings", body)


def poll(pool: ThreadPoolExecutor, guest: Guest, path: str) -> "Future[Answer]":
    return pool.submit(guest.get, path)
