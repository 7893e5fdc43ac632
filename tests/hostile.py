"""Files and values that a person never makes by hand, and that programs meet all the same.

`files(folder)` makes them; `run(program, words)` runs a program's main() on them, with a limit of time.
"""

import io
import os
import pickle
import random
import signal
import socket
import struct
import tarfile
import zipfile
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import fields

import numpy as np
import torch
from conftest import png_that_claims, save, tiff
from PIL import Image

from recipes import RECIPES, Recipe
from vit import vit_pico

LIMIT = 20  # seconds until a program counts as hanging
SMALL = """--image_size 16 --global_size 8 --local_size 4 --n_local 2 --patch_size 4 --n_prototypes 16 --head_hidden 16
    --dino_bottleneck 8 --ibot_bottleneck 8 --blur_sigma 0.1 0.5 --batch 4 --steps 2 --hires_share 0""".split()
VALUES = ("nan", "inf", "-inf", "1e99", "-1", "0", "99999999999999999999", "", "x", "0.5", "²", "1e-300", "\x1b[2J")


class Hang(BaseException):
    """A program that did not end in time."""


def run(main, words):
    """(status, stdout, stderr) of a program; its exceptions pass through, and Hang comes after LIMIT seconds."""

    def late(*_):
        raise Hang

    out, err = io.StringIO(), io.StringIO()
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(LIMIT)
    try:
        with redirect_stdout(out), redirect_stderr(err):
            status = main([str(word) for word in words])
    except SystemExit as stop:  # argparse's --help; a loss that became NaN
        status = stop.code
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return status, out.getvalue(), err.getvalue()


def flaws(main, words, statuses=(0, 2)):
    """What is wrong with how a program ends, as a list of words: [] for nothing."""
    try:
        status, _, err = run(main, words)
    except (Exception, KeyboardInterrupt, Hang) as error:  # all are flaws
        return [f"{type(error).__name__}: {str(error)[:200]}"]
    found = [] if status in statuses else [f"status {status}"]
    errors = [line for line in err.replace("\r", "\n").split("\n") if ": error: " in line]
    if (status == 2) != (len(errors) == 1):
        found.append(f"status {status} and {len(errors)} errors: {err[-300:]}")
    if "Traceback" in err or any(c < " " and c not in "\n\r\t" for line in errors for c in line):
        found.append(err[-300:])
    return found


# ---------------------------------------------------------------------------- files


def picture(value=9):
    """The bytes of a small picture."""
    file = io.BytesIO()
    Image.new("RGB", (9, 9), (value, value, value)).save(file, "PNG")
    return file.getvalue()


def tar_of(path, names, size=None, end=True):
    """A tar of pictures; size: what the last header claims; end: with the two empty blocks behind."""
    with open(path, "wb") as file:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = size if size is not None and name == names[-1] else len(picture())
            head = info.tobuf(tarfile.GNU_FORMAT)
            file.write(head + picture() + bytes(-len(picture()) % 512))
        file.write(bytes(1024) if end else b"")


def zip_of(path, names):
    """A zip of pictures."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for i, name in enumerate(names):
            archive.writestr(name, picture(i))


def archives(folder):
    """{name: path}: archives that lie about what they hold."""
    names = [f"{kind}/{i}.png" for kind in "ab" for i in range(6)]
    made = {}

    def new(name):
        made[name] = folder / name
        return folder / name

    tar_of(new("too_long.tar"), names, size=10**12)
    tar_of(new("negative.tar"), names, size=-512)
    tar_of(new("no_end.tar"), names, end=False)
    tar_of(new("whole.tar"), names)
    whole = (folder / "whole.tar").read_bytes()
    new("cut.tar").write_bytes(whole[: 8 * 1024 + 300])
    new("garbage.tar").write_bytes(whole[:5000] + random.Random(0).randbytes(5000))
    zip_of(new("whole.zip"), names)
    raw = (folder / "whole.zip").read_bytes()
    zip_of(new("five.zip"), names[:5])
    five = (folder / "five.zip").read_bytes()
    new("comment.zip").write_bytes(five[:-2] + struct.pack("<H", len(raw) - 22) + raw[:-22])
    new("cut.zip").write_bytes(raw[: len(raw) // 2])
    at = raw.index(b"PK\1\2")  # the central directory: sizes at 20 and 24
    new("bomb.zip").write_bytes(raw[: at + 20] + struct.pack("<II", 200, 2**32 - 2) + raw[at + 28 :])
    new("text.zip").write_text("no archive")
    new("empty.tar").write_bytes(b"")
    zip_of(new("names.zip"), ["../1.png", "/abs/1.png", "a/\x1b[31m.png", "a/line\nbreak.png", "b/1.png", "b/2.png"])
    return made


def no_files(folder):
    """{name: path}: what has a name like a file and is none, or never ends, or has nothing to give."""
    names = ("fifo.png", "socket.png", "zero.png", "loop.png", "folder.png", "dangling.png")
    made = {name: folder / name for name in names}
    os.mkfifo(made["fifo.png"])
    with socket.socket(socket.AF_UNIX) as s:
        here = os.getcwd()
        os.chdir(folder)  # the names of sockets are short
        s.bind("socket.png")
        os.chdir(here)
    made["zero.png"].symlink_to("/dev/zero")
    made["loop.png"].symlink_to(made["loop.png"])
    made["dangling.png"].symlink_to(folder / "nothing.png")
    made["folder.png"].mkdir()
    return made


def pictures(folder):
    """{name: path}: image files of which none can be read."""
    noise = random.Random(1).randbytes
    content = {
        "empty.png": b"", "text.jpg": b"text", "noise.png": noise(999), "head.png": picture()[:20] + noise(200),
        "cut.png": picture()[:-30], "claims.png": png_that_claims(60_000, 60_000), "bands.tif": tiff(8, 2, [0] * 5),
        "tag.tif": tiff(3, 2)[:40] + noise(60), "zero.gif": b"GIF89a" + bytes(50), "huge.bmp": b"BM" + noise(60),
    }  # fmt: skip
    for name, raw in content.items():
        (folder / name).write_bytes(raw)
    return {name: folder / name for name in content}


def weights(folder):
    """{name: path}: files of weights of which none is a whole ViT, but for whole.pth."""
    state = vit_pico(patch_size=4, img_size=8).state_dict()
    D = state["norm.bias"].shape[0]

    class Trap:
        def __reduce__(self):
            return os.system, ("touch executed",)

    def without(*words):
        return {key: x for key, x in state.items() if not any(word in key for word in words)}

    def changed(key, x):
        return {**state, key: x}

    content = {
        "whole": state, "empty": {}, "a list": [1, 2], "a number": 7, "one tensor": torch.zeros(3),
        "no cls": without("cls_token"), "no blocks": without("blocks."), "no norm": without("norm.weight"),
        "no positions": without("pos_embed"), "one block missing": without("blocks.1."),
        "nan": changed("norm.bias", torch.full((D,), float("nan"))),
        "inf": changed("norm.bias", torch.full((D,), float("inf"))),
        "complex": changed("norm.bias", torch.zeros(D, dtype=torch.complex64)),
        "whole numbers": changed("norm.bias", torch.zeros(D, dtype=torch.int64)),
        "one position": changed("pos_embed", torch.zeros(1, 1, D)),
        "no position": changed("pos_embed", torch.zeros(1, 0, D)),
        "not square": changed("pos_embed", torch.zeros(1, 4, D)),
        "no width": changed("cls_token", torch.zeros(1, 1, 0)), "narrow": changed("cls_token", torch.zeros(1, 1, 5)),
        "no patch": changed("patch_embed.proj.weight", torch.zeros(D, 3, 0, 0)),
        "oblong patch": changed("patch_embed.proj.weight", torch.zeros(D, 3, 4, 8)),
        "absurd": changed("pos_embed", torch.zeros(1).expand(1, 10**6 + 1, 10**6)),
        "deep": changed("blocks.999999999.norm1.weight", torch.zeros(D)),
        "strings": changed("norm.bias", "text"), "numbers as names": {1: torch.zeros(1)},
        "in itself": {"model": {"model": {"model": state}}}, "teacher of nothing": {"teacher": {}},
    }  # fmt: skip
    made = {}
    for name, value in content.items():
        made[name] = folder / f"{name}.pth"
        torch.save(value, made[name])
    whole = made["whole"].read_bytes()
    half = len(whole) // 2
    raw = {
        "cut": whole[:half], "flipped": whole[:half] + bytes([whole[half] ^ 1]) + whole[half + 1 :], "nothing": b"",
        "text": b"weights", "code": pickle.dumps(Trap(), 2), "zip of nothing": b"PK\5\6" + bytes(18),
    }  # fmt: skip
    for name, content in raw.items():
        made[name] = folder / f"{name}.pth"
        made[name].write_bytes(content)
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), folder / "script.pth")
    made["script"] = folder / "script.pth"
    for name, content in {"head": struct.pack("<Q", 2**60) + b"{}", "json": struct.pack("<Q", 5) + b"[1,2]"}.items():
        made[name] = folder / f"{name}.safetensors"
        made[name].write_bytes(content)
    return made


def checkpoints(folder, whole):
    """{name: path}: variants of a run's checkpoint of which none fits."""
    saved = torch.load(whole, weights_only=True)
    recipe, made = saved["recipe"], {}
    content = {
        "no step": {k: v for k, v in saved.items() if k != "step"}, "step -1": saved | {"step": -1},
        "step 1.5": saved | {"step": 1.5}, "far step": saved | {"step": 10**9}, "step as text": saved | {"step": "1"},
        "no optimizer": saved | {"optimizer": {}},
        "no moments": saved | {"optimizer": {"state": {}, "param_groups": []}},
        "no student": saved | {"student": {}}, "student of another": saved | {"student": {"x": torch.zeros(1)}},
        "no teacher": saved | {"teacher": None}, "unknown field": saved | {"recipe": recipe | {"colour": 1}},
        "no recipe": saved | {"recipe": None}, "centre": saved | {"recipe": recipe | {"centering": "softmax"}},
        "other width": saved | {"recipe": recipe | {"arch": "vit_tiny"}},
    }  # fmt: skip
    for f in fields(Recipe):
        content[f"{f.name} of another type"] = saved | {"recipe": recipe | {f.name: [f.name]}}
    for name, value in content.items():
        made[name] = folder / f"{name}.pt"
        torch.save(value, made[name])
    raw = whole.read_bytes()
    for part in range(1, 8):
        at = len(raw) * part // 8
        made[f"flipped {part}"] = folder / f"flipped {part}.pt"
        made[f"flipped {part}"].write_bytes(raw[:at] + bytes([raw[at] ^ 4]) + raw[at + 1 :])
        made[f"cut {part}"] = folder / f"cut {part}.pt"
        made[f"cut {part}"].write_bytes(raw[:at])
    return made


def good_set(folder, n=6):
    """A folder of two classes of n pictures each."""
    rng = np.random.default_rng(0)
    for kind in "ab":
        for i in range(n):
            save(folder / kind / f"{i}.png", tuple(map(int, rng.integers(0, 256, 3))), (9, 9))
    return folder


def wrong_flags():
    """Command lines of train.py, a field with one odd value each; some are fine."""
    for f in fields(Recipe):
        if f.name not in ("name", "data", "init", "teacher"):
            for value in VALUES:
                pair = f.type not in (int, float, str, bool)
                yield [f"--{f.name}", value, value] if pair else [f"--{f.name}={value}"]
    for name in (*RECIPES, "x", ""):
        yield [f"--recipe={name}", "--steps=0"]
    for name in ("meta", "hpu", "mkldnn", "cuda:77", "cpu:9", "", "xla", "vulkan", "\x1b[0m"):
        yield [f"--device={name}", "--steps=0"]
