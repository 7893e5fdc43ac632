"""Files of a run: whole or not there.  `pytest tests/test_checkpoint.py`"""

import pickle
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from recipes import RECIPES
from support.checkpoint import read_checkpoint, restore, save_checkpoint
from support.files import UserError, write_safely


def tiny_run(step=0):
    """What save_checkpoint reads of a run, with one weight in each network and one step behind AdamW."""
    networks = {name: nn.Linear(1, 1) for name in ("student", "ema", "centering")}
    optimizer = torch.optim.AdamW(networks["student"].parameters())
    networks["student"](torch.ones(1)).sum().backward()
    optimizer.step()
    return SimpleNamespace(recipe=RECIPES["shapes"], step=step, training_flops=0, optimizer=optimizer, **networks)


def test_what_was_saved_comes_back(tmp_path):
    saved, other = tiny_run(step=7), tiny_run()
    save_checkpoint(saved, tmp_path)
    restore(other, read_checkpoint(tmp_path / "checkpoint.pt"))
    assert other.step == 7
    for part in ("student", "ema", "centering"):
        assert torch.equal(getattr(other, part).weight, getattr(saved, part).weight)
    moments = [run.optimizer.state_dict()["state"][0]["exp_avg"] for run in (saved, other)]
    assert torch.equal(*moments) and moments[0].item() != 0


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fails(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_safely(path, fails)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with open(path) as reader:
        write_safely(path, lambda temporary: temporary.write_text("new"))
        assert reader.read() == "old"  # renamed over the old file, not written into it
    assert path.read_text() == "new"


class Trap:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize(
    "content",
    [b"", b"text", pickle.dumps(Trap(), 2), pickle.dumps({"recipe": 1}, 2)],
    ids=["empty", "text", "code", "another dict"],
)
def test_another_file_is_one_line_and_never_executed(content, tmp_path, capsys):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a checkpoint of train.py"):
        read_checkpoint(path)
    assert capsys.readouterr().out == ""


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read_checkpoint(tmp_path / "checkpoint.pt")
