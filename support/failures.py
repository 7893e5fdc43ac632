"""What a person can do about an error: one line for each kind that is not a fault of the program."""

import functools
import sys

import torch
import torch.distributed as dist

import distributed
from support.checkpoint import CheckpointError
from support.files import DataError
from support.flags import UserError

FULL = "not enough memory; --micro_batch, --checkpointing, a smaller --batch or --n_prototypes, or more GPUs, need less"


def explained(error):
    """(a line, exit status), or None for an error that shall be seen whole."""
    if isinstance(error, (UserError, CheckpointError, DataError)):
        return str(error), 2
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return FULL, 1
    if distributed.world_size() > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error)):
        return f"rank {distributed.rank()} has lost another one; start all again, with --resume", 1
    return None


def in_one_line(program):
    """For a program's main(argv): what can be explained is printed to stderr, and its status returned."""

    def decorate(main):
        @functools.wraps(main)
        def explaining(argv=None):
            try:
                return main(argv)
            except Exception as error:
                if not (found := explained(error)):
                    raise
                print(f"{program}: error: {found[0]}", file=sys.stderr)
                return found[1]

        return explaining

    return decorate
