"""Command lines: what all programs share, and a flag of train.py for every field of a recipe.

All is checked before anything starts, and what is wrong is one line.
"""

import argparse
import contextlib
import difflib
import math
import os
from dataclasses import fields
from pathlib import Path

import torch
import torch.nn.functional as F

from recipes import RECIPES, SIDE, Recipe, get_recipe
from support.pictures import MAX_MEGAPIXELS

NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}  # in errors
DEVICES = ("cpu", "cuda", "mps", "xpu")
CHOICES = {
    "arch": ("vit_pico", "vit_mini", "vit_nano", "vit_tiny", "vit_small", "vit_base", "vit_large", "vit_giant2"),
    "ffn": ("mlp", "swiglu"),
    "centering": ("sinkhorn", "softmax"),
    "optimizer": ("adamw", "muon"),
}


class UserError(Exception):
    """A wrong flag, path or file: one line for the person, exit status 2."""


# ---------------------------------------------------------------------------- what all programs share


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line, with near matches for a misspelt flag, also from the parser `before`."""

    def __init__(self, before=None, **options):
        super().__init__(allow_abbrev=False, **options)
        self.before = before

    def error(self, message):
        raise UserError(" ".join(message.split()))

    def parse_args(self, args=None, namespace=None):
        """As argparse does; UserError for what it does not know."""
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            known = [flag for parser in (self, self.before) if parser for flag in parser._option_string_actions]
            near = difflib.get_close_matches(unknown[0], known, n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise UserError(f"unknown argument {unknown[0]}{hint}")
        return options


def positive(text):
    """A command-line number from 1 to a milliard."""
    if not text.isdecimal() or not 1 <= int(text) <= 10**9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1, or too large")
    return int(text)


def side(text):
    """A command-line number of pixels, of the side of a picture."""
    if not text.isdecimal() or not 1 <= int(text) <= SIDE[1]:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {SIDE[1]}")
    return int(text)


def number(low, high):
    """The type of a command-line number from low to high."""

    def of(text):
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low:g} to {high:g}")
        return value

    return of


def add_device(parser):
    """The flags --device and --threads."""
    default = "cuda" if torch.cuda.is_available() else "mps" if mps_works() else "cpu"
    parser.add_argument("--device", default=default, help="cpu, cuda, cuda:1, mps, ... (default: %(default)s)")
    parser.add_argument("--threads", type=positive, help="CPU threads (default: OMP_NUM_THREADS, or the fastest)")


def mps_works():
    """Whether there is a GPU of Apple's, and PyTorch has on it what is most likely to be missing."""
    if not torch.backends.mps.is_available():
        return False
    try:
        F.interpolate(torch.zeros(1, 1, 4, 4, device="mps"), (2, 2), mode="bicubic", antialias=True)
    except (NotImplementedError, RuntimeError):
        return False
    return True


def add_pictures(parser):
    """The flags --scale and --max_megapixels."""
    parser.add_argument("--scale", type=float, nargs=2, metavar=("LOW", "HIGH"), help="values of deep pictures that "
                        "become 0 and 255 (default: what the files suggest)")
    parser.add_argument("--max_megapixels", "--max-megapixels", type=positive, default=MAX_MEGAPIXELS, metavar="N",
                        help="larger pictures are skipped (default: %(default)s)")


def check_scale(scale):
    """UserError unless a pair of numbers, where there is one, has the lower one first."""
    if scale and not -math.inf < scale[0] < scale[1] < math.inf:
        raise UserError(f"--scale: LOW must be below HIGH; got {show(tuple(scale))}")


def find_device(name):
    """The torch.device of that name, or UserError if it is not here, or none to compute on."""
    try:
        device = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError):  # PyTorch's texts for it run over many lines
        device = None
    if device is None or device.type not in DEVICES:
        raise UserError(f"there is no device {name} here; try --device cpu")
    return device


def make_folder(path, *files):
    """The folder --out of a run, made if it is not there; UserError if it cannot be, or `files` not written in it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path}: {error.strerror}") from None
    if not os.access(path, os.W_OK):
        raise UserError(f"nothing can be written into {path}")
    for name in files:
        if (path / name).is_dir():
            raise UserError(f"{path / name} is a folder, where a file shall be")


@contextlib.contextmanager
def alone_in(folder):
    """Hold a folder until the block ends, or the process, however it does; UserError if another process holds it.

    By the first rank, with a lock of the system's; where it has none, nothing is held.
    """
    try:
        import fcntl
    except ImportError:  # on Windows
        fcntl = None
    if fcntl is None or os.environ.get("RANK", "0") != "0":
        yield
        return
    file = locked(folder / ".lock", fcntl)
    try:
        yield
    finally:
        (folder / ".lock").unlink(missing_ok=True)
        file.close()


def locked(path, fcntl):
    """An open file with a lock; UserError if another process has it.  A file that its last holder has meanwhile taken
    away is no use: the next one would make another, and hold that."""
    while True:
        file = open(path, "w")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise UserError(f"another process trains in {path.parent}; --out for another folder") from None
        except OSError:  # a file system without locks
            return file
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        file.close()


def check_out(path, flag="--out"):
    """UserError unless a file can be written at `path`, before hours are spent on what belongs into it."""
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent} for {flag}")
    if path.is_dir():
        raise UserError(f"{flag} {path} is a folder; give the name of a file")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"{flag}: nothing can be written into {path.parent}")


# ---------------------------------------------------------------------------- train.py: a flag for each field


def parse_args(argv=None, before=None):
    """Command line -> (options, recipe, the fields set by hand); before: the parser that has taken its flags out."""
    parser = Parser(before, prog="train.py", description="Train DINOv2; any field of a recipe is a flag.")
    parser.add_argument("--recipe", choices=RECIPES, help="where the fields below start from (default: shapes)")
    parser.add_argument("--out", type=Path, help="folder of the run (default: runs/RECIPE)")
    add_device(parser)
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in the run's folder")
    group = parser.add_argument_group("recipe fields (default: the recipe's)")
    flags = [f for f in fields(Recipe) if f.name != "name"]
    for f in flags:
        of_value = {}
        for name, r in RECIPES.items():
            of_value.setdefault(show(getattr(r, f.name)), []).append(name)
        values = "; ".join(f"{', '.join(names) if len(of_value) > 1 else 'all'}: {v}" for v, names in of_value.items())
        limits = f"; {range_of(f)}" if f.metadata["range"] else ""
        words = f"{f.metadata['help']}{limits} ({values})".replace("%", "%%")
        options = {"help": words, "default": argparse.SUPPRESS}
        if f.type is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif f.type in (int, float, str):
            options |= {"type": f.type, "metavar": f.type.__name__.upper()}
        else:
            options |= {"type": float, "nargs": 2, "metavar": ("LOW", "HIGH")}
        group.add_argument(f"--{f.name}", **options)
    options = parser.parse_args(argv)
    changes = {f.name: getattr(options, f.name) for f in flags if hasattr(options, f.name)}
    changes = {k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()}
    name = options.recipe or "shapes"
    options.out = options.out or Path("runs") / name
    recipe = get_recipe(name, **changes)
    check_recipe(recipe, sizes=not recipe.init)  # with --init the patch size is the file's
    return options, recipe, changes


def show(value):
    """A field's value as it stands on a command line."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else value


def check_recipe(r, sizes=True):
    """Raise UserError for values that cannot be trained with; sizes: those that want another patch size among
    them."""
    for f in fields(Recipe):
        check_field(f, getattr(r, f.name))
    if any(r.scale):
        check_scale(r.scale)
    if sizes and r.stem and r.patch_size not in (2, 4, 8, 16):
        raise UserError(f"--stem wants --patch_size 2, 4, 8 or 16; got {r.patch_size}")
    if r.optimizer == "muon" and not hasattr(torch.optim, "Muon"):
        raise UserError("--optimizer muon needs PyTorch 2.9; --optimizer adamw does not")
    if r.arch == "vit_giant2" and r.ffn != "swiglu":
        raise UserError("--arch vit_giant2 is a network with --ffn swiglu (Table 17)")
    names = ("global_size",) + ("local_size",) * bool(r.n_local) + ("hires_size",) * bool(r.hires_share)
    for name in names if sizes else ():
        size = getattr(r, name)
        if size < r.patch_size or size % r.patch_size:
            raise UserError(f"--{name} must be a multiple of --patch_size {r.patch_size}; got {size}")
        if size <= math.ceil(2 * r.blur_sigma[1]):
            raise UserError(f"--{name} {size} is too small for --blur_sigma {show(r.blur_sigma)}, which reaches over "
                            f"{math.ceil(2 * r.blur_sigma[1])} pixels")  # fmt: skip


def check_field(f, value):
    """Raise UserError unless a field's value is of its type and in its range, or one of its choices."""
    pair, kind = f.type not in (int, float, str, bool), f.type
    numbers = value if pair and isinstance(value, (tuple, list)) and len(value) == 2 else [value]
    if pair:
        kind = float if len(numbers) == 2 else None
    for x in numbers:
        if not (type(x) is kind or (kind is float and type(x) is int)):
            raise UserError(f"--{f.name} must be {'two numbers' if pair else NAMES[kind]}; got {x!r}")
        if f.metadata["range"] and not f.metadata["range"][0] <= x <= f.metadata["range"][1]:
            raise UserError(f"--{f.name} must lie in {range_of(f)}; got {show(value)}")
    if pair and value[0] > value[1]:
        raise UserError(f"--{f.name} must be an interval, LOW first; got {show(value)}")
    if f.name in CHOICES and value not in CHOICES[f.name]:
        raise UserError(f"--{f.name} must be one of {', '.join(CHOICES[f.name])}; got {value}")


def range_of(f):
    """The range of a field in words."""
    return "{:g} to {:g}".format(*f.metadata["range"])


def recipe_of(saved, path):
    """The recipe in a checkpoint read from `path` -> Recipe, the names of fields that it lacks.  Raises UserError."""
    known = {f.name for f in fields(Recipe)}
    if unknown := sorted(set(map(str, saved["recipe"])) - known):
        raise UserError(f"{path}: its recipe has a field {unknown[0]!r}, which this version does not know")
    recipe = Recipe(**saved["recipe"])
    try:
        check_recipe(recipe)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return recipe, sorted(known - set(saved["recipe"]))
