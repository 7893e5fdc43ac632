"""Command lines: what all programs share, and the flags of train.py.  `pytest tests/test_flags.py`"""

import math
import os
from argparse import ArgumentTypeError
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
import torch

from recipes import RECIPES, Recipe
from support import cli as flags
from support.cli import Parser, add_device, check_recipe, parse_args, positive, recipe_of, show
from support.device import find_device
from support.files import UserError, check_out, make_folder


def test_no_flags_mean_the_first_recipe():
    options, recipe, changes = parse_args([])
    assert recipe == RECIPES["shapes"] and changes == {}
    assert options.out == Path("runs/shapes") and not options.resume


def test_flags_change_the_recipe_and_say_what_they_changed():
    """Of each type: whole number, number, text, interval, on, off."""
    words = "--recipe vitl14 --batch 7 --lr 2e-3 --data here --mask_ratio 0.2 0.3 --compile --no-amp".split()
    options, recipe, changes = parse_args(words)
    wanted = {"batch": 7, "lr": 2e-3, "data": "here", "mask_ratio": (0.2, 0.3), "compile": True, "amp": False}
    assert changes == wanted
    assert recipe == replace(RECIPES["vitl14"], **wanted)
    assert options.out == Path("runs/vitl14")


def test_every_field_is_a_flag_with_its_help(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_args(["--help"])
    printed = "".join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    for f in fields(Recipe):
        if f.name == "name":
            continue
        assert f"--{f.name}" in printed and "".join(f.metadata["help"].split()) in printed


@pytest.mark.parametrize(
    "words, says",
    [
        ("--bach 3", "did you mean --batch"),
        ("--nothing", "unknown argument --nothing"),
        ("--recipe vitb16", "vitl14"),
        ("--batch three", "invalid int"),
        ("--batch 0", "--batch must lie in 1 to 1e+09; got 0"),
        ("--scale 5 5", "--scale: LOW must be below HIGH; got 5.0 5.0"),
        ("--arch vit_huge", "vit_small"),
        ("--ffn relu", "swiglu"),
        ("--arch vit_giant2", "--ffn swiglu"),
        ("--centering none", "sinkhorn"),
        ("--recipe vitl14 --stem", "--stem wants --patch_size 2, 4, 8 or 16; got 14"),
        ("--global_size 50", "multiple of --patch_size 8; got 50"),
        ("--local_size 4", "multiple of --patch_size 8"),
        ("--hires_size 65", "multiple of --patch_size 8"),
        ("--momentum 2", "0 to 1"),
        ("--drop_path -0.1", "0 to 1"),
        ("--mask_ratio 0.5 0.1", "an interval, LOW first; got 0.5 0.1"),
        ("--global_scale 0.5 1.5", "0 to 1; got 0.5 1.5"),
        ("--blur_sigma 0 9", "--local_size 16 is too small for --blur_sigma 0.0 9.0, which reaches over 18 pixels"),
    ],
)
def test_a_wrong_flag_is_one_line(words, says):
    with pytest.raises(UserError) as error:
        parse_args(words.split())
    assert says in str(error.value) and "\n" not in str(error.value)


NUMBERS = [f for f in fields(Recipe) if f.metadata["range"]]
WRONG = ("nan", "inf", "-inf", "1e99", "-1e99", "99999999999999999999", "-1", "0", "", "x", "1e-300", "0x10", "²")


@pytest.mark.parametrize("f", NUMBERS, ids=lambda f: f.name)
def test_each_field_has_its_range(f):
    """Each of thirteen odd values is in the range, and then the recipe holds it, or one line that names the flag."""
    low, high = f.metadata["range"]
    pair, taken = f.type not in (int, float), 0
    for text in WRONG:
        try:
            recipe = parse_args([f"--{f.name}={text}"] if not pair else [f"--{f.name}", text, text])[1]
        except UserError as error:
            assert f"--{f.name}" in str(error) and "\n" not in str(error)
            continue
        values = getattr(recipe, f.name)
        assert all(low <= x <= high for x in (values if pair else [values]))
        taken += 1
    assert taken <= 3 and math.isfinite(high)


@pytest.mark.parametrize("f", fields(Recipe), ids=lambda f: f.name)
def test_each_field_of_a_checkpoint_has_its_type(f):
    """A file's recipe may hold anything: other types are one line, and a field that is missing has its default."""
    saved = asdict(RECIPES["vitl14"])
    assert recipe_of({"recipe": saved}, "x.pt") == (RECIPES["vitl14"], [])
    for value in (None, [1], {}, "x" if f.type is not str else 7, 1.5 if f.type is int else b"", (1.0, 2.0, 3.0)):
        with pytest.raises(UserError, match=f"^x.pt: --{f.name} must be") as error:
            recipe_of({"recipe": saved | {f.name: value}}, "x.pt")
        assert "\n" not in str(error.value)
    saved.pop(f.name)
    recipe, missing = recipe_of({"recipe": saved}, "x.pt")
    assert missing == [f.name] and getattr(recipe, f.name) == f.default
    with pytest.raises(UserError, match="x.pt: its recipe has a field 'colour'"):
        recipe_of({"recipe": saved | {"colour": 1}}, "x.pt")


def test_muon_in_an_older_pytorch_is_one_line(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(UserError, match="--optimizer muon needs PyTorch 2.9; --optimizer adamw does not"):
        parse_args(["--recipe", "cifar10"])
    assert parse_args(["--recipe", "cifar10", "--optimizer", "adamw"])[1].optimizer == "adamw"


def test_the_size_of_a_phase_that_never_comes_may_be_anything():
    check_recipe(replace(RECIPES["shapes"], hires_share=0.0, hires_size=65))


def test_show():
    assert show((0.1, 2)) == "0.1 2" and show(3) == 3


@pytest.mark.parametrize("text", ["0", "-1", "2.5", "", "two", "²"])
def test_positive_takes_whole_numbers_from_one(text):
    assert positive("12") == 12
    with pytest.raises(ArgumentTypeError, match="whole number of at least 1"):
        positive(text)


def test_the_parser_says_it_in_one_line_and_takes_no_abbreviations():
    parser = Parser(prog="x.py")
    parser.add_argument("--threshold", type=float)
    assert parser.parse_args(["--threshold", "0.5"]).threshold == 0.5
    for words, says in ((["--thresh", "1"], "did you mean --threshold"), (["--threshold", "a\nb"], "invalid float")):
        with pytest.raises(UserError, match=says) as error:
            parser.parse_args(words)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("here, expected", [((), "cpu"), (("mps",), "mps"), (("cuda", "mps"), "cuda")])
def test_the_device_that_is_taken(here, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in here)
    monkeypatch.setattr(flags, "mps_works", lambda: "mps" in here)
    parser = Parser()
    add_device(parser)
    assert parser.parse_args([]).device == expected


def test_a_device_that_is_not_here():
    assert find_device("cpu") == torch.device("cpu")
    for name in ("warp", "cuda:99"):
        with pytest.raises(UserError, match=f"there is no device {name} here"):
            find_device(name)


def test_a_lock_on_a_file_that_has_gone_is_none(tmp_path, monkeypatch):
    """Between opening and locking, the last holder leaves and takes its file along, and another process makes one."""
    fcntl = pytest.importorskip("fcntl")
    lockf, path, replaced = fcntl.lockf, tmp_path / ".lock", []

    def late(file, how):
        if not replaced:
            replaced.append(path.unlink())
            path.touch()
        lockf(file, how)

    monkeypatch.setattr(fcntl, "lockf", late)
    opened = []
    monkeypatch.setattr(flags, "open", lambda *arguments: opened.append(open(*arguments)) or opened[-1], raising=False)
    with flags.lock_folder(tmp_path):
        assert len(opened) == 2 and os.path.samestat(os.fstat(opened[1].fileno()), os.stat(path))
    assert not path.exists()


def test_where_a_result_can_go(tmp_path, monkeypatch):
    check_out(tmp_path / "new.png")
    (tmp_path / "file").write_text("")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    for path, says in ((tmp_path / "none/new.png", "no folder"), (tmp_path / "a", "is a folder")):
        with pytest.raises(UserError, match=says):
            check_out(path)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(UserError, match="nothing can be written into"):
        check_out(tmp_path / "new.png")
    with pytest.raises(UserError, match="cannot make the folder"):
        make_folder(tmp_path / "file" / "b")
