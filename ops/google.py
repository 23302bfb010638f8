"""Google's APIs, as far as an operator needs them. Every refusal becomes a sentence.

Nothing is decided here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final
from urllib.parse import quote, urlsplit

import requests

from ops.cloud_address import CloudAddress
from ops.errors import (
    ClashError,
    DeniedError,
    MissingError,
    OpsError,
    UnreachableError,
    UsageError,
)
from ops.refusals import LOGIN, Refusal, answer, one_line, refusal

with warnings.catch_warnings():
    # On import it warns that it will drop this Python, which is Debian 12's.
    warnings.simplefilter("ignore", FutureWarning)
    import google.auth
    from google.api_core import exceptions, retry
    from google.auth import exceptions as auth_exceptions
    from google.auth.transport.requests import AuthorizedSession
    from google.cloud import compute_v1, storage  # type: ignore[attr-defined]
    from google.oauth2.credentials import Credentials
    from google.protobuf import json_format

TIMEOUT: Final = 30.0  # seconds for one request; a list of hundreds of VMs takes a few
_PASSING: Final = (
    exceptions.TooManyRequests,
    exceptions.InternalServerError,
    exceptions.BadGateway,
    exceptions.ServiceUnavailable,
    exceptions.GatewayTimeout,
    requests.ConnectionError,
    auth_exceptions.TransportError,
)
_SCOPES: Final = ("https://www.googleapis.com/auth/cloud-platform",)
_NOT_GOOGLE: Final = "the answer is not Google's (a proxy's page?)"
# In an aggregated list a scope that is merely empty has a warning too.
_NO_WARNINGS: Final = ("", "NO_RESULTS_ON_PAGE")
_PAGE: Final = 500  # Compute Engine's own limit of a page


@contextmanager
def asked(what: str) -> Iterator[None]:
    """Turn exceptions of Google's clients into an OpsError about `what`."""
    try:
        yield
    except OpsError:
        raise
    except (
        exceptions.GoogleAPICallError,
        exceptions.RetryError,
        auth_exceptions.GoogleAuthError,
        requests.RequestException,
        json_format.ParseError,
        OSError,
    ) as error:
        raise _failure(what, error) from error


def _failure(what: str, error: Exception) -> OpsError:
    if isinstance(error, exceptions.RetryError) and error.cause is not None:
        return _failure(what, error.cause)
    if isinstance(error, exceptions.GoogleAPICallError):
        return refusal(what, _answer(error))
    if isinstance(error, auth_exceptions.TransportError):
        # No network or no DNS: the login was not even checked.
        cause = next(iter(error.args), None)
        return UnreachableError(
            f"{what}: {_nobody(cause if isinstance(cause, Exception) else error)}"
        )
    if isinstance(error, auth_exceptions.GoogleAuthError):
        return DeniedError(f"{what}: you are not logged in ({one_line(str(error))[:300]}): {LOGIN}")
    if isinstance(error, json_format.ParseError):
        return UnreachableError(f"{what}: {_NOT_GOOGLE}")
    return UnreachableError(f"{what}: {_nobody(error)}")


def _answer(error: exceptions.GoogleAPICallError) -> Refusal:
    """Google's answer, from its body: for a download the client keeps only the body's text."""
    try:
        body = error.response.json()
    except (AttributeError, ValueError):
        body = {"error": {"errors": error.errors, "details": error.details}}
    return answer(int(error.code or 0), body, str(error.message))


def _passes(error: BaseException) -> bool:
    """Whether the same request may succeed in a moment."""
    if isinstance(error, exceptions.Forbidden):
        return _answer(error).is_rate
    return isinstance(error, _PASSING)


RETRY: Final = retry.Retry(predicate=_passes, initial=0.5, maximum=2.0, timeout=10.0)
"""Retries of reads. The clients' own retry is silent for ten minutes."""


def _nobody(error: Exception) -> str:
    request = getattr(error, "request", None)
    host = urlsplit(str(getattr(request, "url", ""))).netloc
    if host and isinstance(error, requests.ConnectionError | requests.Timeout):
        return f"nobody answers at {host}"
    return f"nobody answers ({one_line(str(error))[:300]})"


@dataclass(frozen=True, kw_only=True)
class BucketObject:
    """An object in a bucket. Generation 0: it is not there, and `data` is empty."""

    data: bytes
    generation: int


@dataclass(frozen=True, kw_only=True)
class Listed:
    """The result of a list over all zones and regions."""

    items: tuple[tuple[str, Any], ...]
    """(scope, item); a scope is `zones/ZONE`, `regions/REGION` or `global`."""
    unseen: tuple[str, ...] = ()
    """A sentence per scope that did not answer."""


class Cloud:
    """Google's clients. `place` names the project, or the credentials know it."""

    def __init__(self, place: CloudAddress) -> None:
        place.check()
        self._given = place

    @cached_property
    def _who(self) -> tuple[Any, str]:
        if self._given.is_here:
            # Such an API takes any token, but needs one.
            token = "anything"  # noqa: S105
            return Credentials(token=token), self._given.project  # type: ignore[no-untyped-call]
        with asked("credentials"):
            found, project = google.auth.default(scopes=_SCOPES)
        project = self._given.project or project or ""
        if not project:
            raise UsageError("which project? Give --project (or set PILOT_PROJECT)")
        return found, project

    @property
    def place(self) -> CloudAddress:
        """The address, with its project filled in."""
        return replace(self._given, project=self._who[1])

    def _client(self, kind: Any) -> Any:
        return kind(credentials=self._who[0], client_options={"api_endpoint": self._given.compute})

    @cached_property
    def _instances(self) -> Any:
        return self._client(compute_v1.InstancesClient)

    @cached_property
    def _operations(self) -> Any:
        return self._client(compute_v1.ZoneOperationsClient)

    @cached_property
    def _storage(self) -> Any:
        return storage.Client(
            project=self.place.project,
            credentials=self._who[0],
            client_options={"api_endpoint": self._given.storage},
        )

    @cached_property
    def _session(self) -> Any:
        return AuthorizedSession(self._who[0])  # type: ignore[no-untyped-call]

    # Reading

    def instances(self) -> Listed:
        """Every instance of the project (`compute_v1.Instance`), in all zones that answer."""
        return self._everywhere(
            f"the VMs of project {self.place.project}",
            self._instances,
            compute_v1.AggregatedListInstancesRequest,
            "instances",
        )

    def _everywhere(self, what: str, client: Any, request: Any, kind: str) -> Listed:
        """`kind` of all zones and regions. Those that do not answer are in `unseen`."""
        asking = request(project=self.place.project, max_results=_PAGE, return_partial_success=True)
        items: list[tuple[str, Any]] = []
        unseen: dict[str, str] = {}
        with asked(what):
            listed = client.aggregated_list(request=asking, retry=RETRY, timeout=TIMEOUT)
            for page in listed.pages:
                for scope, scoped in page.items.items():
                    items += ((scope, each) for each in getattr(scoped, kind))
                    if scoped.warning.code not in _NO_WARNINGS:
                        unseen[scope] = scoped.warning.message or scoped.warning.code
                for each in getattr(page, "unreachables", ()):
                    # A URL, or the scope's name.
                    scope = "/".join(each.rsplit("/", 2)[-2:])
                    unseen.setdefault(scope, page.warning.message or "UNREACHABLE")
        said = (f"{scope} does not answer ({one_line(why)})" for scope, why in unseen.items())
        return Listed(items=tuple(items), unseen=tuple(said))

    def guest_attribute(self, zone: str, vm: str, path: str) -> str | None:
        """A guest attribute (NAMESPACE/KEY) of a VM; None where the VM never set it."""
        request = compute_v1.GetGuestAttributesInstanceRequest(
            project=self.place.project, zone=zone, instance=vm, query_path=path
        )
        try:
            with asked(f"{vm}'s guest attribute {path}"):
                found = self._instances.get_guest_attributes(
                    request=request, retry=RETRY, timeout=TIMEOUT
                )
        except MissingError:
            return None
        items = list(found.query_value.items)
        return str(items[0].value) if items else None

    def serial(self, zone: str, vm: str, start: int) -> tuple[str, int]:
        """The output of a VM's serial console from byte `start` on (negative: from the end), and
        where it ends."""
        request = compute_v1.GetSerialPortOutputInstanceRequest(
            project=self.place.project, zone=zone, instance=vm, port=1, start=start
        )
        with asked(f"the serial console of {vm}"):
            found = self._instances.get_serial_port_output(
                request=request, retry=RETRY, timeout=TIMEOUT
            )
        return str(found.contents), int(found.next_)

    def project_metadata(self) -> Mapping[str, str]:
        """The metadata that all VMs of the project see."""
        with asked(f"the metadata of project {self.place.project}"):
            client = self._client(compute_v1.ProjectsClient)
            found = client.get(project=self.place.project, retry=RETRY, timeout=TIMEOUT)
        return pairs(found.common_instance_metadata)

    def zone_metadata(self, zone: str) -> Mapping[str, str]:
        """The metadata that all VMs of a zone see (InstanceSettings)."""
        with asked(f"the instance settings of zone {zone}"):
            client = self._client(compute_v1.InstanceSettingsServiceClient)
            found = client.get(project=self.place.project, zone=zone, retry=RETRY, timeout=TIMEOUT)
        return dict(found.metadata.items)

    def templates(self) -> Listed:
        """The instance templates, regional ones too.

        UnsupportedError where the API has no list over all regions.
        """
        return self._everywhere(
            "the instance templates",
            self._client(compute_v1.InstanceTemplatesClient),
            compute_v1.AggregatedListInstanceTemplatesRequest,
            "instance_templates",
        )

    def global_templates(self) -> Listed:
        """The instance templates outside any region."""
        client = self._client(compute_v1.InstanceTemplatesClient)
        with asked("the instance templates"):
            listed = client.list(project=self.place.project, retry=RETRY, timeout=TIMEOUT)
            return Listed(items=tuple(("global", each) for each in listed))

    def machine_images(self) -> Listed:
        """The machine images: each has the metadata of the VM that it was taken of."""
        with asked("the machine images"):
            client = self._client(compute_v1.MachineImagesClient)
            listed = client.list(project=self.place.project, retry=RETRY, timeout=TIMEOUT)
            return Listed(items=tuple(("global", each) for each in listed))

    def instance_groups(self) -> Listed:
        """The managed instance groups: one can give metadata to all of its VMs."""
        return self._everywhere(
            "the managed instance groups",
            self._client(compute_v1.InstanceGroupManagersClient),
            compute_v1.AggregatedListInstanceGroupManagersRequest,
            "instance_group_managers",
        )

    # Changing

    def stop(self, zone: str, vm: str) -> None:
        """Shut a VM down as its power button would; return when it is off."""
        self._do("stop", zone, vm, self._instances.stop_unary)

    def start(self, zone: str, vm: str) -> None:
        """Power a VM on; return when it is on."""
        self._do("start", zone, vm, self._instances.start_unary)

    def _do(self, verb: str, zone: str, vm: str, call: Callable[..., Any]) -> None:
        where = {"project": self.place.project, "zone": zone}
        what = f"{verb} {vm}"
        with asked(what):
            # `.result()` of the plain method polls Google, whatever the endpoint is.
            operation = call(**where, instance=vm, retry=None, timeout=TIMEOUT)
            while operation.status != compute_v1.Operation.Status.DONE:
                # A wait returns after two minutes at the latest, done or not.
                operation = self._operations.wait(
                    **where, operation=operation.name, retry=RETRY, timeout=TIMEOUT + 120
                )
        if operation.error.errors:
            first = operation.error.errors[0]
            status = int(operation.http_error_status_code or 0)
            said = f"{first.code}: {first.message}"
            raise refusal(what, answer(status, {"error": {"status": first.code, "message": said}}))

    # Objects

    def objects(self, bucket: str, prefix: str) -> Mapping[str, int]:
        """Name -> generation of a bucket's objects that start with `prefix`."""
        with asked(f"the objects {prefix}* in bucket {bucket}"):
            listed = self._storage.list_blobs(
                bucket,
                prefix=prefix,
                retry=RETRY,
                timeout=TIMEOUT,
                fields="items(name,generation),nextPageToken",
            )
            return {each.name: int(each.generation) for each in listed}

    def read(self, bucket: str, name: str) -> BucketObject:
        """An object and its generation."""
        blob = self._storage.bucket(bucket).blob(name)
        # Somebody may write between the two requests: then the second finds another generation.
        for _ in range(5):
            try:
                with asked(f"the object {name} in bucket {bucket}"):
                    blob.reload(retry=RETRY, timeout=TIMEOUT)
                    generation = int(blob.generation)
                    data = blob.download_as_bytes(
                        retry=RETRY, timeout=TIMEOUT, if_generation_match=generation
                    )
            except MissingError as error:
                if "bucket does not exist" in str(error):
                    raise
                return BucketObject(data=b"", generation=0)
            except ClashError:
                continue
            return BucketObject(data=data, generation=generation)
        raise ClashError(f"the object {name} in bucket {bucket} keeps changing; try again")

    def write(self, bucket: str, name: str, data: bytes, *, generation: int) -> int:
        """Write an object if it still has `generation` (0: is not there); its new generation.

        ClashError if it has another one.
        """
        blob = self._storage.bucket(bucket).blob(name)
        with asked(f"the object {name} in bucket {bucket}"):
            blob.upload_from_string(
                data,
                content_type="application/json",
                if_generation_match=generation,
                timeout=TIMEOUT,
                # A blind repeat of a write that succeeded would look like a clash.
                retry=None,
            )
        return int(blob.generation)

    # APIs without a client among the requirements

    def call(
        self, method: str, url: str, what: str, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """The answer of a JSON API."""
        with asked(what):
            got = self._session.request(method, url, json=body, timeout=TIMEOUT)
        try:
            found = got.json() if got.content else {}
        except ValueError:
            found = None
        if got.status_code >= 300:
            raise refusal(what, answer(got.status_code, found, got.text))
        if not isinstance(found, dict):
            raise UnreachableError(f"{what}: {_NOT_GOOGLE}")
        return found

    def forward(self, zone: str, vm: str, port: int) -> int:
        """The local port that leads to a port of a VM of a cloud on this machine. MissingError
        where nothing listens on it."""
        path = f"/lab/projects/{self.place.project}/zones/{zone}/instances/{quote(vm)}/forward"
        url = f"{self.place.compute}{path}"
        return int(self.call("POST", url, f"port {port} of {vm}", {"port": port})["port"])


def pairs(metadata: Any) -> dict[str, str]:
    """`compute_v1.Metadata` as a dictionary."""
    return {each.key: each.value for each in metadata.items}
