"""Google's answer is more than its HTTP status: what each kind of refusal becomes, from the body on
the wire to the sentence and the exit code."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from lab.cloud.web import Request, Response
from ops import google
from ops.cloud_address import CloudAddress
from ops.errors import (
    ClashError,
    DeniedError,
    OpsError,
    TryLaterError,
    UnreachableError,
)
from ops.google import Cloud
from ops.refusals import answer, refusal
from tests.ops.conftest import Ops
from tests.ops.simulated import BUCKET, RENDEZVOUS, Simulated


def body(
    code: int, message: str, reason: str = "", info: str = "", **metadata: str
) -> dict[str, Any]:
    """An error as Compute Engine and Cloud Storage write it; `info` is the ErrorInfo's reason."""
    error: dict[str, Any] = {"code": code, "message": message}
    if reason:
        error["errors"] = [{"message": message, "domain": "global", "reason": reason}]
    if info:
        detail = {"reason": info, "domain": "googleapis.com", "metadata": metadata}
        error["details"] = [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", **detail}]
    return {"error": error}


RATE = (
    "Quota exceeded for quota metric 'Read requests' and limit 'Read requests per minute' of "
    "service 'compute.googleapis.com' for consumer 'project_number:123'."
)
OFF = (
    "Compute Engine API has not been used in project 123 before or it is disabled. Enable it by "
    "visiting https://console.developers.google.com/apis/api/compute.googleapis.com/overview?project="
    "123 then retry."
)
RIGHT = "Required 'compute.instances.list' permission for 'projects/p1'"
POLICY = (
    "Constraint constraints/compute.vmExternalIpAccess violated for project 123. Add instance "
    "projects/p1/zones/z/instances/i to the constraint to use external IP with it."
)
CUSTOM = 'Operation denied by custom org policies: ["customConstraints/custom.noReboot": "no"]'
LATER, DENIED, CLASH = TryLaterError, DeniedError, ClashError
KINDS: list[tuple[dict[str, Any], type[OpsError], str]] = [
    # Quotas.
    (body(403, RATE, "rateLimitExceeded"), LATER, "quota of requests is used up"),
    (body(403, RATE, "forbidden"), LATER, "quota of requests is used up"),
    (body(403, RATE), LATER, "quota of requests is used up"),
    (body(403, "no", info="RATE_LIMIT_EXCEEDED"), LATER, "quota of requests is used up"),
    (body(403, "no", "userRateLimitExceeded"), LATER, "quota of requests is used up"),
    (body(429, "no"), LATER, "quota of requests is used up"),
    (body(400, "no", "resourceOperationRateExceeded"), LATER, "quota of requests is used up"),
    (body(403, "Quota 'CPUS' exceeded. Limit: 24.0 in region r.", "quotaExceeded"), LATER, "free"),
    (body(403, "Quota 'CPUS' exceeded. Limit: 24.0 in region r."), LATER, "free some"),
    (body(403, "no", info="RESOURCE_QUOTA_EXCEEDED"), LATER, "free some"),
    # An API that is off, and billing.
    (body(403, OFF, "accessNotConfigured"), DENIED, "enable compute.googleapis.com --project=123"),
    (body(403, OFF), DENIED, "gcloud services enable compute.googleapis.com --project=123"),
    (
        body(
            403,
            "off",
            "forbidden",
            info="SERVICE_DISABLED",
            service="monitoring.googleapis.com",
            consumer="projects/7",
        ),
        DENIED,
        "gcloud services enable monitoring.googleapis.com --project=7",
    ),
    (body(403, "no", info="BILLING_DISABLED"), DENIED, "billing is off"),
    (body(403, "no", "accountDisabled"), DENIED, "billing is off"),
    # Rights.
    (body(403, RIGHT, "forbidden"), DENIED, "compute.instances.list is missing; it is in roles/c"),
    (
        body(
            403,
            "Permission denied (or it may not exist).",
            "forbidden",
            info="IAM_PERMISSION_DENIED",
            permission="compute.instances.start",
        ),
        DENIED,
        "compute.instances.start is missing; it is in the role pilotFleetOperator",
    ),
    (
        body(403, "x does not have storage.objects.get access to the object.", "forbidden"),
        DENIED,
        "storage.objects.get is missing; it is in roles/storage.objectViewer",
    ),
    (body(403, "no", info="USER_PROJECT_DENIED"), DENIED, "serviceusage.services.use is missing"),
    (body(403, "no", "forbidden"), DENIED, "you may not (no)"),
    (
        body(
            403,
            "Permission 'orgpolicy.policies.create' on constraints/compute.x: quota exceeded for "
            "quota q",
            info="IAM_PERMISSION_DENIED",
            permission="orgpolicy.policies.create",
        ),
        DENIED,
        "the right orgpolicy.policies.create is missing",
    ),
    (
        body(403, "Request had insufficient authentication scopes.", "insufficientPermissions"),
        DENIED,
        "lacks the scope cloud-platform: gcloud auth application-default login",
    ),
    (
        body(403, "prohibited. vpcServiceControlsUniqueIdentifier: abc", "forbidden"),
        DENIED,
        "VPC Service Controls",
    ),
    (body(401, "no", "authError"), DENIED, "you are not logged in"),
    # Organisation policies: Compute Engine gives them the reason of a clash.
    (
        body(412, POLICY, "conditionNotMet"),
        DENIED,
        "policy constraints/compute.vmExternalIpAccess",
    ),
    (body(403, POLICY, "forbidden"), DENIED, "policy constraints/compute.vmExternalIpAccess"),
    (body(412, CUSTOM, "conditionNotMet"), DENIED, "policy customConstraints/custom.noReboot "),
    (
        body(
            400,
            "denied",
            info="CUSTOM_ORG_POLICY_VIOLATION",
            customConstraints="customConstraints/custom.noReboot",
        ),
        DENIED,
        "policy customConstraints/custom.noReboot forbids it",
    ),
    (body(412, "'us' violates it", "orgPolicyConstraintFailed"), DENIED, "an organisation policy"),
    (
        body(412, "'us' violates 'constraints/gcp.resourceLocations'", "conditionNotMet"),
        DENIED,
        "the organisation policy constraints/gcp.resourceLocations forbids it",
    ),
    # Clashes, and refusals that only share their status.
    (body(412, "At least one of the pre-conditions", "conditionNotMet"), CLASH, "somebody else"),
    (body(412, "Invalid fingerprint."), CLASH, "somebody else"),
    (body(409, "is being changed", "conflict"), CLASH, "somebody else"),
    (body(412, "no", "retentionPolicyNotMet"), OpsError, "412 (no)"),
    # The rest.
    (body(400, "The resource is not ready", "resourceNotReady"), LATER, "busy"),
    (body(400, "no", "invalid"), OpsError, "400 (no)"),
    (body(503, "no", "backendError"), UnreachableError, "503 (no)"),
    (body(503, "no", "ZONE_RESOURCE_POOL_EXHAUSTED"), LATER, "no such machine free"),
    (
        {"error": {"code": 400, "status": "STOCKOUT", "message": "no"}},
        LATER,
        "no such machine free",
    ),
]


@pytest.mark.parametrize(("given", "kind", "words"), KINDS)
def test_kinds_of_refusals(given: dict[str, Any], kind: type[OpsError], words: str) -> None:
    found = refusal("it", answer(given["error"]["code"], given))
    assert type(found) is kind
    assert words in str(found)


@pytest.mark.parametrize(
    "given",
    [
        None,
        [],
        "text",
        {"error": "invalid_grant"},
        {"error": {"message": 7, "errors": "x", "details": [1, {"reason": {}}], "status": []}},
        {"error": {"errors": [None], "details": {"a": 1}}},
        {"error": {"details": [{"metadata": "x", "violations": 3}]}},
    ],
)
def test_a_body_of_any_shape(given: Any) -> None:
    found = refusal("it", answer(403, given, "\x1b[2Jsaid\nit " + "x" * 1000))
    assert isinstance(found, DeniedError)
    assert str(found).startswith("it: you may not ([2Jsaid it xxx")
    assert len(str(found)) < 400


Refuse = Callable[[str, dict[str, Any]], list[int]]


@pytest.fixture
def refuse(simulated: Simulated, monkeypatch: pytest.MonkeyPatch) -> Refuse:
    """Has the API refuse every request whose path has these words; how often it did, as a list."""
    monkeypatch.setattr(google, "RETRY", google.RETRY.with_timeout(0.1))

    def begin(words: str, given: dict[str, Any]) -> list[int]:
        asked: list[int] = []
        before = simulated.serving.lab.answer

        def answered(request: Request) -> Response:
            if words not in request.path:
                return before(request)
            asked.append(1)
            return Response(body=given, status=given["error"]["code"])

        simulated.serving.lab.answer = answered  # type: ignore[method-assign]
        return asked

    return begin


def test_refusals_as_the_clients_raise_them(
    simulated: Simulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same through each client: Compute Engine's, Cloud Storage's, and the plain one."""
    monkeypatch.setattr(google, "RETRY", google.RETRY.with_timeout(0.01))
    given: dict[str, Any] = {}

    def refuse(request: Request) -> Response:
        return Response(body=given, status=given["error"]["code"])

    simulated.serving.lab.answer = refuse  # type: ignore[method-assign]
    url = simulated.serving.url
    cloud = Cloud(CloudAddress(project="p1", compute=url, storage=url, monitoring=url))
    calls: list[Callable[[], Any]] = [
        cloud.instances,
        lambda: cloud.objects(BUCKET, "orders/"),
        lambda: cloud.write(BUCKET, "orders/x", b"x", generation=0),
        lambda: cloud.call("GET", f"{url}/v3/projects/p1/alertPolicies", "it"),
    ]
    for given, kind, words in KINDS:  # noqa: B007
        for call in calls:
            with pytest.raises(kind, match=re.escape(words)):
                call()


@pytest.mark.parametrize(
    ("given", "note"),
    [
        (body(403, RATE, "rateLimitExceeded"), "Google's quota of requests is used up"),
        (body(403, RIGHT.replace("list", "getGuestAttributes"), "forbidden"), "getGuestAttributes"),
        (body(412, POLICY, "conditionNotMet"), "constraints/compute.vmExternalIpAccess"),
        (body(400, "Bad", "invalid"), "400 (Bad)"),
        (body(409, "x", "conflict"), "somebody else"),
        (body(501, "x", "notImplemented"), "does not have it"),
        (body(500, "x", "backendError"), "500"),
    ],
)
def test_a_vm_that_cannot_be_read_costs_its_row(
    ops: Ops, refuse: Refuse, given: dict[str, Any], note: str
) -> None:
    refuse("/swarm-3/getGuestAttributes", given)
    found = ops("status", "--json")
    rows = {row["vm"]: row for row in found.json["rows"]}
    assert (found.code, rows["swarm-2"]["running"], rows["swarm-3"]["running"]) == (1, 200, None)
    assert note in rows["swarm-3"]["notes"][0]
    watched = ops("watch", "--once")
    assert (watched.code, watched.out.count("ALERT")) == (1, 1)
    assert "swarm-3/silent" in watched.out
    assert ops("top", "swarm-2").code == 0


def test_where_no_vm_can_be_read_the_table_stands(ops: Ops, refuse: Refuse) -> None:
    refuse(
        "getGuestAttributes", body(403, RIGHT.replace("list", "getGuestAttributes"), "forbidden")
    )
    found = ops("status", "--json")
    assert found.code == 1
    assert [row["phase"] for row in found.json["rows"]] == ["unknown"] * 4
    assert found.json["wanted"] == 380


def test_a_quota_is_asked_again_and_a_missing_right_is_not(
    ops: Ops, simulated: Simulated, refuse: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    rate = body(403, RATE, "rateLimitExceeded")
    monkeypatch.setattr(google, "RETRY", google.RETRY.with_timeout(10))
    served, asked = simulated.serving.lab.answer, 0

    def answered(request: Request) -> Response:
        nonlocal asked
        if "/aggregated/" in request.path and (asked := asked + 1) < 3:
            return Response(body=rate, status=403)
        return served(request)

    simulated.serving.lab.answer = answered  # type: ignore[method-assign]
    assert (ops("status").code, asked) == (0, 3)
    denied = refuse("/aggregated/", body(403, RIGHT, "forbidden"))
    found = ops("status")
    assert (found.code, len(denied)) == (3, 1)
    assert "compute.instances.list is missing" in found.err


def test_an_api_that_is_off_is_reported_with_the_command_to_enable_it(
    ops: Ops, refuse: Refuse
) -> None:
    refuse("/aggregated/", body(403, OFF, "accessNotConfigured"))
    found = ops("status")
    assert found.code == 3
    assert found.err.endswith("gcloud services enable compute.googleapis.com --project=123\n")
    assert found.err.count("\n") == 1


def test_an_answer_that_is_not_googles(ops: Ops, simulated: Simulated) -> None:
    """A proxy's page, with a 200."""

    def page(request: Request) -> Response:
        return Response(body=b"<html>log in</html>")

    simulated.serving.lab.answer = page  # type: ignore[method-assign]
    found = ops("status")
    assert (found.code, found.err.count("\n")) == (3, 1)
    assert "the answer is not Google's" in found.err
    url = simulated.serving.url
    cloud = Cloud(CloudAddress(project="p1", compute=url, storage=url, monitoring=url))
    with pytest.raises(UnreachableError, match="the answer is not Google's"):
        cloud.call("POST", f"{url}/v3/projects/p1/snoozes", "silence alerts", {})
    with pytest.raises(UnreachableError):
        cloud.objects(BUCKET, "orders/")


# An outage of a zone


def outage(simulated: Simulated, place: str, *, hide: bool = False) -> None:
    """As Google's aggregated lists are while a zone does not answer: an error as a whole, or the
    rest of it for who asked for that."""
    before = simulated.serving.lab.answer

    def answered(request: Request) -> Response:
        if "/aggregated/" not in request.path:
            return before(request)
        if request.query.get("returnPartialSuccess") != "true":
            return Response(body=body(503, "zone is down", "backendError"), status=503)
        given = before(request)
        if given.status != 200:
            return given
        assert isinstance(given.body, dict)
        found = json.loads(json.dumps(given.body))
        warning = {"code": "UNREACHABLE", "message": f"'{place}' is unreachable."}
        found.setdefault("items", {})[place] = {"warning": warning}
        found["unreachables"] = [f"https://www.googleapis.com/compute/v1/projects/p1/{place}"]
        return Response(body=found)

    simulated.serving.lab.answer = answered  # type: ignore[method-assign]


def test_an_outage_of_another_zone_is_reported_and_hides_nothing(
    ops: Ops, simulated: Simulated
) -> None:
    outage(simulated, "zones/us-east1-b")
    found = ops("status", "--json")
    assert (found.code, found.json["running"]) == (0, 380)
    assert found.json["unseen"] == [
        "zones/us-east1-b does not answer ('zones/us-east1-b' is unreachable.)"
    ]
    assert "VMs there are not shown" in ops("status").out
    audited = ops("audit")
    assert audited.code == 0
    assert "not looked at: VMs: zones/us-east1-b does not answer" in audited.out
    gone = ops("top", "swarm-9")
    assert "zones/us-east1-b does not answer" in gone.err
    with simulated.running():
        done = ops("restart", "--yes", "--limit", "60")
    assert (done.code, done.err.count("\n")) == (0, 1)
    assert done.err.startswith("note: zones/us-east1-b does not answer")


def test_an_outage_of_the_fleets_zone_is_not_a_fleet_that_is_gone(
    ops: Ops, simulated: Simulated
) -> None:
    outage(simulated, "zones/us-central1-a")
    found = ops("status")
    assert found.code == 3
    assert found.err.startswith("ops: zones/us-central1-a does not answer")
    assert RENDEZVOUS not in found.out
