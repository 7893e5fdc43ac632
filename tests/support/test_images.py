"""Every format becomes a square; broken files, batches, streams.  `pytest tests/support/test_images.py`"""

import io
import struct

import numpy as np
import pytest
import torch
from conftest import grey_levels, numbered, png_that_claims, save
from PIL import Image

from support import images as data
from support.files import UserError
from support.images import GREY, batches, decode, in_order, load_images, picture, read_images

pytestmark = pytest.mark.usefixtures("cache")  # no test uses the user's own cache folder


def encoded(image, format="PNG", **options):
    """The bytes of an image file."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def decoded(image, size=1, place=0.5, format="PNG", scale=None, **options):
    return decode(encoded(image, format, **options), size, place, scale)


FLAT = {  # name: image, format, colour
    "palette": (Image.new("RGB", (2, 2), (9, 8, 7)).quantize(2), "GIF", (9, 8, 7)),
    "transparent palette": (Image.new("RGBA", (2, 2), (255, 0, 0, 0)).quantize(2), "PNG", (GREY, GREY, GREY)),
    "alpha 51/255 = 1/5": (Image.new("RGBA", (2, 2), (255, 0, 0, 51)), "PNG", (153, 102, 102)),  # 255/5 + 128·4/5
    "cmyk": (Image.new("CMYK", (2, 2), (255, 0, 255, 0)), "TIFF", (0, 255, 0)),
    "one pixel": (Image.new("1", (1, 1), 1), "PNG", (255, 255, 255)),
    "long": (Image.new("RGB", (40_000, 1), (5, 6, 7)), "PNG", (5, 6, 7)),  # enlarged whole it would fill the memory
}


@pytest.mark.parametrize("kind", FLAT)
def test_every_mode_keeps_its_colour(kind):
    image, format, expected = FLAT[kind]
    assert decoded(image, size=64, format=format)[:, 9, 9].tolist() == list(expected)


def test_exif_orientation():
    """A square of four greys, of a camera held on its side: 6 in the EXIF standard, a quarter turn clockwise."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(np.array([[0, 85], [170, 255]], np.uint8))
    for format in ("PNG", "TIFF"):  # Pillow rotates a TIFF by itself
        assert decoded(image, size=2, format=format, exif=exif)[0].tolist() == [[170, 0], [255, 85]]
    assert decoded(image, size=2, exif=b"Exif\0\0damaged")[0].tolist() == [[0, 85], [170, 255]]


def test_a_large_jpeg_is_decoded_at_a_fraction():
    """A smooth 256² image: at a quarter its sides are 64, the least that is no less than 2·32."""
    ramp = np.linspace(0, 255, 256)
    image = Image.fromarray(np.stack(np.broadcast_arrays(ramp, ramp[:, None], 128), axis=-1).astype(np.uint8))
    raw = encoded(image, "JPEG", quality=95)
    assert picture(raw, 32).size == (64, 64)
    assert np.abs(decode(raw, 32, 0.5).astype(int) - data.resize(image, 32, 32)).max() <= 3


def patched(format, mark=b"", place=0, new=b"", mode="RGB", **options):
    """A file of that format with other bytes in its header, so many places after a mark."""
    raw = bytearray(encoded(Image.new(mode, (32, 32)), format, **options))
    place += raw.index(mark)
    raw[place : place + len(new)] = new
    return bytes(raw)


REFUSED = {
    "1[026] bits a colour, and Pillow reads 8; convert it to 8": (
        png_that_claims(2, 2, 16), patched("PPM", b"255", 0, b"999"),
        patched("JPEG2000", b"\xff\x4f\xff\x51", 42, b"\x0b"), patched("TIFF", b"\x08\0" * 3, 0, b"\x10\0" * 3)),
    "Pillow misreads": (
        patched("TIFF", mode="L", tiffinfo={339: 2}), patched("TIFF", struct.pack("HHI", 339, 3, 1), 8, b"\1", "I"),
        patched("TIFF", struct.pack("HHI", 262, 3, 1), 8, b"\0", "I;16")),
    "cannot identify": [patched(format) for format in ("DDS", "ICNS", "ICO", "SGI")],  # Pillow can lose their bits
    # the fourth channel of RGBX is neither a colour nor alpha, such as near-infrared; without tag 338 it is not known
    "^4 channels, but 3 are colours": (patched("TIFF", mode="RGBX"), patched("TIFF", b"R\1", 0, b"T\1", "RGBX"))}


@pytest.mark.parametrize("words", REFUSED)
def test_what_pillow_would_change_is_refused(words):
    for raw in REFUSED[words]:
        with pytest.raises((ValueError, OSError), match=words):
            picture(raw, 2)


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000", "PNG", "PPM", "TIFF"])
def test_colour_of_8_bits_is_read(kind):
    assert decoded(Image.new("RGB", (8, 8), "red"), format=kind)[:, 0, 0].tolist() == pytest.approx([255, 0, 0], abs=2)
    assert data.BITS["AVIF"](None, b"av1C\x81\0\x4c") > 8  # the bit that is set for 10 and 12


def test_an_intensity_range_is_estimated(capsys):
    """0 to 1000: the percentiles 0.1 and 99.9 are 1 and 999.  One value alone is black, and no value leaves 0 to 1."""
    assert data.intensity_range(np.append(np.arange(1001.0), (np.nan, np.inf))) == pytest.approx((1, 999))
    assert data.intensity_range(np.array([5.5])) == (5.5, 6.5) and data.intensity_range(np.array([np.nan])) == (0, 1)
    # of -10, 0 and 30 the percentiles are -9.98 and 29.94; (0 + 9.98) / 39.92 · 255 = 63.75
    data.say_once.cache_clear()
    for missing in (np.nan, np.inf, -np.inf):
        x = np.array([[-10, 30], [0, missing]], np.float32)
        assert decoded(Image.fromarray(x), size=2, format="TIFF")[0].tolist() == [[0, 255], [64, GREY]]
    assert capsys.readouterr().err.count("each gets its own range; --scale") == 1
    half = Image.fromarray(np.repeat(np.array([0, 1000], np.uint16), 2**17).reshape(512, 512))  # all over the image
    assert data.estimate_scale(["a"], lambda name: encoded(half)) == (0, 1000)


def test_all_images_share_one_range(tmp_path, capsys):
    """Estimated from both splits: a quarter of the values is 0, a quarter 4000, so these are the percentiles."""
    for name, value in (("train/a", 4000), ("train/b", 1000), ("test/a", 0), ("test/b", 2000)):
        save(tmp_path / "set" / name / "1.png", 7)  # 8 bits are not scaled
        Image.fromarray(np.full((2, 2), value, np.uint16)).save(tmp_path / "set" / name / "0.png")
    (tmp_path / "set/test/a/2.png").write_text("broken")
    train, test = data.load_splits(tmp_path / "set", 2, 0)
    assert grey_levels(train.pixels) == [255, 7, 64, 7] and grey_levels(test.pixels) == [0, 7, 128, 7]
    assert capsys.readouterr().err.count(": 0 is black, 4000 white (--scale LOW HIGH)") == 1
    assert grey_levels(load_images(tmp_path / "set", scale=(0, 2000)).pixels) == [255, 7, 128, 7]  # 4000 is white too
    # the same for pca_viz.py: folders with equal names inside
    folders = [tmp_path / "set/train" / kind for kind in "ab"]
    assert [int(x[0, 0, 0]) for x in read_images(folders, 2, 1, False)] == [255, 7, 0, 7]


def test_whole_images_have_whole_patches(tmp_path, capsys):
    """30×10 black and white thirds at a short side of 10, patches of 5: the grey middle, or all of 30×10."""
    x = np.repeat(np.array([0, 128, 255], dtype=np.uint8), 10)
    Image.fromarray(np.tile(x, (10, 1))).save(tmp_path / "a.png")
    Image.new("L", (33, 20)).save(tmp_path / "b.png")  # 16.5 wide at a height of 10: three patches of 5
    (tmp_path / "c.png").write_text("broken")
    middle, _ = read_images(str(tmp_path), 9, 5, False)  # 9 is rounded to 10
    assert middle.shape == (3, 10, 10) and (middle[:, :, 2:8] == 128).all()  # bicubic reads a little beyond
    whole, other = read_images([tmp_path / "a.png", tmp_path / "b.png"], 10, 5, True)
    assert whole.shape == (3, 10, 30) and whole[0, 5, [4, 25]].tolist() == [0, 255] and other.shape == (3, 10, 15)
    assert "skipped" in capsys.readouterr().err


def test_broken_files_are_skipped_with_a_reason(tmp_path, monkeypatch, capsys):
    """152 good images, five broken ones, and files that are no images.  The first is among the test images too."""
    folder = tmp_path / "half"
    save(folder / "b.png", 10)
    save(folder / "y.jpg", 20)
    numbered(folder / "more", 150)
    cut = encoded(Image.new("L", (64, 64)), "JPEG")[:200]
    broken = {"a_empty.png": b"", "c_text.jpg": b"no image", "d_cut.jpg": cut,
              "e_bomb.png": png_that_claims(20_000, 20_000), "z.heic": b"unknown"}  # fmt: skip
    for name, content in (broken | dict.fromkeys(("notes.txt", ".hidden.png", "__MACOSX/b.png"), b"ignored")).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    monkeypatch.setattr(data, "count_cores", lambda: 7)
    found, _ = data.load_splits(folder, 4, 0)
    assert capsys.readouterr().err.count("a_empty.png: ") == 1
    assert grey_levels(found.pixels) == [10, *range(150), 20] and found.names[::151] == ["b.png", "y.jpg"]
    assert list(found.skipped) == list(broken) and "truncated" in found.skipped["d_cut.jpg"].lower()
    assert "exceeds limit of 178956970 pixels" in found.skipped["e_bomb.png"]


@pytest.mark.parametrize("streamed", [False, True])
def test_without_a_readable_test_image_training_images_stand_in(tmp_path, monkeypatch, capsys, streamed):
    """Of three classes of two images the first is held out each time, and broken."""
    for i, kind in enumerate("abc"):
        save(tmp_path / "d" / kind / "1.png", i)
        (tmp_path / "d" / kind / "0.png").write_text("broken")
    monkeypatch.setattr(data, "MEMORY_LIMIT", 0 if streamed else 10**6)
    train, test = data.load_splits(tmp_path / "d", 4, 0)
    assert train.labels.tolist() == [0, 1, 2] and test.labels is None
    assert grey_levels(torch.cat(list(in_order(test, 9, workers=0)))) == [0, 1, 2]
    text = capsys.readouterr()
    assert "no test images (none of the 3 images can be read" in text.err and ", 3 broken files skipped" in text.out


def test_a_flat_or_no_test_split(tmp_path, capsys):
    """val/ as ImageNet's archive unpacks it, without class folders; training labels stay.  Then one image a class."""
    for name in ("train/a/1.png", "train/b/1.png", "val/1.png", "val/2.png"):
        save(tmp_path / "d" / name, 9)
    (tmp_path / "d/train/a/0.png").write_text("broken")  # labels stay with their images
    train, test = data.load_splits(tmp_path / "d", 4, 0)
    assert train.labels.tolist() == [0, 1] and test.labels is None and len(test) == 2
    (tmp_path / "d/train/a/0.png").unlink()
    assert "the test split has images without a class" in capsys.readouterr().err
    with pytest.raises(UserError, match="none of the 2 images is in the test split"):
        load_images(tmp_path / "d/train", "test")
    with pytest.raises(UserError, match="there is no --data: give a folder"):
        load_images("")


def take(stream, n):
    return [grey_levels(next(stream)) for _ in range(n)]


def test_batches_can_be_resumed_and_shared_by_ranks(tmp_path):
    """Ten images in memory, number i of grey level i.  Each epoch has each image once, in a new order."""
    ten = load_images(numbered(tmp_path / "ten", 10), size=4)
    whole = take(batches(ten, 6, seed=5), 12)
    for start in (1, 3, 11):
        assert take(batches(ten, 6, seed=5, start=start), 12 - start) == whole[start:]
    parts = [take(batches(ten, 2, seed=5, shard=(rank, 3)), 12) for rank in range(3)]
    assert [sum(rows, []) for rows in zip(*parts)] == whole  # the ranks share a global batch
    assert whole != take(batches(ten, 6, seed=6), 12)
    for batch in (1, 3, 23):  # 23 > 10: a batch then holds several epochs
        flat = sum(take(batches(ten, batch), -(-40 // batch)), [])
        epochs = [flat[i : i + 10] for i in range(0, 40, 10)]
        assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
        assert len(set(map(tuple, epochs))) == 4  # false alarm 6 / 10!


@pytest.mark.parametrize("workers", [0, 2])
def test_streaming_equals_memory(labelled, tmp_path, workers, monkeypatch):
    """In order, with labels; and in training, if the images are square."""
    memory, squares = load_images(labelled, size=4), load_images(numbered(tmp_path / "squares", 5), size=4)
    expected = take(batches(squares, 3, seed=3), 4)
    monkeypatch.setattr(data, "MEMORY_LIMIT", 0)
    streamed, squares = load_images(labelled, size=4), load_images(tmp_path / "squares", size=4)
    assert streamed.pixels is None and len(streamed) == 6 and torch.equal(streamed.labels, memory.labels)
    state = torch.random.get_rng_state()
    assert take(batches(squares, 3, seed=3, workers=workers), 4) == expected
    assert torch.equal(torch.cat(list(in_order(streamed, 4, workers=workers))), memory.pixels)
    assert torch.equal(torch.random.get_rng_state(), state)  # other random numbers do not depend on the loader


@pytest.mark.parametrize("workers", [0, 2])
def test_only_streamed_training_draws_squares_and_new_ones_in_each_epoch(tmp_path, workers, monkeypatch):
    """64×4 or 4×64, grey level 4·x in column or row x; eight epochs, and a run resumed in the sixth.  Then the rest."""
    def means(x):
        return x.float().mean((1, 2, 3))

    wide = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8) * 4, (4, 1)))
    for i, path in enumerate(numbered(tmp_path / "d", 3).iterdir()):
        (wide.rotate(-90, expand=True) if i else wide).save(path)
    centres = [load_images(tmp_path / "d", split, size=4).pixels for split in ("train", "test")]
    monkeypatch.setattr(data, "MEMORY_LIMIT", 0)
    images = load_images(tmp_path / "d", size=4)
    whole, resumed = (torch.stack([means(x) for x, _ in zip(batches(images, 3, start=start, workers=workers),
                                                            range(8 - start))]) for start in (0, 5))  # fmt: skip
    assert len(whole.unique()) > 18 and whole.min() < 60 and whole.max() > 190  # of 24, of 61 places each
    assert torch.equal(resumed, whole[5:])
    monkeypatch.setattr(data, "MEMORY_LIMIT", 10**6)
    for x in (*centres, next(in_order(images, 3, workers=workers)), data.in_memory(images, 3, 4).pixels):
        assert means(x).tolist() == [126] * len(x)  # columns 30 to 33


def test_a_sample_of_a_streamed_split_is_drawn_once(labelled, monkeypatch):
    """Three of six, with their labels, at the size asked for; broken ones are left out."""
    whole = load_images(labelled, size=8)
    monkeypatch.setattr(data, "MEMORY_LIMIT", 5 * 3 * 4 * 4)
    images = load_images(labelled, size=8)
    sample = data.in_memory(images, 3, 4)
    assert images.pixels is None and sample.pixels.shape == (3, 3, 4, 4) and data.in_memory(images, 3, 4) is sample
    rows = [whole.names.index(name) for name in sample.names]
    assert grey_levels(sample.pixels) == pytest.approx([10 * row for row in rows], abs=3)  # other sizes
    assert sample.labels.tolist() == whole.labels[rows].tolist()
    (labelled / whole.names[1]).write_text("broken")
    images = load_images(labelled, size=8)
    assert len(data.in_memory(images, 99, 4)) + len(images.skipped) == 5  # as many as memory takes


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_replaces_a_broken_image_by_the_next(tmp_path, workers, monkeypatch, capsys):
    numbered(tmp_path / "d", 4)
    for i in (2, 3):
        (tmp_path / f"d/00{i}.png").write_text("broken")
    monkeypatch.setattr(data, "MEMORY_LIMIT", 0)
    images = load_images(tmp_path / "d", size=4)
    assert len(images) == 4 and images.skipped == {}
    epochs = take(batches(images, 4, workers=workers), 3)
    assert all(sorted(epoch) == [0, 0, 0, 1] for epoch in epochs)  # image 0 follows 3
    assert sorted(images.skipped) == ["002.png", "003.png"]
    assert images.readable().tolist() == [True, True, False, False] and capsys.readouterr().err.count("skipped") == 2
    for i in (0, 1):
        (tmp_path / f"d/00{i}.png").unlink()
    for use in (lambda: list(batches(images, 4, workers=workers)), lambda: load_images(tmp_path / "d", size=4)):
        with pytest.raises(UserError, match="^none of the . images can be read"):
            use()
