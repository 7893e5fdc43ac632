"""Wrong files and flags: every program ends with one line and status 2.  `pytest tests/test_hostile.py`"""

import os
import re
import signal
import socket
from dataclasses import fields

import pytest
import torch
from conftest import png_that_claims, save

import curate
import evaluate
import pca_viz
import train
from recipes import Recipe
from vit import vit_pico

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cache"), pytest.mark.filterwarnings("ignore")]
SMALL = """--image_size 16 --global_size 8 --local_size 4 --n_local 2 --patch_size 4 --n_prototypes 16 --head_hidden 16
    --dino_bottleneck 8 --ibot_bottleneck 8 --blur_sigma 0.1 0.5 --batch 4 --steps 1 --hires_share 0""".split()
ODD = ("nan", "inf", "1e99", "-1", "99999999999999999999", "", "x", "²", "\x1b[2J")  # values that no flag takes


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with good images, good weights, and the finished run of a program that all wrong cases start from."""
    folder = tmp_path_factory.mktemp("hostile")
    for i in range(12):
        save(folder / "good" / "ab"[i % 2] / f"{i}.png", 20 * i, (9, 9))
    torch.save(vit_pico(patch_size=4, img_size=8).state_dict(), folder / "vit.pth")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "draw_split", lambda *_: {})
        words = ["--data", folder / "good", "--out", folder / "run", "--device", "cpu"]
        assert train.main([*SMALL, *map(str, words)]) == 0
    return folder


def check_error(capsys, main, *words):
    """Run a program that must end in time with status 2 and one line; `words` tell the case."""
    capsys.readouterr()
    signal.signal(signal.SIGALRM, signal.default_int_handler)  # ends the tests if the program hangs
    signal.alarm(20)
    status = main([str(word) for word in words])
    signal.alarm(0)
    lines = [line for line in re.split("[\r\n]", capsys.readouterr().err) if ": error: " in line]
    assert status == 2 and len(lines) == 1 and lines[0].isprintable(), (words, status, lines)
    return lines[0]


def programs(place, data, weights):
    """(main, *words) of each program that reads images."""
    flags = ["--weights", weights, "--size", "8", "--device", "cpu"]
    out = place / "out"
    return [(train.main, *SMALL, "--data", data, "--out", out, "--device", "cpu"),
            (evaluate.main, "--data", data, *flags), (pca_viz.main, data, "--out", out.with_suffix(".png"), *flags),
            (curate.main, "--curated", place / "good", "--uncurated", data, "--out", out.with_suffix(".txt"), *flags)]


def test_files_that_are_no_images(place, tmp_path, capsys):
    contents = {"empty.png": b"", "text.jpg": b"text", "bomb.png": png_that_claims(60_000, 60_000),
                "zero.gif": b"GIF89a" + bytes(50), "cut.tar": b"x" * 600, "cut.zip": b"PK\3\4 no more",
                "line\nbreak\x1b[2J.txt": b"missing.png\n"}  # fmt: skip
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "folder.png").mkdir()
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(os.path.relpath(tmp_path / "socket.png"))
    for path in [*tmp_path.iterdir(), tmp_path / "missing.png", tmp_path]:
        for program in programs(place, path, place / "vit.pth"):
            check_error(capsys, *program)
    for i in range(12):  # among good images, broken ones are skipped
        save(tmp_path / "ab"[i % 2] / f"{i}.png", 20 * i, (9, 9))
    assert train.main([*map(str, programs(place, tmp_path, None)[0][1:])]) == 0


def flipped(raw):
    """The bytes with one bit in the middle changed."""
    half = len(raw) // 2
    return raw[:half] + bytes([raw[half] ^ 4]) + raw[half + 1 :]


def test_broken_checkpoints(place, capsys):
    path = place / "run" / "checkpoint.pt"
    raw, saved = path.read_bytes(), torch.load(path, weights_only=True)
    changes = [{"optimizer": {}}, {"student": {}}, {"student": {"x": torch.zeros(1)}}, {"teacher": None},
               {"recipe": None}, *({"recipe": saved["recipe"] | {name: x}}
                                   for name, x in (("centering", "softmax"), ("arch", "vit_tiny")))]  # fmt: skip
    others = {"colour": 1}, {"lr": None}, {"steps": "x"}, {"ffn": 1.5}, {"mask_ratio": 0.5}, {"arch": {}}
    versions = [{"recipe": {}}, *({"recipe": saved["recipe"] | change} for change in others)]
    for change in [*changes, *versions, b"", raw[: len(raw) // 2], flipped(raw)]:
        path.write_bytes(change) if isinstance(change, bytes) else torch.save(saved | change, path)
        before = path.read_bytes()
        line = check_error(capsys, train.main, "--out", place / "run", "--resume", "--device", "cpu")
        assert path.read_bytes() == before and ("by another version ('" in line) == (change in versions), change


@pytest.mark.parametrize("program, flags", [
    (0, [f.name for f in fields(Recipe) if f.type in (int, float)] + ["device", "recipe"]),
    (1, ["size", "k", "device"]), (2, ["size", "threshold", "device"]),
    (3, ["size", "self-threshold", "per-image", "mode"]),
])  # fmt: skip
def test_odd_values_of_flags(place, capsys, program, flags):
    main, *words = programs(place, place / "good", place / "vit.pth")[program]
    for i, flag in enumerate(flags):
        for value in (ODD[i % len(ODD)], ODD[(i + 4) % len(ODD)]):
            assert "unknown argument" not in check_error(capsys, main, *words, f"--{flag}={value}")
