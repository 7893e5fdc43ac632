"""A thousand files as people have them: each is read as a person would expect, or named with its reason.

    pytest tests/test_odd_files.py
"""

import io
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import png_that_claims, tiff
from PIL import Image

from support.images import LOOKED_AT, in_order, load_images

COPIES = 30  # of each kind, number i of tone 40 + 5·i
GREY = 128  # where there is no picture: behind what is clear, and for no value


def saved(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def flat(mode, *channels, size=(9, 6)):
    return Image.new(mode, size, channels if len(channels) > 1 else channels[0])


def deep(dtype, value, *others):
    """A picture of 12 bits in more: 12 values, mostly the one, and others that are none."""
    x = np.full((9, 9), value * 4095 / 255, np.float64)
    x[0, : len(others)] = others
    return Image.fromarray(x.round().astype(dtype))


def turned(tone):
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(flat("RGB", tone, tone, tone), "JPEG", exif=exif, quality=100)


def pages(tone):
    first, second = flat("L", tone), flat("L", 255 - tone)
    return saved(first, "TIFF", save_all=True, append_images=[second])


def animation(tone):
    return saved(flat("L", tone), "GIF", save_all=True, append_images=[flat("L", 255 - tone)])


def noise(tone, format):
    return saved(Image.fromarray(np.random.default_rng(tone).integers(0, 256, (64, 64, 3), dtype=np.uint8)), format)


READ = {  # kind: (ending, tone -> bytes, tone -> (r, g, b))
    "grey png": (".png", lambda t: saved(flat("L", t), "PNG"), lambda t: (t, t, t)),
    "jpeg": (".jpg", lambda t: saved(flat("RGB", t, 80, 9), "JPEG", quality=100), lambda t: (t, 80, 9)),
    "capitals": (".JPEG", lambda t: saved(flat("L", t), "JPEG", quality=100), lambda t: (t, t, t)),
    "misnamed": (".jpg", lambda t: saved(flat("RGB", t, 1, 2), "PNG"), lambda t: (t, 1, 2)),
    "cmyk": (".tif", lambda t: saved(flat("CMYK", 255 - t, 0, 0, 0), "TIFF"), lambda t: (t, 255, 255)),
    "clear": (".png", lambda t: saved(flat("RGBA", t, t, t, 0), "PNG"), lambda t: (GREY, GREY, GREY)),
    "grey with alpha": (".png", lambda t: saved(flat("LA", t, 255), "PNG"), lambda t: (t, t, t)),
    "palette": (".png", lambda t: saved(flat("RGB", t, 7, 9).quantize(4), "PNG"), lambda t: (t, 7, 9)),
    "bits": (".png", lambda t: saved(flat("1", 1), "PNG"), lambda t: (255, 255, 255)),
    "turned": (".jpg", turned, lambda t: (t, t, t)),
    "pages": (".tiff", pages, lambda t: (t, t, t)),
    "animation": (".gif", animation, lambda t: (t, t, t)),
    "bmp": (".bmp", lambda t: saved(flat("RGB", t, 3, 4), "BMP"), lambda t: (t, 3, 4)),
    "ppm": (".ppm", lambda t: saved(flat("RGB", t, 3, 4), "PPM"), lambda t: (t, 3, 4)),
    "webp": (".webp", lambda t: saved(flat("RGB", t, 3, 4), "WEBP", lossless=True), lambda t: (t, 3, 4)),
    "12 of 16 bits, png": (".png", lambda t: saved(deep(np.uint16, t), "PNG"), lambda t: (t, t, t)),
    "12 of 16 bits, tiff": (".tif", lambda t: saved(deep(np.uint16, t), "TIFF"), lambda t: (t, t, t)),
    "heights": (".tif", lambda t: saved(deep(np.int32, t, -9999), "TIFF"), lambda t: (t, t, t)),
    "floats": (".tif", lambda t: saved(deep(np.float32, t, np.nan, np.inf), "TIFF"), lambda t: (t, t, t)),
    # (40, 41, 42) at 43 of 255 on grey 128: 40 · 43/255 + 128 · 212/255 = 113.2
    "declared alpha": (".tif", lambda t: tiff(4, 2, [2]), lambda t: (113, 113, 114)),
    "long": (".png", lambda t: saved(flat("L", t, size=(900, 3)), "PNG"), lambda t: (t, t, t)),
    "one pixel": (".png", lambda t: saved(flat("L", t, size=(1, 1)), "PNG"), lambda t: (t, t, t)),
}
NAMED = {  # kind: (ending, tone -> bytes, words of the reason)
    "near-infrared": (".tif", lambda t: tiff(4, 2, [0]), "4 channels, of which 3 are colours"),
    "eight bands": (".tif", lambda t: tiff(8, 2, [0] * 5), "of more than five channels"),
    "empty": (".jpg", lambda t: b"", "empty file"),
    "text": (".png", lambda t: b"no picture %d" % t, "not an image"),
    "cut jpeg": (".jpg", lambda t: noise(t, "JPEG")[:-400], "truncated"),
    "cut png": (".png", lambda t: noise(t, "PNG")[: 400 + t], "truncated"),
    "bomb": (".png", lambda t: png_that_claims(20_000 + t, 20_000), "megapixels, and the limit is 178"),
    "other format": (".heic", lambda t: b"ftypheic" + bytes(t), "not an image"),
}
IGNORED = (".txt", ".json", ".xml", ".mp4", ".db")


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """The folder, and {name: what is expected of it}."""
    root, expected = tmp_path_factory.mktemp("odd"), {}
    for kind, (ending, make, what) in (READ | NAMED).items():
        for i in range(COPIES):
            tone = 40 + 5 * i
            name = f"{'über mensch' * (i % 2)}/{kind}/{i} {kind}{ending}".lstrip("/")
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(make(tone))
            expected[name] = what(tone) if kind in READ else what
    for i in range(100):
        (root / f"{i}{IGNORED[i % 5]}").write_bytes(b"no picture, and not looked at")
        (root / f".{i}.jpg").write_bytes(b"hidden")
    return root, expected


@pytest.mark.parametrize("streamed", [False, True])
def test_a_thousand_files(odd, streamed, monkeypatch):
    """Those read have the tone that a person would see; the others are named; together they are all."""
    root, expected = odd
    if streamed:
        monkeypatch.setattr("support.data.MEMORY_LIMIT", 0)
    read, broken = {}, {}
    for split in ("train", "test"):
        images = load_images(root, split, size=4)
        pixels = torch.cat(list(in_order(images, 64, workers=2))) if streamed else images.pixels
        broken |= dict(images.skipped)
        read |= {name: x[:, 2, 2].tolist() for name, x in zip(images.names, pixels) if name not in broken}
    assert len(read) + len(broken) == len(expected) == COPIES * (len(READ) + len(NAMED))
    for name, found in read.items():
        assert not isinstance(expected[name], str), name
        assert max(abs(a - b) for a, b in zip(found, expected[name])) <= 2, (name, found, expected[name])
    wrong = Counter(name.split("/")[-2] for name, reason in broken.items() if str(expected[name]) not in reason)
    assert not wrong
    assert len(images.notes) == 2 and f"of {LOOKED_AT} files looked at have several pages" in images.notes[0]
    assert "0 to 4095 shown as 0 to 255" in images.notes[1]
