"""CIFAR-10 (Krizhevsky 2009): downloaded once, then read from the cache folder."""

import hashlib
import os
import tarfile

import torch

from support.files import UserError, download
from support.find import cache_folder

CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"  # the other version is pickles, which run code
CIFAR10_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"


def read_cifar10(split):
    """One split: pixels (N, 3, 32, 32) uint8, labels (N,) int64, and the ten class names."""
    path = download(CIFAR10_URL, cache_folder() / CIFAR10_URL.split("/")[-1])
    if hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() != CIFAR10_MD5:
        raise UserError(f"{path} is not what {CIFAR10_URL} sends (wrong checksum); delete it and run again")
    with tarfile.open(path) as tar:
        files = {os.path.basename(m.name): tar.extractfile(m).read() for m in tar if m.isreg()}
    chosen = ["test_batch.bin"] if split == "test" else [f"data_batch_{i}.bin" for i in range(1, 6)]
    raw = bytearray().join(files[name] for name in chosen)
    records = torch.frombuffer(raw, dtype=torch.uint8).view(-1, 1 + 3 * 32 * 32)  # the label, then the pixels
    classes = files["batches.meta.txt"].decode().split()
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].long(), classes
