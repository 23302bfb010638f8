"""Requests for a project and its metadata, and for the metadata of a zone."""

import hashlib

from lab.cloud import Json, links
from lab.cloud.compute import attributes
from lab.cloud.compute.operations import Operations
from lab.cloud.compute.requests import Endpoint, project_of, scope_of
from lab.cloud.errors import not_found, stale
from lab.cloud.links import Scope, link
from lab.cloud.store import Store, Transaction, fingerprint
from lab.cloud.web import Request


def project_number(project: str) -> str:
    """Return a project's number: twelve digits that follow from its id."""
    digest = hashlib.sha256(project.encode()).digest()
    return str(10**11 + int.from_bytes(digest[:8], "big") % (9 * 10**11))


class ProjectApi:
    """Answers for projects and for the settings of zones."""

    def __init__(self, store: Store, operations: Operations) -> None:
        self._store = store
        self._operations = operations

    def endpoints(self) -> list[Endpoint]:
        """Return the endpoints."""
        return [
            ("GET", "", self._project),
            ("POST", "/setCommonInstanceMetadata", self._set_project_metadata),
            ("GET", "/zones/{place}/instanceSettings", self._settings),
            ("PATCH", "/zones/{place}/instanceSettings", self._set_settings),
        ]

    def _project(self, request: Request) -> Json:
        project = project_of(request)
        with self._store.transaction() as tx:
            return self._body(tx, project)

    def _body(self, tx: Transaction, project: str) -> Json:
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

    def _set_project_metadata(self, request: Request) -> Json:
        scope = scope_of(request, "global")
        with self._store.transaction() as tx:
            body = self._body(tx, scope.project)
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
            return self._settings_body(tx, scope_of(request, "zones"))

    def _set_settings(self, request: Request) -> Json:
        scope = scope_of(request, "zones")
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


def project_by_number(tx: Transaction, project: str) -> str:
    """Return the id of the project with that number; 404 where there is none."""
    known = {each.split("/")[2] for each in tx.collections(f"{links.STORE}projects/")}
    for each in known | tx.look(f"{links.STORE}projects").keys():
        if project_number(each) == project:
            return each
    raise not_found(f"projects/{project}")
