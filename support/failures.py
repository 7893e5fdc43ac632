"""What a person can do about an error: one line for each kind that is not a fault of the program."""

import functools
import sys

import torch
import torch.distributed as dist

import distributed
from support.checkpoint import CheckpointError
from support.files import DataError, plain
from support.flags import UserError

FULL = "not enough memory; --micro_batch, --checkpointing, a smaller --batch or --n_prototypes, or more GPUs, need less"
UNWRITTEN = ("PytorchStreamWriter", "unexpected pos")  # in what torch.save says of a full disk


def explained(error):
    """(a line, exit status), or None for an error that shall be seen whole."""
    if isinstance(error, (UserError, CheckpointError, DataError)):
        return str(error), 2
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error):
        return FULL, 1
    if distributed.world_size() > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error)):
        return f"rank {distributed.rank()} has lost another one; start all again, with --resume", 1
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error), 1 if error.errno == 28 else 2
    if any(words in str(error) for words in UNWRITTEN):
        return "a file could not be written; is the disk full?", 1
    return None


def in_one_line(program, *kinds):
    """For a program's main(argv): what can be explained is printed to stderr, and its status returned.

    kinds: errors besides, that in this program are of the person's doing.
    """

    def decorate(main):
        @functools.wraps(main)
        def explaining(argv=None):
            try:
                return main(argv)
            except KeyboardInterrupt:
                print(f"{program}: stopped", file=sys.stderr)
                return 130  # what a shell expects of Ctrl-C
            except Exception as error:
                found = explained(error) or (isinstance(error, kinds) and (str(error), 2))
                if not found:
                    raise
                print(f"{program}: error: {plain(' '.join(found[0].split()))}", file=sys.stderr)
                return found[1]

        return explaining

    return decorate
