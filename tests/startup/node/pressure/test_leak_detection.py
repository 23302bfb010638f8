"""Leaks in synthetic histories: those that must be found, and those that are none."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from startup.node.pressure import leak_detection
from startup.node.pressure.leak_detection import (
    FAST,
    HOUR,
    LOOK,
    WARM,
    Held,
    History,
    LeakVerdict,
    Look,
    fit,
    judge,
)

MIB = 1 << 20
CONNECTION = 4 * MIB
# Of an agent's memory from look to look: what a Go heap does by itself.
NOISE = 200_000


def history(
    *,
    hours: float,
    agents: int = 300,
    leak: Callable[[float], float] = lambda age: 0.0,
    connections: Callable[[float], float | None] = lambda at: 1.0,
    cost: float = 0.0,
    restarts: float = 0.0,
    count: Callable[[float], int] | None = None,
    overhead: Callable[[float], float | None] = lambda at: None,
    seed: int = 1,
) -> History:
    """`hours` of looks. An agent of `age` seconds holds 1.5 MB, noise, `leak(age)` and `cost` for
    each connection; `restarts`: the share of agents that starts anew in an hour."""
    rng = random.Random(seed)
    born = dict.fromkeys(range(agents), -86400.0)
    found = History()
    for step in range(int(hours * HOUR / LOOK) + 1):
        at = step * LOOK
        if count is not None:
            for port in range(len(born), count(at)):
                born[port] = at
        for port in born:
            if rng.random() < restarts * LOOK / HOUR:
                born[port] = at
        per_agent = connections(at)
        held = {
            port: Held(
                since=(port, int(start)),
                age=at - start,
                # A young one grows into its size.
                bytes=int(
                    1.5e6 * min(1.0, 0.4 + (at - start) / WARM)
                    + rng.gauss(0, NOISE)
                    + leak(at - start)
                    + cost * (per_agent or 0)
                ),
            )
            for port, start in born.items()
        }
        look = Look(at=at, agents=held, connections=per_agent, overhead=overhead(at))
        found = leak_detection.seen(found, look)
    return found


def grown(**how: Any) -> float:
    found = history(**how).grown
    assert found is not None
    return found


def an_hour(bytes_an_hour: float) -> Callable[[float], float]:
    return lambda age: age / HOUR * bytes_an_hour


def test_nothing_is_known_at_first() -> None:
    assert judge(History(), CONNECTION) == LeakVerdict()
    assert judge(history(hours=0.3), CONNECTION) == LeakVerdict(growth=None)
    assert judge(history(hours=0.35), CONNECTION).growth is not None


@pytest.mark.parametrize("seed", range(5))
def test_a_quiet_fleet(seed: int) -> None:
    verdict = judge(history(hours=24, seed=seed), CONNECTION)
    assert verdict.leak == ""
    assert verdict.growth is not None
    assert abs(verdict.growth) < FAST


def test_a_hundred_megabytes_an_hour() -> None:
    verdict = judge(history(hours=1, leak=an_hour(1.2 * FAST / 300)), CONNECTION)
    assert verdict.growth == pytest.approx(1.2 * FAST, rel=0.15)
    assert "MB per hour" in verdict.leak
    assert "over 60 min" in verdict.leak


def test_less_is_no_leak_within_an_hour() -> None:
    assert judge(history(hours=1, leak=an_hour(0.6 * FAST / 300)), CONNECTION).leak == ""


def test_it_ends_when_it_ends() -> None:
    def stops(age: float) -> float:
        return an_hour(2 * FAST / 300)(min(age, 86400 + HOUR))

    assert judge(history(hours=1, leak=stops), CONNECTION).leak
    assert judge(history(hours=3, leak=stops), CONNECTION).leak == ""


@pytest.mark.parametrize("seed", range(5))
def test_a_kilobyte_an_hour_is_in_the_curve_of_a_day(seed: int) -> None:
    """The alert AgentsGrow finds it there; no verdict does."""
    assert judge(history(hours=24, leak=an_hour(1000), seed=seed), CONNECTION).leak == ""
    # The ends of the curve are as far off as the mean of 300 heaps that move by NOISE is.
    off = 4 * NOISE * math.sqrt(2 / 300)
    assert grown(hours=24, leak=an_hour(1000), seed=seed) == pytest.approx(24e3, abs=off)
    assert grown(hours=24, leak=an_hour(10000), seed=seed) == pytest.approx(240e3, abs=off)
    assert History().grown is None


def test_more_connections_explain_it() -> None:
    found = history(hours=2, cost=2e6, connections=lambda at: 1 + at / HOUR)
    verdict = judge(found, CONNECTION)
    assert verdict.growth == pytest.approx(300 * 2e6, rel=0.1)
    assert verdict.leak == ""
    # The same growth, and connections that say nothing: nobody knows better.
    found = history(hours=2, leak=an_hour(2e6), connections=lambda at: None)
    assert judge(found, CONNECTION).leak


def test_more_connections_do_not_explain_everything() -> None:
    found = history(hours=2, cost=1e6, leak=an_hour(6e6), connections=lambda at: 1 + at / HOUR)
    assert judge(found, CONNECTION).leak


def test_noise_in_the_connections_explains_nothing() -> None:
    rng = random.Random(3)
    found = history(hours=1, leak=an_hour(1e6), connections=lambda at: rng.gauss(2, 1))
    assert judge(found, CONNECTION).leak


@pytest.mark.parametrize("seed", range(3))
def test_restarts_make_no_leak_and_hide_none(seed: int) -> None:
    """A twentieth of the agents an hour starts anew, smaller than it ended: in a day, everyone."""
    assert judge(history(hours=24, restarts=0.05, seed=seed), CONNECTION).leak == ""
    leaking = grown(hours=24, restarts=0.05, leak=an_hour(8000), seed=seed)
    assert leaking - grown(hours=24, restarts=0.05, seed=seed) == pytest.approx(24 * 8e3, rel=0.1)


def test_one_roll_makes_no_step() -> None:
    """In the middle all start anew within one look, at half of their size."""
    found = history(hours=1)
    before = found.grown
    assert before is not None
    for step in range(1, int(HOUR / LOOK)):
        held = {
            port: Held(since=(port, 1), age=step * LOOK, bytes=int(0.75e6)) for port in range(300)
        }
        found = leak_detection.seen(
            found, Look(at=HOUR + step * LOOK, agents=held, connections=1.0)
        )
    assert found.grown == before


def test_all_of_them_restarted_at_once() -> None:
    def all_of_them(at: float) -> History:
        return history(hours=at, restarts=12.0)

    # Nothing is ever compared: nobody grows old enough.
    assert judge(all_of_them(3), CONNECTION) == LeakVerdict()


def test_a_fleet_that_grows() -> None:
    """From 100 to 700 agents within three hours: hundreds of MB more, no leak."""
    found = history(hours=4, agents=100, count=lambda at: 100 + int(at / HOUR * 200))
    assert judge(found, CONNECTION).leak == ""


def test_kernel_memory_counts_as_growth() -> None:
    found = history(hours=1, overhead=lambda at: 300_000 + at / HOUR * 1e6)
    assert judge(found, CONNECTION).growth == pytest.approx(300 * 1e6, rel=0.15)
    # Where it is not known all the time, it is left out.
    found = history(hours=1, overhead=lambda at: None if at % 600 else at)
    assert judge(found, CONNECTION).leak == ""


def test_no_agent_at_all() -> None:
    assert judge(history(hours=2, agents=0), CONNECTION) == LeakVerdict()


def test_a_history_is_an_hour_at_most() -> None:
    found = history(hours=3, agents=2)
    assert len(found.points) == HOUR / LOOK + 1


@given(
    st.floats(-1e6, 1e6),
    st.floats(-1e9, 1e9),
    st.lists(st.floats(0, 1e5), min_size=4, max_size=50, unique_by=round),
)
def test_a_line_is_found_again(slope: float, start: float, xs: list[float]) -> None:
    line = fit(xs, [start + slope * x for x in xs])
    assert line is not None
    assert line.slope == pytest.approx(slope, rel=1e-3, abs=1e-2)


def test_no_line() -> None:
    assert fit([1, 2, 3], [1, 2, 3]) is None
    assert fit([5, 5, 5, 5], [1, 2, 3, 4]) is None
