"""A step on a simulated GPU (cudasim.py): its operations, waits and memory.  `pytest tests/test_cuda_step.py`"""

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

import bench
import vit
from recipes import get_recipe

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
VITL = {"batch": 64, "checkpointing": False, "hires_share": 0.0}
CASES = {  # recipe, number of blocks, changed fields
    "ViT-L": ("vitl14", 3, VITL),
    "checkpointing": ("vitl14", 3, {**VITL, "checkpointing": True}),
    "a stem": ("cifar10", 4, {}),
}


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """What cudasim.py prints about each case."""
    if torch.version.cuda:
        pytest.skip("needs a PyTorch without CUDA")
    if not (compiler := shutil.which("g++")):
        pytest.skip("needs g++ to build a device guard")
    guard, home = tmp_path_factory.mktemp("guard") / "noopguard.so", Path(torch.__file__).parent
    build = subprocess.run([compiler, "-shared", "-fPIC", "-std=c++20", f"-I{home}/include", f"-L{home}/lib",
                            f"-Wl,-rpath,{home}/lib", HERE / "noopguard.cpp", "-lc10", "-ltorch_cpu", "-o", guard],
                           capture_output=True, text=True)  # fmt: skip
    if build.returncode and not torch.__version__.startswith("2.13."):
        pytest.skip("the device guard is written for PyTorch 2.13")
    assert build.returncode == 0, build.stderr
    command = [sys.executable, HERE / "cudasim.py", guard, json.dumps(list(CASES.values()))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(zip(["faults", "loader", *CASES], map(json.loads, done.stdout.splitlines()), strict=True))


def test_the_simulation_notices_faults(steps):
    assert set(steps["faults"]) == {
        "_local_scalar_dense.default", "index.Tensor with a mask", "nonzero.default", "a copy of (4,) to the CPU",
        "a copy from pageable memory of (4,)", "add.Tensor mixes devices"}  # fmt: skip


@pytest.mark.parametrize("name, launches, traffic", [
    ("ViT-L", 907, 218.8e9), ("checkpointing", 991, 236.9e9), ("a stem", 986, 2.447e9)])
def test_launches_and_traffic_stay_few(steps, name, launches, traffic):
    """Counted, without the augmentation.  Eight more launches in each block are too many, as is one more copy of the
    patch logits of ViT-L, 5.2 GB."""
    assert launches - 100 < steps[name]["launches"] <= launches + 23
    assert 0.9 * traffic < steps[name]["traffic"] <= 1.01 * traffic


def test_nothing_waits_but_the_log(steps):
    """The log waits once, for five losses and three numbers of the collapse meter."""
    assert steps["loader"] == {}
    assert all(steps[name]["waits"] == {} for name in CASES)
    assert steps["ViT-L"]["log"] == {"a copy of (8,) to the CPU": 1}


@pytest.mark.parametrize("name", ["ViT-L", "checkpointing"])
def test_memory_counted_without_cuda_agrees(steps, monkeypatch, name):
    """`bench.py --memory cuda` needs no device guard, and finds the same peaks of 16.4 and 12.3 GiB."""
    monkeypatch.setattr(vit, "vit_large", partial(vit.ViT, 1024, 3, 16))
    _, counted, _ = bench.count_step(get_recipe("vitl14", **CASES[name][2]), "cuda")
    assert 12 * 2**30 < counted == pytest.approx(steps[name]["peak"], rel=0.01)
