"""Parts of a compute request: its scope, its body, a resource by name or id."""

from collections.abc import Callable

from lab.cloud import Json
from lab.cloud.compute import catalog, shapes
from lab.cloud.errors import invalid, required
from lab.cloud.links import Level, Scope
from lab.cloud.store import Transaction
from lab.cloud.web import Request

Endpoint = tuple[str, str, Callable[[Request], Json]]
"""A method, a path below `/compute/VERSION/projects/PROJECT`, and the function that answers."""


def project_of(request: Request) -> str:
    """Return the project that a request names."""
    return request.params["project"]


def scope_of(request: Request, level: Level) -> Scope:
    """Return the scope that a request names; 400 for an unknown zone or region."""
    place = request.params.get("place", "")
    if level == "zones" and catalog.region_of(place) is None:
        raise invalid("zone", place, "Unknown zone.")
    if level == "regions" and place not in catalog.ZONES:
        raise invalid("region", place, "Unknown region.")
    return Scope(project=project_of(request), level=level, place=place)


def body_of(request: Request) -> Json:
    """Return the resource that a request sends; 400 where there is none."""
    body = request.json()
    if not body:
        raise required("resource")
    shapes.check(body)
    return body


def name_of(tx: Transaction, scope: Scope, collection: str, name: str) -> str:
    """Return the name of a resource that a request names by name or by id."""
    if not name.isdigit():
        return name
    for each, body in tx.look(scope.collection(collection)).items():
        if body.get("id") == name:
            return each
    return name
