"""For training or held out, and of which class: by folders, by lists, and what is refused.

    pytest tests/test_splits.py
"""

import pytest
from conftest import one_line, save

from support.files import UserError
from support.find import by_folder
from support.images import load_images
from support.splits import choose_splits

pytestmark = pytest.mark.usefixtures("cache")


def split_of(names, given=None):
    """[(name, class)] of train, the same of test, and the class names."""
    names = sorted(names, key=by_folder)
    splits, classes, notes = choose_splits(names, given or {})
    assert notes == []
    return splits["train"], splits["test"], classes


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


@pytest.mark.parametrize("train, held_out", [("Train", "TEST"), ("train", "valid"), ("training", "Validation")])
def test_usual_names_of_splits_in_any_case(train, held_out):
    names = [f"{split}/{kind}/{i}.png" for split in (train, held_out) for kind in "ab" for i in range(3)]
    first, second, classes = split_of(names)
    assert classes == ["a", "b"] and {name.split("/")[0] for name, _ in first} == {train}
    assert {name.split("/")[0] for name, _ in second} == {held_out} and len(first) == len(second) == 6


def test_of_two_held_out_splits_the_first_with_classes():
    """ImageNet's own layout: test/ without classes; the pictures in it are said to be left out."""
    names = ["test/1.png", "test/2.png", "train/a/1.png", "train/b/1.png", "val/a/1.png", "val/b/1.png"]
    splits, classes, notes = choose_splits(names, {})
    assert [name for name, _ in splits["test"]] == ["val/a/1.png", "val/b/1.png"] and classes == ["a", "b"]
    assert notes == ["2 images are in neither split, as those in test"]


@pytest.mark.parametrize("tops", [("train", "cats"), ("val", "test"), ("Valid", "dogs"), ("cats", "training")])
def test_folders_that_may_be_splits_or_classes_are_refused(tmp_path, tops):
    for top in tops:
        save(tmp_path / "d" / top / "a" / "1.png")
    with pytest.raises(UserError, match="splits or classes") as error:
        load_images(tmp_path / "d", size=4)
    assert ", ".join(sorted(top.lower() for top in tops)) in one_line(error)


def test_a_split_and_a_class_from_a_list():
    given = {"x/1.png": ("train", "a"), "x/2.png": ("Train", "b"), "y/3.png": ("val", "a"), "y/4.png": (None, "b")}
    train, test, classes = split_of(sorted(given), given)
    assert classes == ["a", "b"] and test == [("y/3.png", "a")]
    assert train == [("x/1.png", "a"), ("x/2.png", "b"), ("y/4.png", "b")]  # what has no split is for training


def test_a_class_alone_from_a_list_and_the_split_from_folders():
    given = {f"{split}/{i}.png": (None, "ab"[i]) for split in ("train", "val") for i in (0, 1)}
    train, test, classes = split_of(sorted(given), given)
    assert train == [("train/0.png", "a"), ("train/1.png", "b")] and test == [("val/0.png", "a"), ("val/1.png", "b")]


def test_a_split_alone_from_a_list_and_the_class_from_folders():
    given = {f"{kind}/{i}.png": (("train", "test")[i], None) for kind in "ab" for i in (0, 1)}
    train, test, classes = split_of(sorted(given), given)
    assert train == [("a/0.png", "a"), ("b/0.png", "b")] and test == [("a/1.png", "a"), ("b/1.png", "b")]


def test_splits_below_classes_are_refused(tmp_path):
    for name in ("cats/train/1.png", "cats/test/1.png", "dogs/train/1.png", "dogs/test/1.png"):
        save(tmp_path / "set" / name)
    with pytest.raises(UserError, match="its classes hold the splits"):
        load_images(tmp_path / "set", size=4)
