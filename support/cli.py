"""Command lines: what all programs share, and a flag of train.py for every field of a recipe.

All is checked before anything starts, and what is wrong is one line.
"""

import argparse
import difflib
import functools
import math
import sys
from dataclasses import fields
from pathlib import Path

import torch
import torch.distributed as dist

import distributed
from recipes import RECIPES, SIDE, Recipe, get_recipe
from support.device import mps_works
from support.files import UserError, printable
from support.images import MAX_MEGAPIXELS

NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}  # in errors
CHOICES = {
    "arch": ("vit_pico", "vit_mini", "vit_nano", "vit_tiny", "vit_small", "vit_base", "vit_large", "vit_giant2"),
    "ffn": ("mlp", "swiglu"),
    "centering": ("sinkhorn", "softmax"),
    "optimizer": ("adamw", "muon"),
}




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


FULL = "not enough memory; --micro_batch, --checkpointing, a smaller --batch or --n_prototypes, or more GPUs, need less"
UNWRITTEN = ("PytorchStreamWriter", "unexpected pos")  # in what torch.save says of a full disk


def explained(error):
    """(a line, exit status), or None for an error that shall be seen whole."""
    if isinstance(error, (UserError, UserError, UserError)):
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


def report_errors(program, *kinds):
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
                print(f"{program}: error: {printable(' '.join(found[0].split()))}", file=sys.stderr)
                return found[1]

        return explaining

    return decorate
