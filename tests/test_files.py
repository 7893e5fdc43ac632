"""Folders, lists and archives: the right names and bytes, nothing outside of them, clear errors.

    pytest tests/test_files.py
"""

import gzip
import io
import lzma
import tarfile

import numpy as np
import pytest
import torch
from conftest import grey_levels, numbered, one_line, pack, save

from support import data, files
from support.data import in_order, load_images
from support.files import DataError

pytestmark = pytest.mark.usefixtures("cache")  # no test reads or writes the user's own


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
    monkeypatch.setattr(files.shutil, "copyfileobj", None)
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


def test_workers_do_not_disturb_each_other_in_a_zip(tmp_path, monkeypatch):
    """Forked workers that read through one file handle would move each other's position."""
    numbered(tmp_path / "set", 250)
    monkeypatch.setattr(data, "MEMORY_LIMIT", 0)
    images = load_images(pack(tmp_path / "set", ".zip"), size=4)
    assert grey_levels(torch.cat(list(in_order(images, 5, workers=2)))) == list(range(250))
    assert images.skipped == []


def test_errors_are_one_clear_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/a.png").write_text("no picture")
    (tmp_path / "broken.zip").write_bytes(b"PK\3\4 and no more")
    (tmp_path / "text.tar").write_text("no archive\n" * 100)
    (tmp_path / "text.gz").write_bytes(gzip.compress(b"no archive" * 100))
    (tmp_path / "cut.tar.gz").write_bytes(gzip.compress(bytes(np.random.default_rng(0).bytes(9999)))[:5000])
    (tmp_path / "cut.tar.xz").write_bytes(lzma.compress(bytes(9999))[:60])
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
