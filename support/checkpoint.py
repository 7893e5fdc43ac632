"""What a run goes on from: checkpoint.pt, whole or not there.

Random states need no place in a checkpoint: all that is random in step s is drawn from seeds made of (seed, s, rank).
"""

import argparse
import warnings
import zipfile
from dataclasses import asdict

import torch

import distributed
from support.files import UserError, check_regular, write_safely


class Damaged(ValueError):
    """A file whose checksums are wrong."""




def save_checkpoint(run, out):
    """checkpoint.pt, with all that --resume needs, on as many ranks as one likes.  All ranks call it, rank 0 writes."""
    from torch.distributed.checkpoint import state_dict as dcp  # takes a second to import

    whole = dcp.StateDictOptions(full_state_dict=True, cpu_offload=True)  # of what is sharded, on rank 0 alone
    optimizer = dcp.get_optimizer_state_dict(run.student, run.optimizers, options=whole)
    state = {
        "recipe": asdict(run.recipe),
        "step": run.step,
        "training_flops": run.training_flops,
        "threads": torch.get_num_threads(),  # their number changes the order of sums
        "student": dcp.get_model_state_dict(run.student, options=whole),
        "teacher": dcp.get_model_state_dict(run.ema, options=whole),
        "centering": run.centering.state_dict(),
        "optimizer": renamed(optimizer, {name: i for i, name in enumerate(names(run))}),
    }
    if distributed.rank() == 0:
        write_safely(out / "checkpoint.pt", lambda path: torch.save(state, path))


def names(run):
    """Of the student's parameters, in the order of the optimizers, by which a file numbers them."""
    name_of = {parameter: name for name, parameter in run.student.named_parameters()}
    groups = [group for optimizer in run.optimizers for group in optimizer.param_groups]
    return [name_of[parameter] for group in groups for parameter in group["params"]]


def renamed(optimizer, new):
    """An optimizer's state with the parameters called otherwise: numbers in the file, names in PyTorch's functions."""
    state = {new[key]: value for key, value in optimizer.get("state", {}).items()}
    groups = [{**group, "params": [new[key] for key in group["params"]]} for group in optimizer.get("param_groups", [])]
    return {"state": state, "param_groups": groups}


def read_tensors(path, **options):
    """What torch.save wrote, by torch.load, which executes nothing.  Checksums are verified, which it does not.

    Raises OSError, ValueError for a damaged file or one that is not regular, or whatever torch.load raises.
    """
    check_regular(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise Damaged(f"{path} is damaged: the checksum of {damaged} is wrong")
    with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):  # DINO's hold their flags
        warnings.simplefilter("ignore")  # of TorchScript and old pickles, which are refused below in one line
        return torch.load(path, map_location="cpu", weights_only=True, **options)


def read_checkpoint(path):
    """The dict that save_checkpoint wrote; UserError in one line for anything else."""
    try:
        saved = read_tensors(path, mmap=True)
        parts = [saved[name] for name in ("recipe", "student", "teacher", "centering", "optimizer")]
        if type(saved["step"]) is int and all(isinstance(part, dict) for part in parts):
            return saved
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except Damaged as error:
        raise UserError(str(error)) from None
    except Exception:  # torch.load raises half a dozen kinds for a file that is not its own
        pass
    raise UserError(f"{path} is not a checkpoint of train.py")


def restore(run, saved):
    """Set run to where the checkpoint was written; UserError if it is not of this run."""
    try:
        load_parts(run, saved)
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the checkpoint does not fit its own recipe ({reason}); start anew") from None


def load_parts(run, saved):
    """The student, the teacher, the centres, the optimizer and the step of a checkpoint -> run."""
    from torch.distributed.checkpoint import state_dict as dcp

    if not 0 <= saved["step"] <= run.recipe.steps:
        raise ValueError(f"step {saved['step']} of {run.recipe.steps}")
    if saved["step"] and not saved["optimizer"].get("state"):
        raise ValueError("an optimizer without moments")
    whole = dcp.StateDictOptions(full_state_dict=True)
    dcp.set_model_state_dict(run.student, saved["student"], options=whole)
    dcp.set_model_state_dict(run.ema, saved["teacher"], options=whole)
    run.centering.load_state_dict(saved["centering"])
    optimizer = renamed(saved["optimizer"], dict(enumerate(names(run))))
    new = {name: p for name, p in run.student.named_parameters() if name not in optimizer["state"]}
    for name, p in new.items():  # they had no gradient yet, and PyTorch wants moments of all
        zeros = {moment: torch.zeros(p.shape) for moment in ("exp_avg", "exp_avg_sq")}
        optimizer["state"][name] = {"step": torch.zeros(()), **zeros}
    dcp.set_optimizer_state_dict(run.student, run.optimizers, optimizer, options=whole)
    for p in new.values():
        for one in run.optimizers:
            one.state.pop(p, None)
    run.step, run.training_flops = saved["step"], saved.get("training_flops", 0)
