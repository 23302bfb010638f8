"""Requests that only instances have: insert, start, stop, reset, delete, console, attributes."""

from typing import Final

from lab.cloud import Json, links
from lab.cloud.compute import instances, lookups, machines
from lab.cloud.compute.operations import Operations
from lab.cloud.compute.requests import Endpoint, body_of, scope_of
from lab.cloud.errors import ApiError, OperationError, already_exists, invalid, not_ready
from lab.cloud.links import Scope, link
from lab.cloud.store import Store
from lab.cloud.web import Request
from lab.machines.driver import Driver

MOST_SERIAL: Final = 1024 * 1024  # bytes of console that Compute Engine keeps


class InstancesApi:
    """Answers requests for instances; the consoles are the driver's."""

    def __init__(self, store: Store, operations: Operations, driver: Driver) -> None:
        self._store = store
        self._operations = operations
        self._driver = driver

    def endpoints(self) -> list[Endpoint]:
        """Return the endpoints."""
        base = "/zones/{place}/instances"
        one = f"{base}/{{name}}"
        return [
            ("POST", base, self._insert),
            ("DELETE", one, self._delete),
            ("POST", f"{one}/start", self._start),
            ("POST", f"{one}/stop", self._stop),
            ("POST", f"{one}/reset", self._reset),
            ("GET", f"{one}/serialPort", self._serial),
            ("GET", f"{one}/getGuestAttributes", self._guest_attributes),
        ]

    def _insert(self, request: Request) -> Json:
        scope = scope_of(request, "zones")
        given = self._from_template(request, scope, body_of(request))
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
            template = lookups.find(tx, links.path_of(source, scope))
        return {**template["properties"], **given}

    def _move(self, request: Request, action: str, before: tuple[str, ...], status: str) -> Json:
        """Begin to change an instance's state; does nothing where it has that state."""
        scope = scope_of(request, "zones")
        path = f"{scope.path}/instances/{request.params['name']}"
        with self._store.transaction() as tx:
            body = lookups.find(tx, path)
            self._operations.refuse_while_busy(tx, path)
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
        scope = scope_of(request, "zones")
        path = f"{scope.path}/instances/{request.params['name']}"
        with self._store.transaction() as tx:
            status = lookups.find(tx, path)["status"]
        if status != instances.RUNNING:
            raise not_ready(path, f"it is {status}")
        return self._move(request, "reset", (instances.RUNNING,), "")

    def _delete(self, request: Request) -> Json:
        scope = scope_of(request, "zones")
        path = f"{scope.path}/instances/{request.params['name']}"
        with self._store.transaction() as tx:
            body = lookups.find(tx, path)
            self._operations.refuse_while_busy(tx, path)
            if body["deletionProtection"]:
                message = "Resource cannot be deleted if it's protected against deletion."
                raise ApiError(400, "invalidResourceUsage", f"Invalid resource usage: '{message}'")
            tx.put(*links.split(path), {**body, "status": instances.STOPPING})
            operation = self._operations.begin(tx, scope, "delete", path, target_id=body["id"])
        return self._operations.submit(operation)

    def _serial(self, request: Request) -> Json:
        scope = scope_of(request, "zones")
        path = f"{scope.path}/instances/{request.params['name']}"
        if request.query.get("port", "1") != "1":
            raise invalid("port", request.query["port"], "This stand-in records port 1 only.")
        with self._store.transaction() as tx:
            body = lookups.find(tx, path)
            machine = machines.machine(tx, body)
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
        scope = scope_of(request, "zones")
        path = f"{scope.path}/instances/{request.params['name']}"
        key = request.query.get("variableKey", "")
        asked = request.query.get("queryPath", "")
        with self._store.transaction() as tx:
            lookups.find(tx, path)
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


def _below(name: str, asked: str) -> bool:
    return name.startswith(asked if asked.endswith("/") else f"{asked}/")


def _serial_start(text: str, length: int) -> int:
    try:
        start = int(text)
    except ValueError as error:
        raise invalid("start", text, "Must be an integer.") from error
    if start < 0:
        start += length
    # Only the end of a long console is kept: an earlier start begins there.
    return min(max(start, 0, length - MOST_SERIAL), length)
