"""A step on a GPU, without one: what it launches, that it never waits, and what memory it needs (see cudasim.py).

    pytest tests/test_cuda_step.py -s        prints the counts

A launch costs the CPU some 5 µs, so a step of 6,000 keeps it busy for 30 ms.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import bench
import vit
from recipes import get_recipe
from support.scaling import keep_blocks

HERE = Path(__file__).parent
VITL = {"batch": 64, "checkpointing": False, "hires_share": 0.0}
VITS = VITL | {"arch": "vit_small", "ffn": "mlp", "n_prototypes": 65536, "dino_bottleneck": 256, "drop_path": 0.3}
CASES = {  # recipe, blocks, and what differs from the recipe; a few blocks say of each other one what it launches
    "three blocks of ViT-L": ("vitl14", 3, VITL),
    "three blocks of ViT-S": ("vitl14", 3, VITS),
    "the same, other sizes": ("vitl14", 3, VITS | {"batch": 32, "n_prototypes": 4096, "mask_ratio": (0.4, 0.9)}),
    "a stem, and Muon": ("cifar10_long", 12, {} if hasattr(torch.optim, "Muon") else {"optimizer": "adamw"}),
}


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """What cudasim.py says of each case."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here, and its own tests")
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
    faults, loader, *steps = map(json.loads, done.stdout.splitlines())
    found = dict(zip(CASES, steps, strict=True))
    for name, step in found.items():
        launches = ", ".join(f"{part} {n}" for part, n in sorted(step["launches"].items(), key=lambda x: -x[1]))
        print(f"\n{name}: {sum(step['launches'].values())} launches, {step['peak'] / 2**30:.1f} GiB ({launches})")
    return found | {"faults": faults, "loader": loader}


def test_what_a_step_must_not_do_is_noticed(steps):
    """A value, a mask as index, a shape that depends on values, copies to and fro, a mixed sum; not a pinned copy."""
    assert steps["faults"]["waits"] == {
        "_local_scalar_dense.default": 1, "index.Tensor with a mask": 1, "nonzero.default": 1,
        "a copy of (4,) to the CPU": 1, "a copy from pageable memory of (4,)": 1, "add.Tensor mixes devices": 1,
    }  # fmt: skip


@pytest.mark.parametrize(("name", "most"), [("three blocks of ViT-L", 1825), ("three blocks of ViT-S", 1780),
                                           ("a stem, and Muon", 3810)])  # fmt: skip
def test_launches_stay_few(steps, name, most):
    """1,783, 1,750, and 3,630, of which 1,136 are the optimizers'; 5 more in each block, for the teacher, the student
    and its backward pass, are too many."""
    assert 1000 < sum(steps[name]["launches"].values()) <= most


def test_launches_do_not_grow_with_the_sizes(steps):
    """Nothing is cut into pieces on a GPU: half the images, a sixteenth of the prototypes, more patches masked.

    Augmentation is left out: what it launches depends on its draws.
    """
    found, expected = ({**steps[name]["launches"], "augmentation": 0}
                       for name in ("the same, other sizes", "three blocks of ViT-S"))  # fmt: skip
    assert found == expected


@pytest.mark.parametrize("name", CASES)
def test_a_step_never_waits_for_the_gpu(steps, name):
    """No value and no shape is asked for, nothing is copied from pageable memory, no operation mixes devices."""
    assert steps[name]["waits"] == {}


def test_a_logged_step_waits_once(steps):
    """For five losses, four numbers of the collapse meter, and whether all is finite, at once."""
    assert steps["three blocks of ViT-L"]["log"] == {"a copy of (10,) to the CPU": 1}


def test_the_loader_never_waits(steps):
    assert steps["loader"] == {"in memory": {}, "streamed": {}}


def test_memory_at_the_peak(steps):
    """16.5 GiB, weights, moments and teacher included."""
    assert 16 * 2**30 < steps["three blocks of ViT-L"]["peak"] < 17 * 2**30


def test_memory_on_paper_is_that_of_the_simulated_gpu(steps, monkeypatch):
    """`bench.py --memory cuda` needs no compiler."""
    _, depth, changes = CASES["three blocks of ViT-S"]
    monkeypatch.setattr(vit, "vit_small", vit.vit_small)  # put back afterwards
    keep_blocks("vit_small", depth)
    counted = sum(bench.count_memory(get_recipe("vitl14", **changes), "cuda").values())
    assert counted == pytest.approx(steps["three blocks of ViT-S"]["peak"], rel=0.01)
