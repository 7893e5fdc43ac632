"""Device, precision, threads, memory.  `pytest tests/support/test_device.py`"""

import math
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from support import device
from support.device import amp_dtype, autocast, choose_threads, find_device, peak_memory, total_memory
from support.files import UserError

ROOT = Path(__file__).parents[2]


def test_a_rank_touches_its_own_gpu_first_and_float32_is_float32(monkeypatch):
    """Rank 3 of a machine with GPUs that are not here."""
    chosen = []
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch, "empty", lambda *_, device: chosen.append(device) or torch.zeros(0))
    assert {find_device(name).type for name in ("cuda", "cuda:0")} == {"cpu"} and chosen == ["cuda:3"] * 4
    assert not torch.backends.cudnn.allow_tf32


def test_a_device_that_is_not_here():
    assert find_device("cpu") == torch.device("cpu")
    for name in ("warp", "cuda:99"):
        with pytest.raises(UserError, match=f"there is no device {name} here"):
            find_device(name)


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("amp, cpu, gpu", [
    ("auto", (torch.float32, torch.bfloat16), (torch.float16, torch.bfloat16)), ("bf16", *[[torch.bfloat16] * 2] * 2),
    ("fp16", *[[torch.float16] * 2] * 2), ("none", *[[torch.float32] * 2] * 2)])  # fmt: skip
def test_the_type_of_autocast(amp, cpu, gpu, there, monkeypatch):
    """Where bf16 is missing, and where it is there: a T4 and an A100."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: there)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: there)
    x = torch.ones(2, 2)
    with autocast(torch.device("cpu"), amp):
        assert (x @ x).dtype == cpu[there]
    assert (amp_dtype(torch.device("cuda"), amp) or torch.float32) == gpu[there]


@pytest.fixture
def two_cores(monkeypatch):
    """PyTorch begins with two threads and OMP_NUM_THREADS is not set; both are put back."""
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_one_half_and_all_are_timed_and_the_fastest_wins(two_cores, monkeypatch):
    """Of one, four and seven threads, only four do not sleep."""
    asked, gelu = set(), device.F.gelu

    def slow(x):
        asked.add(torch.get_num_threads())
        time.sleep(0.01 * (torch.get_num_threads() != 4))
        return gelu(x)

    monkeypatch.setattr(device.F, "gelu", slow)
    torch.set_num_threads(7)
    assert choose_threads() == "4 threads" and torch.get_num_threads() == 4
    assert asked == {1, 4, 7}


def test_the_variable_comes_before_the_resumed_run(two_cores, monkeypatch):
    monkeypatch.setattr(device, "fastest_threads", None)
    assert choose_threads(resumed=1) == "1 threads" and torch.get_num_threads() == 1
    torch.set_num_threads(2)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert choose_threads(resumed=1) == "2 threads" and torch.get_num_threads() == 2


SCRIPT = """
import torch
from support.device import keep_pages
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
for keep in (False, True):
    if keep:
        keep_pages()
    x = torch.ones(2**26)  # 256 MB
    before = resident()
    del x
    print(before - resident() > 2**27)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_pages_are_kept():
    """They go back to the system before keep_pages() is called, and no longer afterwards."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["True", "False"], done.stderr


def test_memory_in_bytes(monkeypatch):
    """PyTorch alone takes more than 50 MB; kilobytes or megabytes in the place of bytes would be out of range."""
    cpu = torch.device("cpu")
    assert 50e6 < peak_memory(cpu) < 50e9 and 1e9 < total_memory(cpu) < 1e14
    monkeypatch.setattr(sys, "platform", "win32")
    assert peak_memory(cpu) is None and total_memory(cpu) == math.inf
