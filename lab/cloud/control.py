"""Paths below /lab/, which Google does not have: the lab's state, forwarded ports, dead zones.

On Google an operator opens a tunnel to a port of a VM. Here a port of this machine's loopback is
forwarded to it.
"""

from lab.cloud import Json, links
from lab.cloud.compute import catalog
from lab.cloud.compute.machines import machine
from lab.cloud.errors import ApiError, not_found
from lab.cloud.links import Scope
from lab.cloud.store import Store
from lab.cloud.web import Request, Route
from lab.machines.driver import Driver, MachineError


class Control:
    """The lab's own paths."""

    def __init__(self, store: Store, driver: Driver, away: set[str]) -> None:
        self._store = store
        self._driver = driver
        self._away = away

    def routes(self) -> list[Route]:
        """Return the table of paths below `/lab/`."""
        instance = "/lab/projects/{project}/zones/{zone}/instances/{name}"
        return [
            Route(method="GET", template="/lab/status", handler=self._status),
            Route(method="POST", template=f"{instance}/forward", handler=self._forward),
            Route(method="POST", template="/lab/zones/{zone}", handler=self._zone),
        ]

    def _status(self, _: Request) -> Json:
        with self._store.transaction() as tx:
            found = {
                links.path_of(each["selfLink"], Scope(project="")): each["status"]
                for collection in tx.collections(f"{links.STORE}projects/")
                if collection.endswith("/instances")
                for each in tx.documents(collection).values()
            }
        return {
            # Tells this lab from another one that had the same port.
            "state": str(self._store.directory.resolve()),
            "driver": self._driver.description,
            "instances": found,
        }

    def _zone(self, request: Request) -> Json:
        """`{"away": true}`: compute answers 503 for all that is in the zone, until `false` or the
        lab's next start. Its machines run on."""
        away, zone = request.json().get("away"), request.params["zone"]
        if not isinstance(away, bool) or zone not in catalog.zones():
            raise ApiError(400, "invalid", f"{zone} cannot be made away: {away!r}")
        (self._away.add if away else self._away.discard)(zone)
        return {"away": sorted(self._away)}

    def _forward(self, request: Request) -> Json:
        """`{"port": N}` of the guest; answers `{"port": N}` of this machine's loopback."""
        port = request.json().get("port")
        if not isinstance(port, int) or not 0 < port < 65_536:
            raise ApiError(400, "invalid", f"port must be a number from 1 to 65535, not {port!r}")
        scope = Scope(
            project=request.params["project"], level="zones", place=request.params["zone"]
        )
        with self._store.transaction() as tx:
            instance = tx.get(scope.collection("instances"), request.params["name"])
            if instance is None:
                raise not_found(f"{scope.path}/instances/{request.params['name']}")
            wanted = machine(tx, instance)
        try:
            return {"port": self._driver.forward(wanted, port)}
        except MachineError as error:
            raise ApiError(400, "resourceNotReady", str(error)) from error
