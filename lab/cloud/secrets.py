"""Secret Manager: secrets, their versions and payloads. Nothing is encrypted."""

import base64
import binascii
import re
from datetime import UTC, datetime
from functools import partial
from typing import Final

import google_crc32c

from lab.cloud import Json
from lab.cloud.errors import ApiError, already_exists, invalid, not_found, required
from lab.cloud.iam import Policies
from lab.cloud.store import Store, Transaction, fingerprint
from lab.cloud.web import Request, Route

MOST_PAYLOAD: Final = 65536  # bytes (Secret Manager's limit)

_ID = re.compile(r"[A-Za-z0-9_-]{1,255}")
_STATES: Final = {"enable": "ENABLED", "disable": "DISABLED", "destroy": "DESTROYED"}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


class Secrets:
    """Answers below `/v1/projects/P/secrets`."""

    def __init__(self, store: Store, policies: Policies) -> None:
        self._store = store
        self._policies = policies

    def routes(self) -> list[Route]:
        """Return the routes."""
        base = "/v1/projects/{project}/secrets"
        one = f"{base}/{{secret}}"
        version = f"{one}/versions/{{version}}"
        routes = [
            Route(method="GET", template=base, handler=self._list),
            Route(method="POST", template=base, handler=self._create),
            Route(method="GET", template=one, handler=self._get),
            Route(method="PATCH", template=one, handler=self._patch),
            Route(method="DELETE", template=one, handler=self._delete),
            Route(method="POST", template=f"{one}:addVersion", handler=self._add),
            Route(method="GET", template=f"{one}/versions", handler=self._versions),
            Route(method="GET", template=version, handler=self._version),
            Route(method="GET", template=f"{version}:access", handler=self._access),
        ]
        for action, state in _STATES.items():
            handler = partial(self._set_state, state)
            routes.append(Route(method="POST", template=f"{version}:{action}", handler=handler))
        policies = self._policies.routes(one, "GET", lambda tx, r: self._find(tx, r)["name"])
        return routes + policies

    def _find(self, tx: Transaction, request: Request) -> Json:
        project, secret = request.params["project"], request.params["secret"]
        body = tx.get(f"secrets/{project}", secret)
        if body is None:
            raise not_found(f"projects/{project}/secrets/{secret}")
        return body

    def _list(self, request: Request) -> Json:
        with self._store.transaction() as tx:
            held = list(tx.documents(f"secrets/{request.params['project']}").values())
        return {"secrets": held, "totalSize": len(held)} if held else {}

    def _create(self, request: Request) -> Json:
        project, secret = request.params["project"], request.query.get("secretId", "")
        if not _ID.fullmatch(secret):
            raise invalid("secretId", secret, "Must be 1 to 255 of letters, digits, '-', '_'.")
        given = request.json()
        replication = {k: v for k, v in (given.get("replication") or {}).items() if v is not None}
        if len(replication) != 1:
            raise required("secret.replication")
        name = f"projects/{project}/secrets/{secret}"
        with self._store.transaction() as tx:
            if tx.get(f"secrets/{project}", secret) is not None:
                raise already_exists(name)
            body = {**given, "replication": replication, "name": name, "createTime": _now()}
            body["etag"] = fingerprint(body)
            tx.put(f"secrets/{project}", secret, body)
        return body

    def _get(self, request: Request) -> Json:
        with self._store.transaction() as tx:
            return self._find(tx, request)

    def _patch(self, request: Request) -> Json:
        given = request.json()
        fields = request.query.get("updateMask", ",".join(given)).split(",")
        with self._store.transaction() as tx:
            body = self._find(tx, request)
            for field in fields:
                top = field.split(".")[0]
                if given.get(top):
                    body[top] = given[top]
                else:
                    body.pop(top, None)
            body["etag"] = fingerprint(body)
            tx.put(f"secrets/{request.params['project']}", request.params["secret"], body)
        return body

    def _delete(self, request: Request) -> Json:
        with self._store.transaction() as tx:
            name = self._find(tx, request)["name"]
            tx.delete(f"secrets/{request.params['project']}", request.params["secret"])
            for version in tx.documents(f"versions/{name}"):
                tx.delete(f"versions/{name}", version)
            self._policies.forget(tx, name)
        return {}

    # Versions: the payload is stored beside the shown resource.

    def _add(self, request: Request) -> Json:
        text = (request.json().get("payload") or {}).get("data")
        if not isinstance(text, str):
            raise required("payload.data")
        try:
            data = base64.b64decode(text, validate=True)
        except binascii.Error as error:
            raise invalid("payload.data", text[:16], "Must be base64.") from error
        if len(data) > MOST_PAYLOAD:
            raise invalid("payload.data", len(data), f"At most {MOST_PAYLOAD} bytes are allowed.")
        with self._store.transaction() as tx:
            secret = self._find(tx, request)
            numbers = [int(each) for each in tx.documents(f"versions/{secret['name']}")]
            number = max(numbers, default=0) + 1
            shown: Json = {
                "name": f"{secret['name']}/versions/{number}",
                "createTime": _now(),
                "state": "ENABLED",
                "clientSpecifiedPayloadChecksum": False,
                "replicationStatus": _status(secret["replication"]),
            }
            shown["etag"] = fingerprint(shown)
            tx.put(f"versions/{secret['name']}", str(number), {"shown": shown, "data": text})
        return shown

    def _find_version(self, tx: Transaction, request: Request) -> tuple[str, str, Json]:
        secret = self._find(tx, request)
        number = request.params["version"]
        collection = f"versions/{secret['name']}"
        if number == "latest":
            numbers = [int(each) for each in tx.documents(collection)]
            number = str(max(numbers, default=0))
        body = tx.get(collection, number)
        if body is None:
            raise not_found(f"{secret['name']}/versions/{number}")
        return collection, number, body

    def _versions(self, request: Request) -> Json:
        with self._store.transaction() as tx:
            held = tx.documents(f"versions/{self._find(tx, request)['name']}")
        shown = [held[each]["shown"] for each in sorted(held, key=int, reverse=True)]
        return {"versions": shown, "totalSize": len(shown)} if shown else {}

    def _version(self, request: Request) -> Json:
        with self._store.transaction() as tx:
            shown: Json = self._find_version(tx, request)[2]["shown"]
            return shown

    def _access(self, request: Request) -> Json:
        with self._store.transaction() as tx:
            _, _, body = self._find_version(tx, request)
        shown = body["shown"]
        if shown["state"] != "ENABLED":
            message = f"Secret Version [{shown['name']}] is in {shown['state']} state."
            raise ApiError(400, "failedPrecondition", message, "FAILED_PRECONDITION")
        checksum = str(google_crc32c.value(base64.b64decode(body["data"])))
        payload = {"data": body["data"], "dataCrc32c": checksum}
        return {"name": shown["name"], "payload": payload}

    def _set_state(self, state: str, request: Request) -> Json:
        with self._store.transaction() as tx:
            collection, number, body = self._find_version(tx, request)
            shown: Json = body["shown"]
            if shown["state"] == "DESTROYED" and state != "DESTROYED":
                message = f"SecretVersion.state is already {shown['state']}."
                raise ApiError(400, "failedPrecondition", message, "FAILED_PRECONDITION")
            shown["state"] = state
            if state == "DESTROYED":
                shown["destroyTime"] = _now()
                body["data"] = ""
            shown["etag"] = fingerprint({**shown, "etag": ""})
            tx.put(collection, number, body)
        return shown


def _status(replication: Json) -> Json:
    if "userManaged" not in replication:
        return {"automatic": {}}
    replicas = replication["userManaged"].get("replicas", [])
    return {"userManaged": {"replicas": [{"location": each["location"]} for each in replicas]}}
