"""Decides how many agents may be starting at once, by what the registry can take.

Pure: a frozen `Window` and functions that return the next one. All VMs of a fleet share one
registry, and none knows of the others. So each goes by its own starts, as TCP flows share a line:
the window halves when starts fail or become slow, and grows while they are prompt.

Two rules keep it from wrong conclusions. A start that began before the last cut causes no other
cut, so one burst of failures does not collapse the window. And where several agents fail without a
success in between, the registry is at fault and not the agents: the window rests, longer each time,
and their failures do not count.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

# Seconds that a prompt start takes at most, and a slow one at least. A start takes 14 ms alone and
# 0.65 s at a registry that takes 0.6 s to answer; 15 in flight are right for both (docs/FACTS.md).
# A small guest without KVM takes a second or two. From SLOW on, more starts only make each slower.
PROMPT = 2.0
SLOW = 3.0
# Slowness alone never cuts the window below this part (1/4) of the limit: a registry that is
# always slow would otherwise get one start at a time.
SLOW_SHARE = 4
# Different agents that failed without a success in between: from here on the registry is at fault.
SUSPECT = 3
# Seconds without a start while nothing succeeds: 1, 2, 4 ... 30.
REST = 1.0
REST_MAX = 30.0
# Seconds after the last failure or slow start until the window is fully open again.
FORGET = 60.0


@dataclass(frozen=True, kw_only=True)
class Window:
    """How many starts may be in flight. Times are seconds of one monotonic clock."""

    limit: int
    """The most there may ever be: the spec's window."""
    width: float
    """How many there may be now, as a fraction."""
    rest_until: float = 0.0
    """No start before."""
    why: str = ""
    """Why it is not at its limit."""
    threshold: float
    """Above this width it grows by one per trip, below by one per start."""
    slow_at: float = float("-inf")
    """When slowness last cut it."""
    cut_at: float = float("-inf")
    """When a failure last cut it."""
    bad_at: float = float("-inf")
    """When the last failure or slow start was seen."""
    rest: float = 0.0
    """Length of the last rest, in seconds."""
    failed_since_success: frozenset[int] = frozenset()
    """Agents that failed since the last success."""

    @property
    def size(self) -> int:
        return max(1, min(self.limit, int(self.width)))

    def registry_is_suspect(self, wanted: int) -> bool:
        """Whether the registry is at fault for the failures. `wanted`: agents that should run."""
        return bool(self.failed_since_success) and len(self.failed_since_success) >= min(
            SUSPECT, wanted
        )

    def allows(self, now: float) -> int:
        """Starts that may be in flight at `now`."""
        return 0 if now < self.rest_until else self.size


def opened(limit: int) -> Window:
    """A new window: fully open."""
    limit = max(1, limit)
    return Window(limit=limit, width=limit, threshold=limit)


def at(window: Window, *, limit: int, now: float) -> Window:
    """The window at `now`: with `limit`, and fully open where the last trouble is long ago."""
    limit = max(1, limit)
    if window.limit != limit:
        full = window.size == window.limit
        width = limit if full else min(window.width, limit)
        window = replace(window, limit=limit, width=width, threshold=max(width, window.threshold))
    if window.why and now - window.bad_at >= FORGET and now >= window.rest_until:
        window = replace(opened(limit), failed_since_success=window.failed_since_success)
    return window


def succeeded(window: Window, seconds: Iterable[float]) -> Window:
    """The window after starts that came up within `seconds` each."""
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
        failed_since_success=frozenset(),
    )


def slow(window: Window, began: float, now: float) -> Window:
    """The window after a slow start that began at `began`: done, or still in flight."""
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
    """The window after `failures`, each a port, when its start began, and whether the agent had
    failed before. `wanted`: the number of agents that should run.

    A repeated failure of one agent says nothing new about the registry.
    """
    if not failures:
        return window
    window = replace(
        window, failed_since_success=window.failed_since_success | {port for port, _, _ in failures}
    )
    suspect = window.registry_is_suspect(wanted)
    # Of starts that were in flight together, the first failure has cut the window already.
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
        # Counted from the last start: where it took that long to fail, that was the rest.
        rest_until=max(now, max(news) + rest) if suspect else window.rest_until,
    )


def changed(window: Window, ports: Collection[int], wanted: int) -> Window:
    """The window after `ports` get another variant than the one that failed: their failures do not
    count any more, and cause no rest."""
    left = window.failed_since_success.difference(ports)
    if left == window.failed_since_success:
        return window
    window = replace(window, failed_since_success=left)
    return (
        window if window.registry_is_suspect(wanted) else replace(window, rest_until=0.0, rest=0.0)
    )


def _reason(window: Window, why: str) -> str:
    return (
        f"{len(window.failed_since_success)} agents failed and none came up since; the last: {why}"
    )
