"""The acceptance rows with their full counts: `python -m tests.vm.campaign`.

Guests and containers run in a process each, side by side on a machine with enough processors. Seed,
row and number decide a round's random choices. `.state/campaign/` keeps each result at once, by
commit and seed, so a second call makes only the missing rounds. With `--since COMMIT` that commit's
results stand: use it after a commit that does not touch the tested parts. With `--row` the
document's results of the other rows stand. A call takes at most `--minutes`; the next call repeats
a round that was cut off. At the end of a call docs/CAMPAIGN.md is written: all rounds with their
commits, so that another machine can continue too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

from lab.machines import processes
from lab.machines.cgroups import hierarchies
from lab.machines.host import ensure_packages, no_containers
from lab.machines.image import default_cache, ensure_image
from lab.machines.processes import until as wait_until
from tests.components.fleet import ROOT
from tests.conftest import pulumi_environment
from tests.vm.fleet import ZONE, Fleet
from tests.vm.moved_registry import ZONES
from tests.vm.rows import CONTAINER, QEMU, Row

SEED = 5
MINUTES = 110
DOCUMENT = ROOT / "docs" / "CAMPAIGN.md"
KEPT = ROOT / ".state" / "campaign"
# On two processors guests beside 2,000 agents in containers did not boot within ten minutes.
ENOUGH_PROCESSORS = 4
# A round that takes longer hangs.
_ROUND_MINUTES = 30
# Seconds until the kernel has moved a controller: about one where nothing holds it.
_MOVES = 15.0
# Seconds for the drain at a fleet's end (2,000 agents took 53 to 146), and for the whole end.
_DRAIN_S = 240.0
_END_S = 300.0
# Seconds for each wait on a fleet whose time is over.
_LAST_S = 20.0


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A fleet and its rows. `patience`: seconds for one boot; `tasks`: its rows need a limit of
    tasks."""

    driver: str
    wanted: Mapping[str, int]
    machine: str
    patience: float
    rows: Sequence[Row]
    tasks: bool = False
    rendezvous_zone: str = ZONE


# The rows of the registry that is lost.
LOST = {"disk", "copies", "zone", "dead-zone", "account"}

SHAPES = (
    Shape(
        driver="container",
        wanted={"swarm-1": 200, "swarm-2": 200, "swarm-3": 200},
        machine="e2-custom-4-8192",
        patience=600,
        rows=[row for row in CONTAINER if row.name not in {"drain", "empty", "crowd"} | LOST],
    ),
    Shape(
        driver="container",
        wanted={"swarm-1": 100, "swarm-2": 100, "swarm-3": 100},
        machine="e2-custom-4-8192",
        patience=600,
        rows=[row for row in CONTAINER if row.name in LOST],
        rendezvous_zone=ZONES[0],
    ),
    Shape(
        driver="container",
        wanted={"swarm-1": 2000},
        machine="e2-custom-4-16384",
        patience=900,
        rows=[row for row in CONTAINER if row.name in {"drain", "empty"}],
    ),
    Shape(
        driver="container",
        wanted={"swarm-1": 2000},
        # The smallest that is planned for 2,000: their 14,000 tasks are more than 15 % of 73,728.
        machine="e2-custom-4-9216",
        patience=900,
        rows=[row for row in CONTAINER if row.name == "crowd"],
        tasks=True,
    ),
    Shape(
        driver="qemu",
        wanted={"swarm-1": 30},
        machine="e2-custom-2-1024",
        patience=600,
        rows=QEMU,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of a round, with its seed, commit and machine. `error` is "" if it passed."""

    row: str
    number: int
    seconds: float
    measured: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    seed: int = 0
    commit: str = ""
    machine: str = ""


class Kept:
    """The results of one seed at `commit`, at others `since` whose results stand, and at any
    commit those of the rows `untouched`. A line of JSON each: in a file for each commit, to which
    processes may add side by side, and in the document, which goes from one machine to the next."""

    def __init__(
        self,
        folder: Path,
        *,
        seed: int,
        commit: str,
        since: Sequence[str] = (),
        untouched: Collection[str] = (),
        published: Path | None = None,
    ) -> None:
        self._folder = folder
        self._seed = seed
        self._commit = commit[:12]
        self._commits = {self._commit, *(each[:12] for each in since)}
        self._untouched = untouched
        self._published = published
        self.results: list[Result] = []
        self.read()

    def path(self, commit: str) -> Path:
        return self._folder / f"{commit[:12]}-{self._seed}.jsonl"

    def read(self) -> None:
        paths = [self.path(each) for each in sorted(self._commits)]
        paths += [self._published] if self._published else []
        found: dict[str, Result] = {}
        for path in paths:
            lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
            # The last line may have been cut by the end of the process that wrote it.
            found |= {_line(each): each for line in lines if (each := _result(line))}
        self.results = [
            each
            for each in found.values()
            if each.seed == self._seed
            and (each.commit in self._commits or each.row in self._untouched)
        ]

    def add(self, result: Result) -> None:
        result = replace(result, seed=self._seed, commit=self._commit, machine=_machine())
        self.results.append(result)
        path = self.path(self._commit)
        path.parent.mkdir(parents=True, exist_ok=True)
        # One write, so that lines of two processes do not mix; the first end of line ends what a
        # process that was killed left.
        with path.open("a", encoding="utf-8") as stream:
            stream.write(f"\n{_line(result)}\n")

    def missing(self, row: Row) -> list[int]:
        """The numbers of the rounds that have not been made, or that failed, of a row."""
        done = {each.number for each in self.results if each.row == row.name and not each.error}
        return [number for number in range(row.campaign) if number not in done]


def _line(result: Result) -> str:
    return json.dumps(asdict(result))


def _result(line: str) -> Result | None:
    try:
        return Result(**json.loads(line))
    except (TypeError, ValueError):
        return None


def _machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3
    return f"{os.cpu_count()} processors, {memory:.0f} GiB, Linux {platform.release()}"


def chance(seed: int, row: Row, number: int) -> Random:
    """The source of chance of a round: the same for the same seed, row and number."""
    return Random(f"{seed} {row.name} {number}")


def document(results: Iterable[Result], *, facts: Mapping[str, str]) -> str:
    """docs/CAMPAIGN.md: what was run, on what, and what each row's rounds found."""
    listed = list(results)
    not_whole: list[str] = []
    lines = ["# Campaign", "", "What must not happen to a fleet, tried with full counts on booted"]
    lines += [
        "VMs (`make campaign`, `tests/vm/rows.py`). This file is written by that program.",
        "",
    ]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    lines += [
        "",
        "| row | commit | rounds | failed | seconds per round | measured: least, median, most |",
    ]
    lines += ["| --- | --- | --- | --- | --- | --- |"]
    failures: list[str] = []
    for shape in SHAPES:
        for row in shape.rows:
            mine = [each for each in listed if each.row == row.name]
            good = {each.number: each for each in mine if not each.error}
            bad = [each for each in mine if each.error]
            where = f"{sum(shape.wanted.values())} agents, {shape.driver}"
            took = _spread([each.seconds for each in good.values()])
            measured = _measured([each.measured for each in good.values()])
            title = f"{row.what}: {row.name} ({where})"
            done = f"{len(good)} of {row.campaign}"
            not_whole += [row.name] if len(good) < row.campaign else []
            commits = dict.fromkeys(each.commit[:7] for each in good.values())
            at = ", ".join(f"`{commit}`" for commit in commits) or "-"
            lines.append(f"| {title} | {at} | {done} | {len(bad)} | {took} | {measured} |")
            failures += [
                f"- {row.name}, round {each.number} at `{each.commit[:7]}`: {each.error}"
                for each in bad
            ]
    if not_whole:
        lines += ["", f"**Not whole yet**: {', '.join(not_whole)}."]
    if failures:
        lines += [
            "",
            "## Failed",
            "",
            "Rounds that failed, whether or not they were made again:",
            "",
        ]
        lines += failures
    lines += ["", "## Rounds", "", "All of them; a later call on any machine reads them here.", ""]
    lines += ["```json", *map(_line, listed), "```"]
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:g}"
    least, most = min(values), max(values)
    return f"{least:g}, {statistics.median(values):g}, {most:g}"


def _measured(found: Sequence[Mapping[str, Any]]) -> str:
    names = dict.fromkeys(name for each in found for name in each)
    told = []
    for name in names:
        values = [each[name] for each in found if name in each]
        if all(isinstance(value, int | float) for value in values):
            told.append(f"{name} {_spread(values)}")
        else:
            told.append(f"{name} {' / '.join(dict.fromkeys(map(str, values)))}")
    return "; ".join(told).replace("|", "\\|") or "-"


class NoFleetError(Exception):
    """The fleet did not come up."""


# Not of class Exception: a row that waits for a VM catches many of those.
class OutOfTimeError(BaseException):
    """The minutes are over; the next call makes the missing rounds."""


class HangsError(BaseException):
    """This takes longer than _ROUND_MINUTES."""

    def __str__(self) -> str:
        return f"takes longer than {_ROUND_MINUTES:g} minutes"


def _run(shape: Shape, kept: Kept, *, seed: int, only: set[str], until: float) -> None:
    """Make the rounds that are missing on one shape of fleet. A fleet whose round failed may be
    in any state: the next round gets a new one."""
    todo = [
        (row, number)
        for row in shape.rows
        if not only or row.name in only
        for number in kept.missing(row)
    ]
    while todo:
        if time.monotonic() > until:
            raise OutOfTimeError
        with ExitStack() as around:
            around.callback(_listen, signal.default_int_handler)
            folder = around.enter_context(tempfile.TemporaryDirectory(prefix="campaign-"))
            if shape.tasks:
                around.enter_context(_tasks_limited())
            fleet = Fleet(
                Path(folder),
                pulumi_environment(),
                driver=shape.driver,
                patience=shape.patience,
                machine=shape.machine,
            )
            fleet.rendezvous_zone = shape.rendezvous_zone
            try:
                try:
                    with _bounded(fleet, until):
                        fleet.carry_out(shape.wanted)
                except (AssertionError, HangsError) as problem:
                    raise NoFleetError(f"no fleet to try anything on: {problem}") from None
                while todo:
                    result = _round(fleet, *todo.pop(0), seed=seed, until=until)
                    kept.add(result)
                    if result.error:
                        break
            finally:
                _end(fleet, drain=shape.driver == "container")


def _end(fleet: Fleet, *, drain: bool) -> None:
    """End a fleet, even when interrupted."""
    try:
        if drain:
            _drain(fleet)
    except Exception as problem:  # noqa: BLE001 - the fleet has to end after any error
        _say(f"ended without a drain: {str(problem)[:200]}")
    finally:
        _listen(signal.SIG_IGN)
        left = fleet.end()
        if left:
            _say(f"left on this machine: {', '.join(sorted(left))}")


def _drain(fleet: Fleet) -> None:
    """Stop a fleet's agents at their window's pace: Linux 6.18 can hang where thousands of
    processes with filters end at once (docs/GOTCHAS.md)."""
    end = time.monotonic() + _DRAIN_S
    for each in fleet.wanted:
        fleet.order(each, hold=True)
    for each in fleet.wanted:
        fleet.patience = max(1.0, end - time.monotonic())
        fleet.until_status(each, lambda told: told["phase"] == "held", "held")


def _listen(handler: Any) -> None:
    """Set the handler of SIGINT and SIGTERM."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


@contextmanager
def _tasks_limited() -> Iterator[None]:
    """Have the pids controller where containers get it: in version 2 of cgroups. A machine that
    has it in version 1 gives it up for so long, if nothing there uses it."""
    found = hierarchies(Path("/proc/mounts").read_text())
    if found.unified is None or not found.legacy:
        raise NoFleetError("containers are handed the pids controller beside version 1 only")
    if found.limits_tasks:
        yield
        return
    where = found.legacy.get("pids")
    if where is None:
        raise NoFleetError("no pids controller on this machine: nothing limits a container's tasks")
    if any(each.is_dir() for each in where.iterdir()):
        raise NoFleetError(f"{where} is in use: nothing limits a container's tasks here")
    done = subprocess.run(["umount", str(where)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoFleetError(f"nothing limits a container's tasks here: {done.stderr.strip()}")
    try:
        if not wait_until(lambda: found.limits_tasks, _MOVES):
            raise NoFleetError(f"{where} is mounted elsewhere too: the kernel keeps pids there")
        yield
    finally:

        def given_back() -> bool:
            """The last cgroup of a container may still be on its way out."""
            assert found.unified is not None
            with suppress(OSError):
                (found.unified / "cgroup.subtree_control").write_text("-pids")
            return subprocess.run(back, check=False, capture_output=True).returncode == 0

        back = ["mount", "-t", "cgroup", "-o", "pids", "cgroup", str(where)]
        if not wait_until(given_back, _MOVES, 0.5):
            _say(f"left on this machine: pids is not mounted at {where}; `{shlex.join(back)}`")


def _round(fleet: Fleet, row: Row, number: int, *, seed: int, until: float) -> Result:
    """The result of a round. OutOfTimeError at `until`, even if the row's cleanup fails."""
    _say(f"{row.name}, round {number + 1} of {row.campaign}")
    start = time.monotonic()
    measured, error = {}, ""
    try:
        with _bounded(fleet, until):
            measured = dict(row.round(fleet, "swarm-1", chance(seed, row, number)))
    except (Exception, HangsError) as problem:  # noqa: BLE001 - any error is the round's result
        lines = str(problem).splitlines() or [type(problem).__name__]
        error = lines[0][:500]
        KEPT.mkdir(parents=True, exist_ok=True)
        log = KEPT / f"{row.name}-{number}-{int(time.time())}.log"
        log.write_text(f"{traceback.format_exc()}\n{fleet.last_lines()}\n", encoding="utf-8")
        _say(f"FAILED: {error}\n  all of it: {log}")
    seconds = round(time.monotonic() - start, 1)
    _say(f"  {seconds} s {json.dumps(measured)}")
    return Result(row=row.name, number=number, seconds=seconds, measured=measured, error=error)


@contextmanager
def _bounded(fleet: Fleet, until: float) -> Iterator[None]:
    """OutOfTimeError at `until`, HangsError after _ROUND_MINUTES; later waits for the fleet are
    short."""
    left, most = until - time.monotonic(), _ROUND_MINUTES * 60
    if left <= 0:
        raise OutOfTimeError
    reason = OutOfTimeError if left <= most else HangsError
    over = False

    def end(*_: object) -> None:
        nonlocal over
        over, fleet.patience = True, _LAST_S
        raise reason

    signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, min(left, most))
    try:
        yield
    except Exception:
        # The row's cleanup can fail too, and would hide the reason.
        if over:
            raise reason from None
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _facts(seed: int, kept: Kept, changed: str) -> dict[str, str]:
    hours = sum(each.seconds for each in kept.results) / 3600
    at = f"`{_git('rev-parse', 'HEAD')}`" + (", with changes" if changed else "")
    return {
        "written": f"{datetime.now(UTC):%Y-%m-%d %H:%M UTC}, at {at}; each row's below",
        "machine": " / ".join(dict.fromkeys(each.machine for each in kept.results)),
        "seed": str(seed),
        "rounds": f"{len(kept.results)}, {hours:.1f} hours without boots",
    }


def _say(line: str) -> None:
    print(f"{datetime.now(UTC):%H:%M:%S} {line}", flush=True)


def main(arguments: Sequence[str]) -> int:
    """0: every round of every row was made and found nothing. 1: not all, or one failed."""
    parser = argparse.ArgumentParser(prog="campaign", description=__doc__)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--minutes", type=float, default=MINUTES, help="at most, in this call")
    parser.add_argument(
        "--driver", choices=["container", "qemu"], help="only its rows, no document"
    )
    parser.add_argument(
        "--since",
        action="append",
        default=[],
        metavar="COMMIT",
        help="what was found at this commit stands as well; may be repeated",
    )
    parser.add_argument("--row", action="append", default=[], help="only this row; may be repeated")
    options = parser.parse_args(arguments)
    names = [row.name for shape in SHAPES for row in shape.rows]
    if unknown := set(options.row) - set(names):
        parser.error(f"no such row: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    if why := no_containers():
        sys.stderr.write(f"campaign: {why}\n")
        return 1
    # The document is its own product.
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs/CAMPAIGN.md")
    commit = _git("rev-parse", "HEAD")
    try:
        since = [_git("rev-parse", "--verify", f"{each}^{{commit}}") for each in options.since]
    except subprocess.CalledProcessError as error:
        parser.error(f"--since: {error.stderr.strip()}")
    kept = Kept(
        KEPT,
        seed=options.seed,
        commit=commit,
        since=since,
        untouched=set(names) - set(options.row) if options.row else (),
        published=DOCUMENT,
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    until = time.monotonic() + options.minutes * 60
    drivers = [options.driver] if options.driver else ["container", "qemu"]
    for driver in drivers:
        ensure_packages(driver)
    ensure_image(default_cache())
    if options.driver:
        return _alone(options.driver, kept, seed=options.seed, only=set(options.row), until=until)
    if not _each(drivers, arguments, until=until):
        _say("cut short; call it again for what is missing")
    kept.read()
    if kept.results:
        DOCUMENT.write_text(
            document(kept.results, facts=_facts(options.seed, kept, changed)), encoding="utf-8"
        )
        _say(f"written: {DOCUMENT.relative_to(ROOT)}")
    rows = [row for shape in SHAPES for row in shape.rows]
    missing = [row.name for row in rows if kept.missing(row)]
    if missing:
        _say(f"not whole: {', '.join(missing)}; a second call makes what is missing")
    return 1 if missing else 0


def _alone(driver: str, kept: Kept, *, seed: int, only: set[str], until: float) -> int:
    """The rows of one driver: 1 where there is no fleet to try them on, 130 when interrupted."""
    try:
        for shape in SHAPES:
            if shape.driver == driver:
                _run(shape, kept, seed=seed, only=only, until=until - _END_S)
    except OutOfTimeError:
        _say(f"{driver}: out of time")
    except NoFleetError as problem:
        _say(f"{driver}: {problem}")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _each(drivers: Sequence[str], arguments: Sequence[str], *, until: float) -> bool:
    """Run this program once for each driver and wait for all; False: interrupted, or one broke."""
    together = (os.cpu_count() or 1) >= ENOUGH_PROCESSORS
    whole = True
    for group in [drivers] if together else [[driver] for driver in drivers]:
        left = max(0.0, until - time.monotonic()) / 60
        line = [sys.executable, "-m", "tests.vm.campaign", *arguments, f"--minutes={left}"]
        # Sessions of their own: a Ctrl-C reaches them once, from here, not twice.
        running = [
            subprocess.Popen([*line, "--driver", driver], cwd=ROOT, start_new_session=True)
            for driver in group
        ]
        try:
            codes = [process.wait() for process in running]
            whole &= codes == [0] * len(codes)
        except KeyboardInterrupt:
            for process in running:
                process.send_signal(signal.SIGTERM)
            for process in running:
                # It ends its fleet first.
                processes.end(process, seconds=300)
            return False
    return whole


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
