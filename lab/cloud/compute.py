"""The compute API: which request does what. Resources are in `lab.cloud.kinds` and
`lab.cloud.instances`.

Every change is one transaction that also writes its operation; what a driver has to do runs in
the operation's thread (the `_work_…` methods), each of which can be run again from the start.
"""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Final

from lab.cloud import Json, attributes, catalog, instances, kinds, links, maintenance, query, shapes
from lab.cloud.errors import (
    ApiError,
    OperationError,
    already_exists,
    in_use,
    invalid,
    not_found,
    not_implemented,
    not_ready,
    required,
    stale,
)
from lab.cloud.kinds import KINDS, Kind
from lab.cloud.links import Level, Scope, link
from lab.cloud.operations import Operations
from lab.cloud.store import Store, Transaction, fingerprint
from lab.cloud.web import Request, Route
from lab.machines.driver import Driver, MachineError

LOG = logging.getLogger("lab.cloud.compute")

MOST_SERIAL: Final = 1024 * 1024  # bytes of console that Compute Engine keeps

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
"""Actions on instances that need not wait for a machine to start or stop."""


def project_number(project: str) -> str:
    """Return a project's number: twelve digits that follow from its id."""
    digest = hashlib.sha256(project.encode()).digest()
    return str(10**11 + int.from_bytes(digest[:8], "big") % (9 * 10**11))


class Compute:
    """Answers for compute; `driver` runs the machines."""

    def __init__(self, store: Store, operations: Operations, driver: Driver) -> None:
        self._store = store
        self._operations = operations
        self._driver = driver
        works: dict[str, Callable[[str], None]] = {
            "insert": self._work_insert,
            "start": self._work_start,
            "stop": self._work_stop,
            "reset": self._work_reset,
            "delete": self._work_delete,
            "attachDisk": self._work_change_disks,
            "detachDisk": self._work_change_disks,
        }
        for kind, work in works.items():
            operations.register("instances", kind, work)
        operations.register("disks", "insert", self._work_disk_insert)
        operations.register("disks", "resize", self._work_disk_resize)
        operations.register("disks", "delete", self._work_disk_delete)
        operations.register("snapshots", "insert", self._work_snapshot_insert)
        operations.register("snapshots", "delete", self._work_snapshot_delete)
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
        """Put right what the end of the last process left: undone work, machines that are off."""
        self._operations.resume()
        with self._store.transaction() as tx:
            running = [
                instances.machine(tx, each)
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
        self._set_status(path, instances.TERMINATED, only_from=instances.RUNNING)

    # Routes

    def routes(self) -> list[Route]:
        """Return the table of paths below `/compute/VERSION/`."""
        routes = [
            self._route("GET", "", self._project),
            self._route("POST", "/setCommonInstanceMetadata", self._set_project_metadata),
            self._route("GET", "/aggregated/{collection}", self._aggregated),
            self._route("GET", "/global/images/family/{name}", self._family),
            self._route("GET", "/zones/{place}/instanceSettings", self._settings),
            self._route("PATCH", "/zones/{place}/instanceSettings", self._set_settings),
            *self._catalog_routes(),
            *self._instance_routes(),
        ]
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
        if request.params["project"].isdigit():
            with self._store.transaction() as tx:
                project = _by_number(tx, request.params["project"])
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
            actions["addResourcePolicies"] = kinds.add_policies
            actions["removeResourcePolicies"] = lambda _, scope, body, given: kinds.remove_policies(
                scope, body, given
            )
            actions["resize"] = lambda _, __, body, given: kinds.resize(body, given)
        if kind.collection == "subnetworks":
            actions["setPrivateIpGoogleAccess"] = _set_private_access
        return routes + [
            self._route("POST", f"{one}/{action}", partial(self._act, kind, action, act))
            for action, act in actions.items()
        ]

    def _instance_routes(self) -> list[Route]:
        base = f"/{_PLACES['zones']}/instances"
        one = f"{base}/{{name}}"
        listing = partial(self._list, "zones", "instances", "")
        routes = [
            self._route("GET", base, listing),
            self._route("POST", base, self._insert_instance),
            self._route(
                "POST", f"/{_PLACES['zones']}/disks/{{name}}/createSnapshot", self._create_snapshot
            ),
            self._route("GET", one, partial(self._get, INSTANCES)),
            self._route("DELETE", one, self._delete_instance),
            self._route("POST", f"{one}/start", self._start),
            self._route("POST", f"{one}/stop", self._stop),
            self._route("POST", f"{one}/reset", self._reset),
            self._route("GET", f"{one}/serialPort", self._serial),
            self._route("GET", f"{one}/getGuestAttributes", self._guest_attributes),
        ]
        actions = {**instances.QUIET, "simulateMaintenanceEvent": maintenance.simulate}
        for action, change in actions.items():
            # Google's rule: what is called update… is a PATCH, the rest are POSTs.
            method = "PATCH" if action.startswith("update") else "POST"
            handler = partial(self._act, INSTANCES, action, change)
            routes.append(self._route(method, f"{one}/{action}", handler))
        return routes

    def _catalog_routes(self) -> list[Route]:
        return [
            self._route(
                "GET", "/zones", lambda r: self._page(r, _zones(_scope(r, "global")), "zone")
            ),
            self._route("GET", "/zones/{place}", lambda r: _zone(_scope(r, "zones"))),
            self._route(
                "GET", "/regions", lambda r: self._page(r, _regions(_scope(r, "global")), "region")
            ),
            self._route("GET", "/regions/{place}", lambda r: _region(_scope(r, "regions"))),
            self._route(
                "GET",
                "/zones/{place}/machineTypes",
                lambda r: self._page(r, _machine_types(_scope(r, "zones")), "machineType"),
            ),
            self._route(
                "GET",
                "/zones/{place}/machineTypes/{name}",
                lambda r: _machine_type(_scope(r, "zones"), r.params["name"]),
            ),
            self._route(
                "GET",
                "/zones/{place}/diskTypes",
                lambda r: self._page(
                    r,
                    [
                        (name, _disk_type(_scope(r, "zones"), name))
                        for name in sorted(catalog.DISK_TYPES)
                    ],
                    "diskType",
                ),
            ),
            self._route(
                "GET",
                "/zones/{place}/diskTypes/{name}",
                lambda r: _disk_type(_scope(r, "zones"), r.params["name"]),
            ),
        ]

    # Reading

    def _get(self, kind: Kind, request: Request) -> Json:
        scope = _scope(request, kind.level)
        with self._store.transaction() as tx:
            name = _name(tx, scope, kind.collection, request.params["name"])
            body = kinds.find(tx, f"{scope.path}/{kind.collection}/{name}")
            return kind.present(tx, body)

    def _list(self, level: Level, collection: str, singular: str, request: Request) -> Json:
        scope = _scope(request, level)
        kind = _KIND.get(collection)
        with self._store.transaction() as tx:
            found = sorted(tx.look(scope.collection(collection)).items())
            if kind is not None:
                found = [(name, kind.present(tx, body)) for name, body in found]
        return self._page(request, found, singular or (kind.singular if kind else collection))

    def _page(self, request: Request, items: list[tuple[str, Json]], singular: str) -> Json:
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

    def _aggregated(self, request: Request) -> Json:
        collection = request.params["collection"]
        kind = _KIND.get(collection)
        if kind is None or kind.level == "global":
            raise not_implemented(request.path)
        project = _project(request)
        places = catalog.zones() if kind.level == "zones" else sorted(catalog.ZONES)
        items: list[tuple[str, Json]] = []
        with self._store.transaction() as tx:
            for place in places:
                scope = Scope(project=project, level=kind.level, place=place)
                for name, body in sorted(tx.look(scope.collection(collection)).items()):
                    items.append((f"{scope.short}/{name}", kind.present(tx, body)))
        shown, token = query.page(items, request.query)
        answer: Json = {
            "kind": f"compute#{kind.singular}AggregatedList",
            "id": f"projects/{project}/aggregated/{collection}",
            "selfLink": link(f"projects/{project}/aggregated/{collection}"),
            "items": _by_place(kind, places, shown),
        }
        if token:
            answer["nextPageToken"] = token
        return answer

    def _family(self, request: Request) -> Json:
        with self._store.transaction() as tx:
            images = f"{_scope(request, 'global').path}/images"
            return kinds.newest(tx, images, request.params["name"])

    # Operations

    def _operation(self, level: Level, request: Request) -> Json:
        scope = _scope(request, level)
        with self._store.transaction() as tx:
            name = _name(tx, scope, "operations", request.params["name"])
            return kinds.find(tx, f"{scope.path}/operations/{name}")

    def _wait(self, level: Level, request: Request) -> Json:
        scope = _scope(request, level)
        name = request.params["name"]
        operation = self._operations.wait(scope.collection("operations"), name)
        if operation is None:
            raise not_found(f"{scope.path}/operations/{name}")
        return operation

    # Changing

    def _insert(self, kind: Kind, request: Request) -> Json:
        scope = _scope(request, kind.level)
        given = _body(request)
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

    def _create_snapshot(self, request: Request) -> Json:
        """The older way: a disk's own method; its operation is a zone's."""
        scope = _scope(request, "zones")
        given = {**_body(request), "sourceDisk": f"{scope.path}/disks/{request.params['name']}"}
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
        scope = _scope(request, kind.level)
        # Some actions on instances have their arguments in the query.
        given = {**(request.query if kind is INSTANCES else {}), **request.json()}
        shapes.check(given)
        path = f"{scope.path}/{kind.collection}/{request.params['name']}"
        error = None
        with self._store.transaction() as tx:
            body = kinds.find(tx, path)
            if kind is INSTANCES and action not in _WHENEVER:
                self._refuse_while_busy(tx, path)
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

    def _refuse_while_busy(self, tx: Transaction, path: str) -> None:
        busy = self._operations.busy(tx, path)
        if busy:
            raise not_ready(path, f"{busy} is under way")

    def _delete(self, kind: Kind, request: Request) -> Json:
        scope = _scope(request, kind.level)
        path = f"{scope.path}/{kind.collection}/{request.params['name']}"
        with self._store.transaction() as tx:
            body = kinds.find(tx, path)
            shown = kind.present(tx, body)
            user = next(iter(shown.get("users", [])), None) or kinds.user_of(tx, body)
            # Disks and machines only remember what they were made from.
            if user and kind.collection not in kinds.REMEMBERED:
                raise in_use(kind.singular, path, links.path_of(user, _NOWHERE))
            if kind.collection in ("disks", "snapshots"):
                self._refuse_while_busy(tx, path)
                body["status"] = "DELETING"
                tx.put(*links.split(path), body)
            else:
                tx.delete(*links.split(path))
            operation = self._operations.begin(tx, scope, "delete", path, target_id=body["id"])
        return self._operations.submit(operation)

    # The project

    def _project(self, request: Request) -> Json:
        project = _project(request)
        with self._store.transaction() as tx:
            return self._project_body(tx, project)

    def _project_body(self, tx: Transaction, project: str) -> Json:
        held = tx.get(f"{links.STORE}projects", project)
        if held is not None:
            return held
        number = project_number(project)
        return {
            "kind": "compute#project",
            "id": number,
            "creationTimestamp": "2026-01-01T00:00:00.000+00:00",
            "name": project,
            "selfLink": link(f"projects/{project}"),
            "commonInstanceMetadata": attributes.metadata({}),
            "defaultServiceAccount": f"{number}-compute@developer.gserviceaccount.com",
            "defaultNetworkTier": "PREMIUM",
            "xpnProjectStatus": "UNSPECIFIED_XPN_PROJECT_STATUS",
            "quotas": [],
        }

    def project_metadata(self, project: str) -> Json:
        """Return a project's metadata, as the API shows it."""
        with self._store.transaction() as tx:
            found: Json = self._project_body(tx, project)["commonInstanceMetadata"]
            return found

    def _set_project_metadata(self, request: Request) -> Json:
        scope = _scope(request, "global")
        with self._store.transaction() as tx:
            body = self._project_body(tx, scope.project)
            body["commonInstanceMetadata"] = attributes.change_metadata(
                body["commonInstanceMetadata"], request.json()
            )
            tx.put(f"{links.STORE}projects", scope.project, body)
            return self._operations.begin(
                tx,
                scope,
                "compute.projects.setCommonInstanceMetadata",
                f"projects/{scope.project}",
                target_id=body["id"],
            )

    def _settings_body(self, tx: Transaction, scope: Scope) -> Json:
        held = tx.get(scope.collection("settings"), "instanceSettings")
        if held is not None:
            return held
        body = {"kind": "compute#instanceSettings", "zone": link(scope.path), "metadata": {}}
        return {**body, "fingerprint": fingerprint({})}

    def _settings(self, request: Request) -> Json:
        with self._store.transaction() as tx:
            return self._settings_body(tx, _scope(request, "zones"))

    def _set_settings(self, request: Request) -> Json:
        scope = _scope(request, "zones")
        given = request.json()
        with self._store.transaction() as tx:
            body = self._settings_body(tx, scope)
            if given.get("fingerprint") != body["fingerprint"]:
                raise stale("Supplied fingerprint does not match current fingerprint.")
            asked = (given.get("metadata") or {}).get("items") or {}
            pairs = [{"key": key, "value": each} for key, each in sorted(asked.items())]
            items = attributes.metadata({"items": pairs}).get("items", [])
            body["metadata"] = {"items": {each["key"]: each["value"] for each in items}}
            body["fingerprint"] = fingerprint(body["metadata"])
            tx.put(scope.collection("settings"), "instanceSettings", body)
            path = f"{scope.path}/instanceSettings"
            return self._operations.begin(tx, scope, "patch", path)

    # Instances

    def _insert_instance(self, request: Request) -> Json:
        scope = _scope(request, "zones")
        given = self._from_template(request, scope, _body(request))
        name = links.valid_name(given.get("name"))
        path = f"{scope.path}/instances/{name}"
        error = None
        with self._store.transaction() as tx:
            if tx.get(*links.split(path)) is not None:
                raise already_exists(path)
            identity = ""
            try:
                body, made = instances.create(tx, scope, given)
            except OperationError as refused:
                error = refused
            else:
                identity = body["id"]
                for disk in made:
                    tx.put(scope.collection("disks"), disk["name"], disk)
                tx.put(*links.split(path), body)
            operation = self._operations.begin(
                tx, scope, "insert", path, target_id=identity, error=error
            )
        return self._operations.submit(operation)

    def _from_template(self, request: Request, scope: Scope, given: Json) -> Json:
        source = request.query.get("sourceInstanceTemplate")
        if not source:
            return given
        with self._store.transaction() as tx:
            template = kinds.find(tx, links.path_of(source, scope))
        return {**template["properties"], **given}

    def _move(self, request: Request, action: str, before: tuple[str, ...], status: str) -> Json:
        """Begin a change of an instance's state; nothing is done where it is there already."""
        scope = _scope(request, "zones")
        path = f"{scope.path}/instances/{request.params['name']}"
        with self._store.transaction() as tx:
            body = kinds.find(tx, path)
            self._refuse_while_busy(tx, path)
            needed = body["status"] in before
            if needed and status:
                tx.put(*links.split(path), {**body, "status": status})
            # A type without work is DONE at once: there is nothing to do.
            kind = action if needed else f"{action}.none"
            operation = self._operations.begin(tx, scope, kind, path, target_id=body["id"])
        return self._operations.submit(operation)

    def _start(self, request: Request) -> Json:
        return self._move(request, "start", (instances.TERMINATED,), instances.STAGING)

    def _stop(self, request: Request) -> Json:
        return self._move(request, "stop", (instances.RUNNING,), instances.STOPPING)

    def _reset(self, request: Request) -> Json:
        scope = _scope(request, "zones")
        path = f"{scope.path}/instances/{request.params['name']}"
        with self._store.transaction() as tx:
            status = kinds.find(tx, path)["status"]
        if status != instances.RUNNING:
            raise not_ready(path, f"it is {status}")
        return self._move(request, "reset", (instances.RUNNING,), "")

    def _delete_instance(self, request: Request) -> Json:
        scope = _scope(request, "zones")
        path = f"{scope.path}/instances/{request.params['name']}"
        with self._store.transaction() as tx:
            body = kinds.find(tx, path)
            self._refuse_while_busy(tx, path)
            if body["deletionProtection"]:
                message = "Resource cannot be deleted if it's protected against deletion."
                raise ApiError(400, "invalidResourceUsage", f"Invalid resource usage: '{message}'")
            tx.put(*links.split(path), {**body, "status": instances.STOPPING})
            operation = self._operations.begin(tx, scope, "delete", path, target_id=body["id"])
        return self._operations.submit(operation)

    def _serial(self, request: Request) -> Json:
        scope = _scope(request, "zones")
        path = f"{scope.path}/instances/{request.params['name']}"
        if request.query.get("port", "1") != "1":
            raise invalid("port", request.query["port"], "This stand-in records port 1 only.")
        with self._store.transaction() as tx:
            body = kinds.find(tx, path)
            machine = instances.machine(tx, body)
        if body["status"] == instances.TERMINATED:
            raise not_ready(path, "it is TERMINATED")
        data = self._driver.serial_output(machine)
        start = _serial_start(request.query.get("start", "0"), len(data))
        return {
            "kind": "compute#serialPortOutput",
            "selfLink": link(f"{path}/serialPort"),
            "contents": data[start:].decode("utf-8", "replace"),
            "start": str(start),
            "next": str(len(data)),
        }

    def _guest_attributes(self, request: Request) -> Json:
        scope = _scope(request, "zones")
        path = f"{scope.path}/instances/{request.params['name']}"
        key = request.query.get("variableKey", "")
        asked = request.query.get("queryPath", "")
        with self._store.transaction() as tx:
            kinds.find(tx, path)
            held = tx.documents(f"guest/{path}")
        wanted = key or asked
        found = [
            {"namespace": name.split("/")[0], "key": name.split("/")[1], "value": body["value"]}
            for name, body in held.items()
            if name == wanted or (not key and (asked in ("", "/") or _below(name, asked)))
        ]
        if not found:
            message = f"The resource '{wanted}' of type 'Guest Attribute' was not found."
            raise ApiError(404, "notFound", message)
        answer: Json = {
            "kind": "compute#guestAttributes",
            "selfLink": link(f"{path}/getGuestAttributes"),
        }
        if key:
            return {**answer, "variableKey": key, "variableValue": found[0]["value"]}
        return {**answer, "queryPath": asked, "queryValue": {"items": found}}

    def set_guest_attribute(self, path: str, namespace: str, key: str, value: str) -> None:
        """Record what a guest published about itself (the metadata server calls this)."""
        with self._store.transaction() as tx:
            kinds.find(tx, path)
            tx.put(f"guest/{path}", f"{namespace}/{key}", {"value": value})

    # The work of operations. Each may run a second time after a crash.

    def _load(self, path: str) -> tuple[Json, list[Json]] | None:
        with self._store.transaction() as tx:
            body = tx.get(*links.split(path))
            if body is None:
                return None
            disks = [
                disk
                for each in body["disks"]
                if (disk := tx.get(*links.split(links.path_of(each["source"], _NOWHERE))))
            ]
            return body, disks

    def _set_status(self, path: str, status: str, *, only_from: str = "", **more: Any) -> None:
        with self._store.transaction() as tx:
            body = tx.get(*links.split(path))
            if body is not None and (not only_from or body["status"] == only_from):
                tx.put(*links.split(path), {**body, "status": status, **more})

    def _machine(self, path: str) -> Any:
        with self._store.transaction() as tx:
            return instances.machine(tx, kinds.find(tx, path))

    def _work_insert(self, path: str) -> None:
        loaded = self._load(path)
        if loaded is None:
            return
        _, disks = loaded
        try:
            for disk in disks:
                self._driver.create_disk(instances.driver_disk(disk))
            self._set_status(path, instances.STAGING)
            self._driver.start(self._machine(path))
        except MachineError:
            # An insert that fails leaves nothing, as on Google.
            self._work_delete(path)
            raise
        self._set_status(path, instances.RUNNING, lastStartTimestamp=links.now())

    def _work_start(self, path: str) -> None:
        try:
            self._driver.start(self._machine(path))
        except (MachineError, OperationError):
            self._set_status(path, instances.TERMINATED)
            raise
        self._set_status(path, instances.RUNNING, lastStartTimestamp=links.now())

    def _work_stop(self, path: str) -> None:
        try:
            self._driver.stop(self._machine(path))
        except MachineError:
            self._set_status(path, instances.RUNNING)
            raise
        self._set_status(path, instances.TERMINATED, lastStopTimestamp=links.now())

    def _work_reset(self, path: str) -> None:
        self._driver.reset(self._machine(path))
        self._set_status(path, instances.RUNNING, lastStartTimestamp=links.now())

    def _work_change_disks(self, path: str) -> None:
        self._driver.change_disks(self._machine(path))

    def _work_delete(self, path: str) -> None:
        loaded = self._load(path)
        if loaded is None:
            return
        body, disks = loaded
        self._driver.delete(self._machine(path))
        automatic = {each["source"] for each in body["disks"] if each["autoDelete"]}
        gone = [disk for disk in disks if disk["selfLink"] in automatic]
        for disk in gone:
            self._driver.delete_disk(instances.driver_disk(disk))
        with self._store.transaction() as tx:
            tx.delete(*links.split(path))
            for disk in gone:
                tx.delete(*links.split(links.path_of(disk["selfLink"], _NOWHERE)))
            for name in tx.documents(f"guest/{path}"):
                tx.delete(f"guest/{path}", name)

    def _disk(self, path: str) -> Json | None:
        with self._store.transaction() as tx:
            return tx.get(*links.split(path))

    def _work_disk_insert(self, path: str) -> None:
        body = self._disk(path)
        if body is not None:
            try:
                self._driver.create_disk(instances.driver_disk(body))
            except MachineError:
                with self._store.transaction() as tx:
                    tx.delete(*links.split(path))
                raise
            self._set_status(path, "READY")

    def _work_disk_resize(self, path: str) -> None:
        body = self._disk(path)
        if body is not None:
            self._driver.resize_disk(instances.driver_disk(body))

    def _work_disk_delete(self, path: str) -> None:
        body = self._disk(path)
        if body is not None:
            self._driver.delete_disk(instances.driver_disk(body))
            with self._store.transaction() as tx:
                tx.delete(*links.split(path))

    def _work_snapshot_insert(self, path: str) -> None:
        body = self._disk(path)
        source = body and self._disk(links.path_of(body["sourceDisk"], _NOWHERE))
        if source is not None:
            try:
                self._driver.create_snapshot(instances.driver_disk(source), path)
            except MachineError:
                with self._store.transaction() as tx:
                    tx.delete(*links.split(path))
                raise
            self._set_status(path, "READY")

    def _work_snapshot_delete(self, path: str) -> None:
        if self._disk(path) is not None:
            self._driver.delete_snapshot(path)
            with self._store.transaction() as tx:
                tx.delete(*links.split(path))


_Act = Callable[[Transaction, Scope, Json, Json], None]
_KIND: Final = {kind.collection: kind for kind in (*KINDS, INSTANCES)}


def _project(request: Request) -> str:
    return request.params["project"]


def _scope(request: Request, level: Level) -> Scope:
    place = request.params.get("place", "")
    if level == "zones" and catalog.region_of(place) is None:
        raise invalid("zone", place, "Unknown zone.")
    if level == "regions" and place not in catalog.ZONES:
        raise invalid("region", place, "Unknown region.")
    return Scope(project=_project(request), level=level, place=place)


def _body(request: Request) -> Json:
    body = request.json()
    if not body:
        raise required("resource")
    shapes.check(body)
    return body


def _by_number(tx: Transaction, project: str) -> str:
    """Return the id of the project with that number; 404 where there is none."""
    known = {each.split("/")[2] for each in tx.collections(f"{links.STORE}projects/")}
    for each in known | tx.look(f"{links.STORE}projects").keys():
        if project_number(each) == project:
            return each
    raise not_found(f"projects/{project}")


def _name(tx: Transaction, scope: Scope, collection: str, name: str) -> str:
    """Return the name of a resource that a request names by name or by id."""
    if not name.isdigit():
        return name
    for each, body in tx.look(scope.collection(collection)).items():
        if body.get("id") == name:
            return each
    return name


def _replace(body: Json, new: Json) -> None:
    body.clear()
    body.update(new)


def _below(name: str, asked: str) -> bool:
    return name.startswith(asked if asked.endswith("/") else f"{asked}/")


def _serial_start(text: str, length: int) -> int:
    try:
        start = int(text)
    except ValueError as error:
        raise invalid("start", text, "Must be an integer.") from error
    if start < 0:
        start += length
    # Only the end of a long console is kept: who asks for more gets it from there.
    return min(max(start, 0, length - MOST_SERIAL), length)


def _by_place(kind: Kind, places: list[str], shown: list[Json]) -> Json:
    items: Json = {}
    for place in places:
        short = f"{kind.level}/{place}"
        held = [each for each in shown if f"/{short}/" in each["selfLink"]]
        if held:
            items[short] = {kind.collection: held}
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
    _refresh(body)


def _refresh(body: Json) -> None:
    plain = {key: each for key, each in body.items() if key != "fingerprint"}
    body["fingerprint"] = fingerprint(plain)


# What is there without being declared


def _identity(text: str) -> str:
    return str(int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big"))


def _listed(scope: Scope, kind: str, name: str, path: str) -> Json:
    return {
        "kind": f"compute#{kind}",
        "id": _identity(name),
        "creationTimestamp": "1969-12-31T16:00:00.000-08:00",
        "name": name,
        "description": name,
        "selfLink": link(f"projects/{scope.project}/{path}"),
    }


def _zone(scope: Scope) -> Json:
    region = catalog.region_of(scope.place)
    return {
        **_listed(scope, "zone", scope.place, f"zones/{scope.place}"),
        "status": "UP",
        "region": link(f"projects/{scope.project}/regions/{region}"),
        "availableCpuPlatforms": ["Unknown CPU Platform"],
        "supportsPzs": False,
    }


def _zones(scope: Scope) -> list[tuple[str, Json]]:
    return [
        (name, _zone(Scope(project=scope.project, level="zones", place=name)))
        for name in catalog.zones()
    ]


def _region(scope: Scope) -> Json:
    base = f"projects/{scope.project}/zones/{scope.place}-"
    return {
        **_listed(scope, "region", scope.place, f"regions/{scope.place}"),
        "status": "UP",
        "zones": [link(base + letter) for letter in catalog.ZONES[scope.place]],
        # No quota is enforced: limits that no request reaches, and nothing counted.
        "quotas": [
            {"metric": metric, "limit": 1e6, "usage": 0.0}
            for metric in ("CPUS", "E2_CPUS", "N2_CPUS", "N2D_CPUS", "DISKS_TOTAL_GB", "INSTANCES")
        ],
    }


def _regions(scope: Scope) -> list[tuple[str, Json]]:
    return [
        (name, _region(Scope(project=scope.project, level="regions", place=name)))
        for name in sorted(catalog.ZONES)
    ]


def _machine_type(scope: Scope, name: str) -> Json:
    found = catalog.machine_type(name)
    if found is None:
        raise not_found(f"{scope.path}/machineTypes/{name}")
    return {
        **_listed(scope, "machineType", name, f"zones/{scope.place}/machineTypes/{name}"),
        "description": f"{found.vcpus} vCPUs, {found.memory_mb / 1024:g} GB RAM",
        "guestCpus": found.vcpus,
        "memoryMb": found.memory_mb,
        "imageSpaceGb": 0,
        "maximumPersistentDisks": instances.MOST_DISKS,
        "maximumPersistentDisksSizeGb": "263168",
        "zone": scope.place,
        "isSharedCpu": name in ("e2-micro", "e2-small", "e2-medium", "f1-micro", "g1-small"),
        "architecture": "X86_64",
    }


def _machine_types(scope: Scope) -> list[tuple[str, Json]]:
    return [(name, _machine_type(scope, name)) for name in sorted(catalog.MACHINE_TYPES)]


def _disk_type(scope: Scope, name: str) -> Json:
    if name not in catalog.DISK_TYPES:
        raise not_found(f"{scope.path}/diskTypes/{name}")
    return {
        **_listed(scope, "diskType", name, f"zones/{scope.place}/diskTypes/{name}"),
        "zone": link(scope.path),
        "validDiskSize": "10GB-65536GB",
        "defaultDiskSizeGb": str(catalog.DEFAULT_DISK_GB),
    }
