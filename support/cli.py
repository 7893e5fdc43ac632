"""Command lines: what all programs share, and train.py's flags, one for every field of a recipe."""

import argparse
import contextlib
import difflib
import errno
import functools
import math
import os
import re
import sys
from dataclasses import fields
from pathlib import Path

import torch
import torch.distributed as dist

from recipes import RECIPES, SIDE, Recipe, get_recipe
from support.files import UserError

CHOICES = {
    "arch": ("vit_femto", "vit_pico", "vit_mini", "vit_nano", "vit_tiny", "vit_small", "vit_base", "vit_large",
             "vit_giant2"),
    "ffn": ("mlp", "swiglu"),
    "centering": ("sinkhorn", "softmax"),
    "labels": ("auto", "none"),
    "amp": ("auto", "bf16", "fp16", "none"),
}
IN_HELP = ("data", "arch", "batch", "steps", "lr", "eval_every", "init", "teacher", "micro_batch", "seed")  # --help's
NO_MEMORY = ("out of memory|can('t|not) allocate memory|could not create a (primitive|memory)|bad_alloc|start new"
             " thread|failed to map|Resource temporarily unavailable|ALLOC_FAILED|DataLoader worker .* (killed|exited)")
OTHER_FLAGS = ("Every field of Recipe in recipes.py is a flag too, for example --koleo_weight 0.2, --mask_ratio 0.1 "
               "0.4, --amp none.  recipes.py explains each one and lists its value in every recipe.")  # fmt: skip


class Parser(argparse.ArgumentParser):
    """An argument parser that raises UserError in one line and suggests close matches for a misspelt flag."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, **options)
        self.color = False  # Python 3.14 colours --help
        self._negative_number_matcher = re.compile(r"-\d*\.?\d+(e[-+]?\d+)?$")  # argparse takes -1e-05 for a flag

    def error(self, message):
        raise UserError(message)

    def parse_args(self, args=None, namespace=None):
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            near = difflib.get_close_matches(unknown[0], self._option_string_actions, n=3)
            advice = f"did you mean {' or '.join(near)}?" if near else "see --help"
            raise UserError(f"unknown argument {unknown[0]}; {advice}")
        return options


class Interval(argparse.Action):
    """Store a flag's two numbers as a tuple; UserError if LOW is above HIGH."""

    def __call__(self, parser, options, values, flag=None):
        low, high = values
        if low > high or low == high and self.dest == "scale":  # grey values are divided by the width of --scale
            raise UserError(f"{flag}: LOW must be below HIGH; got {low} {high}")
        setattr(options, self.dest, (low, high))


def number(low, high, kind=float):
    """The argparse type of a number from low to high."""

    def convert(text):
        with contextlib.suppress(ValueError):
            if low <= kind(text) <= high:
                return kind(text)
        words = f"a {'whole ' if kind is int else ''}number from {low:g} to {high:g}"
        raise argparse.ArgumentTypeError(f"{text!r} is not {words}")

    return convert


positive = number(1, 10**9, int)
side = number(*SIDE, int)  # of an image, in pixels


def add_device(parser):
    """Add the flag --device."""
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default, help="cpu, cuda, cuda:1, mps (default: %(default)s)")


def add_scale(parser):
    """Add the flag --scale, the values that become black and white in grey images of more than 8 bits."""
    parser.add_argument("--scale", type=number(-1e30, 1e30), nargs=2, action=Interval, metavar=("LOW", "HIGH"),
                        help="values shown as black and white, in grey images of more than 8 bits (default: estimated)")


class Terminal:
    """A text stream that escapes control characters (from file names) and what its encoding lacks."""

    def __init__(self, stream):
        self.stream = stream or open(os.devnull, "w")  # None: it was closed before the program started

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        if text.strip("\n\x1b[A"):  # tqdm's cursor moves pass; its bars begin with \r
            text = re.sub(r"(?!^\r)[^\n]", lambda c: c[0] if c[0].isprintable() else repr(c[0])[1:-1], text)
        encoding = self.stream.encoding or "utf-8"
        try:
            self.stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            self.stream.flush()
        except OSError as error:  # a closed pipe or terminal, or a full disk; Python must not try again when it exits
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
            if error.errno != errno.EIO:  # after its terminal was closed, a run goes on, or is saved by catch_signals
                raise


def report_errors(program, *kinds):
    """Decorate main(argv): print an expected error (UserError, or one of `kinds`) in one line, return its status."""

    def decorate(main):
        @functools.wraps(main)
        def wrapped(argv=None):
            with contextlib.redirect_stdout(Terminal(sys.stdout)), contextlib.redirect_stderr(Terminal(sys.stderr)):
                try:
                    if {"RANK", "LOCAL_WORLD_SIZE"} & os.environ.keys() and not dist.is_torchelastic_launched():
                        raise UserError("unset RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE and MASTER_PORT: "
                                        "torchrun did not set them")  # fmt: skip
                    return main(argv)
                except KeyboardInterrupt:
                    print(f"{program}: stopped", file=sys.stderr)
                    return 130  # a shell expects this after Ctrl-C
                except Exception as error:
                    line, status = describe_error(error, kinds)
                    print(f"{program}: error: {' '.join(line.split())}", file=sys.stderr)
                    return status

        return wrapped

    return decorate


def describe_error(error, kinds=()):
    """(one line, exit status) for an expected error; a fault of the program is raised again."""
    text = str(error)
    if isinstance(error, (UserError, *kinds)):
        return text, 2
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or re.search(NO_MEMORY, text, re.I):
        return "out of memory; use a smaller --size; with train.py --micro_batch, --checkpointing or --workers 1", 1
    if "RANK" in os.environ and (isinstance(error, dist.DistError) or "gloo" in text):
        return f"rank {os.environ['RANK']} lost another rank; start all again, train.py with --resume", 1
    if isinstance(error, OSError):
        status = 1 if error.errno in (errno.ENOSPC, errno.EPIPE) else 2
        return f"{error.filename}: {error.strerror}" if error.filename else text, status
    if "PytorchStreamWriter" in text or "unexpected pos" in text:  # torch.save on a full disk
        return "a file could not be written; free some disk space", 1
    raise error


def parse_args(argv=None, prog="train.py"):
    """Command line -> (options, Recipe, {field: value} of the fields set by flags); UserError for wrong ones."""
    parser = Parser(prog=prog, description="Train DINOv2.", epilog=OTHER_FLAGS)
    parser.add_argument("--recipe", choices=RECIPES, help="the recipe to start from (default: shapes)")
    parser.add_argument("--out", type=Path, help="folder of the run (default: runs/RECIPE)")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in --out, if there is one")
    add_device(parser)
    for f in fields(Recipe)[1:]:  # without the name
        options = {"help": f.metadata["help"] if f.name in IN_HELP else argparse.SUPPRESS, "default": argparse.SUPPRESS}
        if f.type is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif f.type is str:
            options |= {"choices": CHOICES.get(f.name), "metavar": f.name.upper()}
        else:
            options |= {"type": number(*f.metadata["range"], int if f.type is int else float), "metavar": "N"}
            options |= {} if f.type in (int, float) else {"nargs": 2, "action": Interval, "metavar": ("LOW", "HIGH")}
        parser.add_argument(f"--{f.name}", **options)
    parser.add_argument("--no-amp", dest="amp", action="store_const", const="none", help=argparse.SUPPRESS,
                        default=argparse.SUPPRESS)  # fmt: skip
    options = parser.parse_args(argv)
    changes = {f.name: getattr(options, f.name) for f in fields(Recipe) if hasattr(options, f.name)}
    options.out = options.out or Path("runs") / (options.recipe or "shapes")
    recipe = get_recipe(options.recipe or "shapes", **changes)
    if not options.resume and not recipe.init:  # then fields come from a file, and are checked later
        check_recipe(recipe)
    return options, recipe, changes


def check_recipe(r):
    """UserError for a recipe that cannot train."""
    if r.arch == "vit_giant2" and r.ffn != "swiglu":
        raise UserError("--arch vit_giant2 needs --ffn swiglu (Table 17)")
    if r.stem and r.patch_size not in (2, 4, 8, 16):
        raise UserError(f"--stem needs --patch_size 2, 4, 8 or 16; got {r.patch_size}")
    blur = math.ceil(2 * r.blur_sigma[1])
    for name in ["global_size"] + ["local_size"] * bool(r.n_local) + ["hires_size"] * bool(r.hires_share):
        size = getattr(r, name)
        if size < r.patch_size or size % r.patch_size:
            raise UserError(f"--{name} must be a multiple of --patch_size {r.patch_size}; got {size}")
        if size <= blur:
            raise UserError(f"--{name} must be above {blur}, the reach of --blur_sigma {r.blur_sigma}; got {size}")
