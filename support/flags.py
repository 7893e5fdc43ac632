"""Command lines: what all programs share, and a flag of train.py for every field of a recipe.

All is checked before anything starts, and what is wrong is one line.
"""

import argparse
import difflib
import math
import os
from dataclasses import fields
from pathlib import Path

import torch

from recipes import RECIPES, Recipe, get_recipe
from support.pictures import MAX_MEGAPIXELS

CHOICES = {
    "arch": ("vit_pico", "vit_nano", "vit_tiny", "vit_small", "vit_base", "vit_large", "vit_giant2"),
    "ffn": ("mlp", "swiglu"),
    "centering": ("sinkhorn", "softmax"),
}


class UserError(Exception):
    """A wrong flag, path or file: one line for the person, exit status 2."""


# ---------------------------------------------------------------------------- what all programs share


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line, with near matches for a misspelt flag."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, **options)

    def error(self, message):
        raise UserError(" ".join(message.split()))

    def parse_args(self, args=None, namespace=None):
        """As argparse does; UserError for what it does not know."""
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            near = difflib.get_close_matches(unknown[0], self._option_string_actions, n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise UserError(f"unknown argument {unknown[0]}{hint}")
        return options


def positive(text):
    """A command-line number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def add_device(parser):
    """The flags --device and --threads."""
    here = [name for name in ("cuda", "mps") if getattr(torch, name).is_available()]
    default = (here or ["cpu"])[0]
    parser.add_argument("--device", default=default, help="cpu, cuda, cuda:1, mps, ... (default: %(default)s)")
    parser.add_argument("--threads", type=positive, help="CPU threads (default: OMP_NUM_THREADS, or the fastest)")


def add_pictures(parser):
    """The flags --scale and --max_megapixels."""
    parser.add_argument("--scale", type=float, nargs=2, metavar=("LOW", "HIGH"), help="values of deep pictures that "
                        "become 0 and 255 (default: what the files suggest)")
    parser.add_argument("--max_megapixels", "--max-megapixels", type=positive, default=MAX_MEGAPIXELS, metavar="N",
                        help="larger pictures are skipped (default: %(default)s)")


def check_scale(scale):
    """A pair of numbers, or None, as it is; UserError unless the first one is the lower."""
    if scale and not -math.inf < scale[0] < scale[1] < math.inf:
        raise UserError(f"--scale: LOW must be below HIGH; got {show(tuple(scale))}")
    return scale


def find_device(name):
    """The torch.device of that name, or UserError if it is not here."""
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError):  # PyTorch's texts for it run over many lines
        raise UserError(f"there is no device {name} here; try --device cpu") from None


def make_folder(path):
    """The folder --out of a run, made if it is not there; UserError if it cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path}: {error.strerror}") from None


def check_out(path, flag="--out"):
    """UserError unless a file can be written at `path`, before hours are spent on what belongs into it."""
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent} for {flag}")
    if path.is_dir():
        raise UserError(f"{flag} {path} is a folder; give the name of a file")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"{flag}: nothing can be written into {path.parent}")


# ---------------------------------------------------------------------------- train.py: a flag for each field


def parse_args(argv=None):
    """Command line -> (options, recipe, the fields set by hand)."""
    parser = Parser(prog="train.py", description="Train DINOv2; any field of a recipe is a flag.")
    parser.add_argument("--recipe", choices=RECIPES, default="shapes", help="where the fields below start from")
    parser.add_argument("--out", type=Path, help="folder of the run (default: runs/RECIPE)")
    add_device(parser)
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in the run's folder")
    group = parser.add_argument_group("recipe fields (default: the recipe's)")
    for f in fields(Recipe):
        values = ", ".join(f"{n}: {show(getattr(r, f.name))}" for n, r in RECIPES.items())
        options = {"help": f"{f.metadata['help']} ({values})".replace("%", "%%"), "default": argparse.SUPPRESS}
        if f.type is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif f.type in (int, float, str):
            options |= {"type": f.type, "metavar": f.type.__name__.upper()}
        else:
            options |= {"type": float, "nargs": 2, "metavar": ("LOW", "HIGH")}
        group.add_argument(f"--{f.name}", **options)
    options = parser.parse_args(argv)
    changes = {f.name: getattr(options, f.name) for f in fields(Recipe) if hasattr(options, f.name)}
    changes = {k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()}
    options.out = options.out or Path("runs") / options.recipe
    recipe = get_recipe(options.recipe, **changes)
    check_recipe(recipe, sizes=not recipe.init)  # with --init the patch size is the file's
    return options, recipe, changes


def show(value):
    """A field's value as it stands on a command line."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else value


def check_recipe(r, sizes=True):
    """Raise UserError for values that cannot be trained with; sizes: crops in whole patches among them."""
    for name, choices in CHOICES.items():
        if getattr(r, name) not in choices:
            raise UserError(f"--{name} must be one of {', '.join(choices)}; got {getattr(r, name)}")
    if r.arch == "vit_giant2" and r.ffn != "swiglu":
        raise UserError("--arch vit_giant2 is a network with --ffn swiglu (Table 17)")
    names = ("global_size", "local_size") + (("hires_size",) if r.hires_share else ())
    for name in names if sizes else ():
        size = getattr(r, name)
        if size < r.patch_size or size % r.patch_size:
            raise UserError(f"--{name} must be a multiple of --patch_size {r.patch_size}; got {size}")
    for name in ("batch", "steps", "image_size", "patch_size", "n_prototypes", "log_every", "save_every",
                 "max_megapixels"):  # fmt: skip
        if getattr(r, name) < 1:
            raise UserError(f"--{name} must be 1 or more; got {getattr(r, name)}")
    if any(r.scale):
        check_scale(r.scale)
    for name in ("micro_batch", "workers"):
        if getattr(r, name) < 0:
            raise UserError(f"--{name} must be 0 or more; got {getattr(r, name)}")
    for name in ("student_temp", "teacher_temp_start", "teacher_temp", "lr", "init_lr", "clip"):
        if not 0 < getattr(r, name) < math.inf:
            raise UserError(f"--{name} must be above 0; got {getattr(r, name)}")
    for name in ("momentum", "momentum_end", "drop_path", "hires_share", "head_warmup", "mask_probability"):
        if not 0 <= getattr(r, name) <= 1:
            raise UserError(f"--{name} must lie in 0 to 1; got {getattr(r, name)}")
    for name in ("global_scale", "local_scale", "mask_ratio"):
        if not 0 <= getattr(r, name)[0] <= getattr(r, name)[1] <= 1:
            raise UserError(f"--{name} must be an interval in 0 to 1; got {show(getattr(r, name))}")
