"""What tests share."""

import io
import os
import shutil
import socket
import struct
import subprocess
import tarfile
import zlib

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from PIL import Image

from support.device import choose_threads
from support.images import Images

collect_ignore = ["lightly_step.py"]  # imports a package that no test needs
choose_threads()  # once, and not by each program that a test calls
os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))

# Ranks are forked from a server that has imported what is slow to import, and nothing else.
if "forkserver" in mp.get_all_start_methods():  # not on Windows
    mp.get_context("forkserver").set_forkserver_preload(
        ["torch._dynamo", "torch.distributed.fsdp", "faiss", "matplotlib.figure", "scipy.sparse"])  # fmt: skip

TINY = {"patch_size": 4, "n_prototypes": 16, "head_hidden": 16, "dino_bottleneck": 8, "ibot_bottleneck": 8,
        "global_size": 8, "local_size": 4, "n_local": 2}  # fmt: skip  # fields of a recipe that takes no time
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
    os.environ |= {"LOCAL_WORLD_SIZE": str(world), "TORCHELASTIC_RUN_ID": "0"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    work(rank, *arguments)


@pytest.fixture
def browse(tmp_path):
    """browse(page, script="") -> the HTML that Chromium makes of a page, after a <script> that is added at its end."""
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None) or pytest.skip("no Chromium; Debian's is chromium")

    def dump(page, script=""):
        driven = tmp_path / "driven.html"
        driven.write_text(f"{page.read_text(encoding='utf-8')}<script>{script}</script>", encoding="utf-8")
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--allow-file-access-from-files",
                 f"--user-data-dir={tmp_path}", "--virtual-time-budget=600000", "--dump-dom"]  # fmt: skip
        return subprocess.run([program, *flags, driven], capture_output=True, text=True, timeout=300).stdout

    return dump


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "nanodinov2"


@pytest.fixture
def no_pictures(monkeypatch):
    """Most runs draw none: it would take half of their time."""
    monkeypatch.setattr("support.log.draw_curves", lambda *_: None)
    monkeypatch.setattr("pca_viz.draw_panels", lambda *_: None)


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


def write_tar(path, members, mode="w"):
    """A .tar of {name: bytes}."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, format=tarfile.GNU_FORMAT) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def at(*degrees):
    """Points on the unit circle at these angles, (n, 2) float32."""
    angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1).float()


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


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Forty pictures of 16×16 noise, light ones and dark ones; no test changes them."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for kind, base in (("dark", 0), ("light", 128)):
        (root / kind).mkdir()
        for i in range(20):
            Image.fromarray(rng.integers(base, base + 128, (16, 16, 3), dtype=np.uint8)).save(root / kind / f"{i}.png")
    return root


def png_that_claims(width, height, bits=8):
    """The start of a PNG of that size: enough for the guard, which looks before it decodes."""
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)) \
        + chunk(b"IDAT", b"")


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


def split_of(colours, labels):
    """One 8×8 image of each colour (r, g, b)."""
    pixels = torch.tensor(colours, dtype=torch.uint8)[:, :, None, None].expand(-1, -1, 8, 8).contiguous()
    return Images(pixels, torch.tensor(labels), [])
