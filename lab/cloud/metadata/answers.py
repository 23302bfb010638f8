"""Answers of the metadata server of a VM: values, long polls, guest attributes, tokens.

`lab.cloud.metadata.contents` says what it holds and how that is written. Every answer is computed
from the state at that moment, so the API tells this module nothing: a long poll looks again after
each commit, and ends when the ETag of what was asked for has changed.

Google's guest environment asks for these (read in its source: Debian's package of 2021, and a
current one): `//?recursive=true&alt=json&wait_for_change=true&timeout_sec=60&last_etag=E` (the
agent), `instance/attributes` and `project/attributes` with `recursive=true` (the script runner),
`instance/attributes/created-by`, `project/project-id`, `instance/id`, `instance/name`,
`instance/zone`; PUT of `instance/guest-attributes/hostkeys/TYPE`. Answered with 404, as on a VM
without that feature: `instance/credentials/…`, `instance/gce-workload-certificates/…`,
`oslogin/users`.
"""

import base64
import hmac
import html
import json
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

from lab.cloud import Json, links, tokens
from lab.cloud.compute import machines, maintenance
from lab.cloud.compute.project_api import project_number
from lab.cloud.links import Scope
from lab.cloud.metadata import contents
from lab.cloud.metadata.contents import GuestFacts, Node
from lab.cloud.store import Store, StoreError, Transaction

ROOT: Final = "/computeMetadata/v1/"
TOKEN_SECONDS: Final = 3600  # how long Google's access tokens live
TOKEN_RENEWED_SECONDS: Final = 300  # a token with less left is replaced by a new one
MOST_GUEST_KEY: Final = 128  # characters of a namespace and of a key, as of metadata keys
MOST_GUEST_VALUE: Final = 256 * 1024  # bytes of a value, as of metadata values
MOST_GUEST_TOTAL: Final = 512 * 1024  # bytes of all keys and values of a VM, as of metadata
_MOST_TOKENS: Final = 1000  # kept at once
_LOOK_SECONDS: Final = 2.0  # how often a long poll sees whether its client is still there
_TRUE: Final = frozenset({"true", "on", "yes", "1"})
_NOWHERE: Final = Scope(project="")

_TEXT: Final = "application/text"
_JSON: Final = "application/json"
_HTML: Final = "text/html; charset=UTF-8"

_GUEST: Final = ("instance", "guest-attributes")
_GUEST_NAME = re.compile(rf"[A-Za-z0-9_.-]{{1,{MOST_GUEST_KEY}}}")


@dataclass(frozen=True, kw_only=True)
class MetadataAnswer:
    """An answer to a guest."""

    status: int = 200
    text: str = ""
    content_type: str = _TEXT
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Question:
    """A guest's request."""

    method: str
    path: str
    parts: tuple[str, ...]
    """The path below ROOT."""
    directory: bool
    """Whether the path ends with `/`."""
    query: Mapping[str, str]
    raw_query: str
    host: str
    body: bytes

    def is_set(self, name: str) -> bool:
        """Tell whether a parameter is true."""
        return self.query.get(name, "").lower() in _TRUE

    @property
    def timeout(self) -> float | None:
        """Return `timeout_sec`; None (wait for ever) where it is missing or not a number."""
        text = self.query.get("timeout_sec", "")
        return float(text) if re.fullmatch(r"\d{1,6}", text) else None


class MetadataRefusedError(Exception):
    """A refused request: `status`, and a sentence for the reader of the answer."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status
        self.why = why


class GoneError(Exception):
    """The client has left and does not wait for the answer."""


# Facts


def gather(transaction: Transaction, path: str) -> tuple[GuestFacts, float] | None:
    """Return the facts of the instance at `path`, and the seconds for which they hold.

    None where there is no such instance.
    """
    body = transaction.get(*links.split(path))
    if body is None:
        return None
    project = path.split("/")[1]
    zone = Scope(project=project, level="zones", place=path.split("/")[3])
    settings = transaction.get(zone.collection("settings"), "instanceSettings") or {}
    held = transaction.get(f"{links.STORE}projects", project) or {}
    disks = {each["deviceName"]: _disk(transaction, each) for each in body["disks"]}
    boot = next((disks[each["deviceName"]] for each in body["disks"] if each["boot"]), {})
    event, left = maintenance.current(transaction, body["id"]) or (None, _LOOK_SECONDS)
    facts = GuestFacts(
        instance=body,
        machine=machines.machine(transaction, body),
        project_number=project_number(project),
        project=contents.items(held.get("commonInstanceMetadata")),
        zonal=contents.items(settings.get("metadata")),
        image=contents.image_of(boot),
        licenses=[str(each) for each in boot.get("licenseCodes") or []],
        disk_types={name: links.last(each.get("type", "")) for name, each in disks.items()},
        guest={name: each["value"] for name, each in transaction.documents(_guest(path)).items()},
        maintenance=event or contents.NO_MAINTENANCE,
    )
    return facts, left


def _disk(transaction: Transaction, attached: Json) -> Json:
    return transaction.get(*links.split(links.path_of(attached["source"], _NOWHERE))) or {}


def _guest(path: str) -> str:
    return f"guest/{path}"  # the collection that getGuestAttributes reads


# Answers


class Metadata:
    """Answers for all VMs of a lab; knows nothing of sockets."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._tokens: dict[tuple[str, ...], tuple[str, float]] = {}
        self._key = secrets.token_bytes(32)
        self._lock = threading.Lock()

    def answer(
        self,
        path: str | None,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes = b"",
        *,
        gone: Callable[[], bool] = lambda: False,
    ) -> MetadataAnswer:
        """Answer a request of the instance at `path`; None for an unknown guest.

        `headers` has lower-case names. `gone` tells whether the client left, which ends a long
        poll with GoneError.
        """
        question = _question(method, target, headers, body)
        try:
            _check_headers(question, headers)
            return self._route(path, question, gone)
        except MetadataRefusedError as refused:
            return refusal(refused.status, question.path, refused.why)
        except StoreError as error:
            return refusal(503, question.path, str(error))

    def _route(
        self, path: str | None, question: Question, gone: Callable[[], bool]
    ) -> MetadataAnswer:
        if question.path in ("/", "/computeMetadata/"):
            _only(question, "GET", "HEAD")
            below = "computeMetadata/\n" if question.path == "/" else "v1/\n"
            return MetadataAnswer(text=below)
        if question.path in ("/computeMetadata", ROOT.rstrip("/")):
            return _redirect(question)
        if not question.path.startswith(ROOT):
            raise MetadataRefusedError(404, "not found")
        if path is None:
            raise MetadataRefusedError(
                404, "no instance has the address that this request comes from"
            )
        if question.parts[:2] == _GUEST:
            self._guarded(path)
            if question.method in ("PUT", "DELETE"):
                return self._change_guest(path, question)
        _only(question, "GET", "HEAD")
        if question.parts[:2] == ("instance", "service-accounts") and len(question.parts) == 4:
            made = self._made(path, question)
            if made is not None:
                return made
        return self._read(path, question, gone)

    def _look(self, path: str) -> tuple[GuestFacts, float]:
        with self._store.transaction() as transaction:
            found = gather(transaction, path)
        if found is None:
            # Not 404: a guest would believe that the key is absent.
            raise MetadataRefusedError(503, f"{path} is not there (any more)")
        return found

    def _read(self, path: str, question: Question, gone: Callable[[], bool]) -> MetadataAnswer:
        recursive, alt = question.is_set("recursive"), question.query.get("alt")
        if alt not in (None, "json", "text"):
            raise MetadataRefusedError(400, f"alt={alt}: must be json or text")
        waiting, last = question.is_set("wait_for_change"), question.query.get("last_etag")
        deadline = None if question.timeout is None else time.monotonic() + question.timeout
        while True:
            # Taken before the state is read: a commit in between ends the wait below at once.
            generation = self._store.generation
            facts, holds = self._look(path)
            node = contents.find(contents.tree(facts), question.parts)
            if node is None or isinstance(node, contents.Made):
                raise MetadataRefusedError(404, "not found")
            directory = contents.is_directory(node)
            if question.directory and not directory:
                raise MetadataRefusedError(
                    404, "a value, no directory: ask without the slash at the end"
                )
            if directory and not question.directory and not recursive:
                return _redirect(question)
            if directory and not recursive and (waiting or alt):
                raise MetadataRefusedError(
                    400, "a directory's listing has one form and is not waited for"
                )
            tag = contents.etag(node, recursive)
            last = tag if last is None else last
            left = _left(deadline)
            if not waiting or tag != last or left <= 0:
                return _found(node, recursive, alt, tag)
            if gone():
                raise GoneError
            self._store.wait(generation, min(left, holds, _LOOK_SECONDS))

    # Guest attributes

    def _guarded(self, path: str) -> None:
        facts, _ = self._look(path)
        if not facts.guest_attributes_enabled():
            raise MetadataRefusedError(403, "Guest attributes endpoint access is disabled.")

    def _change_guest(self, path: str, question: Question) -> MetadataAnswer:
        names = question.parts[2:]
        if len(names) != 2 or question.directory:
            raise MetadataRefusedError(
                400, "guest attributes are instance/guest-attributes/NAMESPACE/KEY"
            )
        for name in names:
            if not _GUEST_NAME.fullmatch(name):
                why = f"'{name}': must be 1 to {MOST_GUEST_KEY} of letters, digits, '_', '-', '.'"
                raise MetadataRefusedError(400, why)
        collection, name = _guest(path), "/".join(names)
        with self._store.transaction() as transaction:
            if transaction.get(*links.split(path)) is None:
                raise MetadataRefusedError(503, f"{path} is not there (any more)")
            held = transaction.documents(collection)
            if question.method == "DELETE":
                if name not in held:
                    raise MetadataRefusedError(404, "not found")
                transaction.delete(collection, name)
                return MetadataAnswer()
            value = _guest_value(name, question.body, held)
            if held.get(name) != {"value": value}:
                transaction.put(collection, name, {"value": value})
        return MetadataAnswer()

    # Tokens

    def _made(self, path: str, question: Question) -> MetadataAnswer | None:
        """Return the token or identity that is asked for, None where neither is."""
        facts, _ = self._look(path)
        account = facts.account(question.parts[2])
        if account is None or question.directory:
            return None
        if question.parts[3] == "token":
            return self._token(facts, account, question)
        if question.parts[3] == "identity":
            audience = question.query.get("audience", "")
            if not audience:
                raise MetadataRefusedError(400, "non-empty audience parameter required")
            full = question.query.get("format") == "full"
            return MetadataAnswer(
                text=self._identity(facts, account, audience, full), content_type=_HTML
            )
        return None

    def _token(self, facts: GuestFacts, account: Json, question: Question) -> MetadataAnswer:
        scopes = question.query.get("scopes") or ",".join(account["scopes"])
        key = (facts.instance["id"], account["email"], scopes)
        now = time.monotonic()
        with self._lock:
            token, ends = self._tokens.get(key, ("", 0.0))
            if ends - now < TOKEN_RENEWED_SECONDS:
                if len(self._tokens) >= _MOST_TOKENS:
                    self._tokens.clear()  # guests choose the scopes, so their number has no limit
                token = tokens.make(self._store, account["email"], TOKEN_SECONDS)
                ends = now + TOKEN_SECONDS
                self._tokens[key] = token, ends
        value = {"access_token": token, "expires_in": int(ends - now), "token_type": "Bearer"}
        if question.query.get("alt") == "text":
            return MetadataAnswer(text="".join(f"{name} {each}\n" for name, each in value.items()))
        text = json.dumps(value, separators=(",", ":"))
        return MetadataAnswer(text=text, content_type=_JSON)

    def _identity(self, facts: GuestFacts, account: Json, audience: str, full: bool) -> str:
        """Return an identity token with Google's claims.

        It is signed with a key of this process (HS256), so it cannot pass for one of Google's.
        """
        now = int(time.time())
        subject = str(int.from_bytes(account["email"].encode()[:8], "big"))
        claims: dict[str, Any] = {
            "aud": audience,
            "azp": subject,
            "email": account["email"],
            "email_verified": True,
            "exp": now + TOKEN_SECONDS,
            "iat": now,
            "iss": "https://accounts.google.com",
            "sub": subject,
        }
        if full:
            claims["google"] = {
                "compute_engine": {
                    "instance_id": facts.instance["id"],
                    "instance_name": facts.instance["name"],
                    "project_id": facts.project_id,
                    "project_number": int(facts.project_number),
                    "zone": links.last(facts.instance["zone"]),
                }
            }
        signed = b".".join(
            _base64(json.dumps(each, separators=(",", ":")).encode())
            for each in ({"alg": "HS256", "typ": "JWT"}, claims)
        )
        return (signed + b"." + _base64(hmac.digest(self._key, signed, "sha256"))).decode()


def _base64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def _question(method: str, target: str, headers: Mapping[str, str], body: bytes) -> Question:
    url = urlsplit(target)
    # The guest agent of 2021 asks for `/computeMetadata/v1//…`.
    path = "/" + re.sub(r"/{2,}", "/", url.path).lstrip("/")
    below = path.removeprefix(ROOT) if path.startswith(ROOT) else ""
    return Question(
        method=method,
        path=path,
        parts=tuple(unquote(part) for part in below.split("/") if part),
        directory=path.endswith("/"),
        query={key: each[-1] for key, each in parse_qs(url.query, True).items()},
        raw_query=url.query,
        host=headers.get("host", ""),
        body=body,
    )


def _check_headers(question: Question, headers: Mapping[str, str]) -> None:
    if "x-forwarded-for" in headers:
        raise MetadataRefusedError(403, "Requests with an X-Forwarded-For header are refused.")
    # The root needs no header: libraries detect Compute Engine by it.
    if question.path != "/" and headers.get("metadata-flavor") != "Google":
        raise MetadataRefusedError(403, "Missing Metadata-Flavor:Google header.")


def _only(question: Question, *methods: str) -> None:
    if question.method not in methods:
        raise MetadataRefusedError(405, f"{question.method} is not possible here")


def _left(deadline: float | None) -> float:
    return _LOOK_SECONDS if deadline is None else deadline - time.monotonic()


def _found(node: Node, recursive: bool, alt: str | None, tag: str) -> MetadataAnswer:
    as_json = alt == "json" or (alt is None and contents.json_by_default(node, recursive=recursive))
    text = contents.write(node, recursive=recursive, as_json=as_json)
    return MetadataAnswer(
        text=text, content_type=_JSON if as_json else _TEXT, headers={"ETag": tag}
    )


def _redirect(question: Question) -> MetadataAnswer:
    there = f"http://{question.host}" if question.host else ""
    location = f"{there}{question.path}/"
    if question.raw_query:
        location += f"?{question.raw_query}"
    page = _page(301, f'<p>It is <a href="{html.escape(location)}">here</a>.')
    return MetadataAnswer(status=301, text=page, content_type=_HTML, headers={"Location": location})


def refusal(status: int, path: str, why: str) -> MetadataAnswer:
    """Return a refusal as Google writes it: a page, and plain text for guest attributes."""
    if status == 403 and why.startswith("Guest attributes"):
        return MetadataAnswer(status=status, text=why)
    said = {
        403: "Your client does not have permission to get URL <code>{}</code> from this server.",
        404: "The requested URL <code>{}</code> was not found on this server.",
        503: "The service at <code>{}</code> is temporarily unavailable.",
    }.get(status, "Your client has issued a malformed or illegal request for <code>{}</code>.")
    page = _page(status, f"<p>{said.format(html.escape(path))} {html.escape(why)}")
    return MetadataAnswer(status=status, text=page, content_type=_HTML)


def _page(status: int, said: str) -> str:
    title = f"{status} ({HTTPStatus(status).phrase})"
    return f"<!DOCTYPE html>\n<html lang=en>\n<title>{title}</title>\n{said}\n"


def _guest_value(name: str, body: bytes, held: Mapping[str, Json]) -> str:
    if len(body) > MOST_GUEST_VALUE:
        raise MetadataRefusedError(
            413, f"{name}: {len(body)} bytes; at most {MOST_GUEST_VALUE} are allowed"
        )
    try:
        value = body.decode()
    except UnicodeDecodeError as error:
        raise MetadataRefusedError(
            400, f"{name}: the value must be UTF-8 ({error.reason})"
        ) from error
    others = sum(
        len(key) + len(each["value"].encode()) for key, each in held.items() if key != name
    )
    total = others + len(name) + len(body)
    if total > MOST_GUEST_TOTAL:
        why = f"guest attributes would have {total} bytes; at most {MOST_GUEST_TOTAL} are allowed"
        raise MetadataRefusedError(413, why)
    return value
