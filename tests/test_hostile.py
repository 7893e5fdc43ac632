"""Hostile input: one line and status 2, never a traceback, never a hang, nothing half written.

    pytest tests/test_hostile.py            some cases of each kind
    pytest tests/test_hostile.py --long     all of them, and how many
"""

import random
import shutil
import threading
from collections import Counter

import hostile
import pytest
import torch
from hostile import SMALL, flaws

import bench
import curate
import evaluate
import linear_probe
import pca_viz
import train
from support import weights as weights_program
from vit import vit_pico

pytestmark = [pytest.mark.usefixtures("cache"), pytest.mark.filterwarnings("ignore")]
counted = Counter()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Good pictures, good weights, and the checkpoint of a run."""
    folder = tmp_path_factory.mktemp("hostile")
    hostile.good_set(folder / "good")
    torch.save(vit_pico(patch_size=4, img_size=8).state_dict(), folder / "vit.pt")
    with pytest.MonkeyPatch.context() as patch:
        no_waiting(patch)
        assert flaws(train.main, [*SMALL, "--data", folder / "good", "--out", folder / "run", "--device", "cpu"]) == []
    return folder


@pytest.fixture(autouse=True)
def few(monkeypatch, request):
    """What takes a program long and is not at stake here."""
    no_waiting(monkeypatch)


def no_waiting(patch):
    patch.setattr(train, "draw_curves", lambda *_: None)
    patch.setattr(train, "draw_split", lambda *_: {})
    patch.setattr(linear_probe, "STEPS", 2)


def some(cases, request, n):
    """All cases with --long, otherwise n of them, the same each time."""
    cases = list(cases)
    return cases if request.config.getoption("--long") else random.Random(0).sample(cases, min(n, len(cases)))


def hold(group, found):
    """Every case of a group ended well: {case: what is wrong with it}."""
    counted[group] += len(found)
    assert not {case: wrong for case, wrong in found.items() if wrong}
    assert all(thread is threading.main_thread() or thread.daemon for thread in threading.enumerate())


def programs(place, out, data=None, weights=None):
    """{program: (main, words)}, each of which reads this data with these weights."""
    data, weights = data or place / "good", weights or place / "vit.pt"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    flags = ["--device", "cpu", "--threads", "1"]
    return {
        "train": (train.main, [*SMALL, "--data", data, "--out", out / "run", "--steps", "1", *flags]),
        "evaluate": (evaluate.main, ["--data", data, "--weights", weights, "--size", "8", *flags]),
        "pca_viz": (pca_viz.main, [data, "--weights", weights, "--size", "8", "--out", out / "pca.png", *flags]),
        "curate": (curate.main, ["--curated", place / "good", "--uncurated", data, "--weights", weights, "--size", "8",
                                 "--out", out / "list.txt", "--mode", "samples", "--per-image", "1", *flags]),
    }  # fmt: skip


def test_flags(place, tmp_path, request):
    found = {}
    for words in some(hostile.wrong_flags(), request, 30):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        all_words = [*SMALL, "--device", "cpu", "--data", place / "good", "--out", tmp_path / "run", *words]
        found[str(words)] = flaws(train.main, all_words, (0, 1, 2))  # 1: a loss that became NaN
    hold("flags of train.py", found)


OTHER_FLAGS = {
    "evaluate": ("--size", "--k", "--patch-size", "--max_megapixels", "--device", "--threads"),
    "pca_viz": ("--size", "--threshold", "--layer", "--grid", "--max_megapixels", "--device", "--threads"),
    "curate": ("--size", "--hash-bits", "--self-threshold", "--reference-threshold", "--neighbours", "--per-image",
               "--clusters", "--per-cluster", "--max-total", "--seed", "--max_megapixels", "--mode", "--device"),
}  # fmt: skip


def test_flags_of_the_others(place, tmp_path, request):
    cases = [(name, flag, value) for name, flags in OTHER_FLAGS.items() for flag in flags for value in hostile.VALUES]
    found = {}
    for name, flag, value in some(cases, request, 20):
        word = f"{flag}={value}"
        main, words = programs(place, tmp_path / "out")[name]
        found[f"{name} {word}"] = flaws(main, [*words, word])
    for value in some(hostile.VALUES, request, 3):
        found[f"bench {value}"] = flaws(bench.main, ["--part", "losses", f"--steps={value}", f"--batch={value}"])
        words = [place / "vit.pt", tmp_path / "x.pth", "--image_size", value, value]
        found[f"weights {value}"] = flaws(weights_program.main, words)
    hold("flags of the other programs", found)


def test_archives(place, tmp_path, request):
    made = hostile.archives(tmp_path)
    found = {}
    for name, path in some(made.items(), request, 4):
        for program, (main, words) in programs(place, tmp_path / "out", path).items():
            if program != "pca_viz":
                found[f"{program} {name}"] = flaws(main, words)
    hold("archives", found)


def test_an_archive_cut_short_says_so(tmp_path, capsys):
    """At a member's boundary nothing else tells: 12 pictures, and no end mark."""
    from support.files import UserError
    from support.find import find_files

    made = hostile.archives(tmp_path)
    assert len(find_files(made["no_end.tar"])[0]) == 12
    assert "has no end mark, and may be cut short" in capsys.readouterr().err
    for name in ("too_long.tar", "negative.tar", "cut.tar", "comment.zip"):
        with pytest.raises(UserError):
            find_files(made[name])
    names, read, _ = find_files(made["bomb.zip"])
    with pytest.raises(ValueError, match="unpacked over the limit of 1024 MiB"):
        read(names[0])


def test_files_that_are_none(place, tmp_path, request):
    """Alone they are one line; among good ones they are named, and the good ones are used."""
    (tmp_path / "odd").mkdir()
    made = hostile.no_files(tmp_path / "odd") | hostile.pictures(tmp_path / "odd")
    found = {}
    for name, path in some(made.items(), request, 4):
        for program, (main, words) in programs(place, tmp_path / "out", path).items():
            found[f"{program} {name}"] = flaws(main, words, (2,))
        for flag, main in (("--weights", evaluate.main), ("--init", train.main), ("--teacher", train.main)):
            words = programs(place, tmp_path / "out")["evaluate" if main is evaluate.main else "train"][1]
            found[f"{flag} {name}"] = flaws(main, [*words, flag, path], (2,))
    for program, (main, words) in programs(place, tmp_path / "out", tmp_path / "odd").items():
        found[f"{program} of all"] = flaws(main, words, (2,))
    hostile.good_set(tmp_path / "odd")
    (tmp_path / "list.txt").write_text("".join(f"{path}\n" for path in (tmp_path / "odd").rglob("*.*")))
    for data in (tmp_path / "odd", tmp_path / "list.txt"):
        for program, (main, words) in programs(place, tmp_path / "out", data).items():
            expected = (2,) if data.suffix and program == "pca_viz" or program == "evaluate" else (0,)  # no labels
            found[f"{program} of {data.name} with good ones"] = flaws(main, words, expected)
    hold("files that are none, or no pictures", found)


def test_weights(place, tmp_path, request, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = hostile.weights(tmp_path)
    assert flaws(*programs(place, tmp_path / "out", weights=made.pop("whole"))["evaluate"]) == []
    found = {}
    for name, path in some(made.items(), request, 10):
        if name == "in itself":
            continue
        for program, (main, words) in programs(place, tmp_path / "out", weights=path).items():
            if program != "train":
                found[f"{program} {name}"] = flaws(main, words, (2,))
        for flag in ("--init", "--teacher"):
            words = programs(place, tmp_path / "out")["train"][1]
            found[f"{flag} {name}"] = flaws(train.main, [*words, flag, path], (2,))
        found[f"weights {name}"] = flaws(weights_program.main, [path, tmp_path / "new.safetensors"], (2,))
        assert not (tmp_path / "executed").exists() and not (tmp_path / "new.safetensors").exists()
    hold("weights", found)


def test_checkpoints(place, tmp_path, request):
    """None is gone on from; as teachers those may serve whose weights are whole."""
    found = {}
    made = hostile.checkpoints(tmp_path, place / "run" / "checkpoint.pt")
    for name, path in some(made.items(), request, 5):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(place / "run", tmp_path / "run")
        shutil.copy(path, tmp_path / "run" / "checkpoint.pt")
        found[f"--resume {name}"] = flaws(train.main, ["--out", tmp_path / "run", "--resume", "--device", "cpu"], (2,))
        assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == path.read_bytes()  # and is left as it is
        words = programs(place, tmp_path / "out")["train"][1]
        found[f"--teacher {name}"] = flaws(train.main, [*words, "--teacher", path], (0, 2))
    hold("checkpoints", found)


def test_the_count(request):
    """At least a thousand cases with --long; the table of the README."""
    if not request.config.getoption("--long"):
        pytest.skip("with --long")
    print("\n", *(f"{n:6} {group}\n" for group, n in counted.items()), f"{sum(counted.values()):6} in all")
    assert sum(counted.values()) >= 1000
