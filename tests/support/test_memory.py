"""Freed memory stays with the process.  `pytest tests/test_memory.py`"""

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train
from recipes import get_recipe
from support.device import check_memory, peak_memory
from support.files import UserError

SCRIPT = """
import torch
from support.memory import keep_pages
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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is asked")
def test_freed_pages_are_kept():
    """They go back to the system before keep_pages() is called, and no longer afterwards."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=Path(__file__).parents[2], capture_output=True,
                          text=True)  # fmt: skip
    assert done.stdout.split() == ["True", "False"], done.stderr


@pytest.mark.parametrize("changes", [{"batch": 10**9}, {"n_prototypes": 10**7, "dino_bottleneck": 10**5}])
def test_what_cannot_fit_is_said_before_it_is_asked_for(changes):
    """10⁹ images have crops of 12 kB each at least; 10⁷ prototypes of 10⁵ numbers are 4 TB, five times."""
    check_memory(get_recipe("shapes"), torch.device("cpu"), train.build_network)
    with pytest.raises(UserError, match="GiB, and there are") as error:
        check_memory(get_recipe("shapes", **changes), torch.device("cpu"), train.build_network)
    assert "\n" not in str(error.value)


def test_memory_is_that_of_this_process():
    """PyTorch alone takes more than 50 MB; a megabyte read as a kilobyte, or the other way round, is out of range."""
    assert 50e6 < peak_memory(torch.device("cpu")) < 50e9
