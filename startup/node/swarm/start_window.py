"""How many starts may be in flight: a window that follows what the registry can take.

Pure: a frozen `Window` and functions that return the next one. All VMs of a fleet share one
registry and none knows of the others, so each goes by what it sees itself, as TCP flows share a
line: it halves when starts fail or become slow, and grows while they are prompt.

Two rules keep it from being wrong about what it sees. One trip, one cut: whatever a start says
that was begun before the last cut was already known when that cut was made, so one burst of
failures does not collapse the window. And failures of several agents with no success between them
are the registry's, not the agents': then the window rests, longer each time, and the agents are
not held to account.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

# Seconds. A start takes 14 ms alone and 0.65 s at a registry that takes 0.6 s to answer, and 15 in
# flight are right for both (docs/FACTS.md); a small guest without KVM takes a second or two. From
# SLOW on more starts in flight only make each of them slower. Between the two nothing is concluded.
PROMPT = 2.0
SLOW = 3.0
# The part of the limit below which slowness alone does not take the window: a registry that is
# slow however little is asked of it would otherwise be asked by one agent at a time.
SLOW_SHARE = 4
# Different agents that failed with no success between: from here on it is not their fault.
SUSPECT = 3
# Seconds without a start while nothing succeeds: 1, 2, 4 ... 30.
REST = 1.0
REST_MAX = 30.0
# Seconds after the last failure or slow start in which what was learnt of the registry is true.
FORGET = 60.0


@dataclass(frozen=True, kw_only=True)
class Window:
    """`size` starts may be in flight, of `limit` at most; none before `rest_until`. `why` says
    why it is not at its limit. Times are seconds of one monotonic clock."""

    limit: int
    width: float
    rest_until: float = 0.0
    why: str = ""
    # Width above which it grows by one a trip, and no more by one a start.
    threshold: float
    # When it was last cut, by what; when the last bad thing was seen; the length of the last rest.
    slow_at: float = float("-inf")
    cut_at: float = float("-inf")
    bad_at: float = float("-inf")
    rest: float = 0.0
    # Agents that failed since the last success.
    fruitless: frozenset[int] = frozenset()

    @property
    def size(self) -> int:
        return max(1, min(self.limit, int(self.width)))

    def suspects(self, wanted: int) -> bool:
        """Whether the failures seen are the registry's, where `wanted` agents should run."""
        return bool(self.fruitless) and len(self.fruitless) >= min(SUSPECT, wanted)

    def allows(self, now: float) -> int:
        """Starts that may be in flight at `now`."""
        return 0 if now < self.rest_until else self.size


def opened(limit: int) -> Window:
    """A window that has seen nothing yet: fully open."""
    limit = max(1, limit)
    return Window(limit=limit, width=limit, threshold=limit)


def at(window: Window, *, limit: int, now: float) -> Window:
    """The window at `now`: another limit is taken over, and what was learnt too long ago is
    forgotten."""
    limit = max(1, limit)
    if window.limit != limit:
        full = window.size == window.limit
        width = limit if full else min(window.width, limit)
        window = replace(window, limit=limit, width=width, threshold=max(width, window.threshold))
    if window.why and now - window.bad_at >= FORGET and now >= window.rest_until:
        window = replace(opened(limit), fruitless=window.fruitless)
    return window


def succeeded(window: Window, seconds: Iterable[float]) -> Window:
    """After starts that came up within `seconds` each."""
    width, any_one = window.width, False
    for each in seconds:
        any_one = True
        if each <= PROMPT:
            width += 1.0 if width < window.threshold else 1.0 / width
    if not any_one:
        return window
    width = min(width, window.limit)
    return replace(
        window,
        width=width,
        why=window.why if int(width) < window.limit else "",
        rest_until=0.0,
        rest=0.0,
        fruitless=frozenset(),
    )


def slow(window: Window, began: float, now: float) -> Window:
    """After a start that was begun at `began` and is slow: done at last, or still in flight."""
    window = replace(window, bad_at=now)
    if began < max(window.slow_at, window.cut_at):
        return window
    floor = min(window.width, max(1.0, window.limit / SLOW_SHARE))
    width = max(window.width / 2, floor)
    why = f"a start takes {now - began:.1f} s"
    return replace(window, width=width, threshold=width, slow_at=now, why=why)


def failed(
    window: Window,
    failures: Collection[tuple[int, float, bool]],
    *,
    now: float,
    wanted: int,
    why: str,
) -> Window:
    """After `failures`: (port, when its start was begun, whether it had failed before), with no
    success since the last call of `succeeded`. `wanted` is the number of agents that should run.

    One that failed before and fails again says nothing new about the registry.
    """
    if not failures:
        return window
    window = replace(window, fruitless=window.fruitless | {port for port, _, _ in failures})
    suspect = window.suspects(wanted)
    # When the window was last halved: of two starts of one trip the first has told it all.
    news = [
        began for _, began, before in failures if began >= window.cut_at and (suspect or not before)
    ]
    if suspect or news:
        window = replace(window, bad_at=now)
    if not news:
        return window
    width = max(1.0, window.width / 2)
    rest = min(max(window.rest * 2, REST), REST_MAX) if suspect else window.rest
    return replace(
        window,
        width=width,
        threshold=max(width, 2.0),
        cut_at=now,
        why=_reason(window, why) if suspect else why,
        rest=rest,
        # From when the last began: one that took as long to fail has been the rest.
        rest_until=max(now, max(news) + rest) if suspect else window.rest_until,
    )


def changed(window: Window, ports: Collection[int], wanted: int) -> Window:
    """After `ports` are to be started as something else than what failed: that they failed says
    nothing any more, and nothing rests on their account."""
    left = window.fruitless.difference(ports)
    if left == window.fruitless:
        return window
    window = replace(window, fruitless=left)
    return window if window.suspects(wanted) else replace(window, rest_until=0.0, rest=0.0)


def _reason(window: Window, why: str) -> str:
    return f"{len(window.fruitless)} agents failed and none came up since; the last: {why}"
