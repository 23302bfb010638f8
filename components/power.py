"""Changes that stop a VM: named in the plan, checked before, and made good where they fail.

Google changes some properties of a VM only while it is off. The provider then stops it, changes
it and starts it; where the change is refused in between, it leaves the VM off. These are hooks of
the engine's, so what they say holds for `make preview`, `make up`, a pull request and plain Pulumi.
"""

from __future__ import annotations

import asyncio
import json
import os
import warnings
from collections.abc import Mapping
from typing import Any, Final

import pulumi

from components.images import PLACEHOLDER_TOKEN

# Inputs of gcp.compute.Instance that are changed with the VM off, by the provider's source
# (`needToStopInstanceBeforeUpdating`), each with the parts of it that count; without parts all of
# it counts. docs/CONTRACT.md lists them.
STOPS: Final[Mapping[str, tuple[str, ...]]] = {
    "machineType": (),
    "serviceAccount": (),
    "shieldedInstanceConfig": (),
    "minCpuPlatform": (),
    "enableDisplay": (),
    "advancedMachineFeatures": (),
    "networkInterfaces": ("network", "subnetwork", "subnetworkProject"),
    "scheduling": ("nodeAffinities", "maxRunDuration"),
}
# Seconds for one request. Waiting for an operation is a request of Google's own two minutes.
_TIMEOUT: Final = 15.0
_WAIT: Final = 150.0
# Two minutes each, so ten in all: a start takes seconds, a busy zone longer.
_WAITS: Final = 5
_COMPUTE: Final = "https://compute.googleapis.com/compute/v1/"
_SCOPES: Final = ("https://www.googleapis.com/auth/cloud-platform",)
_OFF: Final = frozenset({"TERMINATED", "STOPPED"})
_ON: Final = frozenset({"PROVISIONING", "STAGING", "RUNNING", "REPAIRING"})


def stopping(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The inputs of an instance whose change stops it, of its old and its new inputs.

    A value that is not known yet counts as another one.
    """
    return [
        key for key, parts in STOPS.items() if _counts(old, key, parts) != _counts(new, key, parts)
    ]


def _counts(inputs: Mapping[str, Any], key: str, parts: tuple[str, ...]) -> Any:
    value = inputs.get(key)
    if not parts:
        return _plain(value)
    found = value if isinstance(value, list) else [value]
    return [
        [_plain(each.get(part)) for part in parts] for each in found if isinstance(each, Mapping)
    ]


def _plain(value: Any) -> Any:
    """A value so that two ways to say the same compare equal: links by their last part, lists in
    order, what is empty or false as absent."""
    if isinstance(value, Mapping):
        return {key: kept for key in sorted(value) if (kept := _plain(value[key])) is not None}
    if isinstance(value, list):
        return sorted(map(_plain, value), key=repr) or None
    if isinstance(value, str) and "/" in value and "://" not in value.removeprefix("https://"):
        return value.rsplit("/", 1)[-1]
    return value or None


def hooks(name: str) -> pulumi.ResourceHookBinding:
    """The hooks of the instance with that resource name."""
    before = pulumi.ResourceHook(
        f"{name}-stops", _before_update, pulumi.ResourceHookOptions(on_dry_run=True)
    )
    return pulumi.ResourceHookBinding(
        before_update=[before], on_error=[pulumi.ErrorHook(f"{name}-starts-again", _after_failure)]
    )


async def _before_update(update: pulumi.ResourceHookArgs) -> None:
    """Names a VM that this update stops. Raises where its machine type is not to be had there."""
    old, new = update.old_inputs or {}, update.new_inputs or {}
    keys = stopping(old, new)
    if not keys:
        return
    if "machineType" in keys and isinstance(new.get("machineType"), str):
        await asyncio.to_thread(_check_sold, update.id, new["machineType"])
    pulumi.log.warn(
        f"`pulumi up` stops {_name(update.id)} and starts it again, to change "
        f"{' and '.join(keys)}: its agents or its registry are away meanwhile, and no other VM is "
        "stopped before it is back"
    )


def _check_sold(instance: str, machine_type: str) -> None:
    """Raises where Google says that the zone has no such machine type."""
    zone = instance.rsplit("/instances/", 1)[0]
    try:
        answer = _Compute().get(f"{zone}/machineTypes/{machine_type}")
    except _ComputeError as error:
        if error.status == 404:
            raise ValueError(
                f"{zone.rsplit('/', 1)[-1]} has no machine type {machine_type}, so "
                f"{_name(instance)} is not stopped for it: `gcloud compute machine-types list "
                f"--zones={zone.rsplit('/', 1)[-1]}` lists those that it has"
            ) from None
        pulumi.log.warn(
            f"it could not be looked up whether {machine_type} is sold in "
            f"{zone.rsplit('/', 1)[-1]}: {error}"
        )
    else:
        if state := answer.get("deprecated", {}).get("state"):
            pulumi.log.warn(f"Google calls the machine type {machine_type} {state.lower()}")


async def _after_failure(failure: pulumi.ErrorHookArgs) -> bool:
    """Starts a VM again that a failed update has left off; never asks for another try."""
    if failure.failed_operation == "update":
        await asyncio.to_thread(_start_again, failure.id)
    return False


def _start_again(instance: str) -> None:
    name = _name(instance)
    try:
        compute = _Compute()
        status = compute.get(instance).get("status")
        if status in _ON:
            return
        if status not in _OFF:
            raise _ComputeError(f"it is {status}")
        compute.start(instance)
    except _ComputeError as error:
        pulumi.log.error(
            f"{name} may be off, because its change failed, and it could not be started again: "
            f"{error}. The next `pulumi up` starts it; so does `gcloud compute instances start "
            f"{name}`. What is left to do for other VMs `pulumi up --continue-on-error` does"
        )
    else:
        pulumi.log.warn(f"{name} was stopped for a change that failed: it is started again")


def _name(instance: str) -> str:
    return instance.rsplit("/", 1)[-1]


class _ComputeError(Exception):
    """Google did not do what was asked; `status` is that of HTTP, None where nobody answered."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class _Compute:
    """Compute Engine as the provider is configured for it, for the few requests that are made here.

    By REST: the client library takes seconds to import, and asks Google about operations wherever
    the endpoint is.
    """

    def __init__(self) -> None:
        with warnings.catch_warnings():
            # On import it announces when it will drop this Python.
            warnings.simplefilter("ignore", FutureWarning)
            from google.auth import exceptions  # noqa: PLC0415 - a plan seldom needs it
            from google.auth.transport.requests import AuthorizedSession  # noqa: PLC0415
        self._base = (
            _setting("computeCustomEndpoint")
            or os.environ.get("GOOGLE_COMPUTE_CUSTOM_ENDPOINT")
            or _COMPUTE
        )
        try:
            self._session = AuthorizedSession(_impersonating(_credentials()))  # type: ignore[no-untyped-call]
        except (exceptions.GoogleAuthError, OSError, ValueError) as error:
            raise _ComputeError(_line(error)) from None
        self._failures = (exceptions.GoogleAuthError, OSError)

    def get(self, path: str) -> dict[str, Any]:
        """A resource (`projects/…`)."""
        return self._ask("GET", path, _TIMEOUT)

    def start(self, instance: str) -> None:
        """Power an instance on, and wait until it is."""
        operation = self._ask("POST", f"{instance}/start", _TIMEOUT)
        zone = instance.rsplit("/instances/", 1)[0]
        for _ in range(_WAITS):
            if operation.get("status") == "DONE":
                break
            operation = self._ask("POST", f"{zone}/operations/{operation['name']}/wait", _WAIT)
        errors = operation.get("error", {}).get("errors", [])
        if errors:
            raise _ComputeError("; ".join(str(each.get("message")) for each in errors))
        if operation.get("status") != "DONE":
            raise _ComputeError("its start has not ended in ten minutes")

    def _ask(self, method: str, path: str, timeout: float) -> dict[str, Any]:
        try:
            url = f"{self._base}{path}"
            answer = self._session.request(method, url, timeout=timeout)  # type: ignore[no-untyped-call]
            body = answer.json() if answer.content else {}
        except ValueError:
            # A proxy's page. (An OSError as well, so it is looked at first.)
            body = {}
        except self._failures as error:
            raise _ComputeError(_line(error)) from None
        if not answer.ok:
            told = body.get("error", {}).get("message") if isinstance(body, dict) else None
            raise _ComputeError(told or f"HTTP {answer.status_code}", answer.status_code)
        return body if isinstance(body, dict) else {}


def _setting(key: str) -> str:
    return pulumi.Config("gcp").get(key) or ""


def _credentials() -> Any:
    """What the provider uses as well, in its order."""
    import google.auth  # noqa: PLC0415
    from google.oauth2.credentials import Credentials  # noqa: PLC0415

    token = _setting("accessToken") or os.environ.get("GOOGLE_OAUTH_ACCESS_TOKEN")
    if token == PLACEHOLDER_TOKEN:
        raise ValueError("there are no Google credentials")
    if token:
        return Credentials(token)  # type: ignore[no-untyped-call]
    given = _setting("credentials") or next(
        (
            os.environ[name]
            for name in ("GOOGLE_CREDENTIALS", "GOOGLE_CLOUD_KEYFILE_JSON", "GCLOUD_KEYFILE_JSON")
            if os.environ.get(name)
        ),
        "",
    )
    if given.lstrip().startswith("{"):
        found = google.auth.load_credentials_from_dict(json.loads(given), scopes=_SCOPES)  # type: ignore[no-untyped-call]
    elif given:
        found = google.auth.load_credentials_from_file(given, scopes=_SCOPES)  # type: ignore[no-untyped-call]
    else:
        found = google.auth.default(scopes=_SCOPES)
    return found[0]


def _impersonating(credentials: Any) -> Any:
    """`credentials`, or those of the account that the provider is told to act as with them."""
    from google.auth import impersonated_credentials  # noqa: PLC0415

    target = _setting("impersonateServiceAccount") or os.environ.get(
        "GOOGLE_IMPERSONATE_SERVICE_ACCOUNT"
    )
    if not target:
        return credentials
    return impersonated_credentials.Credentials(  # type: ignore[no-untyped-call]
        source_credentials=credentials, target_principal=target, target_scopes=list(_SCOPES)
    )


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
