"""Images from folders, archives and named sets: right pixels, right splits, resumable batches, clear errors.

Run: python -m pytest tests/test_data.py
"""

import gzip
import hashlib
import io
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from support import data
from support.data import DataError, batches, in_order, load_images

GREY = data.ALPHA_BACKGROUND[0]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """No test reads or writes the user's own cache folder."""
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
    return pixels[:, 0, 0, 0].tolist()


def decoded(image, size=1, place=0.5, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return data.decode(file.getvalue(), size, place)


# ------------------------------------------------------------------------------------------------------
# Formats
# ------------------------------------------------------------------------------------------------------

def palette_with_transparency():
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    image.info["transparency"] = bytes([255, 0])  # entry 1, which is everywhere, is clear
    return image


ONE_PIXEL = {
    "greyscale": (Image.new("L", (2, 2), 77), "PNG", (77, 77, 77)),
    "black and white": (Image.new("1", (2, 2), 1), "PNG", (255, 255, 255)),
    "palette": (Image.new("RGB", (2, 2), (9, 8, 7)).quantize(2), "GIF", (9, 8, 7)),
    "clear palette entry": (palette_with_transparency(), "PNG", (GREY, GREY, GREY)),
    "clear": (Image.new("RGBA", (2, 2), (255, 0, 0, 0)), "PNG", (GREY, GREY, GREY)),
    "alpha 51/255 = 1/5": (Image.new("RGBA", (2, 2), (255, 0, 0, 51)), "PNG",
                           (round(255 / 5 + GREY * 4 / 5), round(GREY * 4 / 5), round(GREY * 4 / 5))),
    "grey with alpha": (Image.new("LA", (2, 2), (200, 255)), "PNG", (200, 200, 200)),
    "cmyk": (Image.new("CMYK", (2, 2), (255, 0, 255, 0)), "TIFF", (0, 255, 0)),
    "16 bits, white": (Image.fromarray(np.full((2, 2), 65535, np.uint16)), "PNG", (255, 255, 255)),
    "16 bits, 257 a step": (Image.fromarray(np.full((2, 2), 257 * 100, np.uint16)), "PNG", (100, 100, 100)),
    "16 bits, tiff": (Image.fromarray(np.full((2, 2), 257 * 31, np.uint16)), "TIFF", (31, 31, 31)),
    "32 bits, 16 used": (Image.fromarray(np.full((2, 2), 257 * 9, np.int32)), "TIFF", (9, 9, 9)),
    "float in [0, 1]": (Image.fromarray(np.full((2, 2), 0.2, np.float32)), "TIFF", (51, 51, 51)),
    "float in [0, 255]": (Image.fromarray(np.full((2, 2), 51, np.float32)), "TIFF", (51, 51, 51)),
    "bmp": (Image.new("RGB", (2, 2), (1, 2, 3)), "BMP", (1, 2, 3)),
    "webp": (Image.new("RGB", (2, 2), (255, 255, 255)), "WEBP", (255, 255, 255)),
    "one pixel": (Image.new("RGB", (1, 1), (1, 2, 3)), "PNG", (1, 2, 3)),
}


@pytest.mark.parametrize("kind", ONE_PIXEL)
def test_every_mode_keeps_its_tone(kind):
    """Flat pictures, so that whatever the resizing, the answer is the one colour."""
    image, format, expected = ONE_PIXEL[kind]
    assert decoded(image, size=3, format=format)[:, 1, 1].tolist() == list(expected)


def test_unusual_float_range_is_stretched():
    """No usual scale holds -10..30: -10 is black, 30 white, 10 half way (127.5, so 128); NaN counts as 0."""
    x = np.array([[-10, 30], [10, np.nan]], np.float32)
    got = decoded(Image.fromarray(x), size=2, format="TIFF")[0]
    assert got.tolist() == [[0, 255], [128, 64]]  # (0 + 10) / 40 · 255 = 63.75


def test_exif_turn():
    """Orientation 6 means: turn a quarter clockwise to view. Its left pixel (red) comes up on top."""
    image = Image.new("RGB", (2, 1), (0, 0, 255))
    image.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    for format in ("PNG", "TIFF"):  # Pillow turns a TIFF by itself: not to be turned twice
        top = decoded(image, place=0, format=format, exif=exif)
        bottom = decoded(image, place=1, format=format, exif=exif)
        assert top[:, 0, 0].tolist() == [255, 0, 0] and bottom[:, 0, 0].tolist() == [0, 0, 255], format


@pytest.mark.parametrize("orientation, expected", [
    (1, [[0, 85], [170, 255]]), (2, [[85, 0], [255, 170]]), (3, [[255, 170], [85, 0]]),
    (4, [[170, 255], [0, 85]]), (5, [[0, 170], [85, 255]]), (6, [[170, 0], [255, 85]]),
    (7, [[255, 85], [170, 0]]), (8, [[85, 255], [0, 170]])])
def test_all_eight_exif_orientations(orientation, expected):
    """A square of four greys, worked out from the EXIF standard: 5 transposes, 6 and 8 turn, 7 does both."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.array([[0, 85], [170, 255]], np.uint8))
    assert decoded(image, size=2, exif=exif)[0].tolist() == expected


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (2, 2), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    first = decoded(frames[0], format="GIF", save_all=True, append_images=frames[1:])
    assert first[:, 0, 0].tolist() == [255, 0, 0]


def test_window_along_the_long_side():
    """4×2, left half black and right half white: the left, the middle and the right 2×2 window."""
    image = Image.fromarray(np.array([[0, 0, 255, 255]] * 2, np.uint8))
    left, middle, right = (decoded(image, size=2, place=p)[0, 0].tolist() for p in (0, 0.5, 1))
    assert (left, middle, right) == ([0, 0], [0, 255], [255, 255])
    upright = image.transpose(Image.Transpose.ROTATE_90)
    assert decoded(upright, size=2, place=0)[0, :, 0].tolist() == [255, 255]


def test_very_long_picture_needs_no_memory():
    """40000×1 enlarged to a short side of 64 would be 40000·64 × 64 pixels; only the window is made."""
    assert decoded(Image.new("RGB", (40000, 1), (5, 6, 7)), size=64)[:, 9, 9].tolist() == [5, 6, 7]


def test_draft_of_a_large_jpeg_changes_little(monkeypatch):
    """A smooth 256² picture at 32²: decoding at a quarter moves no value by more than 3 of 255."""
    ramp = np.linspace(0, 255, 256)
    image = Image.fromarray(np.stack(np.broadcast_arrays(ramp, ramp[:, None], 128), axis=-1).astype(np.uint8))
    sizes = []
    resize = data.resize
    monkeypatch.setattr(data, "resize", lambda image, *rest: sizes.append(image.size) or resize(image, *rest))
    fast = decoded(image, size=32, format="JPEG", quality=95)
    slow = resize(image, 32, 0.5)
    assert sizes == [(64, 64)]  # the least that is no less than 2·32
    assert np.abs(fast.astype(int) - slow).max() <= 3


# ------------------------------------------------------------------------------------------------------
# Broken files
# ------------------------------------------------------------------------------------------------------

def png_that_claims(width, height):
    """The start of a PNG of that size: enough for the guard, which looks before it decodes."""
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", data.zlib.crc32(kind + body))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) \
        + chunk(b"IDAT", b"")


@pytest.fixture
def half_broken(tmp_path):
    """Two good pictures, of grey 10 and 20, five bad ones, and files that are no pictures at all."""
    folder = tmp_path / "half"
    save(folder / "b.png", 10)
    save(folder / "y.jpg", 20)
    (folder / "a_empty.png").write_bytes(b"")
    (folder / "c_text.jpg").write_text("no picture")
    (folder / "d_cut.jpg").write_bytes(save(folder / "y.jpg", 20, (64, 64)).read_bytes()[:400])
    (folder / "e_bomb.png").write_bytes(png_that_claims(20000, 20000))
    (folder / "z.heic").write_bytes(b"a format that Pillow does not read")
    for other in ("notes.txt", ".hidden.png", "Thumbs.db", "__MACOSX/b.png", ".git/b.png"):
        (folder / other).parent.mkdir(exist_ok=True)
        (folder / other).write_text("ignored")
    return folder


def test_skipped_files_are_named_with_a_reason(half_broken):
    images = load_images(half_broken, size=4)
    assert grey_levels(images.pixels) == [10, 20] and len(images) == 2 and images.names == ["b.png", "y.jpg"]
    reasons = dict(images.skipped)
    assert list(reasons) == ["a_empty.png", "c_text.jpg", "d_cut.jpg", "e_bomb.png", "z.heic"]
    assert reasons["a_empty.png"] == "empty file" and "truncated" in reasons["d_cut.jpg"].lower()
    assert "decompression bomb" in reasons["e_bomb.png"] and "0x" not in reasons["c_text.jpg"]


def test_labels_stay_with_their_pictures_when_some_are_skipped(tmp_path):
    for kind, level in (("a", 1), ("b", 2)):
        for i in range(3):
            save(tmp_path / "d/train" / kind / f"{i}.png", level)
        save(tmp_path / "d/test" / kind / "0.png", level)
    (tmp_path / "d/train/a/1.png").write_text("broken")
    images = load_images(tmp_path / "d", size=4)
    assert grey_levels(images.pixels) == [1, 1, 2, 2, 2] and images.labels.tolist() == [0, 0, 1, 1, 1]


def test_number_of_threads_does_not_matter(half_broken, monkeypatch):
    numbered(half_broken / "more", 150)
    one, many = [], []
    for cores, result in ((1, one), (7, many)):
        monkeypatch.setattr(data.os, "cpu_count", lambda cores=cores: cores)
        images = load_images(half_broken, size=4)
        result += [images.pixels, images.names, images.skipped]
    assert torch.equal(one[0], many[0]) and one[1:] == many[1:]


def one_line(error):
    text = str(error.value)
    assert "\n" not in text and len(text) > 20
    return text


def test_errors_are_one_clear_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/a.png").write_text("no picture")
    (tmp_path / "broken.zip").write_bytes(b"PK\3\4 and no more")
    (tmp_path / "text.tar").write_text("no archive\n" * 100)
    (tmp_path / "text.gz").write_bytes(gzip.compress(b"no archive" * 100))
    (tmp_path / "cut.tar.gz").write_bytes(gzip.compress(bytes(np.random.default_rng(0).bytes(9999)))[:5000])
    (tmp_path / "cut.tar.xz").write_bytes(data.lzma.compress(bytes(9999))[:60])
    expected = {"missing": "no such file", "empty": "no image", "broken": "none of the 1 images",
                "broken.zip": "cannot be read", "text.tar": "cannot be read", "text.gz": "cannot be read",
                "cut.tar.gz": "cannot be read", "cut.tar.xz": "cannot be read"}
    for name, part in expected.items():
        with pytest.raises(DataError) as error:
            load_images(tmp_path / name)
        assert part in one_line(error)
    assert not list((tmp_path / "cache").rglob("*.*"))  # nothing is kept of what is no archive


def test_tar_with_a_damaged_header_is_not_taken_for_a_short_one(tmp_path):
    numbered(tmp_path / "d", 3)
    with tarfile.open(tmp_path / "d.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        tar.add(tmp_path / "d", "d")
    raw = bytearray((tmp_path / "d.tar").read_bytes())
    header = raw.index(b"d/002.png")
    raw[header + 150] ^= 1  # a bit of the checksum
    (tmp_path / "d.tar").write_bytes(raw)
    with pytest.raises(DataError, match="damaged at byte"):
        load_images(tmp_path / "d.tar")


# ------------------------------------------------------------------------------------------------------
# Splits, lists, archives
# ------------------------------------------------------------------------------------------------------

def split_of(names):
    """[(name, class)] of train, the same of test, and the class names, which both splits must share."""
    names = sorted(names, key=data.by_folder)
    (train, classes), (test, same) = (data.choose_split(names, split) for split in ("train", "test"))
    assert classes == same
    return train, test, classes


@pytest.mark.parametrize("held_out", ["test", "val"])
@pytest.mark.parametrize("wrap", ["", "root/", "root/inner/"])
def test_split_folders(held_out, wrap):
    train, test, classes = split_of([f"{wrap}{split}/{kind}/deep/1.png"
                                     for split in ("train", held_out) for kind in ("cat", "dog")])
    assert classes == ["cat", "dog"]
    assert train == [(f"{wrap}train/cat/deep/1.png", "cat"), (f"{wrap}train/dog/deep/1.png", "dog")]
    assert test == [(f"{wrap}{held_out}/cat/deep/1.png", "cat"), (f"{wrap}{held_out}/dog/deep/1.png", "dog")]


def test_class_missing_from_one_split_keeps_the_numbers_equal():
    train, test, classes = split_of(["train/a/1.png", "train/b/1.png", "train/c/1.png", "test/c/1.png"])
    assert classes == ["a", "b", "c"] and test == [("test/c/1.png", "c")]


def test_every_tenth_of_each_class_is_held_out():
    """11 cats: numbers 0 and 10 are test. 3 dogs: number 0. A lone emu stays in training."""
    names = [f"cat/{i:02}.png" for i in range(11)] + [f"dog/{i}.png" for i in range(3)] + ["emu/0.png"]
    train, test, classes = split_of(names)
    assert [name for name, _ in test] == ["cat/00.png", "cat/10.png", "dog/0.png"]
    assert sorted(train + test) == sorted((n, n[:3]) for n in names) and classes == ["cat", "dog", "emu"]


@pytest.mark.parametrize("names", [
    [f"{i:02}.png" for i in range(12)], [f"photos/{i:02}.png" for i in range(12)],
    [f"{i:02}.png" for i in range(11)] + ["z/1.png"]])
def test_without_classes_training_takes_all(names):
    train, test, classes = split_of(names)
    assert classes == [] and train == [(name, None) for name in names]
    assert test == [(names[0], None), (names[10], None)]


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


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".tar.bz2", ".tar.xz"])
def test_archive_equals_folder(labelled, suffix):
    for split in ("train", "test"):
        folder, archive = (load_images(d, split, size=4) for d in (labelled, pack(labelled, suffix)))
        assert torch.equal(folder.pixels, archive.pixels) and torch.equal(folder.labels, archive.labels)
        assert archive.classes == ["a", "b"] and archive.labels.tolist() == [0] * 3 + [1] * 3
    assert not list(labelled.parent.rglob("*.part"))


def test_compressed_tar_is_decoded_once(labelled, monkeypatch):
    path = pack(labelled, ".tar.xz")
    first = load_images(path, size=4)
    monkeypatch.setattr(data.shutil, "copyfileobj", None)
    assert torch.equal(load_images(path, size=4).pixels, first.pixels)


def test_unsafe_members_are_left_out(tmp_path):
    """Links, ".." and hidden members are no pictures; an absolute name is read in place, like any other."""
    picture = save(tmp_path / "p.png", 9).read_bytes()
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        for name in ("good.png", "../up.png", "a/../../up.png", "/etc/absolute.png", "._good.png",
                     "__MACOSX/good.png"):
            member = tarfile.TarInfo(name)
            member.size = len(picture)
            tar.addfile(member, io.BytesIO(picture))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "p.png")
        tar.addfile(link)
    images = load_images(tmp_path / "evil.tar", size=4)
    assert images.names == ["etc/absolute.png", "good.png"] and images.skipped == []


def test_list_of_paths(labelled):
    listed = labelled.parent / "lists/chosen.txt"
    listed.parent.mkdir()
    listed.write_text(f"../set/train/b/1.png\n\n{labelled}/train/a/0.png\n../set/train/b/missing.png\n")
    images = load_images(listed, size=4)
    assert images.names == [f"{labelled}/train/a/0.png"]  # of class b one is held out, the other missing
    assert images.skipped[0][0].endswith("missing.png") and images.classes == ["a", "b"]
    listed.write_text("../set/train/b/1.png\n../set/train/b/0.png\n")
    assert load_images(listed, size=4).names == [f"{labelled}/train/b/0.png", f"{labelled}/train/b/1.png"]


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path):
    numbered(tmp_path / "real", 2)
    (tmp_path / "set").mkdir()
    (tmp_path / "set/link").symlink_to(tmp_path / "real")
    (tmp_path / "real/back").symlink_to(tmp_path / "set")
    assert load_images(tmp_path / "set", size=4).names == ["link/000.png", "link/001.png"]


def test_training_window_depends_on_the_seed_alone_and_test_is_centred(tmp_path):
    """40 pictures of 64×4 with a grey ramp, whose mean tone tells the window's place; test: the middle."""
    ramp = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8) * 4, (4, 1)))
    for i in range(40):
        (tmp_path / "d").mkdir(exist_ok=True)
        ramp.save(tmp_path / f"d/{i:02}.png")
    one, same, other = (load_images(tmp_path / "d", size=4, seed=seed).pixels.float().mean((1, 2, 3))
                        for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert one.min() < 60 and one.max() > 190  # false alarm, were the seed not fixed: 2 · 0.8^40 < 3 / 10,000
    middle = load_images(tmp_path / "d", "test", size=4).pixels.float().mean((1, 2, 3))
    assert middle.tolist() == [(30 + 31 + 32 + 33) * 4 / 4] * 4


# ------------------------------------------------------------------------------------------------------
# Batches
# ------------------------------------------------------------------------------------------------------

@pytest.fixture
def ten(tmp_path):
    """Ten pictures in memory, number i of grey level i."""
    return load_images(numbered(tmp_path / "ten", 10), size=4)


def take(stream, n):
    return [grey_levels(next(stream)) for _ in range(n)]


def test_resumed_stream_goes_on_as_if_unbroken(ten):
    whole = take(batches(ten, 3, seed=5), 12)
    for start in (1, 3, 4, 11):
        assert take(batches(ten, 3, seed=5, start=start), 12 - start) == whole[start:]
    assert whole != take(batches(ten, 3, seed=6), 12)


@pytest.mark.parametrize("batch", [1, 3, 10, 23])  # 23 > 10: a batch then holds several epochs
def test_each_epoch_has_each_image_once_in_a_new_order(ten, batch):
    flat = [i for rows in take(batches(ten, batch), -(-40 // batch)) for i in rows]
    epochs = [flat[i:i + 10] for i in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 4  # false alarm 6 / 10!


def test_batches_have_shape_and_type(ten):
    pixels = next(batches(ten, 3))
    assert pixels.shape == (3, 3, 4, 4) and pixels.dtype == torch.uint8


def test_shards_partition_the_global_batch(ten):
    whole = take(batches(ten, 6, seed=1, start=2), 5)
    parts = [take(batches(ten, 2, seed=1, start=2, shard=(rank, 3)), 5) for rank in range(3)]
    assert [sum(rows, []) for rows in zip(*parts)] == whole


def test_in_order_is_the_order_of_the_labels(ten):
    assert [len(x) for x in in_order(ten, 4)] == [4, 4, 2]
    assert grey_levels(torch.cat(list(in_order(ten, 4)))) == list(range(10))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_streaming_equals_memory_for_any_number_of_workers(labelled, workers, monkeypatch):
    memory = load_images(labelled, size=4, seed=3)
    monkeypatch.setattr(data, "MEMORY_LIMIT", 0)
    for suffix in ("", ".zip") if workers == 2 else ("",):
        streamed = load_images(pack(labelled, suffix) if suffix else labelled, size=4, seed=3)
        assert streamed.pixels is None and len(streamed) == 6 and torch.equal(streamed.labels, memory.labels)
        torch.manual_seed(0)
        state = torch.random.get_rng_state()
        for a, b, _ in zip(batches(memory, 4), batches(streamed, 4, workers=workers), range(5)):
            assert torch.equal(a, b)
        assert torch.equal(torch.cat(list(in_order(streamed, 4, workers=workers))), memory.pixels)
        assert torch.equal(torch.random.get_rng_state(), state)  # other random draws do not depend on it


@pytest.mark.parametrize("workers", [0, 2])
def test_streaming_replaces_a_broken_image_by_the_next_and_reports_it_once(tmp_path, workers, monkeypatch):
    numbered(tmp_path / "d", 4)
    for i in (2, 3):
        (tmp_path / f"d/00{i}.png").write_text("broken")
    monkeypatch.setattr(data, "MEMORY_LIMIT", 0)
    images = load_images(tmp_path / "d", size=4)
    assert len(images) == 4 and images.skipped == []
    epochs = take(batches(images, 4, workers=workers), 3)
    assert all(sorted(epoch) == [0, 0, 0, 1] for epoch in epochs)  # 2 and 3 give way to 0, which follows 3
    assert sorted(name for name, _ in images.skipped) == ["002.png", "003.png"]


def test_streaming_a_set_without_a_readable_image_fails_at_once(tmp_path, monkeypatch):
    numbered(tmp_path / "d", 2)
    for path in (tmp_path / "d").iterdir():
        path.write_text("broken")
    monkeypatch.setattr(data, "MEMORY_LIMIT", 0)
    with pytest.raises(DataError, match="none of the 2 images"):
        load_images(tmp_path / "d", size=4)


def test_workers_do_not_disturb_each_other_in_a_zip(tmp_path, monkeypatch):
    """Forked workers that read through one file handle would move each other's position."""
    numbered(tmp_path / "set", 250)
    monkeypatch.setattr(data, "MEMORY_LIMIT", 0)
    images = load_images(pack(tmp_path / "set", ".zip"), size=4)
    assert grey_levels(torch.cat(list(in_order(images, 5, workers=2)))) == list(range(250))
    assert images.skipped == []


# ------------------------------------------------------------------------------------------------------
# CIFAR-10
# ------------------------------------------------------------------------------------------------------

def fake_cifar(path, n=2):
    """An archive like the official one: n records in each of the five train files, one in the test file."""
    def record(label, rgb):
        return bytes([label]) + b"".join(bytes([level]) * 1024 for level in rgb)
    members = {f"data_batch_{b}.bin": b"".join(record(i, (b, i, 7)) for i in range(n)) for b in range(1, 6)}
    members["test_batch.bin"] = record(1, (200, 100, 50))
    members["batches.meta.txt"] = b"airplane\nautomobile\n\n"
    members["readme.html"] = b"not data"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, body in sorted(members.items(), reverse=True):
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(body)
            tar.addfile(member, io.BytesIO(body))
    return hashlib.md5(path.read_bytes()).hexdigest()


def test_cifar10_downloads_once_and_reads_the_records(tmp_path, cache, monkeypatch):
    served = tmp_path / "served/cifar-10-binary.tar.gz"
    monkeypatch.setattr(data, "CIFAR10_MD5", fake_cifar(served))
    monkeypatch.setattr(data, "CIFAR10_URL", served.as_uri())
    train = load_images("cifar10", "train", size=32)
    served.unlink()  # from now on it must come from the cache
    assert [p.name for p in cache.iterdir()] == ["cifar-10-binary.tar.gz"]
    assert train.pixels.shape == (10, 3, 32, 32) and train.classes == ["airplane", "automobile"]
    assert train.labels.tolist() == [0, 1] * 5 and train.labels.dtype == torch.int64
    assert train.pixels[:, :, 5, 5].tolist() == [[b, i, 7] for b in range(1, 6) for i in range(2)]
    test = load_images("cifar10", "test", size=8)
    assert test.pixels.shape == (1, 3, 8, 8) and test.pixels[0, :, 4, 4].tolist() == [200, 100, 50]


def test_cifar10_damaged_on_the_way_leaves_nothing(tmp_path, cache, monkeypatch):
    served = tmp_path / "served/cifar-10-binary.tar.gz"
    fake_cifar(served)
    monkeypatch.setattr(data, "CIFAR10_URL", served.as_uri())
    with pytest.raises(DataError, match="wrong checksum") as error:
        load_images("cifar10")
    assert served.as_uri() in one_line(error) and list(cache.iterdir()) == []


def test_cifar10_offline_says_what_to_put_where(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(data, "CIFAR10_URL", (tmp_path / "nowhere/cifar-10-binary.tar.gz").as_uri())
    with pytest.raises(DataError) as error:
        load_images("cifar10")
    assert data.CIFAR10_URL in one_line(error) and str(cache / "cifar-10-binary.tar.gz") in str(error.value)
    assert list(cache.iterdir()) == []


def test_cifar10_put_there_by_hand_is_checked_too(cache):
    fake_cifar(cache / "cifar-10-binary.tar.gz")
    with pytest.raises(DataError, match="wrong checksum"):
        load_images("cifar10")
