"""bench.py --all: a part that fails leaves the others, and one for real.  `pytest tests/test_everything.py`"""

import json
import subprocess
from types import SimpleNamespace

import pytest

import bench
from support import everything

STEP = {"images_per_s": 2.0, "share_of_peak": 0.5, "peak_memory": 2**30, "batch": 4, "parts": {"augmentation": 1.0}}


@pytest.fixture
def instead(monkeypatch):
    """What each command would print, by a word of it; its metrics.jsonl has the loss 1, on cuda 1.0005."""

    def run(command, limit):
        if "518" in command:
            raise subprocess.TimeoutExpired(command, limit)
        if command.startswith("train.py"):
            folder = everything.Path(command.split("--out ")[1].split()[0])
            folder.mkdir(parents=True)
            last = {"step": 9, "knn_20": 0.5, "knn_200": 0.4, "seconds": 7}
            rows = [{"loss": 1.0005 if "cuda" in command else 1.0}, last]
            (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
            commands.append(command)
            return "k-NN"
        return "3 passed" if "pytest" in command else json.dumps(STEP)

    commands = []
    monkeypatch.setattr(everything, "run", run)
    return commands


def test_each_part_stands_alone(instead, tmp_path, capsys):
    assert everything.run_everything("cuda", True, "cifar10.tar.xz", tmp_path / "bench.json") == 1
    results = json.loads((tmp_path / "bench.json").read_text())
    assert results["ViT-L/14 at 518²"]["failed"].startswith("TimeoutExpired")
    assert results["CUDA tests"]["says"] == "3 passed" and results["ViT-L/14, compiled"]["batch"] == 4
    assert results["cifar10, trained"]["knn_20"] == 0.5
    assert results["CPU and GPU agree"]["largest difference of 20 losses"] == pytest.approx(5e-4)
    assert any("--steps 50 " in command for command in instead)  # 100 s at 2 images/s, 4 in a step
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1].startswith(f"{len(results) - 1} of {len(results)} parts") and len(printed) == len(results) + 1


def test_losses_that_differ_are_a_failure(instead, monkeypatch):
    monkeypatch.setattr(everything, "AGREE", 1e-4)
    with pytest.raises(RuntimeError, match="5.0e-04"):
        everything.agreement("cuda", 1)


def test_it_takes_at_most_nine_minutes():
    """Of the steps, which take 20 to 30 s each, not of their limits."""
    parts = everything.plan("cuda", True, "cifar10")
    assert len(parts) * 30 + everything.SECONDS < 540


def test_a_part_of_a_cpu(capsys):
    """Its command is right, and small: it is called, not started, which would import PyTorch once more."""
    parts = everything.plan("cpu", False, None)
    program, *flags = parts["ViT-L/14 at 518²"][0].split()
    assert program == "bench.py" and bench.main(flags) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["batch"] == 2 and found["global_size"] == 28 and found["images_per_s"] > 0


def test_a_path_with_a_blank_is_one_word(monkeypatch):
    words = []
    monkeypatch.setattr(everything.subprocess, "run", lambda command, **_: words.append(command) or SimpleNamespace(
        returncode=0, stdout="7\n"))  # fmt: skip
    for command, limit in everything.plan("cpu", False, "my data/it's.tar").values():
        everything.run(command, limit)
    assert [command.count("my data/it's.tar") for command in words if "--data" in command] == [1, 1]


def test_a_process_that_ends_well_and_one_that_does_not():
    assert everything.run("-V", 60).startswith("Python 3")
    limit = 60
    with pytest.raises(RuntimeError, match="No module named no_such_module"):
        everything.run("-m no_such_module", limit)
