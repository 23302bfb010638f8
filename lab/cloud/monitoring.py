"""Cloud Monitoring's records: notification channels, alert policies, dashboards, uptime checks.

They are recorded and shown. Nothing is measured and no alert is sent.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Final

from lab.cloud import Json
from lab.cloud.errors import ApiError, not_found, required
from lab.cloud.store import Store, Transaction, fingerprint
from lab.cloud.web import Request, Route


@dataclass(frozen=True, kw_only=True)
class _Kind:
    collection: str
    version: str
    dated: bool  # has creationRecord and mutationRecord
    needs: str


_KINDS: Final = (
    _Kind(
        collection="notificationChannels",
        version="v3",
        dated=True,
        needs="type",
    ),
    _Kind(
        collection="alertPolicies",
        version="v3",
        dated=True,
        needs="conditions",
    ),
    _Kind(
        collection="uptimeCheckConfigs",
        version="v3",
        dated=False,
        needs="displayName",
    ),
    _Kind(
        collection="dashboards",
        version="v1",
        dated=False,
        needs="displayName",
    ),
)


def _record() -> Json:
    when = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return {"mutateTime": when, "mutatedBy": "nobody@localhost"}


class MonitoringApi:
    """Answers below `/v3/projects/P` and, for dashboards, `/v1/projects/P`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def routes(self) -> list[Route]:
        """Return the routes."""
        routes = []
        for kind in _KINDS:
            base = f"/{kind.version}/projects/{{project}}/{kind.collection}"
            one = f"{base}/{{name}}"
            routes += [
                Route(method="GET", template=base, handler=partial(self._list, kind)),
                Route(method="POST", template=base, handler=partial(self._create, kind)),
                Route(method="GET", template=one, handler=partial(self._get, kind)),
                Route(method="PATCH", template=one, handler=partial(self._patch, kind)),
                Route(method="DELETE", template=one, handler=partial(self._delete, kind)),
            ]
        return routes

    def _where(self, kind: _Kind, request: Request) -> str:
        return f"monitoring/projects/{request.params['project']}/{kind.collection}"

    def _find(self, tx: Transaction, kind: _Kind, request: Request) -> Json:
        where, name = self._where(kind, request), request.params["name"]
        body = tx.get(where, name)
        if body is None:
            raise not_found(f"{where.removeprefix('monitoring/')}/{name}")
        return body

    def _list(self, kind: _Kind, request: Request) -> Json:
        with self._store.transaction() as tx:
            held = list(tx.documents(self._where(kind, request)).values())
        return {kind.collection: held, "totalSize": len(held)} if held else {}

    def _create(self, kind: _Kind, request: Request) -> Json:
        given = request.json()
        if not given.get(kind.needs):
            raise required(kind.needs)
        where = self._where(kind, request)
        with self._store.transaction() as tx:
            self._check(tx, kind, given)
            name = tx.new_id()
            body = {**given, "name": f"{where.removeprefix('monitoring/')}/{name}"}
            if kind.dated:
                body = {"enabled": True, **body, "creationRecord": _record()}
            self._finish(tx, kind, body)
            tx.put(where, name, body)
        return body

    def _finish(self, tx: Transaction, kind: _Kind, body: Json) -> None:
        if kind.collection == "alertPolicies":
            body["mutationRecord"] = _record()
        elif kind.dated:
            body["mutationRecords"] = [_record()]
        for condition in body.get("conditions") or []:
            if not condition.get("name"):
                condition["name"] = f"{body['name']}/conditions/{tx.new_id()}"
        if kind.collection == "dashboards":
            body["etag"] = fingerprint({**body, "etag": ""})

    def _check(self, tx: Transaction, kind: _Kind, given: Json) -> None:
        if kind.collection != "alertPolicies":
            return
        for channel in given.get("notificationChannels") or []:
            where, _, name = str(channel).rpartition("/")
            if tx.get(f"monitoring/{where}", name) is None:
                raise not_found(str(channel))

    def _get(self, kind: _Kind, request: Request) -> Json:
        with self._store.transaction() as tx:
            return self._find(tx, kind, request)

    def _patch(self, kind: _Kind, request: Request) -> Json:
        given = request.json()
        mask = request.query.get("updateMask")
        with self._store.transaction() as tx:
            body = self._find(tx, kind, request)
            if kind.collection == "dashboards" and given.get("etag") not in (None, body["etag"]):
                raise ApiError(409, "aborted", "The etag does not match.", "ABORTED")
            self._check(tx, kind, given)
            kept: Json = {f: body[f] for f in ("name", "creationRecord", "etag") if f in body}
            # Without a mask the whole resource is replaced.
            body = {**body, **_masked(given, mask)} if mask else {**given, **kept}
            self._finish(tx, kind, body)
            body = {key: each for key, each in body.items() if each is not None}
            tx.put(self._where(kind, request), request.params["name"], body)
        return body

    def _delete(self, kind: _Kind, request: Request) -> Json:
        with self._store.transaction() as tx:
            name = self._find(tx, kind, request)["name"]
            if kind.collection == "notificationChannels" and "force" not in request.query:
                self._refuse_used(tx, request, name)
            tx.delete(self._where(kind, request), request.params["name"])
        return {}

    def _refuse_used(self, tx: Transaction, request: Request, name: str) -> None:
        project = request.params["project"]
        for policy in tx.documents(f"monitoring/projects/{project}/alertPolicies").values():
            if name in policy.get("notificationChannels", []):
                message = f"{name} is used by {policy['name']}; delete that first or force it."
                raise ApiError(400, "failedPrecondition", message, "FAILED_PRECONDITION")


def _masked(given: Json, mask: str) -> Json:
    tops = {field.split(".")[0] for field in mask.split(",")}
    return {top: given.get(top) for top in tops}
