"""The estimate of the time left."""

from __future__ import annotations

import pytest

from tools.toolchain.progress import about, clock, seconds_left


def test_before_anything_is_known_the_plan_is_the_estimate() -> None:
    assert seconds_left([], 200, 0, [20, 180]) == pytest.approx(400)
    assert seconds_left([], 200, 50, [20, 180]) == pytest.approx(350)


def test_a_machine_twice_as_fast_is_believed_to_stay_so() -> None:
    assert seconds_left([(200, 100)], 20, 0, [180]) == pytest.approx(100)


def test_a_step_that_outlives_its_plan_slows_the_rest() -> None:
    left = seconds_left([], 200, 400, [100])
    assert left == pytest.approx(0.1 * 400 + 100 * 2.2)


def test_the_estimate_is_never_negative() -> None:
    assert seconds_left([(200, 10)], 200, 500, []) > 0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(3, "a few seconds"), (43, "about 40 s"), (89, "about 90 s"), (290, "about 5 min")],
)
def test_an_estimate_is_as_precise_as_it_deserves(seconds: float, words: str) -> None:
    assert about(seconds) == words


def test_clock() -> None:
    assert [clock(7), clock(80.9), clock(754)] == ["0:07", "1:20", "12:34"]
