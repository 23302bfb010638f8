"""The picture's axes."""

from __future__ import annotations

import pytest

from tools.bench import chart


@pytest.mark.parametrize(("value", "last"), [(4500, 5000), (7.7, 8), (1.9, 2), (0.004, 0.004)])
def test_an_axis_ends_at_a_round_number_above(value: float, last: float) -> None:
    ticks = chart._ticks(value)
    assert ticks[0] == 0
    assert ticks[-1] == pytest.approx(last)
    assert ticks[-1] >= value * 0.999999
    assert len(ticks) <= 9
