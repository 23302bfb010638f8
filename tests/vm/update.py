"""From one commit of this program to another, looked at every second.

`Looks` has each VM of a fleet write down once a second what runs on it; `problems` is pure: what of
those looks must not be.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.components.fleet import ROOT
from tests.conftest import measured
from tests.vm.fleet import RENDEZVOUS, Fleet, said

# A line of a commit's message: how many agents of the test's fleet it restarts.
TRAILERS = ("Restarts-agents", "Restarts-rendezvous")
_LOOKS = "/run/looks.jsonl"
# After the last VM has the script: longer than until it has asked for its orders.
_LOOKS_AFTER = 12
NO_COMMIT = "no commit to come from: a clone without history, or startup/ is that of origin/main"
# Runs on a VM until it goes down. A daemon that is starting has no socket: pilot-node unlinks a
# stale one before.
_LOOKER = r"""
import contextlib, json, os, re, subprocess, sys, time, urllib.request
from pathlib import Path

RUN = Path("/run/pilot")


def read(path):
    try:
        return json.loads(Path(path).read_bytes())
    except (OSError, ValueError):
        return {}


def processes():
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            name = Path("/proc", pid, "comm").read_text().strip()
            words = Path("/proc", pid, "cmdline").read_bytes().split(b"\0")
            started = Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[19]
            groups = Path("/proc", pid, "cgroup").read_text()
        except OSError:
            continue
        yield name, int(pid), words, started, groups


def look():
    # Also of those that have ended since.
    links = {}
    for link in (RUN / "variant").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            links[link.name] = os.path.basename(os.readlink(link))
    variants = {v: read(RUN / "variants" / v / "variant.json") for v in set(links.values())}
    agents, units, rendezvous, registry = [], set(), [], None
    for name, pid, words, started, groups in processes():
        if name == "pilot-daemon" and b"-listen" in words[:-1]:
            port = words[words.index(b"-listen") + 1].decode().lstrip(":")
            ready = Path(words[words.index(b"-socket") + 1].decode()).exists()
            agents.append([int(port), f"{pid}/{started}", links.get(port, ""), ready])
            units.update(re.findall(r"/([^/@]+)@[0-9]+\.service$", groups, re.MULTILINE))
    if sys.argv[1] == "rendezvous":
        show = ["systemctl", "show", "-P", "MainPID,ExecMainStartTimestampMonotonic"]
        told = subprocess.check_output([*show, "pilot-rendezvous.service"], text=True)
        pid, *started = told.split()
        rendezvous = [] if pid == "0" else ["/".join([pid, *started])]
        try:
            with urllib.request.urlopen("http://127.0.0.1:3000/agents", timeout=2) as answer:
                registry = {each["owner"]: each["node_id"] for each in json.load(answer)}
        except (OSError, ValueError):
            pass
    return {
        "time": time.time(),
        "agents": agents,
        "units": sorted(units),
        "variants": variants,
        "rendezvous": rendezvous,
        "registry": registry,
        "run": read(RUN / "rendezvous-run.json"),
        "status": read(RUN / "status.json"),
    }


with open("/run/looks.jsonl", "a", buffering=1) as out:
    while True:
        out.write(json.dumps(look()) + "\n")
        time.sleep(1)
"""


class NoCommitError(Exception):
    """There is no commit to start from. The text says why."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """How many agents, and whether the rendezvous, a commit says that it restarts."""

    agents: int = 0
    rendezvous: int = 0


@dataclass(frozen=True, kw_only=True)
class Look:
    """A VM at one second. `agents`: (port, process, variant, has its socket); `variants`: what each
    is made of that an agent was last started with; `units`: names of the units that agents run as,
    without `@PORT.service`; `registry`: node IDs by owner, None where
    nobody said; `run`: what the rendezvous was started with; `status`: what the VM said last."""

    vm: str
    time: float
    agents: tuple[tuple[int, str, str, bool], ...]
    variants: Mapping[str, Mapping[str, str]]
    units: tuple[str, ...] = ()
    rendezvous: tuple[str, ...] = ()
    registry: Mapping[str, int] | None = None
    run: Mapping[str, Any]
    status: Mapping[str, Any]

    @classmethod
    def of(cls, vm: str, line: str) -> Look:
        """The look that a VM wrote down."""
        found = json.loads(line)
        found["agents"] = tuple(
            (port, process, variant, ready) for port, process, variant, ready in found["agents"]
        )
        for name in ("units", "rendezvous"):
            found[name] = tuple(found[name])
        return cls(vm=vm, **found)

    @property
    def ready(self) -> set[int]:
        """The ports whose agent has come up."""
        return {port for port, _, _, ready in self.agents if ready}


# The commit to come from


def commit_before() -> str:
    """The commit that an update comes from: PILOT_UPDATE_FROM, or the merge base with origin/main,
    or, where that is this commit, the newest one with another startup/. Raises NoCommitError."""
    if chosen := os.environ.get("PILOT_UPDATE_FROM"):
        return _git("rev-parse", "--verify", f"{chosen}^{{commit}}")
    try:
        head = _git("rev-parse", "HEAD")
    except (OSError, subprocess.CalledProcessError) as error:
        raise NoCommitError(f"no history to take a commit from: {error}") from error
    try:
        base = _git("merge-base", "HEAD", "origin/main")
    except subprocess.CalledProcessError:
        base = head
    if base != head:
        if not _differs(base):
            raise NoCommitError(f"startup/ is that of {base[:12]}, the merge base with origin/main")
        return base
    for commit in _git("rev-list", "--first-parent", "HEAD").splitlines():
        if _differs(commit):
            return commit
    raise NoCommitError("no commit of this clone has another startup/ (a shallow clone?)")


def told_since(commit: str) -> Told:
    """The restarts that the commits since `commit` announce, or PILOT_UPDATE_RESTARTS (agents) and
    PILOT_UPDATE_RESTARTS_RENDEZVOUS. An update restarts an agent once, however many commits do."""
    found = []
    for trailer in TRAILERS:
        form = f"--format=%(trailers:key={trailer},valueonly)"
        said = _git("log", form, f"{commit}..HEAD").split()
        found.append(max(map(int, said), default=0))
    agents, rendezvous = found
    return Told(
        agents=int(os.environ.get("PILOT_UPDATE_RESTARTS", agents)),
        rendezvous=int(os.environ.get("PILOT_UPDATE_RESTARTS_RENDEZVOUS", rendezvous)),
    )


def checked_out(commit: str, folder: Path) -> Path:
    """The tree of `commit` in `folder`, with the environment that its requirements ask for."""
    folder.mkdir(parents=True)
    with subprocess.Popen(["git", "archive", commit], cwd=ROOT, stdout=subprocess.PIPE) as archive:
        subprocess.run(["tar", "-x", "-C", folder], stdin=archive.stdout, check=True)
    assert archive.returncode == 0, f"git archive {commit}"
    same = (folder / "requirements.txt").read_bytes() == (ROOT / "requirements.txt").read_bytes()
    if same:
        (folder / ".venv").symlink_to(ROOT / ".venv")
    else:
        # An earlier commit has it in another place.
        (toolchain,) = folder.glob("**/toolchain/toolchain.py")
        subprocess.run([sys.executable, str(toolchain), "venv"], cwd=folder, check=True)
    return folder


def _differs(commit: str) -> bool:
    """Whether startup/ of `commit` is another than the one here, committed or not."""
    command = ["git", "diff", "--quiet", commit, "--", "startup"]
    return subprocess.run(command, cwd=ROOT, check=False).returncode != 0


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


# Looking


class Looks:
    """The looks of a fleet's VMs, of all or of some, from when this is made."""

    def __init__(self, fleet: Fleet, vms: Sequence[str] = ()) -> None:
        self._fleet = fleet
        self._vms = vms or [*fleet.wanted, RENDEZVOUS]
        self._seen: dict[str, int] = {}
        text = base64.b64encode(_LOOKER.encode()).decode()
        for vm in self._vms:
            role = "rendezvous" if vm == RENDEZVOUS else "swarm"
            # In one login, until it has looked once. Of a boot: its file is in /run.
            told = fleet.run(
                vm,
                f"echo {text} | base64 -d >/run/looker.py; touch {_LOOKS}; seen=$(wc -l <{_LOOKS});"
                " systemctl stop looker 2>/dev/null;"
                f" systemd-run --quiet --collect --unit=looker python3 /run/looker.py {role} &&"
                f" timeout {fleet.patience:.0f} sh -c"
                f" 'until [ $(wc -l <{_LOOKS}) -gt '$seen' ]; do sleep 0.2; done' && echo $seen",
            )
            self._seen[vm] = int(told)

    def counted(self, more: int) -> dict[str, int]:
        """By VM how many looks there are when it has looked so many times more."""
        return {vm: int(self._fleet.run(vm, f"wc -l <{_LOOKS}")) + more for vm in self._vms}

    def until(self, enough: Mapping[str, int]) -> None:
        """Wait until each VM has so many looks."""
        for vm in self._vms:
            there = f"[ $(wc -l <{_LOOKS}) -ge {enough[vm]} ]"
            self._fleet.until_there(vm, there, f"{enough[vm]} looks")

    def taken(self) -> list[Look]:
        """All looks since this was made, in the order of time. It is the end of looking, which
        takes its share of a VM's processors."""
        found = []
        for vm in self._vms:
            told = self._fleet.run(
                vm, f"systemctl stop looker; tail -n +{self._seen[vm] + 1} {_LOOKS}"
            )
            found += [Look.of(vm, line) for line in told.splitlines()]
        return sorted(found, key=lambda look: look.time)


def carried_over(
    fleet: Fleet,
    tree: Path,
    commit: str,
    *,
    window: int,
    looks: Looks | None = None,
    after: Callable[[], None] = lambda: None,
) -> None:
    """`up` of the program in `tree`: nobody notices. `commit`: the one before, whether it is the
    one to come from or to go back to; those since say what they restart. `looks`: those of what was
    done before, which is judged too; `after` is done and looked at when all have the script."""
    looks, told = looks or Looks(fleet), told_since(commit)
    # Commits count in a fleet of 50.
    told = replace(told, agents=min(told.agents, sum(fleet.wanted.values())))
    before = {vm: fleet.processes(vm) for vm in fleet.wanted}

    def restarted() -> int:
        return sum(
            before[vm].get(port) != process
            for vm in fleet.wanted
            for port, process in fleet.processes(vm).items()
        )

    fleet.take(tree)
    fleet.update(fleet.wanted)
    late: list[str] = []
    with said("until all VMs have the new script"):
        for vm in (*fleet.wanted, RENDEZVOUS):
            try:
                has_the_script(fleet, vm)
            except AssertionError as error:
                # The looks so far say why.
                late = [str(error)]
                break
    if told.agents and not late:
        with said(f"until {told.agents} agents have restarted"):
            fleet.until(lambda: restarted() >= told.agents, f"{told.agents} agents restarted")
            for vm in fleet.wanted:
                fleet.whole(vm)
    enough = looks.counted(_LOOKS_AFTER)
    if not late:
        after()
    looks.until(enough)
    taken = looks.taken()
    for each in restarts(taken):
        measured(str(each))
    measured(f"{len(taken)} looks, {len(restarts(taken))} kinds of restarts")
    found = problems(taken, wanted=fleet.wanted, window=window, told=told)
    assert not found + late, "\n".join(found + late)


def has_the_script(fleet: Fleet, vm: str) -> None:
    """Wait until a VM has applied the script that it expects, and all is as declared there."""
    expected = fleet.declared(vm)["script"]["sha256"]

    def failed(told: dict[str, Any]) -> bool:
        # Not the one before it, of which the last status may speak.
        script = told["script"]
        return bool(script["state"] == "failed" and script["expected"] == expected)

    def ended(told: dict[str, Any]) -> bool:
        done = told["node"]["script"] == expected and told["phase"] in ("whole", "serving")
        return done or failed(told)

    told = fleet.until_status(vm, ended, "the new script is applied")
    if failed(told):
        why = fleet.run(vm, "journalctl --unit pilot-script --output cat --lines 12")
        raise AssertionError(f"{vm}: its new script failed:\n{why}")


# Judging the looks


@dataclass(frozen=True, kw_only=True)
class Restart:
    """Agents of a VM, or its rendezvous, that were restarted, and why."""

    vm: str
    what: str
    count: int
    why: str

    def __str__(self) -> str:
        return f"{self.vm}: {self.count} {self.what} restarted: {self.why}"


def restarts(looks: Sequence[Look]) -> list[Restart]:
    """The restarts during `looks`."""
    found: list[Restart] = []
    for vm, mine in _by_vm(looks).items():
        last: dict[int, tuple[str, str, Look]] = {}
        reasons: dict[str, int] = {}
        runs: tuple[tuple[str, ...], Mapping[str, Any]] = ((), {})
        for look in mine:
            for port, process, variant, _ in look.agents:
                before = last.get(port)
                if before is not None and before[0] != process:
                    why = _why(
                        before[2].variants.get(before[1], {}), look.variants.get(variant, {})
                    )
                    reasons[why] = reasons.get(why, 0) + 1
                last[port] = (process, variant, look)
            if look.rendezvous:
                if runs[0] and look.rendezvous != runs[0]:
                    why = _why(runs[1], look.run)
                    found.append(Restart(vm=vm, what="rendezvous", count=1, why=why))
                runs = (look.rendezvous, look.run)
        found += [
            Restart(vm=vm, what="agents", count=count, why=why) for why, count in reasons.items()
        ]
    return found


def problems(
    looks: Sequence[Look], *, wanted: Mapping[str, int], window: int, told: Told
) -> list[str]:
    """Sentences: what `looks` show that must not be. `wanted`: VM -> agents."""
    again = restarts(looks)
    found: list[str] = []
    for what, number in (("agents", told.agents), ("rendezvous", told.rendezvous)):
        count = sum(each.count for each in again if each.what == what)
        if count != number:
            why = "; ".join(str(each) for each in again if each.what == what) or "nothing was"
            found.append(
                f"{number} {what} should be restarted, {count} were ({why}). A commit that means "
                f"to says so in its text: `Restarts-{what}: {count}`"
            )
    for vm, mine in _by_vm(looks).items():
        found += _of_vm(vm, mine, wanted.get(vm, 0), window)
    found += _of_registry([look.registry for look in looks if look.registry is not None])
    return found


def _of_vm(vm: str, looks: Sequence[Look], wanted: int, window: int) -> Iterator[str]:
    ports = set(range(10001, 10001 + wanted))
    names = {unit for look in looks for unit in look.units}
    if new := names - set(looks[0].units):
        old = sorted(set(looks[-1].units) - new)
        if old:
            yield (
                f"{vm}: agents are started as {_units(new)} and others run on as {_units(old)}: a "
                "unit that is renamed leaves those of its old name, on the ports of the new ones"
            )
    first, most = looks[0], max(looks, key=lambda look: len(look.agents))
    if len(most.agents) > wanted:
        twice = sorted(p for p, *_ in most.agents if [q for q, *_ in most.agents].count(p) > 1)
        why = f": ports {', '.join(map(str, sorted(set(twice))))} twice" if twice else ""
        yield f"{vm}: {len(most.agents)} agents ran at once, {wanted} are wanted{why}"
    down = max(looks, key=lambda look: len(ports - look.ready))
    if (lacking := len(ports - down.ready)) > window:
        yield f"{vm}: {lacking} of {wanted} agents were down at once, the window is {window}"
    if gone := sorted(ports - looks[-1].ready):
        yield f"{vm}: {len(gone)} agents did not come up again, the first are {gone[:3]}"
    rejected = _rejected(first)
    started = {about.get("release", "") for look in looks for about in look.variants.values()}
    for sha256 in sorted(rejected & started):
        yield f"{vm}: an agent was started as release {sha256[:12]}, which was rejected before"
    for sha256 in sorted(rejected - _rejected(looks[-1])):
        yield f"{vm}: it was forgotten that release {sha256[:12]} is rejected"
    before, after = (_set_aside(look) for look in (first, looks[-1]))
    if before != after:
        yield f"{vm}: files of the registry that are set aside: {before} before, {after} now"
    failures = (looks[-1].status.get("totals") or {}).get("failures", 0)
    if failures and looks[-1].status.get("node") != first.status.get("node"):
        yield f"{vm}: {failures} starts failed since: {_trouble(looks[-1])}"


def _units(names: Iterable[str]) -> str:
    return ", ".join(f"{name}@.service" for name in sorted(names))


def _of_registry(said: Sequence[Mapping[str, int]]) -> Iterator[str]:
    if not said:
        yield "the registry said nothing in all that time"
        return
    first, owners = said[0], set(said[0])
    changed = {
        owner: node
        for look in said
        for owner, node in look.items()
        if owner in owners and node != first[owner]
    }
    if changed:
        some = dict([*changed.items()][:3])
        yield f"{len(changed)} agents have another node ID than before: {some}"
    if new := sorted({owner for look in said for owner in look} - owners):
        yield f"{len(new)} agents registered anew: {new[:3]}"
    if gone := sorted(owners - set(said[-1])):
        yield f"{len(gone)} agents are not in the registry any more: {gone[:3]}"


def _by_vm(looks: Iterable[Look]) -> dict[str, list[Look]]:
    found: dict[str, list[Look]] = {}
    for look in looks:
        found.setdefault(look.vm, []).append(look)
    return found


def _why(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Which part of the variant has changed."""
    keys = sorted(key for key in {*before, *after} if before.get(key) != after.get(key))
    return (
        f"another {', '.join(keys)}"
        if keys
        else "started with the same: it ended, or its environment changed"
    )


def _rejected(look: Look) -> set[str]:
    return {each["sha256"] for each in (look.status.get("roll") or {}).get("rejected", ())}


def _set_aside(look: Look) -> list[str]:
    return list((look.status.get("registry") or {}).get("set_aside", ()))


def _trouble(look: Look) -> str:
    return "; ".join(
        f"port {each['port']}: {each['why']}" for each in look.status["agents"]["troubled"][:2]
    )
