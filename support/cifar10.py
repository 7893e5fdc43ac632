"""CIFAR-10 (Krizhevsky 2009): downloaded once, checked, then read from the cache folder."""

import hashlib
import http.client
import os
import tarfile
import urllib.request
from pathlib import Path

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
            raise UserError(f"cifar10 cannot be downloaded ({reason_of(error)}); put {CIFAR10_URL} at {path}") from None
    if not is_official(path):
        raise UserError(f"{path} is not what {CIFAR10_URL} sends (wrong checksum); delete it and run again")
    with tarfile.open(path) as tar:
        files = {os.path.basename(m.name): tar.extractfile(m).read() for m in tar if m.isreg()}
    chosen = ["test_batch.bin"] if split == "test" else [f"data_batch_{i}.bin" for i in range(1, 6)]
    raw = bytearray().join(files[name] for name in chosen)
    records = torch.frombuffer(raw, dtype=torch.uint8).view(-1, 1 + 3 * 32 * 32)  # the label, then the pixels
    classes = files["batches.meta.txt"].decode().split()
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].long(), classes


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
