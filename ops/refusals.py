"""Turns Google's refusals into errors with a sentence. Pure.

The HTTP status alone does not tell: a 403 is a missing right, a used-up quota or an API that is
off, a 412 is somebody else's write or an organisation policy. So the fields for machines decide
(`errors[].reason`, `details[]`, `status`), and the message where they are empty.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ops.errors import (
    ClashError,
    DeniedError,
    MissingError,
    OpsError,
    TryLaterError,
    UnreachableError,
    UnsupportedError,
)

LOGIN: Final = "gcloud auth application-default login"

# Reasons as `_word` makes them: Compute Engine writes one of them in three ways.
_RATE: Final = {
    "ratelimitexceeded",
    "userratelimitexceeded",
    "concurrentlimitexceeded",
    "resourceoperationrateexceeded",
    "operationratelimitexceeded",
}
_QUOTA: Final = {
    "quotaexceeded",
    "resourcequotaexceeded",
    "dailylimitexceeded",
    "dailylimitexceededunreg",
    "limitexceeded",
    "quotafailure",
}
_OFF: Final = {"servicedisabled", "accessnotconfigured"}
_UNPAID: Final = {"billingdisabled", "billingnotenabled", "accountdisabled", "accountclosed"}
_POLICY: Final = {"orgpolicyconstraintfailed", "orgpolicyviolation", "customorgpolicyviolation"}
_PERIMETER: Final = {"securitypolicyviolated", "vpcservicecontrols"}
_SCOPE: Final = {"accesstokenscopeinsufficient"}
_NOT_READY: Final = {"resourcenotready"}
# Kinds of `details` that are no reason.
_SHAPES: Final = {
    "errorinfo",
    "help",
    "localizedmessage",
    "requestinfo",
    "debuginfo",
    "badrequest",
    "preconditionfailure",
    "resourceinfo",
    "retryinfo",
    "none",
}
_PRECONDITION: Final = {"conditionnotmet", "failedprecondition"}
# With no reason but these, the message of a 403 decides.
_VAGUE: Final = {"forbidden", "permissiondenied"}
_NO_ROOM: Final = re.compile(r"poolexhausted|stockout|insufficientcapacity")

_CONSTRAINT: Final = re.compile(r"\b(?:constraints|customConstraints)/[A-Za-z0-9_.]*[A-Za-z0-9_]")
_SAYS_RATE: Final = re.compile(r"rate limit exceeded|quota exceeded for quota", re.IGNORECASE)
_SAYS_QUOTA: Final = re.compile(r"\bquota\b.*\bexceeded\b", re.IGNORECASE)
_SAYS_OFF: Final = re.compile(r"has not been used in project|access not configured", re.IGNORECASE)
_SAYS_PERIMETER: Final = re.compile(r"vpcServiceControlsUniqueIdentifier")
_SAYS_SCOPE: Final = re.compile(r"insufficient authentication scopes", re.IGNORECASE)
_SERVICE: Final = re.compile(r"\b([a-z]+\.googleapis\.com)\b")
_PROJECT: Final = re.compile(r"\bproject ([-a-z0-9:.]*[a-z0-9])\b")
_RIGHT: Final = re.compile(
    r"(?<![/.\w])((?:compute|storage|monitoring|iam|resourcemanager|serviceusage|secretmanager|iap|orgpolicy)"
    r"\.(?!googleapis\.)[A-Za-z.]+[A-Za-z])\b"
)
# Clients put the request before Google's message.
_REQUEST: Final = re.compile(r"^(?:GET|POST|PUT|PATCH|DELETE) \S+: ")
_ROLES: Final = (
    (re.compile(r"compute\..*\.(start|stop|reset)$"), "the role pilotFleetOperator (order)"),
    (re.compile(r"compute\."), "roles/compute.viewer (look)"),
    (re.compile(r"storage\.objects\.(get|list)$"), "roles/storage.objectViewer (look)"),
    (re.compile(r"storage\.objects\."), "roles/storage.objectUser on orders/ (order)"),
    (re.compile(r"monitoring\.snoozes\."), "roles/monitoring.snoozeEditor (order)"),
    (re.compile(r"monitoring\."), "roles/monitoring.viewer (look)"),
    (re.compile(r"serviceusage\.services\.use$"), "roles/serviceusage.serviceUsageConsumer"),
)
"""Right -> the role of docs/ACCESS.md that has it; the first match counts."""


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A refusal of Google's. All but the code may be empty."""

    code: int
    """The HTTP status."""
    message: str
    """For people."""
    reasons: frozenset[str] = frozenset()
    """For machines; in lower case, without `_`."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """The metadata of ErrorInfo: `permission`, `service`, `consumer`."""

    @property
    def _is_vague(self) -> bool:
        return self.code == 403 and self.reasons <= _VAGUE

    @property
    def is_rate(self) -> bool:
        """Too many requests in a short time; a minute's wait helps."""
        if self.code == 429 or self.reasons & _RATE:
            return True
        return self._is_vague and bool(_SAYS_RATE.search(self.message))

    @property
    def is_quota(self) -> bool:
        """A quota is used up; a minute's wait does not help."""
        if self.reasons & _QUOTA:
            return True
        return self._is_vague and bool(_SAYS_QUOTA.search(self.message))

    @property
    def is_off(self) -> bool:
        """The API is off in the project."""
        if self.reasons & _OFF:
            return True
        return self._is_vague and bool(_SAYS_OFF.search(self.message))

    @property
    def is_perimeter(self) -> bool:
        """VPC Service Controls block the request."""
        return bool(self.reasons & _PERIMETER or _SAYS_PERIMETER.search(self.message))

    @property
    def lacks_scope(self) -> bool:
        """The login is not for this API."""
        return bool(self.reasons & _SCOPE or _SAYS_SCOPE.search(self.message))

    @property
    def is_full(self) -> bool:
        """The zone has no such machine free."""
        return any(map(_NO_ROOM.search, self.reasons))

    @property
    def constraint(self) -> str | None:
        """The organisation policy that forbids it; "" where Google does not name it, None where
        none does."""
        texts = (*self.facts.values(), self.message)
        named = next(filter(None, map(_CONSTRAINT.search, texts)), None)
        if self.reasons & _POLICY:
            return named[0] if named else ""
        # A refusal to read a policy names it too, and a missing right.
        is_about = self.code in (400, 403, 409, 412) and not self.right
        return named[0] if named and is_about else None

    @property
    def right(self) -> str:
        """The missing right, as Google names it; "" where it does not."""
        if "userprojectdenied" in self.reasons:
            return "serviceusage.services.use"
        found = _RIGHT.search(self.message)
        return self.facts.get("permission", "") or (found[1] if found else "")

    @property
    def service(self) -> str:
        """The API (`compute.googleapis.com`), or ""."""
        found = _SERVICE.search(self.message)
        return self.facts.get("service", "") or (found[1] if found else "")

    @property
    def project(self) -> str:
        """The project of the API, a number or a name, or ""."""
        found = _PROJECT.search(self.message)
        consumer = self.facts.get("consumer", "").removeprefix("projects/")
        return consumer or (found[1] if found else "")


def answer(code: int, body: Any, message: str = "") -> Refusal:
    """The refusal in an answer's body, of any shape. `message` stands in for the body's."""
    error = body.get("error") if isinstance(body, Mapping) else None
    error = error if isinstance(error, Mapping) else {}
    words = {_word(error.get("status"))}
    facts: dict[str, str] = {}
    for each in _documents(error.get("errors")):
        words.add(_word(each.get("reason")))
    for each in _documents(error.get("details")):
        words |= {_word(each.get("reason")), _word(str(each.get("@type")).rpartition(".")[2])}
        words |= {_word(violation.get("type")) for violation in _documents(each.get("violations"))}
        more = each.get("metadata")
        if isinstance(more, Mapping):
            facts |= {str(key): one_line(str(value)) for key, value in more.items()}
    said = error.get("message")
    return Refusal(
        code=code,
        message=_line(_REQUEST.sub("", said if isinstance(said, str) and said else message)),
        reasons=frozenset(words - {"", *_SHAPES}),
        facts=facts,
    )


def refusal(what: str, found: Refusal) -> OpsError:
    """The error to raise for this refusal of `what`."""
    if text := _forbidden(found):
        kind: type[OpsError] = DeniedError
    elif text := _not_now(found):
        kind = TryLaterError
    else:
        kind, text = _by_code(found)
    return kind(f"{what}: {text}")


def _forbidden(found: Refusal) -> str:
    """The sentence where somebody has to change something at Google first; "" elsewhere."""
    said = f"({found.message})"
    text = ""
    if (constraint := found.constraint) is not None:
        which = f"the organisation policy {constraint}" if constraint else "an organisation policy"
        text = f"{which} forbids it {said}; docs/ACCESS.md lists the policies that matter here"
    elif found.is_off:
        service, project = found.service, found.project or "PROJECT"
        text = (
            f"the API {service or said} is off in project {project}. Switch it on, and wait a few "
            f"minutes: gcloud services enable {service or 'SERVICE'} --project={project}"
        )
    elif found.reasons & _UNPAID:
        text = f"the project's billing is off {said}: link a billing account"
    elif found.is_perimeter:
        text = (
            f"VPC Service Controls do not let it through {said}: ask from inside the perimeter, "
            "or get an access level"
        )
    elif found.lacks_scope:
        text = f"your login lacks the scope cloud-platform: {LOGIN}"
    elif found.code == 401:
        text = f"you are not logged in {said}: {LOGIN}"
    return text


def _not_now(found: Refusal) -> str:
    """The sentence where a later try may succeed; "" elsewhere."""
    said = f"({found.message})"
    text = ""
    if found.is_rate:
        text = f"Google's quota of requests is used up {said}; try again in a minute"
    elif found.is_full:
        text = f"the zone has no such machine free now {said}"
    elif found.is_quota:
        text = f"the project's quota is used up {said}; free some of it, or ask Google for more"
    elif found.reasons & _NOT_READY:
        text = f"it is busy with something else {said}; try again"
    return text


def _by_code(found: Refusal) -> tuple[type[OpsError], str]:
    """The error by the HTTP status, where Google says no more."""
    code, said = found.code, f"({found.message})"
    # A 412 with another reason, as a retention policy's, is nobody's write.
    is_clash = code == 409 or (code == 412 and found.reasons <= _PRECONDITION)
    kind, text = OpsError, f"{code} {said}"
    if code == 403:
        kind, text = DeniedError, _denied(found)
    elif code == 404:
        kind, text = MissingError, f"it is not there {said}"
    elif is_clash:
        kind, text = ClashError, f"somebody else changed it meanwhile {said}; try again"
    elif code in (405, 501):
        kind, text = UnsupportedError, f"this API does not have it {said}"
    elif code >= 500:
        kind, text = UnreachableError, f"{code} {said}; try again in a minute"
    return kind, text


def _denied(found: Refusal) -> str:
    right = found.right
    if not right:
        return f"you may not ({found.message}); docs/ACCESS.md says who may do what"
    role = next((role for rights, role in _ROLES if rights.match(right)), "")
    return f"the right {right} is missing{f'; it is in {role}' if role else ''} (docs/ACCESS.md)"


def one_line(text: str) -> str:
    """Untrusted text as one line, without escape sequences for a terminal."""
    if not text.isprintable():
        text = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(text.split())


def _line(text: str, limit: int = 300) -> str:
    line = one_line(text)
    return line if len(line) <= limit else f"{line[: limit - 3]}..."


def _word(reason: object) -> str:
    return reason.replace("_", "").lower() if isinstance(reason, str) else ""


def _documents(found: object) -> Iterator[Mapping[str, Any]]:
    if isinstance(found, Iterable) and not isinstance(found, str | Mapping):
        yield from (each for each in found if isinstance(each, Mapping))
