"""IAM policies of any resource, with etags; projects and service accounts."""

import base64
from collections.abc import Callable
from functools import partial
from typing import Final

from lab.cloud import Json
from lab.cloud.compute.project_api import project_number
from lab.cloud.errors import ApiError, already_exists, not_found, required
from lab.cloud.store import Store, Transaction
from lab.cloud.web import Request, Route

_POLICIES: Final = "iam/policies"
_ACCOUNTS: Final = "iam/accounts"


class Policies:
    """The policy of each resource, by a name that its service chooses."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def get(self, tx: Transaction, resource: str, default: list[Json] | None = None) -> Json:
        """Return a resource's policy; without one, the default bindings."""
        held = tx.get(_POLICIES, resource)
        if held is not None:
            return held
        policy: Json = {"version": 1, "etag": _etag(0)}
        return {**policy, "bindings": default} if default else policy

    def set(self, tx: Transaction, resource: str, given: Json, conflict: int = 409) -> Json:
        """Replace a resource's policy; `conflict` is the code for an etag that is stale."""
        current = self.get(tx, resource)
        if given.get("etag") not in (None, "", current["etag"]):
            message = (
                "There were concurrent policy changes. Please retry the whole"
                " read-modify-write with exponential backoff."
            )
            reason = "conditionNotMet" if conflict == 412 else "aborted"
            raise ApiError(conflict, reason, message, "ABORTED" if conflict == 409 else None)
        serial = int.from_bytes(base64.b64decode(current["etag"])[1:], "big") + 1
        policy: Json = {"version": given.get("version") or 1, "etag": _etag(serial)}
        for field in ("bindings", "auditConfigs"):
            if given.get(field):
                policy[field] = given[field]
        tx.put(_POLICIES, resource, policy)
        return policy

    def forget(self, tx: Transaction, resource: str) -> None:
        """Delete the policy of a resource that is deleted."""
        tx.delete(_POLICIES, resource)

    def routes(
        self, path: str, method: str, exists: Callable[[Transaction, Request], str]
    ) -> list[Route]:
        """Return `PATH:getIamPolicy` (by `method`), `:setIamPolicy` and `:testIamPermissions`.

        `exists` returns the name of the policy's resource, or raises.
        """
        return [
            Route(
                method=method, template=f"{path}:getIamPolicy", handler=partial(self._get, exists)
            ),
            Route(
                method="POST", template=f"{path}:setIamPolicy", handler=partial(self._set, exists)
            ),
            Route(method="POST", template=f"{path}:testIamPermissions", handler=_test),
        ]

    def _get(self, exists: Callable[[Transaction, Request], str], request: Request) -> Json:
        with self._store.transaction() as tx:
            return self.get(tx, exists(tx, request))

    def _set(self, exists: Callable[[Transaction, Request], str], request: Request) -> Json:
        with self._store.transaction() as tx:
            policy = request.json().get("policy")
            if not isinstance(policy, dict):
                raise required("policy")
            return self.set(tx, exists(tx, request), policy)


def _test(request: Request) -> Json:
    # Every token has every permission here.
    return {"permissions": request.json().get("permissions", [])}


def _etag(serial: int) -> str:
    return base64.b64encode(b"\x08" + serial.to_bytes(7, "big")).decode()


class ResourceManager:
    """Projects as Resource Manager shows them: all exist, each with a policy."""

    def __init__(self, store: Store, policies: Policies) -> None:
        self._store = store
        self._policies = policies

    def routes(self) -> list[Route]:
        """Return the routes."""
        path = "/v1/projects/{project}"
        return [
            *self._policies.routes(path, "POST", lambda _, r: f"projects/{r.params['project']}"),
            Route(method="GET", template=path, handler=self._project),
        ]

    def _project(self, request: Request) -> Json:
        project = request.params["project"]
        return {
            "projectId": project,
            "name": project,
            "projectNumber": project_number(project),
            "lifecycleState": "ACTIVE",
            "createTime": "2026-01-01T00:00:00.000Z",
        }


class ServiceAccounts:
    """Service accounts: names that policies and machines can refer to."""

    def __init__(self, store: Store, policies: Policies) -> None:
        self._store = store
        self._policies = policies

    def routes(self) -> list[Route]:
        """Return the routes."""
        base = "/v1/projects/{project}/serviceAccounts"
        one = f"{base}/{{email}}"
        return [
            Route(method="POST", template=base, handler=self._create),
            Route(method="GET", template=base, handler=self._list),
            Route(method="GET", template=one, handler=self._get),
            Route(method="PATCH", template=one, handler=self._patch),
            Route(method="DELETE", template=one, handler=self._delete),
            *self._policies.routes(one, "POST", lambda tx, r: self._find(tx, r)["name"]),
        ]

    def _find(self, tx: Transaction, request: Request) -> Json:
        email = request.params["email"]
        found = tx.get(_ACCOUNTS, email)
        if found is None or request.params["project"] not in ("-", found["projectId"]):
            raise not_found(f"projects/{request.params['project']}/serviceAccounts/{email}")
        return found

    def _create(self, request: Request) -> Json:
        given = request.json()
        project = request.params["project"]
        if not given.get("accountId"):
            raise required("accountId")
        email = f"{given['accountId']}@{project}.iam.gserviceaccount.com"
        name = f"projects/{project}/serviceAccounts/{email}"
        with self._store.transaction() as tx:
            if tx.get(_ACCOUNTS, email) is not None:
                raise already_exists(name)
            body = {
                **(given.get("serviceAccount") or {}),
                "name": name,
                "projectId": project,
                "uniqueId": tx.new_id(),
                "email": email,
                "oauth2ClientId": tx.new_id(),
                "etag": _etag(1),
            }
            tx.put(_ACCOUNTS, email, body)
        return body

    def _list(self, request: Request) -> Json:
        with self._store.transaction() as tx:
            held = tx.documents(_ACCOUNTS).values()
        return {"accounts": [e for e in held if e["projectId"] == request.params["project"]]}

    def _get(self, request: Request) -> Json:
        with self._store.transaction() as tx:
            return self._find(tx, request)

    def _patch(self, request: Request) -> Json:
        given = request.json().get("serviceAccount") or {}
        with self._store.transaction() as tx:
            body = self._find(tx, request)
            body.update({k: v for k, v in given.items() if k in ("displayName", "description")})
            tx.put(_ACCOUNTS, body["email"], body)
        return body

    def _delete(self, request: Request) -> Json:
        with self._store.transaction() as tx:
            body = self._find(tx, request)
            tx.delete(_ACCOUNTS, body["email"])
            self._policies.forget(tx, body["name"])
        return {}
