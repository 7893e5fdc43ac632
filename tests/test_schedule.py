"""Warm-up and cosine: the values at the corners and on paper, and the shape in between.

    pytest tests/test_schedule.py
"""

import math

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


def test_it_may_rise_as_momentum_and_weight_decay_do():
    values = [cosine_schedule(s, 100, 0.04, 0.4) for s in range(100)]
    assert values[0] == pytest.approx(0.04) and values[-1] == pytest.approx(0.4)
    assert values == sorted(values)


@pytest.mark.parametrize(("total", "warmup"), [(10, 0), (11, 3), (1000, 100)])
def test_one_peak_no_jump_and_the_end_at_the_last_step(total, warmup):
    values = [cosine_schedule(s, total, 1.0, 0.1, warmup) for s in range(total)]
    assert values[0] == (0.0 if warmup else 1.0)
    assert values[warmup] == 1.0 and values.count(1.0) == 1
    assert values[-1] == pytest.approx(0.1)
    assert values[: warmup + 1] == sorted(values[: warmup + 1])
    assert values[warmup:] == sorted(values[warmup:], reverse=True)
    steepest = max(1 / max(warmup, 1) if warmup else 0, 0.9 * math.pi / 2 / (total - 1 - warmup))
    assert all(abs(b - a) <= steepest * 1.001 for a, b in zip(values, values[1:], strict=False))


def test_after_the_last_step_it_stays_at_the_end():
    assert cosine_schedule(10, 10, 1.0, 0.3) == cosine_schedule(99, 10, 1.0, 0.3) == pytest.approx(0.3)


@pytest.mark.parametrize("warmup", [0, 1, 3, 4, 5, 9])
@pytest.mark.parametrize("total", [1, 2, 4])
def test_short_runs_stay_between_their_ends(total, warmup):
    for step in range(total + 2):
        assert 0.0 <= cosine_schedule(step, total, 1.0, 0.2, warmup) <= 1.0
