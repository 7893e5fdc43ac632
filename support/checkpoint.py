"""checkpoint.pt: everything that --resume needs, for any number of processes.  No random states: see train.py."""

import argparse
import warnings
import zipfile
from dataclasses import asdict

import torch

import distributed
from support.files import UserError, check_regular, reason_of, write_safely


def save_checkpoint(run):
    """Write checkpoint.pt.  All ranks call it; the first one writes."""
    from torch.distributed.checkpoint import state_dict as dcp  # takes a second to import

    whole = dcp.StateDictOptions(full_state_dict=True, cpu_offload=True)  # sharded tensors, whole on the first rank
    state = {
        "recipe": asdict(run.recipe),
        "step": run.step,
        "training_flops": run.training_flops,
        "images_digest": run.images_digest,
        "teacher_digest": run.teacher_digest,
        "threads": torch.get_num_threads(),  # another number changes the order of sums
        "student": dcp.get_model_state_dict(run.student, options=whole),
        "teacher": dcp.get_model_state_dict(run.ema, options=whole),  # in distillation, too, the EMA
        "centering": run.centering.state_dict(),
        "optimizer": dcp.get_optimizer_state_dict(run.student, run.optimizer, options=whole),
        "scaler": run.scaler.state_dict(),  # {} but for fp16
    }
    if distributed.rank() == 0:
        write_safely(run.out / "checkpoint.pt", lambda path: torch.save(state, path))


def read_tensors(path, **options):
    """Load a file of torch.save, executing nothing in it.  UserError for a wrong checksum; torch.load's errors pass."""
    check_regular(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():  # torch.load does not verify checksums
                raise UserError(f"{path} is damaged: the checksum of {damaged} is wrong; use another copy")
    with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):  # DINO's files hold one
        warnings.simplefilter("ignore")  # of TorchScript and old pickles, which then fail with an error
        return torch.load(path, map_location="cpu", weights_only=True, **options)


def read_checkpoint(path):
    """The dict that save_checkpoint wrote; UserError for any other file, OSError if it cannot be read."""
    try:
        saved = read_tensors(path, mmap=True)
        if all(isinstance(saved[name], dict) for name in ("recipe", "student", "teacher", "centering", "optimizer")):
            return saved
    except (OSError, UserError):
        raise
    except Exception:  # torch.load raises many kinds of errors for a file of another kind
        pass
    raise UserError(f"{path} is not a checkpoint of train.py; give the checkpoint.pt of a run")


def restore(run, saved):
    """Set the run to the state of the checkpoint; UserError if it does not fit the run."""
    from torch.distributed.checkpoint import state_dict as dcp

    whole = dcp.StateDictOptions(full_state_dict=True)
    try:
        run.step, run.training_flops, moments = saved["step"], saved["training_flops"], saved["optimizer"]["state"]
        run.images_digest = saved["images_digest"]
        if saved["teacher_digest"] != run.teacher_digest:
            raise UserError(f"the run began with another --teacher than {run.recipe.teacher}; give that one")
        if saved["scaler"]:  # --amp may have changed
            run.scaler.load_state_dict(saved["scaler"])
        dcp.set_model_state_dict(run.student, saved["student"], options=whole)
        dcp.set_model_state_dict(run.ema, saved["teacher"], options=whole)
        run.centering.load_state_dict(saved["centering"])
        # PyTorch needs moments for every parameter; a backbone that is still frozen has none, which means 0
        zeros = {name: {"step": torch.zeros(()), "exp_avg": torch.zeros(p.shape), "exp_avg_sq": torch.zeros(p.shape)}
                 for name, p in run.student.named_parameters() if name not in moments}  # fmt: skip
        state = saved["optimizer"] | {"state": moments | zeros}
        dcp.set_optimizer_state_dict(run.student, run.optimizer, state, options=whole)
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise UserError(f"{run.out}/checkpoint.pt does not fit ({reason_of(error)[:200]}); start a new "
                        f"run from it: --init {run.out}/checkpoint.pt --out NEW") from None
