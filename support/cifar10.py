"""CIFAR-10 (Krizhevsky 2009): downloaded once, checked, then read from the cache folder."""

import hashlib
import http.client
import os
import tarfile
import urllib.request
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from support.files import UserError, reason_of, write_safely
from support.find import cache_folder
from support.images import resize

CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"  # the other version is pickles: code
CIFAR10_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"


def read_cifar10(split, size):
    """One split as pixels (N, 3, size, size) uint8, labels (N,) int64 and the ten names.

    The official archive holds records of one byte of label and 3·32·32 of pixels.  Raises UserError.
    """
    path = cache_folder() / CIFAR10_URL.split("/")[-1]
    if not path.exists():
        download(CIFAR10_URL, path)
    if md5_of(path) != CIFAR10_MD5:
        raise UserError(f"{path} is not what {CIFAR10_URL} serves (wrong checksum); delete it and run again")
    with tarfile.open(path) as tar:
        parts = {os.path.basename(m.name): tar.extractfile(m).read() for m in tar
                 if m.name.endswith((".bin", "batches.meta.txt"))}
    classes = parts.pop("batches.meta.txt").decode().split()
    chosen = sorted(name for name in parts if name.startswith("test") == (split == "test"))
    raw = b"".join(parts[name] for name in chosen)
    records = np.frombuffer(raw, dtype=np.uint8).reshape(-1, 1 + 3 * 32 * 32)
    labels = torch.from_numpy(records[:, 0].astype(np.int64))
    pixels = torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32).copy())
    if size != 32:
        squares = (Image.fromarray(x) for x in pixels.permute(0, 2, 3, 1).numpy())
        pixels = torch.from_numpy(np.stack([resize(x, size, 0.5) for x in squares]))
    return pixels, labels, classes


def download(url, path):
    """`url` into `path`, whole and with the right checksum, or not at all. Raises UserError."""
    by_hand = f"download {url} yourself and put it at {path}"

    def fetch(new):
        with urllib.request.urlopen(url, timeout=30) as answer, open(new, "wb") as f, \
                tqdm(total=int(answer.headers.get("Content-Length") or 0), desc=path.name, unit="B",
                     unit_scale=True) as bar:
            while piece := answer.read(2**20):
                f.write(piece)
                bar.update(len(piece))
        if md5_of(new) != CIFAR10_MD5:
            raise UserError(f"what {url} sent is damaged (wrong checksum); run again, or {by_hand}")

    try:
        write_safely(path, fetch, shared=True)
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"cifar10 cannot be downloaded ({reason_of(error)}); {by_hand}") from None


def md5_of(path):
    """The checksum of a file, in hex."""
    return hashlib.md5(Path(path).read_bytes(), usedforsecurity=False).hexdigest()
