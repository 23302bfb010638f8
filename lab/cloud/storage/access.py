"""What a service account may do with a bucket, by the bucket's IAM policy.

An operator's token may do everything: who operators are is decided at Google, not here. Roles that
are granted on a project do not count, and of conditions only prefixes of object names.
"""

import re
from typing import Final

from lab.cloud import Json
from lab.cloud.errors import ApiError

_READ: Final = frozenset({"storage.objects.get", "storage.objects.list"})
_WRITE: Final = frozenset(
    {"storage.objects.create", "storage.objects.delete", "storage.objects.update"}
)
_BUCKET: Final = frozenset(
    {
        "storage.buckets.get",
        "storage.buckets.update",
        "storage.buckets.delete",
        "storage.buckets.getIamPolicy",
        "storage.buckets.setIamPolicy",
    }
)
# Roles as Google defines them, with the permissions that this lab asks for.
_ROLES: Final = {
    "roles/storage.objectViewer": _READ,
    "roles/storage.objectCreator": frozenset({"storage.objects.create"}),
    "roles/storage.objectUser": _READ | _WRITE,
    "roles/storage.objectAdmin": _READ | _WRITE,
    "roles/storage.admin": _READ | _WRITE | _BUCKET,
    "roles/storage.legacyObjectReader": frozenset({"storage.objects.get"}),
    "roles/storage.legacyBucketReader": frozenset({"storage.buckets.get", "storage.objects.list"}),
    "roles/storage.legacyBucketWriter": frozenset(
        {
            "storage.buckets.get",
            "storage.objects.list",
            "storage.objects.create",
            "storage.objects.delete",
        }
    ),
}
# One of a condition's alternatives (`||`).
_STARTS: Final = re.compile(r'resource\.name\.startsWith\("([^"\\]*)"\)')


def is_granted(policy: Json, bucket: str, email: str, permission: str, name: str = "") -> bool:
    """Tell whether a bucket's policy grants a permission on it, or on its object `name`."""
    members = {f"serviceAccount:{email}", "allAuthenticatedUsers", "allUsers"}
    resource = f"projects/_/buckets/{bucket}" + (f"/objects/{name}" if name else "")
    return any(
        permission in _ROLES.get(binding.get("role", ""), ())
        and members & set(binding.get("members") or [])
        and _holds(binding.get("condition"), resource)
        for binding in policy.get("bindings") or []
    )


def require(policy: Json, bucket: str, email: str, permission: str, name: str = "") -> None:
    """Refuse (403, in Google's words) what the policy does not grant; no email: an operator."""
    if email and not is_granted(policy, bucket, email, permission, name):
        raise denied(email, permission, f"Storage {'object' if name else 'bucket'}")


def denied(email: str, permission: str, what: str) -> ApiError:
    """Return the 403 for an account without a permission on `what`, such as a project."""
    message = (
        f"{email} does not have {permission} access to the Google Cloud {what}."
        f" Permission '{permission}' denied on resource (or it may not exist)."
    )
    return ApiError(403, "forbidden", message)


def _holds(condition: Json | None, resource: str) -> bool:
    if not condition:
        return True
    parts = [each.strip() for each in str(condition.get("expression", "")).split("||")]
    starts = [_STARTS.fullmatch(each) for each in parts]
    # What cannot be judged here grants nothing.
    return all(starts) and any(each and resource.startswith(each[1]) for each in starts)
