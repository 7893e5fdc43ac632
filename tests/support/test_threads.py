"""The number of threads: who decides, and that measuring is quick.  `pytest tests/test_threads.py`"""

import time

import pytest
import torch

from support import device as threads
from support.device import choose_threads


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    """PyTorch begins with two threads and OMP_NUM_THREADS is not set; both are put back."""
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("seconds, fastest", [({1: 0.2, 2: 0.1}, 2), ({1: 0.1, 2: 0.2}, 1)])
def test_the_fastest_number_is_taken(monkeypatch, seconds, fastest):
    monkeypatch.setattr(threads, "measure_threads", lambda counts: {count: seconds[count] for count in counts})
    assert choose_threads().startswith(f"{fastest} thread") and torch.get_num_threads() == fastest


def test_one_half_and_all_are_measured(monkeypatch):
    asked = []
    monkeypatch.setattr(threads, "measure_threads", lambda counts: asked.extend(counts) or dict.fromkeys(counts, 1.0))
    torch.set_num_threads(7)
    choose_threads()
    assert asked == [1, 4, 7]


def test_who_decides(monkeypatch):
    """The flag before the variable, the variable before the run that goes on, and nothing is measured."""
    monkeypatch.setattr(threads, "measure_threads", None)
    assert choose_threads(before=1) == "1 thread (as before)" and torch.get_num_threads() == 1
    torch.set_num_threads(2)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert choose_threads(before=1) == "2 threads (OMP_NUM_THREADS)" and torch.get_num_threads() == 2
    assert choose_threads(asked=3, before=1) == "3 threads (as asked)" and torch.get_num_threads() == 3


def test_measuring_is_quick_and_tells_a_sleeper(monkeypatch):
    """With two threads the work is made to sleep: one is found faster, within a second or little more."""
    work = threads.work

    def slow(x, w):
        time.sleep(0.03 if torch.get_num_threads() == 2 else 0)
        return work(x, w)

    monkeypatch.setattr(threads, "work", slow)
    start = time.perf_counter()
    assert choose_threads() == "1 thread (the fastest of 1, 2)"
    assert time.perf_counter() - start < 2  # 0.6 s and a round, and the machine may be busy
