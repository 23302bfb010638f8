"""The roll of a release: `batch` agents at a time, each batch watched, back on trouble.

`advance` is pure: what is remembered and what is seen in, what to remember and what to say out.
What is remembered outlives a reboot, so that a rejected release stays rejected; only what a watch
has seen so far does not: it begins anew. Which port gets which release follows from it
(`releases`). The rendezvous is a roll of one port.
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

# One agent in fifty may fail once (a registry that hiccups, the kernel), and at least one: an agent
# that fails twice, or more of them, is the release's fault.
_TOLERATED = 50
# A registry that is away fails the starts of any release. So where all that failed say something
# about the registry, or nothing at all, they are given so many seconds to come up. Longer, and
# agents are down for a release that may be the reason.
_GRACE = 60.0
_REGISTRY = ("registry", "no socket", "dial")
# Bytes a minute of private memory, the mean of a batch, that are no warming up: an idle daemon has
# 1.5 to 1.9 MB in all (docs/FACTS.md), and the release that must be caught grows by 5 MB a minute.
# Over less time than it takes to tell, `_GROWTH_FLOOR` bytes.
_GROWTH = 3 << 20
_GROWTH_FLOOR = 1 << 20
# Seconds that a roll waits for agents on their way: one that always is must not hold it up.
_PATIENCE = 600.0
# Seconds of a watch before growth is judged, but at its end.
_GROWTH_SECONDS = 20.0
# Agents whose memory is measured: reading one costs the kernel a walk of its pages.
_MEASURED = 32
# Rejected releases that are remembered, and verdicts that are spent.
_KEPT = 10
# What the kernel's lines about a program of ours hold: its name, or its slice's.
_PROGRAM = "pilot"


@dataclass(frozen=True, kw_only=True)
class RollObserved:
    """What is seen of the agents, and what is wanted.

    `now`: seconds of a monotonic clock, `time` since the epoch. `target`: the spec's release.
    `there`: the binaries (sha256) that are verified on disk; `lost`: those that cannot be had,
    and why. `ports`: the wanted ones in order, none while the VM is held. `on`: the release that
    each running port was started with; `ready`, `up_since` (seconds of the clock) and `failures`
    (in a row) of each; of those that failed, `why`, and with which release last (`failed_on`).
    `calm`: nothing starts or stops, and no start waits for the registry. `private`: mean private
    bytes of the ports that `measured` asked for, None where they cannot be had. `kernel`: its lines
    since the last time. `epoch` names what else than the release the agents are started with: with
    another one, all of them are.
    """

    now: float
    time: float
    target: Release
    settings: Roll
    verdict: ReleaseVerdict | None = None
    there: frozenset[str] = frozenset()
    lost: Mapping[str, str] = field(default_factory=dict)
    held: bool = False
    ports: Sequence[int] = ()
    on: Mapping[int, str] = field(default_factory=dict)
    ready: frozenset[int] = frozenset()
    up_since: Mapping[int, float] = field(default_factory=dict)
    failures: Mapping[int, int] = field(default_factory=dict)
    why: Mapping[int, str] = field(default_factory=dict)
    failed_on: Mapping[int, str] = field(default_factory=dict)
    calm: bool = True
    private: float | None = None
    kernel: Sequence[str] = ()
    epoch: str = ""


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
    """The ports whose memory is to be known now: a sample of those that are watched."""
    if state.state != WATCHING:
        return []
    tried = ports[: state.done]
    return list(tried[:: max(1, len(tried) // _MEASURED)])[:_MEASURED]


def advance(state: RollState, seen: RollObserved) -> tuple[RollState, tuple[str, ...]]:
    """The next state, and what there is to say of how it came to it."""
    said: list[str] = []
    state = _aim(state, seen, said)
    if state.state == WAITING:
        state = _begin(state, seen, said)
    elif state.state in ON_TRIAL and seen.held:
        # They are stopped, and have died of nothing.
        state = replace(state, state=ROLLING, watch=None)
    elif state.state in ON_TRIAL:
        state = _judge(state, seen, said)
    return state, tuple(said)


def _aim(state: RollState, seen: RollObserved, said: list[str]) -> RollState:
    """Where the roll goes: what the spec wants, what was rejected, what is ordered."""
    target, accepted = seen.target, state.accepted
    if accepted is None and (most := _run_by_most(seen)) and most != target.sha256:
        # What was remembered is lost: what runs is known to, the spec's may have been rejected.
        accepted = Release(version=most[:12], sha256=most)
        said.append(f"release {accepted}: accepted, for most agents run it")
        state = replace(_nothing(state), accepted=accepted)
    if accepted is None:
        said.append(f"release {target}: the first on this VM, accepted")
        return replace(_nothing(state), accepted=target, target=target)
    if target.sha256 == accepted.sha256:
        if state.state in ON_TRIAL:
            said.append(f"roll: ended, the spec is back at {accepted}")
        return replace(_nothing(state), accepted=target, target=target)
    if state.target is None or state.target.sha256 != target.sha256:
        # Whatever was on its way is not wanted any more.
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
            _nothing(state),
            target=target,
            state=WAITING,
            rejected=tuple(r for r in state.rejected if r is not rejected),
        )
    return _halted(state, seen, accepted, rejected, said)


def _halted(
    state: RollState, seen: RollObserved, accepted: Release, rejected: Rejected, said: list[str]
) -> RollState:
    """The target was rejected, and stays so unless those it was rejected for fail anyhow."""
    target, verdict, culprits = seen.target, seen.verdict, state.culprits
    if culprits and all(seen.failed_on.get(port) == accepted.sha256 for port in culprits):
        said.append(
            f"roll: {target} is tried again: agent {min(culprits)}, for which it was rejected, "
            f"fails with {accepted} as well"
        )
        # An order to go stands: it was spent on nothing.
        spent = tuple(each for each in state.spent if not verdict or each != _key(verdict))
        return replace(
            _nothing(state),
            target=target,
            state=WAITING,
            culprits=culprits,
            rejected=tuple(r for r in state.rejected if r is not rejected),
            spent=spent,
        )
    if any(port in seen.ready and port not in seen.failures for port in culprits):
        # Well with the accepted one: whatever ails it later is something else.
        culprits = frozenset()
    return replace(
        _nothing(state), target=target, state=HALTED, reason=rejected.reason, culprits=culprits
    )


def _run_by_most(seen: RollObserved) -> str:
    """The release (sha256) that most agents run, "" where none is known."""
    known = Counter(sha256 for sha256 in seen.on.values() if sha256)
    return known.most_common(1)[0][0] if known else ""


def _nothing(state: RollState) -> RollState:
    """`state` without a roll."""
    return replace(
        state,
        state=NONE,
        done=0,
        exempt=frozenset(),
        culprits=frozenset(),
        reason="",
        watch=None,
    )


def waiting(state: RollState, target: Release | None) -> RollState:
    """`state` with nothing on trial, and `target` to come."""
    return replace(_nothing(state), target=target, state=WAITING)


def tries_more(old: RollState | None, new: RollState) -> bool:
    """Whether with `new` more agents have a release on trial than with `old`."""
    if new.state not in ON_TRIAL:
        return False
    if old is None or old.state not in ON_TRIAL or old.target != new.target:
        return True
    return new.done > old.done


def _begin(state: RollState, seen: RollObserved, said: list[str]) -> RollState:
    """A roll that waits: begin it, or say for what it waits."""
    target, accepted, verdict = seen.target, state.accepted, seen.verdict
    if accepted and _is_lost(accepted, seen):
        # Nothing could ever be started again.
        why = seen.lost[accepted.sha256]
        said.append(f"release {accepted} is not to be had ({why}): {target} is accepted instead")
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
        # Where most are down it is the registry, and the release would be blamed for it.
        if not waited or unready * 2 >= len(seen.ports):
            reason = "waits until no agent is on its way"
    if reason:
        return replace(state, reason=reason)
    said.append(f"roll: {accepted} -> {target}, {len(seen.ports)} agents")
    state = replace(state, spent=spent)
    return _batch(state, seen, said) if seen.ports else _accept(state, seen)


def _is_lost(accepted: Release, seen: RollObserved) -> bool:
    """Neither on this VM, nor in the bucket, and nothing runs; and there is something else."""
    gone = accepted.sha256 in seen.lost and not seen.on
    return gone and seen.target.sha256 in seen.there


def _batch(state: RollState, seen: RollObserved, said: list[str]) -> RollState:
    """The next batch gets the release."""
    done = min(state.done + seen.settings.batch, len(seen.ports))
    tried = seen.ports[:done]
    suspect = {*tried[state.done :], *state.exempt, *seen.failures}
    ill = frozenset(port for port in tried if port in suspect and port not in seen.ready)
    ill |= state.culprits.intersection(tried)
    said.append(f"roll: {done} of {len(seen.ports)} agents get {seen.target}")
    return replace(
        state,
        state=ROLLING,
        done=done,
        # Where most are ill there is nobody else to ask.
        exempt=ill if len(ill) * 2 < len(tried) else frozenset(),
        reason="",
        watch=_anew(seen, tried),
    )


def _judge(state: RollState, seen: RollObserved, said: list[str]) -> RollState:
    """A batch that is on its way or watched: trouble, the next one, or the end."""
    if not seen.ports:
        return _accept(state, seen)
    state = replace(state, done=min(state.done, len(seen.ports)))
    tried = seen.ports[: state.done]
    known = state.watch if state.watch and state.watch.epoch == seen.epoch else None
    watch = _observed(known or _anew(seen, tried), seen, tried)
    trouble = _trouble(watch, seen, [port for port in tried if port not in state.exempt])
    if trouble:
        return _reject(state, seen, trouble.why, said, trouble.culprits)
    whole = all(port in watch.up or port in state.exempt for port in tried)
    if watch.since is None:
        if not whole:
            return replace(state, state=ROLLING, watch=watch)
        said.append(f"roll: {len(tried)} agents are ready, watched for {_seconds(seen)}")
        watch = replace(watch, since=seen.now)
    state = replace(state, state=WATCHING, watch=watch)
    watched = watch.since is not None and seen.now - watch.since >= seen.settings.watch_seconds
    if not watched or not whole:
        # Whoever is down is up again before this ends, or is trouble.
        return state
    if state.done < len(seen.ports):
        return _batch(state, seen, said)
    said.append(f"roll: {seen.target} is accepted, all {len(tried)} agents have it")
    return _accept(state, seen)


def _anew(seen: RollObserved, tried: Sequence[int]) -> BatchWatch:
    """A watch that begins: with a batch, with a process, or because all is started anew."""
    before = {port: seen.failures.get(port, 0) for port in tried}
    return BatchWatch(epoch=seen.epoch, before=before)


def _observed(watch: BatchWatch, seen: RollObserved, tried: Sequence[int]) -> BatchWatch:
    """`watch`, with what is seen now."""
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
    # While none of the accepted release is up either, it is not this one: the fleet was switched on
    # together with its registry.
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


@dataclass(frozen=True, kw_only=True)
class _Trouble:
    """Why the release is to blame, and `culprits` where it is for a few agents that fail again and
    again: whose fault that is they show with the accepted one."""

    why: str
    culprits: frozenset[int] = frozenset()


def _trouble(watch: BatchWatch, seen: RollObserved, tried: Sequence[int]) -> _Trouble | None:
    """What the release is to blame for, None where it is not."""
    failing = _failing(watch, seen, tried)
    hurt = sorted(failing.keys() | watch.died.intersection(tried))
    if hurt:
        again = [port for port, count in failing.items() if count >= 2]
        many = len(hurt) > max(1, len(tried) // _TOLERATED)
        patient = all(any(w in seen.why.get(port, "") for w in _REGISTRY) for port in hurt)
        waited = watch.down_since is not None and seen.now - watch.down_since >= _GRACE
        certain = (many and (waited or not patient)) or (waited and not watch.ever_up)
        if again or watch.kernel or certain:
            port = min(again, default=hurt[0])
            why = seen.why.get(port) or "died"
            text = f"{len(hurt)} of {len(tried)} agents failed, as agent {port}: {why}"
            text += f"; kernel: {watch.kernel[-1]}" if watch.kernel else ""
            few = not (many or watch.kernel or certain)
            return _Trouble(why=text, culprits=frozenset(again if few else ()))
    if watch.memory and watch.since is not None and seen.private is not None:
        grown, seconds = seen.private - watch.memory[0], seen.now - watch.memory[1]
        over = seen.now - watch.since >= min(_GROWTH_SECONDS, seen.settings.watch_seconds)
        if over and grown > max(_GROWTH_FLOOR, _GROWTH * seconds / 60):
            return _Trouble(
                why=f"grows: {grown / (1 << 20):.1f} MiB an agent in {seconds:.0f} s, "
                f"more than {_GROWTH >> 20} MiB a minute"
            )
    return None


def _failing(watch: BatchWatch, seen: RollObserved, tried: Sequence[int]) -> dict[int, int]:
    """Failures in a row since the batch began, of those that have some; fewer than before means
    that they began anew."""
    found = {}
    for port in tried:
        now, before = seen.failures.get(port, 0), watch.before.get(port, 0)
        if more := now - before if now >= before else now:
            found[port] = more
    return found


def _reject(
    state: RollState,
    seen: RollObserved,
    reason: str,
    said: list[str],
    culprits: frozenset[int] = frozenset(),
) -> RollState:
    target = seen.target
    # Each is let off once, and no more of them than may fail anyhow: else it is the release.
    known = state.culprits | culprits
    bound = max(1, len(seen.ports) // _TOLERATED)
    let_off = culprits and not culprits <= state.culprits and len(known) <= bound
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
        # The order stays as it is; it must not try the release again and again.
        spent = (*(each for each in spent if each != _key(verdict)), _key(verdict))
    return replace(
        _nothing(state),
        target=target,
        state=HALTED,
        culprits=known if let_off else frozenset(),
        reason=new.reason,
        rejected=(*others, new)[-_KEPT:],
        spent=spent[-_KEPT:],
    )


def _accept(state: RollState, seen: RollObserved) -> RollState:
    return replace(
        _nothing(state), accepted=seen.target, previous=state.accepted, target=seen.target
    )


def _key(verdict: ReleaseVerdict) -> str:
    return f"{verdict.sha256}/{verdict.id}"


def _seconds(seen: RollObserved) -> str:
    return f"{seen.settings.watch_seconds} s"
