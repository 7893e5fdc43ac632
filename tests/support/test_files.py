"""Folders, lists and archives: the right names and bytes, nothing outside of them, clear errors.

    pytest tests/test_files.py
"""

import gzip
import io
import lzma
import ntpath
import os
import tarfile
import zipfile
from itertools import product

import numpy as np
import pytest
import torch
from conftest import grey_levels, numbered, one_line, pack, save

from support import find as files
from support import images as data
from support.files import UserError
from support.images import in_order, load_images

pytestmark = pytest.mark.usefixtures("cache")  # no test reads or writes the user's own


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".tar.bz2", ".tar.xz"])
def test_archive_equals_folder(labelled, suffix):
    for split in ("train", "test"):
        folder, archive = (load_images(d, split, size=4) for d in (labelled, pack(labelled, suffix)))
        assert torch.equal(folder.pixels, archive.pixels) and torch.equal(folder.labels, archive.labels)
        assert archive.classes == ["a", "b"] and archive.labels.tolist() == [0] * 3 + [1] * 3
    assert not list(labelled.parent.rglob("*.tmp"))


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


LABELLED = {  # what people have; the two pictures lie in the list's folder
    "list.txt": "a.png cat\nsub/my b.png  big dog\n",
    "list.csv": "path,label\na.png,cat\nsub/my b.png,big dog\n",
    "tabs.csv": "path\tlabel\na.png\tcat\nsub/my b.png\tbig dog\n",
    "list.tsv": "label\tpath\ncat\ta.png\nbig dog\tsub/my b.png\n",
    "excel.csv": "\ufeffPath; Label\r\na.png; cat\r\n\"sub/my b.png\";big dog\r\n",
    "mark.txt": "\ufeffa.png cat\nsub/my b.png big dog",
}


@pytest.mark.parametrize("name", LABELLED)
def test_labels_from_a_list(tmp_path, name):
    (tmp_path / name).write_text(LABELLED[name], encoding="utf-8")
    for i, picture in enumerate(("a.png", "sub/my b.png")):
        save(tmp_path / picture, 10 + i)
    images = load_images(tmp_path / name, size=4)
    assert images.classes == ["big dog", "cat"] and images.labels.tolist() == [1, 0]
    assert images.names == [f"{tmp_path}/a.png", f"{tmp_path}/sub/my b.png"] and images.skipped == []


def test_splits_from_a_list(tmp_path):
    numbered(tmp_path, 4)
    rows = "".join(f"00{i}.png,{'ab'[i % 2]},{('train', 'valid')[i // 2]}\n" for i in range(4))
    (tmp_path / "list.csv").write_text("path,label,split\n" + rows)
    train, test = (load_images(tmp_path / "list.csv", split, size=4) for split in ("train", "test"))
    assert grey_levels(train.pixels) == [0, 1] and grey_levels(test.pixels) == [2, 3]
    assert train.labels.tolist() == test.labels.tolist() == [0, 1]


@pytest.mark.parametrize("line, expected", [
    ("a b.png", ("a b.png", None)), ("a.png b.png", ("a.png b.png", None)), ("a.JPG 3", ("a.JPG", "3")),
    ("a.b.jpeg my cat", ("a.b.jpeg", "my cat")),
    ("my.png pics/1.jpg cat", ("my.png pics/1.jpg", "cat")), ("a", ("a", None)),
    ("set.tar/a.png x", ("set.tar/a.png", "x")),
])  # fmt: skip
def test_lines_of_a_list(line, expected):
    assert files.split_line(line) == expected


def test_a_list_without_a_header_is_one_line(tmp_path):
    (tmp_path / "list.csv").write_text("a.png,cat\n")
    with pytest.raises(UserError, match="its header is a.png, cat; it must have a path") as error:
        load_images(tmp_path / "list.csv")
    one_line(error)


def shard(path, members):
    """A .tar file of {name: bytes}."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.fixture
def shards(tmp_path):
    """Two shards of three pictures, number i of grey level i, its class i // 2 and a caption beside it."""
    for number in range(2):
        members = {}
        for i in range(3 * number, 3 * number + 3):
            picture = save(tmp_path / "picture.png", i).read_bytes()
            members |= {f"{i:06}.png": picture, f"{i:06}.cls": b"%d\n" % (i // 2), f"{i:06}.txt": b"a caption"}
        shard(tmp_path / "shards" / f"{number:05}.tar", members)
    return tmp_path / "shards"


def test_shards_are_one_set(shards, monkeypatch):
    (shards.parent / "list.txt").write_text("shards/00000.tar\nshards/00001.tar\n")
    for place in (shards, shards.parent / "list.txt"):
        train, test = (load_images(place, split, size=4) for split in ("train", "test"))
        assert grey_levels(train.pixels) == [1, 3, 5] and grey_levels(test.pixels) == [0, 2, 4]  # one of two
        assert train.labels.tolist() == [0, 1, 2] and train.names[0].endswith("00000.tar/000001.png")
    monkeypatch.setattr(data, "MEMORY_LIMIT", 0)
    assert grey_levels(torch.cat(list(in_order(load_images(shards, size=4), 2, workers=2)))) == [1, 3, 5]
    assert load_images(shards / "00000.tar", size=4).classes == ["0", "1"]  # one of them alone


def test_what_of_shards_is_not_as_it_seems_is_said(shards, capsys):
    """A mask beside each image is an image too; an image beside the shards makes a folder of images of it."""
    members = {"1.jpg": b"", "1.seg.png": b"", "1.cls": b"0"}
    shard(shards / "00002.tar", members)
    assert len(files.find_files(shards)[0]) == 8
    assert "00002.tar: samples with several images" in capsys.readouterr().err
    save(shards / "preview.png")
    assert files.find_files(shards)[0] == ["preview.png"]
    assert f"{shards}: 3 .tar files are not read" in capsys.readouterr().err


def test_shards_without_classes_and_with_splits(shards):
    """A shard's name is no class; folders of shards are splits."""
    for split in ("train", "val"):
        shard(shards / split / "0.tar", {"7.jpg": save(shards.parent / "p.jpg", 7).read_bytes()})
    for path in shards.glob("*.tar"):
        path.unlink()
    images = load_images(shards, size=4)
    assert images.names == ["train/0.tar/7.jpg"] and images.labels is None


@pytest.mark.parametrize("names", [("set-train-0.tar", "set-val-0.tar"), ("Train/0.tar", "VALID/0.tar")])
def test_splits_in_the_names_of_shards(tmp_path, names):
    for number, name in enumerate(names):
        members = {}
        for i in range(2):
            members |= {f"s{i}.png": save(tmp_path / "p.png", 10 * number + i).read_bytes(), f"s{i}.CLS": b"%d" % i}
        shard(tmp_path / "set" / name, members)
    train, test = (load_images(tmp_path / "set", split, size=4) for split in ("train", "test"))
    assert grey_levels(train.pixels) == [0, 1] and grey_levels(test.pixels) == [10, 11]
    assert train.labels.tolist() == test.labels.tolist() == [0, 1]


def test_folders_in_shards_are_splits_and_classes(tmp_path):
    for number in range(2):
        members = {f"all/{split}/{kind}/{number}.png": save(tmp_path / "p.png", 10 * number + i).read_bytes()
                   for i, (split, kind) in enumerate(product(("train", "test"), "ab"))}  # fmt: skip
        shard(tmp_path / "set" / f"{number}.tar", members)
    train, test = (load_images(tmp_path / "set", split, size=4) for split in ("train", "test"))
    assert grey_levels(train.pixels) == [0, 1, 10, 11] and grey_levels(test.pixels) == [2, 3, 12, 13]
    assert train.classes == ["a", "b"] and train.labels.tolist() == [0, 1, 0, 1]


def test_a_damaged_or_missing_shard_is_named_and_left_out(shards, capsys):
    raw = (shards / "00001.tar").read_bytes()
    (shards / "00002.tar").write_bytes(raw[:-2000])
    (shards.parent / "list.txt").write_text("".join(f"shards/0000{i}.tar\n" for i in range(4)))
    assert len(files.find_files(shards.parent / "list.txt")[0]) == 6
    err = capsys.readouterr().err
    assert f"skipped {shards}/00002.tar: " in err and f"skipped {shards}/00003.tar: No such file or directory" in err
    for path in shards.glob("*.tar"):
        path.write_bytes(b"x" * 600)
    with pytest.raises(UserError, match="none of the 3 shards"):
        files.find_files(shards)


@pytest.mark.parametrize("column", [("train", "dev"), ("0", "1"), ("test", "test"), ("training", "private_test")])
def test_splits_that_are_none_are_refused(tmp_path, column):
    numbered(tmp_path, 2)
    (tmp_path / "list.csv").write_text(f"image,class,split\n000.png,a,{column[0]}\n001.png,b,{column[1]}\n")
    with pytest.raises(UserError, match="its splits are") as error:
        load_images(tmp_path / "list.csv", size=4)
    assert set(column) <= set(one_line(error).replace(";", ",").replace("are ", ", ").split(", "))


def test_one_split_alone_and_labels_of_some(tmp_path):
    """All for training: every tenth is held out as ever.  One image without a class: no labels, and that is said."""
    numbered(tmp_path, 3)
    (tmp_path / "list.csv").write_text("path,split\n000.png,train\n001.png,train\n002.png,train\n")
    assert len(load_images(tmp_path / "list.csv", size=4)) == 3
    (tmp_path / "list.csv").write_text("path,label\n000.png,a\n001.png,b\n002.png,\n")
    images = load_images(tmp_path / "list.csv", size=4)
    assert images.labels is None and "1 of 3 images have no class (the first: " in images.notes[0]


def test_what_stands_twice_in_a_list_is_said(tmp_path, capsys):
    numbered(tmp_path, 2)
    (tmp_path / "list.csv").write_text("path,label\n000.png,a\n001.png,b\n000.png,b\n001.png,b\n")
    assert files.find_files(tmp_path / "list.csv")[2] == {f"{tmp_path}/000.png": (None, "a"),
                                                          f"{tmp_path}/001.png": (None, "b")}  # fmt: skip
    assert "1 images stand there more than once, as different things" in capsys.readouterr().err


def test_a_zip_with_backslashes(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("set\\train\\a\\1.png", "set\\train\\b\\1.png"):
            info = zipfile.ZipInfo("x")
            info.filename = name
            archive.writestr(info, save(tmp_path / "p.png", 9).read_bytes())
    names, read, _ = files.find_files(tmp_path / "a.zip")
    assert names == ["set/train/a/1.png", "set/train/b/1.png"] and read(names[1]) == read(names[0])


def test_paths_are_compared_in_one_form(tmp_path, monkeypatch):
    """Where the system writes a\\b, names still have /, so that splits and classes are found."""
    for name in ("train/a/1.png", "train/b/1.png", "test/a/1.png", "test/b/1.png"):
        save(tmp_path / "set" / name, 9)
    real = os.path.relpath
    monkeypatch.setattr(files.os, "sep", "\\")
    monkeypatch.setattr(files.os.path, "relpath", lambda path, start: real(path, start).replace("/", "\\"))
    names, _, _ = files.find_files(tmp_path / "set")
    assert names == ["test/a/1.png", "test/b/1.png", "train/a/1.png", "train/b/1.png"]
    assert files.posix(ntpath.join("C:\\set", "a", "1.png")) == "C:/set/a/1.png"


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
        with pytest.raises(UserError) as error:
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
    with pytest.raises(UserError, match="damaged at byte"):
        load_images(tmp_path / "d.tar")
