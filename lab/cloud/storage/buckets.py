"""Buckets and their IAM policies."""

import re
from functools import partial
from typing import Any, Final

from lab.cloud import Json
from lab.cloud.compute.project_api import project_number
from lab.cloud.errors import ApiError, required
from lab.cloud.iam import Policies
from lab.cloud.storage import access
from lab.cloud.storage.conditions import check_metageneration
from lab.cloud.storage.records import etag, merged, now
from lab.cloud.store import Store, Transaction
from lab.cloud.web import Request, Response, Route

_BUCKETS: Final = "storage/buckets"
_BUCKET_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_MULTI_REGIONS: Final = ("US", "EU", "ASIA")
_SOFT_DELETE_SECONDS: Final = "604800"  # Google's default: seven days; recorded, not acted on


class Buckets:
    """Answers for buckets."""

    def __init__(self, store: Store, policies: Policies) -> None:
        self._store = store
        self._policies = policies

    def routes(self) -> list[Route]:
        """Return the routes."""
        base = "/storage/v1/b"
        bucket = f"{base}/{{bucket}}"
        table: list[tuple[str, str, Any]] = [
            ("GET", base, self._list),
            ("POST", base, self._insert),
            ("GET", bucket, self._get),
            ("PATCH", bucket, partial(self._change, merge=True)),
            ("PUT", bucket, partial(self._change, merge=False)),
            ("DELETE", bucket, self._delete),
            ("GET", f"{bucket}/iam", self._get_policy),
            ("PUT", f"{bucket}/iam", self._set_policy),
            ("GET", f"{bucket}/iam/testPermissions", self._test_permissions),
            # Google's provider asks, with the slash, before it deletes a bucket.
            ("GET", f"{bucket}/anywhereCaches", self._list_caches),
            ("GET", f"{bucket}/anywhereCaches/", self._list_caches),
        ]
        return [Route(method=m, template=t, handler=h) for m, t, h in table]

    def find(self, tx: Transaction, name: str) -> Json:
        """Return a bucket; 404 where there is none."""
        body = tx.get(_BUCKETS, name)
        if body is None:
            raise ApiError(404, "notFound", "The specified bucket does not exist.")
        return body

    def open(self, tx: Transaction, request: Request, permission: str, name: str = "") -> Json:
        """Return the bucket of a request whose caller has a permission on it, or on its object
        `name`; 404 where there is none, 403 for another caller."""
        body = self.find(tx, request.params["bucket"])
        if request.caller:
            access.require(self._policy(tx, body), body["name"], request.caller, permission, name)
        return body

    def is_versioned(self, tx: Transaction, bucket: str) -> bool:
        """Tell whether a bucket keeps noncurrent generations."""
        return bool((self.find(tx, bucket).get("versioning") or {}).get("enabled"))

    def _shown(self, body: Json, base: str) -> Json:
        return {**body, "selfLink": f"{base}/storage/v1/b/{body['name']}"}

    def _list(self, request: Request) -> Json:
        project = request.query.get("project", "")
        prefix = request.query.get("prefix", "")
        number = project_number(project)
        if request.caller:
            raise access.denied(request.caller, "storage.buckets.list", "project")
        with self._store.transaction() as tx:
            held = tx.documents(_BUCKETS)
        items = [
            self._shown(body, request.base)
            for name, body in held.items()
            if body["projectNumber"] == number and name.startswith(prefix)
        ]
        return {"kind": "storage#buckets", **({"items": items} if items else {})}

    def _insert(self, request: Request) -> Json:
        given = request.json()
        name = given.get("name")
        if not isinstance(name, str) or not _BUCKET_NAME.fullmatch(name):
            raise ApiError(400, "invalid", f"Invalid bucket name: '{name}'")
        if not request.query.get("project"):
            raise required("project")
        if request.caller:
            raise access.denied(request.caller, "storage.buckets.create", "project")
        with self._store.transaction() as tx:
            if tx.get(_BUCKETS, name) is not None:
                message = (
                    "Your previous request to create the named bucket succeeded and you already"
                    " own it."
                )
                raise ApiError(409, "conflict", message)
            body = _new_bucket(name, request.query["project"], given)
            tx.put(_BUCKETS, name, body)
        return self._shown(body, request.base)

    def _get(self, request: Request) -> Json:
        with self._store.transaction() as tx:
            body = self.open(tx, request, "storage.buckets.get")
        check_metageneration(body, request.query)
        return self._shown(body, request.base)

    def _change(self, request: Request, *, merge: bool) -> Json:
        given = request.json()
        name = request.params["bucket"]
        with self._store.transaction() as tx:
            held = self.open(tx, request, "storage.buckets.update")
            check_metageneration(held, request.query)
            start = held if merge else {k: held[k] for k in _KEPT if k in held}
            body = _completed_bucket({**merged(start, given), **{k: held[k] for k in _KEPT}})
            body["metageneration"] = str(int(held["metageneration"]) + 1)
            body["updated"] = now()
            body["etag"] = etag(body["metageneration"])
            tx.put(_BUCKETS, name, body)
        return self._shown(body, request.base)

    def _delete(self, request: Request) -> Response:
        name = request.params["bucket"]
        with self._store.transaction() as tx:
            held = self.open(tx, request, "storage.buckets.delete")
            check_metageneration(held, request.query)
            if tx.documents(f"storage/objects/{name}"):
                raise ApiError(409, "conflict", "The bucket you tried to delete is not empty.")
            tx.delete(_BUCKETS, name)
            self._policies.forget(tx, f"projects/_/buckets/{name}")
        return Response(status=204)

    def _get_policy(self, request: Request) -> Json:
        with self._store.transaction() as tx:
            return self._policy(tx, self.open(tx, request, "storage.buckets.getIamPolicy"))

    def _policy(self, tx: Transaction, bucket: Json) -> Json:
        resource = f"projects/_/buckets/{bucket['name']}"
        number = bucket["projectNumber"]
        default: list[Json] = [
            {
                "role": "roles/storage.legacyBucketOwner",
                "members": [f"projectEditor:{number}", f"projectOwner:{number}"],
            },
            {"role": "roles/storage.legacyBucketReader", "members": [f"projectViewer:{number}"]},
        ]
        policy = self._policies.get(tx, resource, default)
        return {"kind": "storage#policy", "resourceId": resource, **policy}

    def _set_policy(self, request: Request) -> Json:
        with self._store.transaction() as tx:
            bucket = self.open(tx, request, "storage.buckets.setIamPolicy")
            resource = f"projects/_/buckets/{bucket['name']}"
            self._policies.set(tx, resource, request.json(), conflict=412)
            return self._policy(tx, bucket)

    def _test_permissions(self, request: Request) -> Json:
        asked = [each for each in request.query.get("permissions", "").split(",") if each]
        with self._store.transaction() as tx:
            bucket = self.find(tx, request.params["bucket"])
            if request.caller:
                policy, name = self._policy(tx, bucket), bucket["name"]
                asked = [
                    each for each in asked if access.is_granted(policy, name, request.caller, each)
                ]
        return {"kind": "storage#testIamPermissionsResponse", "permissions": asked}

    def _list_caches(self, request: Request) -> Json:
        with self._store.transaction() as tx:
            self.open(tx, request, "storage.buckets.get")
        # Caches cannot be made here.
        return {"kind": "storage#anywhereCaches"}


_KEPT: Final = [
    "kind",
    "id",
    "name",
    "projectNumber",
    "location",
    "locationType",
    "timeCreated",
    "metageneration",
    "updated",
    "etag",
    "softDeletePolicy",
]


def _new_bucket(name: str, project: str, given: Json) -> Json:
    location = str(given.get("location") or "US").upper()
    when = now()
    fixed = {
        "kind": "storage#bucket",
        "id": name,
        "name": name,
        "projectNumber": project_number(project),
        "location": location,
        "locationType": "multi-region" if location in _MULTI_REGIONS else "region",
        "timeCreated": when,
        "updated": when,
        "metageneration": "1",
        "etag": etag("1"),
        "softDeletePolicy": {
            "retentionDurationSeconds": _SOFT_DELETE_SECONDS,
            "effectiveTime": when,
            **(given.get("softDeletePolicy") or {}),
        },
    }
    return _completed_bucket({**given, **fixed})


def _completed_bucket(body: Json) -> Json:
    result = {key: each for key, each in body.items() if each is not None}
    access = dict(result.get("iamConfiguration") or {})
    uniform = {"enabled": False, **(access.get("uniformBucketLevelAccess") or {})}
    access["uniformBucketLevelAccess"] = uniform
    access["bucketPolicyOnly"] = uniform
    access.setdefault("publicAccessPrevention", "inherited")
    result["iamConfiguration"] = access
    result.setdefault("storageClass", "STANDARD")
    # Empty fields are not shown.
    if not (result.get("lifecycle") or {}).get("rule"):
        result.pop("lifecycle", None)
    for key in ("labels", "cors"):
        if not result.get(key):
            result.pop(key, None)
    return result
