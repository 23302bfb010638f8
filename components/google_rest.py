"""The few requests that the program itself sends to Google, with the provider's configuration.

REST, because the client libraries take seconds to import and ask Google about operations, whatever
the endpoint.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import pulumi

# tools/toolchain/environment.py sets it as the token of a plan without credentials.
PLACEHOLDER_TOKEN = "placeholder-for-a-plan-without-google"  # noqa: S105 - no secret
NO_CREDENTIALS = "there are no Google credentials"
# Seconds per request.
_TIMEOUT: Final = 15.0
# Google holds a request that waits for an operation for up to two minutes.
_WAIT_TIMEOUT: Final = 150.0
# Ten minutes in all: a start takes seconds, in a busy zone longer.
_WAITS: Final = 5
_SCOPES: Final = ("https://www.googleapis.com/auth/cloud-platform",)
# By API: the provider's key and its variable for another endpoint, and Google's endpoint.
_APIS: Final[Mapping[str, tuple[str, str, str]]] = {
    "compute": (
        "computeCustomEndpoint",
        "GOOGLE_COMPUTE_CUSTOM_ENDPOINT",
        "https://compute.googleapis.com/compute/v1/",
    ),
    "iam": (
        "iamCustomEndpoint",
        "GOOGLE_IAM_CUSTOM_ENDPOINT",
        "https://iam.googleapis.com/v1/",
    ),
    "storage": (
        "storageCustomEndpoint",
        "GOOGLE_STORAGE_CUSTOM_ENDPOINT",
        "https://storage.googleapis.com/storage/v1/",
    ),
}


class NotLookedUpError(Exception):
    """A look-up at Google failed. The text says why."""


class GoogleError(Exception):
    """A request failed. `status` is that of HTTP, None where nobody answered."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Google:
    """One of Google's APIs (`_APIS`). Raises GoogleError without credentials."""

    def __init__(self, api: str) -> None:
        key, variable, googles = _APIS[api]
        self._base = _setting(key) or os.environ.get(variable) or googles
        with warnings.catch_warnings():
            # The import warns when support for this Python ends; a person's own credentials warn
            # that they belong to no project.
            warnings.simplefilter("ignore")
            from google.auth import exceptions  # noqa: PLC0415 - a plan seldom needs it
            from google.auth.transport.requests import AuthorizedSession  # noqa: PLC0415

            try:
                self._session = AuthorizedSession(_impersonating(_credentials()))  # type: ignore[no-untyped-call]
            except (exceptions.GoogleAuthError, OSError, ValueError) as error:
                raise GoogleError(_line(error)) from None
        self._refused = exceptions.RefreshError
        self._failed = exceptions.GoogleAuthError

    def get(self, path: str) -> dict[str, Any]:
        """Return a resource (`projects/…`)."""
        return self._ask("GET", path, _TIMEOUT)

    def start(self, instance: str) -> None:
        """Start an instance of Compute Engine, and wait until it is started."""
        operation = self._ask("POST", f"{instance}/start", _TIMEOUT)
        zone = instance.rsplit("/instances/", 1)[0]
        for _ in range(_WAITS):
            if operation.get("status") == "DONE":
                break
            operation = self._ask(
                "POST", f"{zone}/operations/{operation['name']}/wait", _WAIT_TIMEOUT
            )
        errors = operation.get("error", {}).get("errors", [])
        if errors:
            raise GoogleError("; ".join(str(each.get("message")) for each in errors))
        if operation.get("status") != "DONE":
            raise GoogleError("its start has not ended in ten minutes")

    def _ask(self, method: str, path: str, timeout: float) -> dict[str, Any]:
        url = f"{self._base}{path}"
        try:
            answer = self._session.request(method, url, timeout=timeout)  # type: ignore[no-untyped-call]
            body = answer.json() if answer.content else {}
        except ValueError:
            # A proxy's page. (Caught first, because it is an OSError as well.)
            body = {}
        except self._refused as error:
            # A 401 for a token that cannot be renewed.
            raise GoogleError(f"the credentials are refused: {_line(error)}") from None
        except OSError as error:
            raise GoogleError(_no_answer(url, error)) from None
        except self._failed as error:
            raise GoogleError(_line(error)) from None
        if not answer.ok:
            message = body.get("error", {}).get("message") if isinstance(body, dict) else None
            raise GoogleError(message or f"HTTP {answer.status_code}", answer.status_code)
        return body if isinstance(body, dict) else {}


def no_credentials() -> bool:
    """Whether this is a plan without Google credentials (`PLACEHOLDER_TOKEN`)."""
    return os.environ.get("GOOGLE_OAUTH_ACCESS_TOKEN") == PLACEHOLDER_TOKEN and not (
        _setting("accessToken") or _setting("credentials")
    )


def _setting(key: str) -> str:
    return pulumi.Config("gcp").get(key) or ""


def _credentials() -> Any:
    """The provider's credentials, looked for in its order."""
    import google.auth  # noqa: PLC0415
    from google.oauth2.credentials import Credentials  # noqa: PLC0415

    if no_credentials():
        raise ValueError(NO_CREDENTIALS)
    token = _setting("accessToken") or os.environ.get("GOOGLE_OAUTH_ACCESS_TOKEN")
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
    """The credentials of the account that the provider impersonates; else `credentials`."""
    from google.auth import impersonated_credentials  # noqa: PLC0415

    target = _setting("impersonateServiceAccount") or os.environ.get(
        "GOOGLE_IMPERSONATE_SERVICE_ACCOUNT"
    )
    if not target:
        return credentials
    return impersonated_credentials.Credentials(  # type: ignore[no-untyped-call]
        source_credentials=credentials, target_principal=target, target_scopes=list(_SCOPES)
    )


def _no_answer(url: str, error: OSError) -> str:
    # The innermost of three nested exceptions: each repeats the one inside it.
    inner = error.args[0] if error.args else error
    reason = type(getattr(inner, "reason", inner)).__name__.removesuffix("Error")
    return f"{urlsplit(url).netloc} does not answer ({reason})"


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
