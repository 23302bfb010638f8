"""Orders (docs/CONTRACT.md): text in, frozen dataclasses out, every problem at once.

Also which orders are in force: those of the bucket, those given on the VM itself, and those
remembered of both. The bucket's object describes a state, so reading it twice, late or after a
reboot does no harm. The ID of the last restart stays known when its object is gone: its absence
must not be another change that restarts everything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from ..machine import files
from ..machine.paths import Paths
from ..machine.polling import ABSENT, READ, UNREACHABLE, Reading
from .json_reader import Reader, SpecError
from .sources import OrdersObject
from .spec import ROLE_RENDEZVOUS, ROLE_SWARM

SCHEMA: Final = 1
MALFORMED: Final = "malformed"
GO: Final = "go"
REJECT: Final = "reject"

_ID = re.compile(r"[-0-9A-Za-z_.:]{1,64}")
_COPY = re.compile(r"\d{8}T\d{6}Z-\d{1,9}\.json")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_VERDICT = re.compile("go|reject")
_BENCHMARKS = re.compile("run|pause")
# One line of printable characters, for a dashboard and for logs.
_BANNER = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]{0,200}")
_WORDS = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]{0,200}")


@dataclass(frozen=True, kw_only=True)
class ReleaseVerdict:
    """The operator's verdict on a release."""

    sha256: str
    """Of the release."""
    verdict: str
    """GO or REJECT."""
    id: str = ""
    """A GO counts once per ID: a release that is rejected again needs a GO with another ID."""


@dataclass(frozen=True, kw_only=True)
class Orders:
    """The orders of one source. By default nothing is ordered."""

    hold: bool = False
    restart: str = ""
    clean: bool = False
    restore: str = ""
    """The copy of the registry to put back."""
    roll: ReleaseVerdict | None = None
    pause_benchmarks: bool = False
    banner: str = ""
    ignored: tuple[str, ...] = ()
    """Fields that this version does not know (a newer `ops` wrote them)."""


def parse(text: str | bytes, role: str) -> Orders:
    """The orders in `text` for a VM of `role`. Raises SpecError with every problem."""
    top = Reader.of(text, "orders")
    schema = top.integer("schema", 0, 1 << 30)
    if schema != SCHEMA and not top.problems:
        raise SpecError(
            [f"schema: is {schema}, this VM knows {SCHEMA}: use the `ops` of its release"]
        )
    there = set(top.names())
    found = Orders(
        hold="hold" in there and top.boolean("hold"),
        restart=top.string("restart", _ID, _ID.pattern) if "restart" in there else "",
        clean="clean" in there and top.boolean("clean"),
        restore=top.string("restore", _COPY, "a copy's name") if "restore" in there else "",
        roll=_verdict(top.child("roll")) if "roll" in there else None,
        pause_benchmarks=(
            "benchmarks" in there
            and top.string("benchmarks", _BENCHMARKS, "run or pause") == "pause"
        ),
        banner=_text(top, "banner", _BANNER),
    )
    for name in ("by", "at"):
        _text(top, name, _WORDS)
    if found.clean and "restart" not in there:
        top.problem("clean", "goes with a restart only: give it one")
    if found.restore and (found.clean or "restart" not in there):
        top.problem("restore", "goes with a restart, and not with clean")
    for name in ("clean", "restore", "banner"):
        if role == ROLE_SWARM and name in there:
            top.problem(name, "is for the rendezvous only")
    if role == ROLE_RENDEZVOUS and "benchmarks" in there:
        top.problem("benchmarks", "run on swarm VMs only")
    top.end_document()
    if top.problems:
        raise SpecError(top.problems)
    return replace(found, ignored=tuple(top.ignored))


def _verdict(reader: Reader) -> ReleaseVerdict:
    found = ReleaseVerdict(
        sha256=reader.string("sha256", _SHA256, "64 hex digits"),
        verdict=reader.string("verdict", _VERDICT, "go or reject"),
        id=reader.string("id", _ID, _ID.pattern) if "id" in reader.names() else "",
    )
    reader.end()
    return found


def _text(reader: Reader, key: str, pattern: re.Pattern[str]) -> str:
    if key not in reader.names():
        return ""
    return reader.string(key, pattern, "one line of at most 200 characters")


@dataclass(frozen=True, kw_only=True)
class Standing:
    """The orders in force."""

    state: str = UNREACHABLE
    """Of the bucket's object: ABSENT, READ, UNREACHABLE or MALFORMED."""
    generation: str = ""
    """Of the bucket's object."""
    error: str = ""
    text: str = ""
    """The last good orders from the bucket."""
    orders: Orders = Orders()
    """The bucket's."""
    here: Orders = Orders()
    """Given on the VM itself."""
    here_error: str = ""
    restarted: str = ""
    """ID of the bucket's last restart. It outlives the orders."""
    restarted_here: str = ""
    """ID of the last restart on the VM itself. It outlives the orders."""

    @property
    def hold(self) -> bool:
        return self.orders.hold or self.here.hold

    @property
    def restart(self) -> str:
        """Both IDs in one word. When it changes, every agent is started anew."""
        return f"{self.restarted}/{self.restarted_here}".strip("/")


def follow(standing: Standing, reading: Reading[OrdersObject], role: str) -> Standing:
    """`standing`, after the bucket said `reading`."""
    if reading.state == ABSENT:
        return replace(standing, state=ABSENT, generation="", error="", text="", orders=Orders())
    if reading.state != READ or reading.value is None:
        return replace(standing, state=UNREACHABLE, error=reading.error or standing.error)
    try:
        orders = parse(reading.value.text, role)
    except SpecError as error:
        return replace(
            standing,
            state=MALFORMED,
            generation=reading.value.generation,
            error=str(error)[:1000],
        )
    return replace(
        standing,
        state=READ,
        generation=reading.value.generation,
        error="",
        text=reading.value.text,
        orders=orders,
        restarted=orders.restart or standing.restarted,
    )


def follow_here(standing: Standing, text: str | None, role: str) -> Standing:
    """`standing`, with the orders `text` given on the VM itself (None: there are none)."""
    if text is None:
        return replace(standing, here=Orders(), here_error="")
    try:
        orders = parse(text, role)
    except SpecError as error:
        return replace(standing, here_error=str(error)[:1000])
    return replace(
        standing,
        here=orders,
        here_error="",
        restarted_here=orders.restart or standing.restarted_here,
    )


def recall(paths: Paths, role: str, say: Callable[[str], None]) -> Standing:
    """The last good orders, in force until the bucket answers.

    Where the file cannot be read, this is logged, and nothing is ordered. Where only the orders in
    it are not understood (a newer program wrote them), a hold still holds and the restarts stay
    known: otherwise all agents would be started, or started anew.
    """
    path = paths.node_state / "orders.json"
    try:
        kept = json.loads(path.read_bytes())
        standing = Standing(
            generation=str(kept["generation"]),
            text=str(kept["text"]),
            restarted=str(kept["restarted"]),
            restarted_here=str(kept["restarted_here"]),
        )
    except FileNotFoundError:
        return Standing()
    except (OSError, ValueError, RecursionError, LookupError, TypeError) as error:
        say(f"{path}: {error}: the last orders are not known until the bucket answers")
        return Standing()
    if not standing.text:
        return standing
    try:
        return replace(standing, orders=parse(standing.text, role))
    except SpecError as error:
        held = _is_hold(standing.text)
        say(
            f"{path}: {error}: until the bucket answers, the last orders are not known but that "
            f"this VM is {'held' if held else 'not held'}"
        )
        return replace(standing, orders=Orders(hold=held))


def _is_hold(text: str) -> bool:
    """Whether orders that are not understood hold the VM."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get("hold") is True


def remember(paths: Paths, standing: Standing) -> None:
    """Write `standing` for `recall`. Raises OSError."""
    kept = {
        "generation": standing.generation,
        "restarted": standing.restarted,
        "restarted_here": standing.restarted_here,
        "text": standing.text,
    }
    files.write(paths.node_state / "orders.json", json.dumps(kept, sort_keys=True) + "\n", 0o600)
