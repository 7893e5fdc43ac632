"""The repository root on the import path, so that `pytest` finds the flat scripts from anywhere; what tests share."""

import os
import socket
import struct
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.multiprocessing as mp
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.device import choose_threads  # noqa: E402  of the path above

choose_threads()  # once, and not by each program that a test calls
os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))


# Ranks are forked from a server that has imported what is slow to import, and nothing else.
SLOW = ["torch._dynamo", "torch.distributed.fsdp", "faiss", "matplotlib.figure", "scipy.sparse"]
mp.get_context("forkserver").set_forkserver_preload(SLOW)


shards_on_cpus = pytest.mark.skipif(torch.__version__ < (2, 9), reason="FSDP2 on CPUs needs PyTorch 2.9")


def in_ranks(work, world, *arguments):
    """work(rank, *arguments) in `world` processes at once, in the environment that torchrun would give them."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.start_processes(_as_rank, (world, port, work, *arguments), world, start_method="forkserver")


def _as_rank(rank, world, port, work, *arguments):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    work(rank, *arguments)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "nanodinov2"


def save(path, value=0, size=(4, 4), **options):
    """One flat picture: `value` is a grey level or an RGB triple."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, value if isinstance(value, tuple) else (value,) * 3).save(path, **options)
    return path


def numbered(folder, n):
    """n pictures, number i all of grey level i."""
    for i in range(n):
        save(folder / f"{i:03}.png", i)
    return folder


def grey_levels(pixels):
    """Of the first pixel of each picture."""
    return pixels[:, 0, 0, 0].tolist()


def one_line(error):
    """The message of a caught error, which must be a single line."""
    message = str(error.value)
    assert message and "\n" not in message
    return message


@pytest.fixture
def labelled(tmp_path):
    """Folder `set`: 2 splits × 2 classes × 3 pictures of 6×4, left half grey and right half white."""
    for i in range(12):
        folder = tmp_path / "set" / ("train", "test")[i // 6] / "ab"[i // 3 % 2]
        path = save(folder / f"{i % 3}.png", 10 * i, (6, 4))
        with Image.open(path) as image:
            image.paste((255, 255, 255), (3, 0, 6, 4))
            image.save(path)
    return tmp_path / "set"


def pack(folder, suffix):
    """The folder's .png files as an archive beside it, in no order."""
    path = folder.with_name(f"set{suffix}")
    files = sorted(folder.rglob("*.png"), reverse=True)  # archives are not sorted: we must do it
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in files:
                archive.write(file, file.relative_to(folder.parent))
    else:
        with tarfile.open(path, "w:" + suffix.removeprefix(".tar").removeprefix(".")) as archive:
            for file in files:
                archive.add(file, "./" + str(file.relative_to(folder.parent)))
    return path


def png_that_claims(width, height):
    """The start of a PNG of that size: enough for the guard, which looks before it decodes."""
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) \
        + chunk(b"IDAT", b"")


def tiff(channels, photometric, extra=None):
    """A TIFF of 2×2 pixels with so many channels of 8 bits, written by hand: the tags that it needs, and its pixels."""
    tags = [(256, 3, [2]), (257, 3, [2]), (258, 3, [8] * channels), (259, 3, [1]), (262, 3, [photometric]),
            (273, 4, [0]), (277, 3, [channels]), (278, 3, [2]), (279, 4, [4 * channels])]  # fmt: skip
    tags += [(338, 3, extra)] if extra else []
    place = 8 + 2 + 12 * len(tags) + 4
    head, more = struct.pack("<2sHIH", b"II", 42, 8, len(tags)), b""
    for tag, kind, values in tags:
        code = "H" if kind == 3 else "I"
        data = struct.pack(f"<{len(values)}{code}", *values)
        if len(data) > 4:
            more, data = more + data, struct.pack("<I", place + len(more))
        head += struct.pack("<HHI", tag, kind, len(values)) + (b"PIXL" if tag == 273 else data.ljust(4, b"\0"))
    head = head.replace(b"PIXL", struct.pack("<I", place + len(more)))
    return head + b"\0\0\0\0" + more + bytes(range(40, 40 + channels)) * 4


class MeanColour:
    """A stand-in for a ViT whose features are the mean colour: of the image, and of each 4×4 patch."""

    patch_size, training = 4, False

    def parameters(self):
        return iter([torch.zeros(1)])

    def eval(self):
        return self

    def train(self, mode):
        return self

    def forward_features(self, x):
        patches = torch.nn.functional.avg_pool2d(x, 4).flatten(2).mT
        return {"x_norm_clstoken": x.mean((2, 3)), "x_norm_patchtokens": patches}


class Split(SimpleNamespace):
    """A stand-in for `Images`."""

    def __len__(self):
        return len(self.names)


def split_of(colours, labels=None):
    """One 8×8 image of each colour (r, g, b)."""
    pixels = torch.tensor(colours, dtype=torch.uint8)[:, :, None, None].expand(-1, -1, 8, 8).contiguous()
    labels = None if labels is None else torch.tensor(labels)
    return Split(pixels=pixels, labels=labels, parts=None, names=range(len(colours)))
