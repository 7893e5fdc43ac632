"""Memory on paper: what is alive, what the peak was made of, and the batch that fits; all by hand.

    pytest tests/test_footprint.py             a whole step: tests/test_bench.py, tests/test_cuda_step.py
"""

from collections import Counter

import torch

from recipes import get_recipe
from support.footprint import Footprint, largest_batches, memory_table


def test_the_peak_by_hand():
    """x of 4,096 bytes, y = 2·x and z = x + y as large; when x and y are gone, a sum, of 4, rounded up to 512.

    At the peak, of 12,288, x was made by "first", y and z by "second"; a view is no memory.
    """
    footprint = Footprint()
    alive = footprint.alive
    with footprint:
        x = footprint.made(lambda: torch.empty(1024), "first")
        alive.part = "second"
        y = 2 * x
        z = x + y.view(32, 32).flatten()
        del x, y
        assert alive.total == 4096
        total = z.sum()
    assert total.shape == () and alive.total == 4096 + 512
    assert alive.peak == 3 * 4096 and alive.at_peak == {"first": 4096, "second": 2 * 4096}
    alive.forget()
    assert alive.peak == 4096 + 512 and alive.at_peak["first"] == 0


def test_real_tensors_are_not_counted():
    footprint = Footprint()
    with footprint:
        assert torch.ones(3).sum() == 3
    assert footprint.alive.peak == 0


def count(r, device_type):
    """1 GiB and another for every two images, but at least 5."""
    return Counter(views=max(2**30 + r.batch * 2**29, 5 * 2**30))


def test_the_batch_that_fits_by_hand():
    """Of 24 GiB 2 are left for CUDA and 1 is there without any image: (24 − 2 − 1)·2 = 42; 7 GiB are needed."""
    assert largest_batches(count, get_recipe("shapes"), [6 * 2**30, 24 * 2**30]) == [0, 42]


def test_the_table():
    first, views, *fits = memory_table(count, get_recipe("shapes", batch=10), "cuda").splitlines()
    assert first.split()[-2:] == ["6.00", "GiB"] and views.split() == ["views", "6.00"]
    assert [line.split()[-1] for line in fits] == ["42", "90", "154"]
    assert len(memory_table(count, get_recipe("shapes"), "cpu").splitlines()) == 2
