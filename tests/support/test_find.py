"""Names and bytes of folders, lists, archives and shards; clear errors.  `pytest tests/support/test_find.py`"""

import gzip
import io
import os
import shutil
import tarfile
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import grey_levels, numbered, one_line, save, write_tar

from support import find, images
from support.files import UserError
from support.find import find_files
from support.images import in_order, load_images

pytestmark = pytest.mark.usefixtures("cache")  # no test uses the user's own cache folder


def picture(folder, level=9):
    """The bytes of a grey image."""
    return save(folder / "p.png", level).read_bytes()


def zipped_twice(content):
    """A .zip with two files of one name."""
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(file := io.BytesIO(), "w") as archive:
        for name in ("a/1.png", "./a//1.png"):
            archive.writestr(name, content)
    return file.getvalue()


def pack(folder, format):
    """The folder as an archive beside it."""
    return shutil.make_archive(str(folder), format, folder.parent, folder.name)


@pytest.mark.parametrize("format", ["zip", "tar", "gztar", "bztar", "xztar"])
def test_an_archive_equals_its_folder(labelled, format, monkeypatch):
    archive = pack(labelled, format)
    for split in ("train", "test"):
        expected, found = (load_images(d, split, size=4) for d in (labelled, archive))
        assert torch.equal(expected.pixels, found.pixels) and found.labels.tolist() == [0] * 3 + [1] * 3
        assert found.classes == ["a", "b"]
        monkeypatch.setattr(find.shutil, "copyfileobj", None)  # a compressed one is unpacked once
        find.list_archive.cache_clear()
    assert not list(labelled.parent.rglob("*.tmp"))


def test_compressed_archives_of_one_name_size_and_time(tmp_path):
    for level, folder in enumerate("ab"):
        raw = write_tar(tmp_path / folder / "set.tar", {"1.png": picture(tmp_path, level)}).read_bytes()
        (path := tmp_path / folder / "set.tar.gz").write_bytes(gzip.compress(raw, mtime=0).ljust(2000, b"\0"))
        os.utime(path, (0, 0))
        assert grey_levels(load_images(path, size=4).pixels) == [level]


def test_unsafe_and_hidden_members_are_skipped(tmp_path, capsys):
    names = ("./good.png", "../up.png", "a/../../up.png", "/etc/absolute.png", "._good.png", "__MACOSX/good.png")
    found = load_images(write_tar(tmp_path / "evil.tar", dict.fromkeys(names, picture(tmp_path))), size=4)
    assert found.names == ["etc/absolute.png", "good.png"] and not found.skipped
    assert "files whose names have .., for example ../up.png" in capsys.readouterr().err


def test_sparse_members_and_links_of_a_tar(tmp_path, monkeypatch, capsys):
    """Links are followed inside the archive, also to links that come later; others are named."""
    links = {"b/hard.png": "a/hole.png", "b/soft.png": "later.png", "b/later.png": "../a/hole.png",
             "b/gone.png": str(tmp_path / "p.png"), "ring.png": "ring.png"}  # fmt: skip
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("a/hole.png")
        info.size, info.pax_headers = 8, {"GNU.sparse.map": "0,4,1000,4", "GNU.sparse.size": "1004"}
        tar.addfile(info, io.BytesIO(b"headtail"))
        for name, target in links.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.LNKTYPE if "hard" in name else tarfile.SYMTYPE, target
            tar.addfile(info)
    names, read, _ = find_files(tmp_path / "a.tar")
    assert names == ["a/hole.png", "b/hard.png", "b/later.png", "b/soft.png"]
    assert {read(name) for name in names} == {b"head" + bytes(996) + b"tail"}
    assert "a.tar: skipped 2 links to no file in it, like b/gone.png" in capsys.readouterr().err
    monkeypatch.setattr(find, "MAX_BYTES", 1003)  # the bytes with the hole
    with pytest.raises(ValueError, match="larger than the limit"):
        read("b/hard.png")


def test_zip_names_with_backslashes(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("x")
        info.filename = "set\\train\\1.png"
        archive.writestr(info, b"content")
    names, read, _ = find_files(tmp_path / "a.zip")
    assert names == ["set/train/1.png"] and read(names[0]) == b"content"
    monkeypatch.setattr(find, "MAX_BYTES", 5)
    with pytest.raises(ValueError, match="larger than the limit"):
        read(names[0])


@pytest.mark.parametrize("format", ["zip", "tar"])
def test_workers_do_not_disturb_each_other(tmp_path, monkeypatch, format):
    """Forked workers that read through one file handle would move each other's position."""
    numbered(tmp_path / "set", 250)
    monkeypatch.setattr(images, "MEMORY_LIMIT", 0)
    streamed = load_images(pack(tmp_path / "set", format), size=4)
    assert grey_levels(torch.cat(list(in_order(streamed, 5, workers=2)))) == list(range(250))
    assert not streamed.skipped


def test_links_system_folders_and_own_pictures_of_a_folder(tmp_path, monkeypatch, capsys):
    numbered(tmp_path / "real", 2)
    for name in ("runs/x/pca.png", "runs/x/curves.png", "s.png", "t.png", "@eaDir/1.png", "lost+found/1.png"):
        save(tmp_path / "set" / name)
    (tmp_path / "set/s.txt.work").mkdir()
    for link, target in (("set/link", "real"), ("real/back", "set"), ("set/cats", "nowhere")):
        (tmp_path / link).symlink_to(tmp_path / target)
    monkeypatch.setenv("HOME", str(tmp_path))
    scandir = find.os.scandir
    monkeypatch.setattr(find.os, "scandir", lambda path: scandir(0 if path.endswith("found") else path))  # not allowed
    assert find_files("~/set")[0] == ["link/000.png", "link/001.png", "t.png"]
    assert f"{tmp_path}/set: skipped 5 pictures that train.py or curate.py drew, links" in capsys.readouterr().err
    with pytest.raises(UserError, match="cannot be read .*Errno"):
        find_files(tmp_path / "set/lost+found")


def test_a_list_of_paths(labelled, tmp_path):
    """Relative to the list, or absolute, or into an archive, as curate.py writes it; missing files are skipped."""
    write_tar(labelled / "train/a.tar", {f"a/{i}.png": picture(tmp_path, i) for i in (7, 8)})
    listed = tmp_path / "lists/chosen.txt"
    listed.parent.mkdir()
    paths = ["b/1.png", "b/missing.png", "a.tar/a/8.png", "a.tar/a/missing.png"]
    listed.write_text("\n\n".join([f"../set/train/{path}" for path in paths] + [
        f"{labelled}/train/{path}" for path in ("a/0.png", "a.tar/a/7.png")]))
    found = load_images(listed, size=4)  # the first of each class is held out
    assert found.names == [f"{labelled}/train/a.tar/a/{i}.png" for i in (7, 8)] and grey_levels(found.pixels) == [7, 8]
    assert [name.split("train/")[1] for name in found.skipped] == ["a.tar/a/missing.png", "b/missing.png"]
    assert found.classes == ["a", "b"]


@pytest.mark.parametrize("name, text", [
    ("list.txt", "\ufeffa.png cat\nsub/my b.png  big dog\n"),
    ("list.csv", "path,label\na.png,cat\nsub/my b.png,big dog\nsub/my b.png,big dog\n"),  # listed twice
    ("list.tsv", "label\tpath\ncat\ta.png\nbig dog\tsub/my b.png\n"),
    ("excel.csv", "\ufeffPath; Label\r\na.png; \"cat\"\r\n\"sub/my b.png\";big dog\r\n"),
    ("mac.csv", "path,label,fold\ra.png,cat,1\rsub/my b.png,big dog\r"),
])  # fmt: skip
def test_labels_from_a_list(tmp_path, name, text, capsys):
    (tmp_path / name).write_text(text, encoding="utf-8")
    for i, path in enumerate(("a.png", "sub/my b.png")):
        save(tmp_path / path, 10 + i)
    found = load_images(tmp_path / name, size=4)
    assert found.classes == ["big dog", "cat"] and found.labels.tolist() == [1, 0]
    assert found.names == [f"{tmp_path}/a.png", f"{tmp_path}/sub/my b.png"] and not found.skipped
    assert (",fold" in text) == ("label and split are read, not fold" in capsys.readouterr().err)


@pytest.fixture
def shards(tmp_path):
    """Two shards of three images, number i of grey level i and class i // 2, with captions."""
    for n in range(2):
        members = {}
        for i in range(3 * n, 3 * n + 3):
            members |= {f"{i}.png": picture(tmp_path, i), f"{i}.cls": b"%d\n" % (i // 2), f"{i}.txt": b"a caption"}
        write_tar(tmp_path / "shards" / f"{n:05}.tar", members)
    return tmp_path / "shards"


def test_shards_are_one_dataset(shards, capsys):
    """A damaged shard and a missing one are skipped."""
    (shards / "00002.tar").write_bytes((shards / "00001.tar").read_bytes()[:-2000])
    (shards.parent / "list.txt").write_text("".join(f"shards/0000{i}.tar\n" for i in range(4)))
    for place in (shards, shards.parent / "list.txt"):
        train, test = (load_images(place, split, size=4) for split in ("train", "test"))
        assert grey_levels(train.pixels) == [1, 3, 5] and grey_levels(test.pixels) == [0, 2, 4]  # one of two
        assert train.labels.tolist() == [0, 1, 2] and train.names[0].endswith("00000.tar/1.png")
    assert load_images(shards / "00000.tar", size=4).classes == ["0", "1"]  # a shard alone
    save(shards / "preview.png")  # images beside shards are read instead
    assert find_files(shards)[0] == ["preview.png"]
    words = f"{shards}: skipped 3 archives", f"skipped {shards}/00002.tar: ", f"skipped {shards}/00003.tar: "
    assert all(map(capsys.readouterr().err.count, words))


@pytest.mark.parametrize("place", ["folder", "a.zip", "a.tar"])
def test_archives_inside_are_named(tmp_path, place, capsys):
    """An archive beside images, in a folder or in an archive, holds images that nobody reads."""
    for name in ("1.png", "more.zip", "b/more.TAR.gz", "._more.zip", "notes.gz"):
        save(tmp_path / "folder" / name) if name == "1.png" else write_tar(tmp_path / "folder" / name, {})
    found = tmp_path / place if place == "folder" else pack(tmp_path / "folder", place[2:])
    assert [name.split("/")[-1] for name in find_files(found)[0]] == ["1.png"]
    assert f"{found}: skipped 2 archives in it, for example " in capsys.readouterr().err


def test_folders_of_shards_and_in_shards_name_splits(tmp_path):
    """The name of a file or of a shard is no class."""
    for split in ("train", "val"):
        for i in (0, 1):
            write_tar(tmp_path / "around" / split / f"{i}.tar", {"a.png": picture(tmp_path)})
    names = [f"{split}/{kind}/1.png" for split in ("train", "val") for kind in "ab"]
    write_tar(tmp_path / "inside/0.tar", {f"all/{name}": picture(tmp_path) for name in names})
    around, inside = (load_images(tmp_path / name, size=4) for name in ("around", "inside"))
    assert around.names == ["train/0.tar/a.png", "train/1.tar/a.png"] and around.classes == []
    assert inside.names == [f"0.tar/all/{name}" for name in names[:2]] and inside.classes == ["a", "b"]


def test_errors_are_one_line(tmp_path, cache, monkeypatch):
    numbered(tmp_path / "d", 3)
    raw = write_tar(tmp_path / "a", {p.name: p.read_bytes() for p in sorted((tmp_path / "d").iterdir())}).read_bytes()
    flipped, negative = bytearray(raw), tarfile.TarInfo("a.png")
    flipped[raw.index(b"002.png") + 150] ^= 1  # a bit of a header's checksum
    negative.size = -512
    zipped = Path(pack(tmp_path / "d", "zip")).read_bytes()
    broken = bytearray(zipped)
    broken[zipped.index(b"PK\1\2") + 32] = 255  # a comment that is too long hides the entries after it
    cases = {
        "cannot be read": {"no_image.zip": b"PK\3\4 and no more", "text.gz": gzip.compress(b"no archive" * 100),
                           "cut.tar": raw[:2000], "cut.tar.gz": gzip.compress(raw)[:-20], "text.tar": b"text\n" * 200},
        "joined at byte": {"flipped.tar": flipped, "cut.tgz": gzip.compress(raw[:2048]), "joined.tar": raw * 2},
        "does not list all": {"broken.zip": broken, "joined.zip": zipped * 2},
        "negative size": {"a.tar": raw[:1024] + negative.tobuf(tarfile.GNU_FORMAT) + bytes(1024)},  # no hang
        "its header is a.png, cat; it must have the column path": {"no_header.csv": b"a.png,cat\n"},
        "its header is empty": {"empty.csv": b""},
        "line 3 has a quote": {"a.csv": b'path,label\na.png,b\nb.png,"b\nc.png,d"\n', "b.csv": b"path\n\na.png,b"},
        "each name must be there once": {"double.csv": b"path,label,label\na.png,b,c"},
        "two files of one name": {"twice.zip": zipped_twice(picture(tmp_path))},
        "b.png twice, with other labels": {"twice.csv": b"path,label\na.png,c\nb.png,c\n./b.png,d"},
        "found no image": {"empty.txt": b"", "empty": None},
        "No such file": {"missing": None, "~no-such-user/x": None},
    }  # fmt: skip
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    for words, files in cases.items():
        for name, content in files.items():
            if content is not None:
                Path(name).write_bytes(content)
            with pytest.raises(UserError) as error:
                load_images(name)
            assert one_line(error).startswith(f"{name}: ") and words in str(error.value), name
    assert not list(cache.rglob("*.*"))  # nothing is kept of what is no archive
