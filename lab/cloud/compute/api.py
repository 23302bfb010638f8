"""The compute API: the table of requests, and the answers that all kinds of resources share.

Every change is one transaction, which also writes its operation. What a driver has to do runs
later, in the operation's thread (`lab.cloud.compute.driver_work`).
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Final

from lab.cloud import Json, links
from lab.cloud.compute import (
    attributes,
    catalog,
    disks,
    instances,
    kinds,
    lookups,
    machines,
    maintenance,
    query,
    shapes,
)
from lab.cloud.compute.catalog_api import catalog_endpoints
from lab.cloud.compute.driver_work import DriverWork
from lab.cloud.compute.instance_actions import RECORD_CHANGES
from lab.cloud.compute.instances_api import InstancesApi
from lab.cloud.compute.kinds import KINDS, Kind
from lab.cloud.compute.operations import Operations
from lab.cloud.compute.project_api import ProjectApi, project_by_number
from lab.cloud.compute.requests import body_of, name_of, project_of, scope_of
from lab.cloud.errors import (
    ApiError,
    OperationError,
    already_exists,
    in_use,
    not_found,
    not_implemented,
    stale,
)
from lab.cloud.links import Level, Scope, link
from lab.cloud.store import Store, Transaction, fingerprint
from lab.cloud.web import Request, Route
from lab.machines.driver import Driver

LOG = logging.getLogger("lab.cloud.compute")


INSTANCES: Final = Kind(
    collection="instances",
    singular="instance",
    level="zones",
    complete=lambda _, __, body: body,
    labelled=True,
)
_PLACES: Final[dict[Level, str]] = {
    "global": "global",
    "regions": "regions/{place}",
    "zones": "zones/{place}",
}
_NOWHERE: Final = Scope(project="")
_WHENEVER: Final = frozenset({"setMetadata", "setLabels", "setTags", "setDeletionProtection"})
"""Actions on instances that are allowed while the machine starts or stops."""


class Compute:
    """Answers for compute; `driver` runs the machines."""

    def __init__(self, store: Store, operations: Operations, driver: Driver) -> None:
        self.away: set[str] = set()
        """Zones that are dead: 503 for all that is in them."""
        self._store = store
        self._operations = operations
        self._driver = driver
        self._work = DriverWork(store, driver)
        self._work.register(operations)
        self._seed()

    def _seed(self) -> None:
        image = next(kind for kind in KINDS if kind.collection == "images")
        with self._store.transaction() as tx:
            for project, name, family in catalog.IMAGES:
                scope = Scope(project=project)
                if tx.get(scope.collection("images"), name) is None:
                    body = kinds.record(tx, image, scope, {"name": name, "family": family})
                    tx.put(scope.collection("images"), name, body)

    def recover(self) -> None:
        """Finish what the last process left: run its operations again, mark ended machines."""
        self._operations.resume()
        with self._store.transaction() as tx:
            running = [
                machines.machine(tx, each)
                for collection in tx.collections(f"{links.STORE}projects/")
                if collection.endswith("/instances")
                for each in tx.documents(collection).values()
                if each["status"] == instances.RUNNING
            ]
        for machine in running:
            if self._driver.is_running(machine) is False:
                LOG.warning("%s no longer runs", machine.path)
                self.machine_stopped(machine.path)

    def machine_stopped(self, path: str) -> None:
        """Record that a machine powered itself off (drivers call this)."""
        self._work.set_status(path, instances.TERMINATED, only_from=instances.RUNNING)

    # Routes

    def routes(self) -> list[Route]:
        """Return the table of paths below `/compute/VERSION/`."""
        routes = [
            *self._instance_routes(),
            self._route("GET", "/aggregated/{collection}", self._aggregated),
            self._route("GET", "/global/images/family/{name}", self._family),
            self._route("POST", "/zones/{place}/disks/{name}/createSnapshot", self._snapshot),
        ]
        others = [
            *ProjectApi(self._store, self._operations).endpoints(),
            *InstancesApi(self._store, self._operations, self._driver).endpoints(),
            *catalog_endpoints(_page),
        ]
        routes += [self._route(*each) for each in others]
        for level in _PLACES:
            base = f"/{_PLACES[level]}/operations"
            routes += [
                self._route("GET", base, partial(self._list, level, "operations", "operation")),
                self._route("GET", f"{base}/{{name}}", partial(self._operation, level)),
                self._route("POST", f"{base}/{{name}}/wait", partial(self._wait, level)),
            ]
        for kind in KINDS:
            routes += self._kind_routes(kind)
        return routes

    def _route(self, method: str, path: str, handler: Callable[[Request], Json]) -> Route:
        template = f"/compute/{{version}}/projects/{{project}}{path}"
        return Route(method=method, template=template, handler=partial(self._answer, handler))

    def _answer(self, handler: Callable[[Request], Json], request: Request) -> Json:
        if request.params["version"] not in ("v1", "beta"):
            raise not_implemented(request.path)
        if request.params.get("place") in self.away:
            message = f"Zone {request.params['place']}: Backend Error"
            raise ApiError(503, "backendError", message, "UNAVAILABLE")
        if request.params["project"].isdigit():
            with self._store.transaction() as tx:
                project = project_by_number(tx, request.params["project"])
            request = replace(request, params={**request.params, "project": project})
        return handler(request)

    def _kind_routes(self, kind: Kind) -> list[Route]:
        base = f"/{_PLACES[kind.level]}/{kind.collection}"
        one = f"{base}/{{name}}"
        routes = [
            self._route("GET", base, partial(self._list, kind.level, kind.collection, "")),
            self._route("POST", base, partial(self._insert, kind)),
            self._route("GET", one, partial(self._get, kind)),
            self._route("DELETE", one, partial(self._delete, kind)),
        ]
        if kind.changeable:
            routes += [
                self._route(method, one, partial(self._change, kind)) for method in ("PATCH", "PUT")
            ]
        actions: dict[str, _Act] = {}
        if kind.labelled:
            actions["setLabels"] = lambda _, __, body, given: attributes.change_labels(body, given)
        if kind.collection == "disks":
            actions["addResourcePolicies"] = disks.add_policies
            actions["removeResourcePolicies"] = lambda _, scope, body, given: disks.remove_policies(
                scope, body, given
            )
            actions["resize"] = lambda _, __, body, given: disks.resize(body, given)
        if kind.collection == "subnetworks":
            actions["setPrivateIpGoogleAccess"] = _set_private_access
        return routes + [
            self._route("POST", f"{one}/{action}", partial(self._act, kind, action, act))
            for action, act in actions.items()
        ]

    def _instance_routes(self) -> list[Route]:
        base = f"/{_PLACES['zones']}/instances"
        one = f"{base}/{{name}}"
        routes = [
            self._route("GET", base, partial(self._list, "zones", "instances", "")),
            self._route("GET", one, partial(self._get, INSTANCES)),
        ]
        actions = {**RECORD_CHANGES, "simulateMaintenanceEvent": maintenance.simulate}
        for action, change in actions.items():
            # Google's rule: update… is a PATCH, all others are POSTs.
            method = "PATCH" if action.startswith("update") else "POST"
            handler = partial(self._act, INSTANCES, action, change)
            routes.append(self._route(method, f"{one}/{action}", handler))
        return routes

    # Reading

    def _get(self, kind: Kind, request: Request) -> Json:
        scope = scope_of(request, kind.level)
        with self._store.transaction() as tx:
            name = name_of(tx, scope, kind.collection, request.params["name"])
            body = lookups.find(tx, f"{scope.path}/{kind.collection}/{name}")
            return kind.present(tx, body)

    def _list(self, level: Level, collection: str, singular: str, request: Request) -> Json:
        scope = scope_of(request, level)
        kind = _KIND.get(collection)
        with self._store.transaction() as tx:
            found = sorted(tx.look(scope.collection(collection)).items())
            if kind is not None:
                found = [(name, kind.present(tx, body)) for name, body in found]
        return _page(request, found, singular or (kind.singular if kind else collection))

    def _aggregated(self, request: Request) -> Json:
        collection = request.params["collection"]
        kind = _KIND.get(collection)
        if kind is None or kind.level == "global":
            raise not_implemented(request.path)
        project = project_of(request)
        places = catalog.zones() if kind.level == "zones" else sorted(catalog.ZONES)
        items: list[tuple[str, Json]] = []
        with self._store.transaction() as tx:
            for place in places:
                if place in self.away:
                    continue
                scope = Scope(project=project, level=kind.level, place=place)
                for name, body in sorted(tx.look(scope.collection(collection)).items()):
                    items.append((f"{scope.short}/{name}", kind.present(tx, body)))
        shown, token = query.page(items, request.query)
        answer: Json = {
            "kind": f"compute#{kind.singular}AggregatedList",
            "id": f"projects/{project}/aggregated/{collection}",
            "selfLink": link(f"projects/{project}/aggregated/{collection}"),
            "items": _by_place(kind, places, shown, self.away),
        }
        if token:
            answer["nextPageToken"] = token
        return answer

    def _family(self, request: Request) -> Json:
        with self._store.transaction() as tx:
            images = f"{scope_of(request, 'global').path}/images"
            return disks.newest(tx, images, request.params["name"])

    # Operations

    def _operation(self, level: Level, request: Request) -> Json:
        scope = scope_of(request, level)
        with self._store.transaction() as tx:
            name = name_of(tx, scope, "operations", request.params["name"])
            return lookups.find(tx, f"{scope.path}/operations/{name}")

    def _wait(self, level: Level, request: Request) -> Json:
        scope = scope_of(request, level)
        name = request.params["name"]
        operation = self._operations.wait(scope.collection("operations"), name)
        if operation is None:
            raise not_found(f"{scope.path}/operations/{name}")
        return operation

    # Changing

    def _insert(self, kind: Kind, request: Request) -> Json:
        scope = scope_of(request, kind.level)
        given = body_of(request)
        if kind.collection == "disks" and "sourceImage" in request.query:
            given.setdefault("sourceImage", request.query["sourceImage"])
        name = links.valid_name(given.get("name"))
        path = f"{scope.path}/{kind.collection}/{name}"
        error = None
        with self._store.transaction() as tx:
            if tx.get(*links.split(path)) is not None:
                raise already_exists(path)
            identity = ""
            try:
                body = kinds.record(tx, kind, scope, given)
            except OperationError as refused:
                error = refused
            else:
                identity = body["id"]
                if kind.collection == "disks":
                    body["status"] = "CREATING"
                tx.put(*links.split(path), body)
            operation = self._operations.begin(
                tx, scope, "insert", path, target_id=identity, error=error
            )
        return self._operations.submit(operation)

    def _snapshot(self, request: Request) -> Json:
        """Make a snapshot by the disk's own method, which is older. The operation is zonal."""
        scope = scope_of(request, "zones")
        given = {**body_of(request), "sourceDisk": f"{scope.path}/disks/{request.params['name']}"}
        kind, everywhere = _KIND["snapshots"], Scope(project=scope.project)
        path = f"{everywhere.path}/snapshots/{links.valid_name(given.get('name'))}"
        with self._store.transaction() as tx:
            if tx.get(*links.split(path)) is not None:
                raise already_exists(path)
            body = kinds.record(tx, kind, everywhere, given)
            tx.put(*links.split(path), body)
            operation = self._operations.begin(tx, scope, "insert", path, target_id=body["id"])
        return self._operations.submit(operation)

    def _change(self, kind: Kind, request: Request) -> Json:
        return self._act(
            kind,
            request.method.lower() if request.method == "PATCH" else "update",
            lambda _, __, body, given: _replace(body, kinds.change(kind, body, given)),
            request,
        )

    def _act(self, kind: Kind, action: str, act: "_Act", request: Request) -> Json:
        scope = scope_of(request, kind.level)
        # Some actions on instances take their arguments from the query.
        given = {**(request.query if kind is INSTANCES else {}), **request.json()}
        shapes.check(given)
        path = f"{scope.path}/{kind.collection}/{request.params['name']}"
        error = None
        with self._store.transaction() as tx:
            body = lookups.find(tx, path)
            if kind is INSTANCES and action not in _WHENEVER:
                self._operations.refuse_while_busy(tx, path)
            held = body.get("fingerprint")
            if kind.collection == "subnetworks" and given.get("fingerprint", held) != held:
                raise stale("Invalid fingerprint.")
            try:
                act(tx, scope, body, given)
            except OperationError as refused:
                error = refused
            else:
                if kind.collection == "instances":
                    plain = {key: each for key, each in body.items() if key != "fingerprint"}
                    body["fingerprint"] = fingerprint(plain)
                tx.put(*links.split(path), body)
            operation = self._operations.begin(
                tx, scope, action, path, target_id=body["id"], error=error
            )
        return self._operations.submit(operation)

    def _delete(self, kind: Kind, request: Request) -> Json:
        scope = scope_of(request, kind.level)
        path = f"{scope.path}/{kind.collection}/{request.params['name']}"
        with self._store.transaction() as tx:
            body = lookups.find(tx, path)
            shown = kind.present(tx, body)
            user = next(iter(shown.get("users", [])), None) or kinds.user_of(tx, body)
            # Disks and machines only remember what they were made from.
            if user and kind.collection not in kinds.REMEMBERED:
                raise in_use(kind.singular, path, links.path_of(user, _NOWHERE))
            if kind.collection in ("disks", "snapshots"):
                self._operations.refuse_while_busy(tx, path)
                body["status"] = "DELETING"
                tx.put(*links.split(path), body)
            else:
                tx.delete(*links.split(path))
            operation = self._operations.begin(tx, scope, "delete", path, target_id=body["id"])
        return self._operations.submit(operation)


_Act = Callable[[Transaction, Scope, Json, Json], None]
_KIND: Final = {kind.collection: kind for kind in (*KINDS, INSTANCES)}


def _replace(body: Json, new: Json) -> None:
    body.clear()
    body.update(new)


def _page(request: Request, items: list[tuple[str, Json]], singular: str) -> Json:
    shown, token = query.page(items, request.query)
    answer: Json = {
        "kind": f"compute#{singular}List",
        "id": request.path.removeprefix("/").split("/", 2)[-1],
        "items": shown,
        "selfLink": link(request.path.split("/", 3)[-1]),
    }
    if not shown:
        del answer["items"]
    if token:
        answer["nextPageToken"] = token
    return answer


def _by_place(kind: Kind, places: list[str], shown: list[Json], away: set[str]) -> Json:
    items: Json = {}
    for place in places:
        short = f"{kind.level}/{place}"
        held = [each for each in shown if f"/{short}/" in each["selfLink"]]
        if held:
            items[short] = {kind.collection: held}
        elif place in away:
            items[short] = {
                "warning": {
                    "code": "UNREACHABLE",
                    "message": f"The scope '{short}' is not reachable.",
                    "data": [{"key": "scope", "value": short}],
                }
            }
        else:
            items[short] = {
                "warning": {
                    "code": "NO_RESULTS_ON_PAGE",
                    "message": f"There are no results for scope '{short}' on this page.",
                    "data": [{"key": "scope", "value": short}],
                }
            }
    return items


def _set_private_access(_: Transaction, __: Scope, body: Json, given: Json) -> None:
    body["privateIpGoogleAccess"] = bool(given.get("privateIpGoogleAccess"))
    plain = {key: each for key, each in body.items() if key != "fingerprint"}
    body["fingerprint"] = fingerprint(plain)
