"""Warm-up and cosine: values worked out by hand, and runs shorter than their warm-up."""

import pytest

from schedule import cosine_schedule


def test_cosine_by_hand():
    """7 steps from 2 to 1, so steps are 30° apart: 1 + ½(1 + cos θ), and cos 60° = ½, cos 90° = 0, cos 120° = −½."""
    values = [cosine_schedule(s, 7, 2.0, 1.0) for s in (0, 2, 3, 4, 6)]
    assert values == pytest.approx([2, 1 + 3 / 4, 1 + 1 / 2, 1 + 1 / 4, 1])


def test_warmup_by_hand():
    """From 10 in 4 steps to 30, then down to 0 in 2 more, at half way 15."""
    values = [cosine_schedule(s, 7, 30.0, 0.0, warmup=4, warmup_start=10.0) for s in range(7)]
    assert values == pytest.approx([10, 15, 20, 25, 30, 15, 0])


@pytest.mark.parametrize("warmup", [0, 1, 3, 4, 5, 9])
@pytest.mark.parametrize("total", [1, 2, 4])
def test_short_runs_stay_between_their_ends(total, warmup):
    """After the last step, the value stays at the end."""
    values = [cosine_schedule(step, total, 1.0, 0.2, warmup) for step in range(total + 20)]
    assert all(0.0 <= value <= 1.0 for value in values) and values[-1] == pytest.approx(0.2)
