"""De-duplication and retrieval: by hand, and the program.  `pytest tests/test_curate.py`"""

import csv
import os
import runpy
import shutil
import sys
from pathlib import Path

import conftest
import numpy as np
import pytest
import torch
from PIL import Image

import curate
from curate import copies_of, deduplicate, main, remove_near, retrieve_clusters, retrieve_samples
from support.images import load_images
from support.weights import save_vit
from vit import vit_nano


def at(*degrees):
    """Points on the unit circle, (N, 2) float32, as NumPy has them."""
    return conftest.at(*degrees).numpy()


# By hand.  A cosine above 0.6 is an angle below 53.1°, above 0.45 one below 63.3°.


def test_a_chain_is_one_component():
    """0°, 50°, 100°: the ends are 100° apart, but each is within 53° of the middle. 180° is 80° from the last."""
    assert copies_of(at(0, 180, 100, 50), 0.6).tolist() == [-1, -1, 0, 0]
    assert deduplicate(at(0, 180, 100, 50)).tolist() == [0, 1]
    assert deduplicate(at(0, 180, 100, 50), threshold=0.7).tolist() == [0, 1, 2, 3]  # 45.6°
    assert deduplicate(at(7)).tolist() == [0]


def test_only_the_nearest_neighbours_make_edges():
    """0°, 1° and 3°: with one neighbour 3° has 1°, and 1° has 0°: a chain. Pairs apart stay apart."""
    assert deduplicate(at(0, 1, 3), k=1).tolist() == [0]
    assert deduplicate(at(0, 1, 40, 41), k=1).tolist() == [0, 2]
    assert deduplicate(at(0, 1, 40, 41), k=2).tolist() == [0]


def test_a_component_goes_whole():
    """References at 0°. 60° is within 63.3° of it; 120° is so of 60°, and goes too. 200° is 80° from 120°."""
    assert remove_near(at(200, 60, 120), at(0)).tolist() == [0]
    assert remove_near(at(200, 60, 120), at(0), threshold=0.55).tolist() == [0, 1, 2]  # 56.6°
    # 1° and 61° are one component, and each is a copy of its own reference; 124° is near 61° alone
    assert copies_of(at(61, 1, 200, 124), 0.45, reference=at(0, 60)).tolist() == [1, 0, -1, 0]
    # two references 20° apart join what is near either: nothing else is near them
    assert remove_near(at(90, 100), at(180, 200)).tolist() == [0, 1]


def test_samples_by_hand():
    """The pool at 0°, 30°, 90°, 200°. Two nearest to 10°: 0° and 30°; to 80°: 90° and 30°."""
    assert retrieve_samples(at(10, 80), at(0, 30, 90, 200), k=2).tolist() == [0, 1, 2]


def test_clusters_by_hand():
    """Pool: 5 near 0°, 5 near 180°. Curated: 4 near 0°, 3 near 180°: only the first cluster has more than 3."""
    pool, curated = at(0, 180, 1, 181, 2, 182, 3, 183, 4, 184), at(0, 1, 2, 3, 180, 181, 182)
    assert retrieve_clusters(curated, pool, 2, 10).tolist() == [0, 2, 4, 6, 8]
    assert retrieve_clusters(curated, pool, 2, 10, min_hits=2).tolist() == list(range(10))
    three = retrieve_clusters(curated, pool, 2, 3)
    assert len(three) == 3 and set(three) < {0, 2, 4, 6, 8}
    assert len(retrieve_clusters(curated, pool, 2, 10, min_hits=2, max_total=4)) == 4
    drawn = {tuple(retrieve_clusters(curated, pool, 2, 3, seed=seed)) for seed in range(8)}
    assert len(drawn) > 1  # at random


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of 40 soft images in four tints, the first 10 again as smaller JPEG, and a broken one; four curated
    images, the last from the folder, and a broken one; one to exclude; weights."""
    folder = tmp_path_factory.mktemp("curate")
    torch.manual_seed(0)
    save_vit(vit_nano(patch_size=8, img_size=32, layer_scale=1.0), folder / "vit.pt")
    generator = np.random.default_rng(0)

    def picture(i):
        tint = np.array([[255, 60, 60], [60, 255, 60], [60, 60, 255], [255, 255, 60]][i % 4])
        grain = generator.uniform(0.2, 1, (6, 6, 1))
        return Image.fromarray((grain * tint).astype(np.uint8)).resize((64, 64), Image.Resampling.BICUBIC)

    for name in ("pool", "curated", "exclude"):
        (folder / name).mkdir()
    for i in range(40):
        image = picture(i)
        image.save(folder / "pool" / f"{i:02}.png")
        if i < 10:
            image.resize((63, 63)).save(folder / "pool" / f"copy{i:02}.jpg", quality=100)
    for i in range(1, 4):
        picture(0).save(folder / "curated" / f"{i}.png")
    shutil.copy(folder / "pool" / "12.png", folder / "curated" / "4.png")
    picture(1).save(folder / "exclude" / "0.png")
    for name in ("pool", "curated"):
        (folder / name / "0.png").write_bytes(b"no image")
    return folder


def flags(place, out, *more):
    """Thresholds for an untrained network, whose features are all alike."""
    return ["--curated", place / "curated", "--uncurated", place / "pool", "--weights", place / "vit.pt", "--out", out,
            "--device", "cpu", "--size", "32", "--self-threshold", "0.9999", "--mode", "samples", *more]  # fmt: skip


def run(*argv):
    return main(list(map(str, argv)))


def outputs(out):
    return [path.read_bytes() for path in (out, *map(out.with_suffix, (".copies.csv", ".csv", ".png")))]


def copies(out):
    with open(out.with_suffix(".copies.csv")) as file:
        header, *rows = csv.reader(file)
    assert header == ["path", "kept", "stage", "bits_or_cosine"]
    return rows


def names(out):
    return [Path(path).name for path in out.read_text().splitlines()]


def test_from_folders_to_a_list_that_train_reads(place, tmp_path, capsys):
    out = tmp_path / "selected.txt"
    assert run(*flags(place, out)) == 0
    text = capsys.readouterr()
    skipped = [line.split("\r")[-1] for line in text.err.splitlines() if "skipped" in line]
    assert [line.strip() for line in skipped] == [
        f"skipped {place}/{name}/0.png: not an image of a format that is read here; convert it to PNG"
        for name in ("pool", "curated")]  # fmt: skip
    paths = out.read_text().splitlines()
    assert "PCA hash: 10 of 50 images are copies (20%)\n" in text.out and "WARNING" not in text.out
    assert {(Path(path).name, Path(kept).name, stage) for path, kept, stage, bits in copies(out) if int(bits) <= 2} == {
        (f"copy{i:02}.jpg", f"{i:02}.png", "PCA hash") for i in range(10)}
    assert text.out.splitlines()[-1].startswith(f"{len(paths)} of 51 images selected")
    with open(tmp_path / "selected.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == paths and {row["stage"] for row in rows} == {"samples"}
    near = {Path(row["path"]).name: (row["nearest_curated"], row["cosine"]) for row in rows}
    assert near["12.png"] == (str(place / "curated" / "4.png"), "1.000000")
    with Image.open(tmp_path / "selected.png") as image, Image.open(place / "curated" / "4.png") as curated:
        assert image.size == ((1 + min(len(paths), 7)) * 112, 4 * 112)  # row 4: the image and its copy
        for x in (0, 112):
            square = image.crop((x, 3 * 112, x + 112, 4 * 112))
            assert np.array_equal(square, curated.resize((112, 112), Image.Resampling.BICUBIC))
    assert len(load_images(str(out), "train", 32)) == len(paths)


def test_deep_images_of_all_sources_have_one_scale(place, tmp_path):
    """Curated is one of two images of the pool, at most 99 of 4095: by a scale of its own it would be lighter."""
    tones = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    for name, tone in (("pool/dark", tones // 41), ("pool/light", tones), ("curated/dark", tones // 41)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(tone).save(tmp_path / f"{name}.png")
    assert run(*flags(tmp_path, tmp_path / "out.txt", "--per-image", "1"), "--weights", place / "vit.pt") == 0
    assert (tmp_path / "out.txt").read_text() == f"{tmp_path}/pool/dark.png\n"
    assert (tmp_path / "out.csv").read_text().endswith(",1.000000\n")


def test_clusters_exclusion_and_no_retrieval(place, tmp_path, monkeypatch, capsys):
    """With the default sizes there is one cluster for 100 images, and all its images are kept."""
    out = tmp_path / "selected.txt"
    with monkeypatch.context() as patch:
        patch.setattr(curate, "CLUSTER_SIZE", 20)
        patch.setattr(curate, "PER_CLUSTER", 5)
        assert run(*flags(place, out), "--mode", "clusters") == 0
    assert 1 <= len(names(out)) <= 10
    assert run(*flags(place, out), "--exclude", place / "exclude", "--reference-threshold", -1) == 2
    assert "every image counts as a copy" in capsys.readouterr().err
    alone, apart = tmp_path / "alone.txt", tmp_path / "apart.txt"
    common = "--uncurated", place / "pool", "--weights", place / "vit.pt", "--size", 32, "--self-threshold", 0.9999
    assert run(*common, "--out", alone) == 0
    assert not alone.with_suffix(".csv").exists() and len(names(alone)) > len(names(out))
    (tmp_path / "list.txt").write_text(f"{place}/pool/{names(alone)[1]}\n")
    assert run(*common, "--out", apart, "--exclude", tmp_path / "list.txt", "--reference-threshold", 0.99999) == 0
    assert names(apart) == [name for name in names(alone) if name != names(alone)[1]]
    path = alone.read_text().splitlines()[1]
    assert copies(apart) == [*copies(alone), [path, path, "relative de-duplication", "1"]] and len(copies(alone)) == 10
    assert run(*common, "--out", out, "--curated", place / "curated") == 0  # the default mode
    assert "retrieval, clusters" in capsys.readouterr().out and names(out) == names(alone)


def test_copies_alone(place, tmp_path, monkeypatch, capsys):
    """Without --weights by the hash only.  At 0.6 one image of each tint stays, and a warning.  A lock is respected."""
    out = tmp_path / "unique.txt"

    def locked(*_):
        raise BlockingIOError

    assert run("--uncurated", place / "pool", "--out", out) == 0
    assert names(out) == [f"{i:02}.png" for i in range(40)] and len(copies(out)) == 10
    assert run("--uncurated", out, "--out", out, "--weights", place / "vit.pt", "--size", 32) == 0
    assert names(out) == [f"{i:02}.png" for i in range(4)] and "WARNING: over half" in capsys.readouterr().out
    assert all(row[1] == f"{place}/pool/{int(Path(row[0]).stem) % 4:02}.png" for row in copies(out))
    monkeypatch.setattr("fcntl.lockf", locked)
    assert run("--uncurated", place / "pool", "--out", out) == 2
    assert f"another process writes into {out}.work" in capsys.readouterr().err


def test_names_that_a_list_can_hold(place, tmp_path):
    """Not UTF-8, a comma, quotes and a space come back from the list."""
    files = [b"caf\xe9.png", b'a, "b".png', b"of two words.png", "über.png".encode()]
    (tmp_path / "pool").mkdir()
    for i, name in enumerate(files):
        shutil.copy(place / f"pool/{i:02}.png", os.fsencode(tmp_path / "pool") + b"/" + name)
    out = tmp_path / "list.txt"
    assert run(*flags(place, out), "--uncurated", tmp_path / "pool") == 0
    images = load_images(str(out), "train", 32)
    assert not images.skipped and {os.fsencode(Path(name).name) for name in images.names} == set(files)


def test_runs_of_other_settings_use_the_same_folder(place, tmp_path):
    """Then the result is that of a fresh one.  What a killed run leaves: curation/test_work_files.py."""
    more = ("--exclude", place / "curated", "--reference-threshold", 0.99999)  # one of the pool
    fresh, shared = tmp_path / "fresh.txt", tmp_path / "shared.txt"
    assert run(*flags(place, fresh, *more)) == 0
    torch.manual_seed(1)
    save_vit(vit_nano(patch_size=8, img_size=32, layer_scale=1.0), tmp_path / "other.pt")
    for other in (("--size", 24), ("--weights", tmp_path / "other.pt"), ()):
        assert run(*flags(place, shared, *more), *other) == 0
    assert outputs(shared) == outputs(fresh)


def work(rank, argv):
    """One of several processes."""
    curate.CLUSTER_SIZE = 20
    assert run(*argv) == 0


def test_three_ranks_select_the_same(place, tmp_path, monkeypatch):
    monkeypatch.setattr(curate, "CLUSTER_SIZE", 20)
    more = ("--exclude", place / "exclude", "--reference-threshold", 0.99999, "--mode", "clusters")
    alone, ranks = tmp_path / "a.txt", tmp_path / "b.txt"
    assert run(*flags(place, alone, *more)) == 0
    conftest.in_ranks(work, 3, flags(place, ranks, *more))
    assert outputs(ranks) == outputs(alone)


@pytest.mark.parametrize("more, words", [
    (("--uncurated", "junk"), "none of the images of --uncurated can be read"),
    (("--curated", "junk"), "none of the images of --curated can be read"),
    (("--weights", ""), "give --uncurated, and --weights if you give --curated or --exclude"),
    (("--mode", "clusters", "--curated", "one"), "no cluster holds more than 3"),
    (("--out", "selected.csv"), "--out selected.csv: curate.py writes another file"),
    (("--out", "made.txt"), "made.copies.csv is a folder, a link or a device"),  # noticed before the work
    (("--html", "nowhere"), "there is no page or folder nowhere"),
])  # fmt: skip
def test_bad_input_is_one_line(place, tmp_path, monkeypatch, capsys, more, words):
    for name in ("junk", "one", "made.copies.csv"):
        (tmp_path / name).mkdir()
    (tmp_path / "junk" / "a.png").write_bytes(b"junk")
    Image.new("RGB", (32, 32), (9, 99, 9)).save(tmp_path / "one" / "a.png")
    monkeypatch.chdir(tmp_path)
    assert run(*flags(place, "selected.txt"), *more) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line or "Traceback" in line]
    assert len(lines) == 1 and lines[0].startswith("curate.py: error: ") and words in lines[0]
    assert not Path("selected.txt").exists() and not Path("made.txt.work").exists()


def test_addresses_of_pages_are_listed(tmp_path, capsys):
    (tmp_path / "page.html").write_text('<img src="http://images.example/a.jpg">')
    assert run("--html", tmp_path / "page.html", "--out", tmp_path / "selected.txt") == 0
    assert (tmp_path / "addresses.txt").read_text() == "http://images.example/a.jpg\n"
    assert f"1 addresses of images: {tmp_path}/addresses.txt" in capsys.readouterr().out


def test_without_its_libraries_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(curate.__file__)
    assert stopped.value.code == 2
    assert "pip install -r curation/requirements.txt" in capsys.readouterr().err
