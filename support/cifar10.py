"""CIFAR-10 (Krizhevsky 2009): downloaded once, checked, then read from the cache folder."""

import hashlib
import http.client
import os
import tarfile
import urllib.request
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from support.files import UserError, reason_of, write_safely
from support.find import cache_folder

CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"  # the other version is pickles, which run code
CIFAR10_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"


def read_cifar10(split):
    """One split: pixels (N, 3, 32, 32) uint8, labels (N,) int64, and the ten class names.  Raises UserError."""
    path = cache_folder() / CIFAR10_URL.split("/")[-1]
    if not path.exists():
        try:
            write_safely(path, download, shared=True)
        except (OSError, http.client.HTTPException) as error:
            raise UserError(f"cifar10 cannot be downloaded ({reason_of(error)}); download {CIFAR10_URL} yourself and "
                            f"put it at {path}") from None  # fmt: skip
    if not is_official(path):
        raise UserError(f"{path} is not what {CIFAR10_URL} sends (wrong checksum); delete it and run again")
    with tarfile.open(path) as tar:
        files = {os.path.basename(m.name): tar.extractfile(m).read() for m in tar if m.isreg()}
    chosen = sorted(name for name in files if name.endswith(".bin") and name.startswith("test") == (split == "test"))
    records = np.frombuffer(b"".join(files[name] for name in chosen), dtype=np.uint8).reshape(-1, 1 + 3 * 32 * 32)
    labels = torch.from_numpy(records[:, 0].astype(np.int64))  # a record: the label, then the pixels
    pixels = torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32).copy())
    return pixels, labels, files["batches.meta.txt"].decode().split()


def download(path):
    """Download the archive to `path` with a progress bar; OSError if it arrives damaged."""
    with urllib.request.urlopen(CIFAR10_URL, timeout=30) as answer, open(path, "wb") as f, \
            tqdm(total=int(answer.headers.get("Content-Length") or 0), unit="B", unit_scale=True) as bar:
        while piece := answer.read(2**20):
            f.write(piece)
            bar.update(len(piece))
    if not is_official(path):
        raise OSError("wrong checksum")


def is_official(path):
    """Whether the file is the official archive."""
    return hashlib.md5(Path(path).read_bytes(), usedforsecurity=False).hexdigest() == CIFAR10_MD5
