"""CIFAR-10, from a file in place of its server: downloaded once, checked.  `pytest tests/support/test_cifar10.py`"""

import hashlib

import pytest
import torch
from conftest import one_line, write_tar

from support import cifar10
from support.files import UserError
from support.images import load_images

pytestmark = pytest.mark.usefixtures("cache")  # no test uses the user's own cache folder


def fake_cifar(path):
    """An archive like the official one: 2 records in each of the five train files, one in the test file."""
    def record(label, rgb):
        return bytes([label]) + b"".join(bytes([level]) * 1024 for level in rgb)
    members = {f"data_batch_{b}.bin": record(0, (b, 0, 7)) + record(1, (b, 1, 7)) for b in range(5, 0, -1)}
    members |= {"test_batch.bin": record(1, (200, 100, 50)), "batches.meta.txt": b"airplane\nautomobile\n\n"}
    write_tar(path, {f"cifar-10-batches-bin/{name}": body for name, body in members.items()}, "w:gz")
    return hashlib.md5(path.read_bytes()).hexdigest()


def test_cifar10_is_downloaded_once(tmp_path, cache, monkeypatch):
    served, kept = tmp_path / "cifar-10-binary.tar.gz", cache / "cifar-10-binary.tar.gz"
    monkeypatch.setattr(cifar10, "CIFAR10_URL", served.as_uri())
    with pytest.raises(UserError, match="cannot download .* put the file at") as error:
        load_images("cifar10")
    assert served.as_uri() in one_line(error) and str(kept) in str(error.value) and not list(cache.iterdir())
    md5 = fake_cifar(served)
    with pytest.raises(UserError, match=f"^{kept} is not .*wrong checksum.*delete"):
        load_images("cifar10")
    monkeypatch.setattr(cifar10, "CIFAR10_MD5", md5)
    served.unlink()  # now it must come from the cache
    train = load_images("cifar10", "train", size=32)
    assert train.pixels.shape == (10, 3, 32, 32) and train.classes == ["airplane", "automobile"]
    assert train.labels.tolist() == [0, 1] * 5 and train.labels.dtype == torch.int64
    assert train.pixels[:, :, 5, 5].tolist() == [[b, i, 7] for b in range(1, 6) for i in range(2)]
    test = load_images("cifar10", "test", size=8)
    assert test.pixels.shape == (1, 3, 8, 8) and test.pixels[0, :, 4, 4].tolist() == [200, 100, 50]
