"""What a run goes on from: checkpoint.pt, whole or not there.

Random states need no place in a checkpoint: all that is random in step s is drawn from seeds made of (seed, s, rank).
"""

import os
from dataclasses import asdict
from pathlib import Path

import torch


class CheckpointError(Exception):
    """A file that is not a checkpoint of train.py: one line for the person, exit status 2."""


def write_safely(path, write):
    """Call write(temporary path), then rename: a crash leaves the old file or the new one, never half of one."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # of an error on the way


def save_checkpoint(run, out):
    """checkpoint.pt, with all that --resume needs."""
    state = {
        "recipe": asdict(run.recipe),
        "step": run.step,
        "threads": torch.get_num_threads(),  # their number changes the order of sums
        "student": run.student.state_dict(),
        "teacher": run.ema.state_dict(),
        "centering": run.centering.state_dict(),
        "optimizer": run.optimizer.state_dict(),
    }
    write_safely(out / "checkpoint.pt", lambda path: torch.save(state, path))


def read_checkpoint(path):
    """The dict that save_checkpoint wrote; CheckpointError in one line for anything else."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        if saved.keys() >= {"recipe", "step", "student", "teacher", "optimizer"}:
            return saved
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
    except Exception:  # torch.load raises half a dozen kinds for a file that is not its own
        pass
    raise CheckpointError(f"{path} is not a checkpoint of train.py")


def restore(run, saved):
    """Set run to where the checkpoint was written."""
    run.student.load_state_dict(saved["student"])
    run.ema.load_state_dict(saved["teacher"])
    run.centering.load_state_dict(saved["centering"])
    run.optimizer.load_state_dict(saved["optimizer"])
    run.step = saved["step"]
