"""Contexts: names for the places where an operator's fleets are, in a file of the user's.

A context is used as a whole or not at all: where an option names another project or endpoint than
the current context, nothing of that context is taken. A fleet is never looked for in one place with
half of another's address.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from ops.cloud_address import COMPUTE, MONITORING, STORAGE, CloudAddress
from ops.errors import OpsError, UsageError

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_REMEDY: Final = "mend the file, or remove it and add its contexts again"


@dataclass(frozen=True, kw_only=True)
class FleetContext:
    """Where a fleet is. "" leaves a value to the default of the option of that name."""

    project: str = ""
    fleet: str = ""
    """The name of the fleet's stack."""
    dashboard: str = ""
    """The URL of a dashboard that counts the agents online."""
    endpoint: str = ""
    """The base URL of all APIs, if not Google's."""
    compute_endpoint: str = ""
    storage_endpoint: str = ""
    monitoring_endpoint: str = ""

    @property
    def address(self) -> CloudAddress:
        """The project, and each API's URL."""
        return CloudAddress(
            project=self.project,
            compute=(self.compute_endpoint or self.endpoint or COMPUTE).rstrip("/"),
            storage=(self.storage_endpoint or self.endpoint or STORAGE).rstrip("/"),
            monitoring=(self.monitoring_endpoint or self.endpoint or MONITORING).rstrip("/"),
        )

    @property
    def values(self) -> dict[str, str]:
        """The values that are there."""
        return {name: value for name, value in asdict(self).items() if value}

    @property
    def endpoints(self) -> dict[str, str]:
        """The endpoints that are there; none: Google's."""
        return {name: value for name, value in self.values.items() if name.endswith("endpoint")}


_KEYS: Final = tuple(each.name for each in fields(FleetContext))


@dataclass(frozen=True, kw_only=True)
class ContextsFile:
    """The contexts of a user."""

    current: str = ""
    """The context that is used where none is named; "": none."""
    contexts: Mapping[str, FleetContext] = field(default_factory=dict)

    def named(self, name: str) -> FleetContext:
        """The context of that name. UsageError where there is none."""
        if name in self.contexts:
            return self.contexts[name]
        there = (
            f"there are {', '.join(sorted(self.contexts))}" if self.contexts else "there are none"
        )
        raise UsageError(
            f"{name} is no context: {there} (`pilot-fleet context add {name} --project PROJECT` "
            "makes it)"
        )

    def document(self) -> dict[str, Any]:
        """What the file holds, and `context list --json` prints."""
        contexts = {name: each.values for name, each in sorted(self.contexts.items())}
        return {"current": self.current, "contexts": contexts}


def settle(given: FleetContext, known: ContextsFile, name: str) -> FleetContext:
    """Where to look: what is given, and the rest of it from the context `name` ("": the current
    one). The current one is left out where something else is given; a named one must not clash."""
    if not name and not known.current:
        return given
    context = known.named(name or known.current)
    other = ""
    if given.project and context.project not in ("", given.project):
        other = f"the project {given.project}"
    elif given.endpoints and _urls(given) != _urls(context):
        other = f"the endpoint {next(iter(given.endpoints.values()))}"
    if other and name:
        raise UsageError(
            f"{other} is not in the context {name} ({_place(context)}): give the one or the other"
        )
    if other:
        return given
    return replace(
        context,
        project=given.project or context.project,
        fleet=given.fleet or context.fleet,
        dashboard=given.dashboard or context.dashboard,
    )


def _urls(context: FleetContext) -> CloudAddress:
    return replace(context.address, project="")


def _place(context: FleetContext) -> str:
    where = context.project or "the login's project"
    return " at ".join((where, *dict.fromkeys(context.endpoints.values())))


# Changes. Each returns another file's content, or raises UsageError.


def added(
    known: ContextsFile, name: str, context: FleetContext, *, use: bool = False, over: bool = False
) -> ContextsFile:
    """With a context more, which becomes the current one with `use`, or where it is the only one.
    With `over` it takes the place of one of that name."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is no name for a context: 1 to 63 letters, digits, and . _ - between them"
        )
    if not context.values:
        raise UsageError(f"what is in {name}? Give --project, --endpoint or --fleet after its name")
    if problems := [f"--{key.replace('_', '-')} {why}" for key, why in _problems(context)]:
        raise UsageError("; ".join(problems))
    before = known.contexts.get(name)
    if before not in (None, context) and not over:
        assert before is not None
        raise UsageError(
            f"there is a context {name} already, for {_place(before)}: --replace takes its place"
        )
    contexts = {**known.contexts, name: context}
    current = name if use or len(contexts) == 1 else known.current
    return ContextsFile(current=current, contexts=contexts)


def used(known: ContextsFile, name: str) -> ContextsFile:
    """With another current context."""
    known.named(name)
    return replace(known, current=name)


def removed(known: ContextsFile, name: str) -> ContextsFile:
    """Without a context. If it was the current one, none is."""
    known.named(name)
    contexts = {each: context for each, context in known.contexts.items() if each != name}
    return ContextsFile(current="" if known.current == name else known.current, contexts=contexts)


# The file's text


def parse(text: str, path: Path) -> ContextsFile:
    """The contexts in a file's text. UsageError with all problems, each with its key."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise UsageError(f"{path} is no JSON ({error}): {_REMEDY}") from None
    except RecursionError:
        raise UsageError(f"{path} is no JSON (nested too deeply): {_REMEDY}") from None
    if problems := list(_wrong_shape(found)):
        raise UsageError(f"{path}: {'; '.join(problems)}: {_REMEDY}")
    contexts = {name: FleetContext(**each) for name, each in found.get("contexts", {}).items()}
    problems = [
        f"contexts.{name}.{key} {why}"
        for name, each in contexts.items()
        for key, why in _problems(each)
    ]
    current = found.get("current", "")
    if current and current not in contexts:
        problems.append(f"current is {current!r}, and there is no such context")
    if problems:
        raise UsageError(f"{path}: {'; '.join(problems)}: {_REMEDY}")
    return ContextsFile(current=current, contexts=contexts)


def _wrong_shape(found: Any) -> Iterator[str]:
    if not isinstance(found, dict):
        yield "it is no object with `current` and `contexts`"
        return
    yield from (f"{key} is not known here" for key in found if key not in ("current", "contexts"))
    if not isinstance(found.get("current", ""), str):
        yield "current is no text"
    contexts = found.get("contexts", {})
    if not isinstance(contexts, dict):
        yield "contexts is no object"
        return
    for name, each in contexts.items():
        if not _NAME.fullmatch(name):
            yield f"contexts.{name!r} is no name for a context"
        if not isinstance(each, dict):
            yield f"contexts.{name} is no object"
            continue
        for key, value in each.items():
            if key not in _KEYS:
                yield f"contexts.{name}.{key} is not known here (a newer pilot-fleet's?)"
            elif not isinstance(value, str):
                yield f"contexts.{name}.{key} is no text"


def _problems(context: FleetContext) -> Iterator[tuple[str, str]]:
    """(key, what is wrong with its value)."""
    urls = {
        name: value for name, value in context.values.items() if name not in ("project", "fleet")
    }
    sound = True
    for name, value in context.values.items():
        if not value.isprintable() or " " in value:
            sound = False
            yield name, f"has a blank or a character that cannot be printed: {value!r}"
    for name, value in urls.items():
        try:
            parts = urlsplit(value)
        except ValueError:
            sound = False
            yield name, f"is no URL: {value!r}"
            continue
        if parts.username is not None or parts.query:
            sound = False
            yield name, "has a password or a query in its URL: this file holds no secrets"
        elif parts.scheme not in ("http", "https") or not parts.hostname:
            sound = False
            yield name, f"is no URL: {value!r}"
    if sound:
        try:
            context.address.check_urls()
        except UsageError as error:
            yield next(iter(context.endpoints)), f"cannot be: {error}"


# The file


def config_path(environ: Mapping[str, str]) -> Path:
    """The file of this user's contexts, which need not be there."""
    base = environ.get("XDG_CONFIG_HOME", "")
    try:
        # A relative one is to be ignored (XDG Base Directory Specification).
        folder = Path(base) if base.startswith("/") else Path.home() / ".config"
    except RuntimeError:
        raise UsageError("this user has no home for its contexts: set XDG_CONFIG_HOME") from None
    return folder / "pilot-fleet" / "contexts.json"


def read(path: Path) -> ContextsFile:
    """The contexts in a file; none where there is no file."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ContextsFile()
    except UnicodeDecodeError:
        raise UsageError(f"{path} is no text in UTF-8: {_REMEDY}") from None
    except OSError as error:
        raise OpsError(f"{path} cannot be read: {_why(error)}") from None
    return parse(text, path)


def change(path: Path, how: Callable[[ContextsFile], ContextsFile]) -> ContextsFile:
    """Change the file, and return what it holds then. One process at a time does so, and a reader
    sees the file before or after. A file without contexts is removed."""
    try:
        # Where the file is a link (to a folder of dotfiles), the link stays.
        target = path.resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        with _only_one(target.parent):
            before = read(path)
            after = how(before)
            if not after.contexts:
                target.unlink(missing_ok=True)
            elif after != before:
                _write(target, json.dumps(after.document(), indent=1) + "\n")
            return after
    except OSError as error:
        raise OpsError(f"{path} cannot be written: {_why(error)}") from None


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(target: Path, text: str) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}-", dir=target.parent)
    partial = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        partial.replace(target)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


def _why(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
