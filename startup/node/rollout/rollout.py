"""Rolls out a release: `batch` agents at a time, each batch watched, back on trouble.

`advance` is pure: the state and what is seen in, the next state and lines for the log out. The
state survives a reboot, so a rejected release stays rejected; a watch begins anew. `releases` says
which port gets which release. The rendezvous is a roll of one port.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..desired.orders import GO, REJECT, ReleaseVerdict
from ..desired.spec import Roll
from .roll_state import (
    HALTED,
    NONE,
    ON_TRIAL,
    ROLLING,
    WAITING,
    WATCHING,
    BatchWatch,
    Rejected,
    Release,
    RollState,
)

# One agent in fifty, and at least one, may fail once (the registry, the kernel). One in fifty may
# fail again and again: it is ill with any release. More is the release's fault.
_TOLERATED = 50
# Failures in a row that are "again and again".
_AGAIN = 2
# Seconds that failed agents get to come up where the registry may be the reason: all of them failed
# with one of these words. Any longer, and a bad release keeps them down.
_GRACE = 60.0
_REGISTRY = ("registry", "no socket", "dial")
# Growth of private memory, mean of a batch, in bytes per minute, from which on a release is
# rejected. An idle daemon has 1.5 to 1.9 MB in all (docs/FACTS.md), and the release that must be
# caught grows by 5 MB per minute.
_GROWTH = 3 << 20
# Growth in bytes that is always allowed, as in a short time.
_GROWTH_FLOOR = 1 << 20
# Seconds that a roll waits for agents that are starting or stopping.
_PATIENCE = 600.0
# Seconds of a watch before growth is judged; less where the watch is shorter.
_GROWTH_SECONDS = 20.0
# Agents whose memory is measured: the kernel walks all pages of each.
_MEASURED = 32
# Rejected releases, and used verdicts, that are remembered.
_KEPT = 10
# A kernel's line with this word is about our programs: it is in their names and their slice's.
_PROGRAM = "pilot"


@dataclass(frozen=True, kw_only=True)
class RollObserved:
    """The agents as they are now, and what the spec and the orders want."""

    now: float
    """Seconds of a monotonic clock."""
    time: float
    """Seconds since the epoch."""
    target: Release
    """The spec's release."""
    settings: Roll
    verdict: ReleaseVerdict | None = None
    there: frozenset[str] = frozenset()
    """The binaries (sha256) that are verified on disk."""
    lost: Mapping[str, str] = field(default_factory=dict)
    """The binaries that the bucket does not have, and why."""
    held: bool = False
    ports: Sequence[int] = ()
    """The wanted ports in order, none while the VM is held."""
    on: Mapping[int, str] = field(default_factory=dict)
    """The release that each running port was started with."""
    ready: frozenset[int] = frozenset()
    up_since: Mapping[int, float] = field(default_factory=dict)
    """Seconds of the clock."""
    failures: Mapping[int, int] = field(default_factory=dict)
    """In a row, of each port that failed."""
    why: Mapping[int, str] = field(default_factory=dict)
    calm: bool = True
    """Nothing starts or stops, and no start waits for the registry."""
    private: float | None = None
    """Mean private bytes of the ports of `measured`, None where unknown."""
    kernel: Sequence[str] = ()
    """The kernel's lines since the last time."""
    epoch: str = ""
    """Names everything else that agents are started with. Another epoch restarts all of them."""


def releases(state: RollState, ports: Sequence[int]) -> dict[int, Release]:
    """The release of each of `ports` (in order); none before one is accepted."""
    if state.accepted is None:
        return {}
    found = dict.fromkeys(ports, state.accepted)
    if state.target and state.state in ON_TRIAL:
        found |= dict.fromkeys(ports[: state.done], state.target)
    return found


def kept(state: RollState) -> frozenset[str]:
    """The binaries that must stay on disk, by sha256."""
    return frozenset(r.sha256 for r in (state.accepted, state.previous, state.target) if r)


def measured(state: RollState, ports: Sequence[int]) -> list[int]:
    """The ports whose memory should be measured now: a sample of the watched ones."""
    if state.state != WATCHING:
        return []
    tried = ports[: state.done]
    return list(tried[:: max(1, len(tried) // _MEASURED)])[:_MEASURED]


def advance(state: RollState, seen: RollObserved) -> tuple[RollState, tuple[str, ...]]:
    """The next state, and lines for the log."""
    said: list[str] = []
    state = _set_target(state, seen, said)
    if state.state == WAITING:
        state = _begin(state, seen, said)
    elif state.state in ON_TRIAL and seen.held:
        # The agents were stopped by order, so nothing that was seen of them counts.
        state = replace(state, state=ROLLING, watch=None)
    elif state.state in ON_TRIAL:
        state = _judge(state, seen, said)
    return state, tuple(said)


def _set_target(state: RollState, seen: RollObserved, said: list[str]) -> RollState:
    """The state by what the spec wants, what was rejected, and what is ordered."""
    target, accepted = seen.target, state.accepted
    if accepted is None and (most := _run_by_most(seen)) and most != target.sha256:
        # The state was lost. The running release works; the spec's may have been rejected.
        accepted = Release(version=most[:12], sha256=most)
        said.append(f"release {accepted}: accepted, for most agents run it")
        state = replace(_without_roll(state), accepted=accepted)
    if accepted is None:
        said.append(f"release {target}: the first on this VM, accepted")
        return replace(_without_roll(state), accepted=target, target=target)
    if target.sha256 == accepted.sha256:
        if state.state in ON_TRIAL:
            said.append(f"roll: ended, the spec is back at {accepted}")
        return replace(_without_roll(state), accepted=target, target=target)
    if state.target is None or state.target.sha256 != target.sha256:
        # Another target: the roll of the one before is over.
        state = waiting(state, target)
    verdict = seen.verdict if seen.verdict and seen.verdict.sha256 == target.sha256 else None
    rejected = next((r for r in state.rejected if r.sha256 == target.sha256), None)
    if verdict and verdict.verdict == REJECT and not rejected:
        return _reject(state, seen, "rejected by order", said)
    if not rejected:
        return replace(state, state=WAITING) if state.state in (NONE, HALTED) else state
    if verdict and verdict.verdict == GO and _key(verdict) not in state.spent:
        said.append(f"roll: {target} was rejected ({rejected.reason}) and is tried again by order")
        return replace(
            _without_roll(state),
            target=target,
            state=WAITING,
            rejected=tuple(r for r in state.rejected if r is not rejected),
        )
    return replace(_without_roll(state), target=target, state=HALTED, reason=rejected.reason)


def _run_by_most(seen: RollObserved) -> str:
    """The release (sha256) that most agents run, "" where none is known."""
    known = Counter(sha256 for sha256 in seen.on.values() if sha256)
    return known.most_common(1)[0][0] if known else ""


def _without_roll(state: RollState) -> RollState:
    """`state` without a roll."""
    return replace(
        state,
        state=NONE,
        done=0,
        reason="",
        watch=None,
    )


def waiting(state: RollState, target: Release | None) -> RollState:
    """`state` with nothing on trial, and `target` to come."""
    return replace(_without_roll(state), target=target, state=WAITING)


def tries_more(old: RollState | None, new: RollState) -> bool:
    """Whether with `new` more agents have a release on trial than with `old`."""
    if new.state not in ON_TRIAL:
        return False
    if old is None or old.state not in ON_TRIAL or old.target != new.target:
        return True
    return new.done > old.done


def _begin(state: RollState, seen: RollObserved, said: list[str]) -> RollState:
    """Begin a waiting roll, or say what it waits for."""
    target, accepted, verdict = seen.target, state.accepted, seen.verdict
    if accepted and _is_lost(accepted, seen):
        # Otherwise nothing could ever be started again.
        why = seen.lost[accepted.sha256]
        said.append(f"release {accepted} cannot be fetched ({why}): {target} is accepted instead")
        return _accept(state, seen)
    spent = state.spent
    if not seen.settings.auto:
        go = verdict and verdict.sha256 == target.sha256 and verdict.verdict == GO
        if not go or verdict is None or _key(verdict) in spent:
            return replace(state, reason="waits for an order: roll.auto is false")
        spent = (*spent, _key(verdict))[-_KEPT:]
    reason = ""
    if target.sha256 not in seen.there:
        reason = seen.lost.get(target.sha256) or "its binary is being fetched"
    elif seen.held:
        reason = "waits until this VM is no longer held"
    elif seen.ports and not seen.calm:
        watch = state.watch or BatchWatch(since=seen.now)
        state = replace(state, watch=watch)
        unready = sum(port not in seen.ready for port in seen.ports)
        waited = watch.since is not None and seen.now - watch.since >= _PATIENCE
        # Where most are down, the registry is the reason, and would be held against the release.
        if not waited or unready * 2 >= len(seen.ports):
            reason = "waits until no agent is on its way"
    if reason:
        return replace(state, reason=reason)
    said.append(f"roll: {accepted} -> {target}, {len(seen.ports)} agents")
    state = replace(state, spent=spent)
    return _batch(state, seen, said) if seen.ports else _accept(state, seen)


def _is_lost(accepted: Release, seen: RollObserved) -> bool:
    """Whether the accepted release is not in the bucket, nothing runs, and the target is here."""
    gone = accepted.sha256 in seen.lost and not seen.on
    return gone and seen.target.sha256 in seen.there


def _batch(state: RollState, seen: RollObserved, said: list[str]) -> RollState:
    """The next batch gets the release."""
    done = min(state.done + seen.settings.batch, len(seen.ports))
    said.append(f"roll: {done} of {len(seen.ports)} agents get {seen.target}")
    return replace(
        state,
        state=ROLLING,
        done=done,
        reason="",
        watch=_new_watch(seen, seen.ports[:done]),
    )


def _judge(state: RollState, seen: RollObserved, said: list[str]) -> RollState:
    """A batch that starts or is watched: rejected, followed by the next one, or the last."""
    if not seen.ports:
        return _accept(state, seen)
    state = replace(state, done=min(state.done, len(seen.ports)))
    tried = seen.ports[: state.done]
    known = state.watch if state.watch and state.watch.epoch == seen.epoch else None
    watch = _observed(known or _new_watch(seen, tried), seen, tried)
    if trouble := _trouble(watch, seen, tried):
        return _reject(state, seen, trouble, said)
    down = [port for port in tried if port not in watch.up]
    # A few that fail again and again are not waited for.
    whole = len(down) <= len(tried) // _TOLERATED and all(
        seen.failures.get(port, 0) >= _AGAIN for port in down
    )
    if watch.since is None:
        if not whole:
            return replace(state, state=ROLLING, watch=watch)
        said.append(f"roll: {len(tried)} agents are ready, watched for {_seconds(seen)}")
        watch = replace(watch, since=seen.now)
    state = replace(state, state=WATCHING, watch=watch)
    watched = watch.since is not None and seen.now - watch.since >= seen.settings.watch_seconds
    if not watched or not whole:
        # An agent that is down comes up again, or is trouble.
        return state
    if state.done < len(seen.ports):
        return _batch(state, seen, said)
    said.append(f"roll: {seen.target} is accepted, all {len(tried)} agents have it")
    return _accept(state, seen)


def _new_watch(seen: RollObserved, tried: Sequence[int]) -> BatchWatch:
    """A new watch: of a batch, of a new pilot-node, or because all agents are started anew."""
    before = {port: seen.failures.get(port, 0) for port in tried}
    return BatchWatch(epoch=seen.epoch, before=before)


def _observed(watch: BatchWatch, seen: RollObserved, tried: Sequence[int]) -> BatchWatch:
    """`watch`, brought up to date by `seen`."""
    up, died = dict(watch.up), set(watch.died)
    for port in tried:
        since = seen.up_since.get(port) if port in seen.ready else None
        fresh = since is not None and seen.on.get(port) == seen.target.sha256
        if port in up and since != up[port]:
            died.add(port)
            del up[port]
        if fresh and since is not None and port not in up:
            up[port] = since
    down = any(port not in seen.ready for port in died.union(_failing(watch, seen, tried)))
    # While no agent of the accepted release is up either, the target is not to blame: the fleet
    # was switched on together with its registry.
    others = seen.ports[len(tried) :]
    down = down and (not others or not seen.ready.isdisjoint(others))
    since_down = watch.down_since if watch.down_since is not None else seen.now
    memory = watch.memory
    if memory is None and seen.private is not None and watch.since is not None:
        memory = (seen.private, seen.now)
    lines = tuple(line for line in seen.kernel if _PROGRAM in line)
    return replace(
        watch,
        up=up,
        ever_up=watch.ever_up or bool(up),
        down_since=since_down if down else None,
        died=frozenset(died),
        memory=memory,
        kernel=(*watch.kernel, *lines)[-_KEPT:],
    )


def _trouble(watch: BatchWatch, seen: RollObserved, tried: Sequence[int]) -> str:
    """The reason to reject the release, "" where there is none."""
    failing = _failing(watch, seen, tried)
    hurt = sorted(failing.keys() | watch.died.intersection(tried))
    if hurt:
        again = [port for port, count in failing.items() if count >= _AGAIN]
        tolerated = len(tried) // _TOLERATED
        many = len(hurt) > max(1, tolerated)
        patient = all(any(w in seen.why.get(port, "") for w in _REGISTRY) for port in hurt)
        waited = watch.down_since is not None and seen.now - watch.down_since >= _GRACE
        certain = (many and (waited or not patient)) or (waited and not watch.ever_up)
        if len(again) > tolerated or watch.kernel or certain:
            port = min(again, default=hurt[0])
            why = seen.why.get(port) or "died"
            text = f"{len(hurt)} of {len(tried)} agents failed, as agent {port}: {why}"
            return text + (f"; kernel: {watch.kernel[-1]}" if watch.kernel else "")
    if watch.memory and watch.since is not None and seen.private is not None:
        grown, seconds = seen.private - watch.memory[0], seen.now - watch.memory[1]
        over = seen.now - watch.since >= min(_GROWTH_SECONDS, seen.settings.watch_seconds)
        if over and grown > max(_GROWTH_FLOOR, _GROWTH * seconds / 60):
            return (
                f"grows: {grown / (1 << 20):.1f} MiB per agent in {seconds:.0f} s, "
                f"more than {_GROWTH >> 20} MiB per minute"
            )
    return ""


def _failing(watch: BatchWatch, seen: RollObserved, tried: Sequence[int]) -> dict[int, int]:
    """Failures in a row since the batch began, of ports that have some. Fewer than before means
    that the count began anew."""
    found = {}
    for port in tried:
        now, before = seen.failures.get(port, 0), watch.before.get(port, 0)
        if more := now - before if now >= before else now:
            found[port] = more
    return found


def _reject(state: RollState, seen: RollObserved, reason: str, said: list[str]) -> RollState:
    target = seen.target
    said.append(f"roll: {target} is rejected: {reason}")
    if state.done:
        said.append(f"roll: {state.done} agents go back to {state.accepted}")
    new = Rejected(
        version=target.version, sha256=target.sha256, reason=reason[:500], time=seen.time
    )
    others = (r for r in state.rejected if r.sha256 != target.sha256)
    spent = state.spent
    verdict = seen.verdict
    if verdict and verdict.sha256 == target.sha256 and verdict.verdict == GO:
        # The order stays in force, but must not try the release again and again.
        spent = (*(each for each in spent if each != _key(verdict)), _key(verdict))
    return replace(
        _without_roll(state),
        target=target,
        state=HALTED,
        reason=new.reason,
        rejected=(*others, new)[-_KEPT:],
        spent=spent[-_KEPT:],
    )


def _accept(state: RollState, seen: RollObserved) -> RollState:
    return replace(
        _without_roll(state), accepted=seen.target, previous=state.accepted, target=seen.target
    )


def _key(verdict: ReleaseVerdict) -> str:
    return f"{verdict.sha256}/{verdict.id}"


def _seconds(seen: RollObserved) -> str:
    return f"{seen.settings.watch_seconds} s"
