"""Find resources in the store: by path, by the field that names one, by project."""

from collections.abc import Iterator

from lab.cloud import Json, links
from lab.cloud.errors import invalid, not_found, required
from lab.cloud.links import Scope, link
from lab.cloud.store import Transaction


def find(transaction: Transaction, path: str) -> Json:
    """Return the resource at `path`; 404 where there is none."""
    body = transaction.get(*links.split(path))
    if body is None:
        raise not_found(path)
    return body


def referenced(
    transaction: Transaction, body: Json, field: str, scope: Scope, collection: str
) -> str:
    """Return the link to the resource that a field names; 400 where it is not there."""
    value = body.get(field)
    if not value:
        raise required(f"resource.{field}")
    path = links.reference(value, f"resource.{field}", scope, collection)
    if transaction.get(*links.split(path)) is None:
        raise invalid(f"resource.{field}", value, "The referenced resource does not exist.")
    return link(path)


def instances(transaction: Transaction, project: str) -> Iterator[Json]:
    """Yield a project's instances."""
    for collection in transaction.collections(f"{links.STORE}projects/{project}/zones/"):
        if collection.endswith("/instances"):
            yield from transaction.look(collection).values()


def project_of(body: Json) -> str:
    """Return the project of a resource."""
    return str(body["selfLink"].removeprefix(links.PREFIX).split("/")[1])


def everywhere(scope: Scope) -> Scope:
    """Return the global scope of a scope's project."""
    return Scope(project=scope.project)
