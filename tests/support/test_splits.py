"""Splits and classes, from folders, from lists, and what is refused.  `pytest tests/support/test_splits.py`"""

import re

import pytest
from conftest import one_line

from support.files import UserError
from support.splits import choose_splits


def split_of(names, given=None, labels="auto"):
    """[(name, class)] of train, the same of test, and the class names."""
    splits, classes = choose_splits(sorted(names), given or {}, "set", labels)
    return splits["train"], splits["test"], classes


@pytest.mark.parametrize("train, held_out", [
    ("train", "test"), ("Train", "VAL"), ("training", "Validation"), ("a/b/train", "a/b/testing")])
def test_split_folders(train, held_out):
    first, second, classes = split_of([f"{split}/{kind}/deep/1.png" for split in (train, held_out) for kind in "ab"])
    assert first == [(f"{train}/{kind}/deep/1.png", kind) for kind in "ab"] and classes == ["a", "b"]
    assert second == [(f"{held_out}/{kind}/deep/1.png", kind) for kind in "ab"]


def test_a_class_missing_from_one_split_keeps_the_numbers_equal(capsys):
    _, test, classes = split_of(["train/b/1.png", "train/c/1.png", "test/c/1.png", "test/a/1.png"])
    assert classes == ["b", "c", "a"] and test == [("test/a/1.png", "a"), ("test/c/1.png", "c")]  # a is not in training
    assert capsys.readouterr().err.splitlines() == [
        "set: 3 classes from its folders, the first are b, c, a; if they are no classes, use --labels none",
        "set: 1 classes have no train images, for example a", "set: 1 classes have no test images, for example b"]


def test_every_tenth_image_of_each_class_is_held_out():
    """11 cats: numbers 0 and 10 are test.  3 dogs: number 0.  A lone emu stays in training."""
    names = [f"cat/{i:02}.png" for i in range(11)] + [f"dog/{i}.png" for i in range(3)] + ["emu/0.png"]
    train, test, classes = split_of(names)
    assert [name for name, _ in test] == ["cat/00.png", "cat/10.png", "dog/0.png"]
    assert sorted(train + test) == sorted((n, n[:3]) for n in names) and classes == ["cat", "dog", "emu"]


@pytest.mark.parametrize("folder, more", [("", []), ("photos/", []), ("", ["z/1.png"])])
def test_without_classes_all_images_are_trained_on(folder, more):
    names = [f"{folder}{i:02}.png" for i in range(12)] + more
    assert split_of(names) == ([(name, None) for name in names], [(names[0], None), (names[10], None)], [])
    assert split_of(names, {name: (None, name) for name in names}, labels="none") == split_of(names)
    assert len(split_of([f"{name[-5]}/{name}" for name in names], labels="none")[0]) == len(names)


def test_what_is_left_out_is_reported(capsys):
    """ImageNet's test/ has no classes; the first held-out folder with classes counts."""
    names = ["test/1.png", "test/2.png", "train/a/1.png", "train/b/1.png", "val/a/1.png", "val/b/1.png"]
    splits, classes = choose_splits(names, {}, "set")
    assert [name for name, _ in splits["test"]] == ["val/a/1.png", "val/b/1.png"] and classes == ["a", "b"]
    assert "set: 2 images are in neither split, for example test/1.png\n" in capsys.readouterr().err
    assert choose_splits(["1.png", "2.png"], {"1.png": (None, "a")}, "set")[1] == []
    assert capsys.readouterr().err == "set: no labels, because 1 of 2 images have no class\n"


@pytest.mark.parametrize("given, train, test", [
    ({"x/1.png": ("Train", "a"), "y/2.png": ("val", "a"), "y/3.png": (None, "b")},  # without a split: train
     {"x/1.png": "a", "y/3.png": "b"}, {"y/2.png": "a"}),
    ({f"{split}/{i}.png": (None, "ab"[i]) for split in ("train", "val") for i in (0, 1)},  # splits from folders
     {"train/0.png": "a", "train/1.png": "b"}, {"val/0.png": "a", "val/1.png": "b"}),
    ({f"{kind}/{i}.png": (("train", "test")[i], None) for kind in "ab" for i in (0, 1)},  # classes from folders
     {"a/0.png": "a", "b/0.png": "b"}, {"a/1.png": "a", "b/1.png": "b"}),
    ({f"{kind}/{i}.png": (("Train", "training")[i], None) for kind in "ab" for i in (0, 1)},  # a tenth is test
     {"a/1.png": "a", "b/1.png": "b"}, {"a/0.png": "a", "b/0.png": "b"}),
    ({"cats/1.png": (None, "a"), "train/2.png": (None, "b")}, {"cats/1.png": "a", "train/2.png": "b"}, {}),  # no splits
])  # fmt: skip
def test_splits_and_classes_of_a_list(given, train, test):
    assert split_of(given, given) == (list(train.items()), list(test.items()), ["a", "b"])


@pytest.mark.parametrize("names, column, words", [
    (["train/a/1.png", "cats/a/1.png"], "", "are its folders cats, train splits or classes?"),
    (["val/a/1.png", "test/a/1.png"], "", "are its folders test, val splits or classes?"),
    (["cats/train/1.png", "cats/test/1.png", "dogs/train/1.png"], "", "are its folders cats, dogs splits or classes?"),
    (["1.png", "2.png"], ("train", "dev"), "its splits are dev, train; name one train and one test"),
    (["1.png", "2.png"], ("test", "test"), "its splits are test; name one"),
])  # fmt: skip
def test_what_could_be_splits_or_classes_is_refused(names, column, words):
    with pytest.raises(UserError, match=f"^set: {re.escape(words)}") as error:
        split_of(names, {name: (split, "a") for name, split in zip(names, column)})
    one_line(error)
