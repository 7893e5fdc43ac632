"""The k-NN vote by hand, frozen features, and the program.  `pytest tests/test_evaluate.py`"""

import math
import shutil

import numpy as np
import pytest
import torch
from conftest import MeanColour, at, save, split_of

import evaluate
import linear_probe
from augment import normalize
from evaluate import frozen_features, knn_accuracies, knn_accuracy, main, measure_knn
from linear_probe import linear_accuracy
from support import images as image_module
from support import shapes
from support.images import Images, load_splits
from vit import vit_pico


def test_knn_near_neighbour_outvotes_the_majority():
    """The test image is at 0°, with cosines 1, 1/2, 1/2 to the training images at 0°, 60°, −60°.

    At τ = 1 class 1 has e^½ + e^½ = 2·1.649 = 3.297 votes and class 0 has e¹ = 2.718: the majority wins.
    At τ = 1/2 class 1 has e¹ + e¹ = 5.437 and class 0 has e² = 7.389: the near one wins.  At τ = 0.001 they have
    e^1000 and 2·e^500, both inf in float32, and the near one wins; its class is then 1, as class 0 would win a tie.
    """
    train, labels, test = at(0.0, 60.0, -60.0), torch.tensor([0, 1, 1]), at(0.0)
    assert knn_accuracy(train, labels, test, torch.tensor([1]), k=3, temp=1.0) == 1.0
    assert knn_accuracy(train, labels, test, torch.tensor([0]), k=3, temp=0.5) == 1.0
    assert knn_accuracy(train, 1 - labels, test, torch.tensor([1]), k=3, temp=0.001) == 1.0


def random_sets(n=60, m=25, d=4, n_classes=5):
    generator = torch.Generator().manual_seed(1)
    y, test_y = (torch.randint(n_classes, (rows,), generator=generator) for rows in (n, m))
    centre = torch.randn(n_classes, d, generator=generator)
    x, test_x = (centre[labels] + torch.randn(len(labels), d, generator=generator) for labels in (y, test_y))
    return x, y, test_x, test_y


@pytest.mark.parametrize("k, temp", [(1, 0.07), (7, 0.5), (20, 0.07)])
def test_knn_is_the_double_loop(k, temp):
    x, y, test_x, test_y = random_sets()
    correct = 0
    for query, truth in zip(test_x.double(), test_y, strict=True):
        cosines = [(query @ row / (query.norm() * row.norm())).item() for row in x.double()]
        votes = [0.0] * 5
        for i in sorted(range(len(x)), key=lambda i: -cosines[i])[:k]:
            votes[y[i]] += math.exp(cosines[i] / temp)
        correct += votes.index(max(votes)) == truth
    assert knn_accuracy(x, y, test_x, test_y, k, temp) == correct / len(test_x)
    assert 0.3 < correct / len(test_x) < 1  # or the comparison says little


def test_knn_in_chunks_and_with_too_large_a_k(monkeypatch):
    sets = random_sets()
    whole = knn_accuracies(*sets, ks=(7, 60))
    monkeypatch.setattr(evaluate, "SIMILARITIES", 60 * 3)  # 3 rows at a time: 25 = 8·3 + 1
    assert knn_accuracies(*sets, ks=(7, 60, 1000)) == whole and knn_accuracies(*sets, ks=(1000,)) == {60: whole[60]}
    x, y, test_x, test_y = (f.bfloat16() if f.is_floating_point() else f for f in sets)  # computed in float32
    assert knn_accuracy(x, y, test_x, test_y) == knn_accuracy(x.float(), y, test_x.float(), test_y)


@pytest.mark.parametrize("accuracy", [knn_accuracy, linear_accuracy])
def test_wrong_features_are_named(accuracy):
    x, y, test_x, test_y = random_sets()
    x[3, 1] = float("nan")
    with pytest.raises(ValueError, match="train features are not finite"):
        accuracy(x, y, test_x, test_y)
    with pytest.raises(ValueError, match=r"test: need features .* got \(25, 4\) and \(24,\)"):
        accuracy(x.nan_to_num(), y, test_x, test_y[:-1])


def test_knn_of_images_by_hand():
    """Red and blue images are nearest to their own; the third test image is red with the label of blue: 2 of 3.

    There are 4 training images, so k is 4.  If only one training image is drawn, all get its label: 1 or 2 of 3.
    """
    train = split_of([(250, 0, 0), (240, 0, 0), (0, 0, 250), (0, 0, 240)], [0, 0, 1, 1])
    test = split_of([(245, 0, 0), (0, 0, 245), (245, 0, 0)], [0, 1, 1])
    assert measure_knn(MeanColour(), train, test, 8) == {"knn_4": pytest.approx(2 / 3)}
    assert measure_knn(MeanColour(), train, test, 8, n_train=1)["knn_1"] in (1 / 3, 2 / 3)
    test.labels[2] = 2  # a class without training images: both others are right
    assert measure_knn(MeanColour(), train, test, 8) == {"knn_4": 1}
    for labels in (torch.tensor([2, 2, 2]), None):
        test.labels = labels
        assert measure_knn(MeanColour(), train, test, 8) == {}
    train.labels, test.labels = torch.ones(4, dtype=torch.int64), torch.ones(3, dtype=torch.int64)  # one class
    assert measure_knn(MeanColour(), train, test, 8) == {}


@pytest.mark.parametrize("size, side", [(16, 16), (9, 8), (11, 12), (1, 4)])
def test_features_are_those_of_resized_and_normalized_images(size, side):
    """Each image has one colour, which no resize changes; the size is rounded to whole patches of 4."""
    pixels = 3 * torch.arange(15, dtype=torch.uint8).view(5, 3, 1, 1).expand(5, 3, 16, 16)
    split = Images(pixels, torch.zeros(5, dtype=torch.int64), ["one"])
    for images in (pixels, split):
        features = frozen_features(MeanColour(), images, size, "x_norm_patchtokens", batch=2)
        assert features.shape == (5, (side // 4) ** 2, 3) and features.dtype == torch.float32
        torch.testing.assert_close(features.mean(1), normalize(pixels).mean((2, 3)), rtol=0, atol=1e-4)


def test_a_resized_image_stays_within_black_and_white():
    """Bicubic interpolation overshoots beside an edge between 0 and 255; the network must not see that."""
    edge = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    edge[..., 4:] = 255
    features = frozen_features(MeanColour(), edge, 32, lambda vit, x: torch.stack([x.amin(), x.amax()])[None])
    assert features.tolist() == [[normalize(edge).min(), normalize(edge).max()]]


def test_the_network_is_in_eval_mode():
    """In training mode half of the residual branches would be dropped at random."""
    network = vit_pico(patch_size=4, img_size=8, layer_scale=1.0, drop_path=0.5).train()
    pixels = torch.randint(256, (8, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(frozen_features(network, pixels, 8), frozen_features(network, pixels, 8, batch=8))


@pytest.fixture
def few_shapes(monkeypatch):
    """The built-in dataset, cut to 60 + 20 images, and a hundredth of the steps."""
    monkeypatch.setattr(linear_probe, "STEPS", 20)
    monkeypatch.setitem(shapes.N_IMAGES, "train", 60)
    monkeypatch.setitem(shapes.N_IMAGES, "test", 20)
    yield
    image_module.load_splits.cache_clear()


def scores(capsys, flags):
    """The line about the features, and the rows of the table: [name, score, chosen] each."""
    image_module.load_splits.cache_clear()
    assert main(f"{flags} --data shapes --device cpu".split()) == 0
    data, features, *lines = capsys.readouterr().out.splitlines()
    assert data.startswith("shapes: 60 training and 20 test images, 10 classes")
    chance, *rows = [[line[:16].strip(), line[16:24].strip(), line[26:]] for line in lines]
    assert chance == ["chance", "10.00%", ""]
    return features, rows


def test_the_table_of_a_network(few_shapes, tmp_path, capsys, monkeypatch):
    """Without the grid of linear probes the other numbers are the same; segmentation takes as many images as fit.
    There are not 1000 training images to vote."""
    torch.manual_seed(0)
    torch.save(vit_pico(patch_size=4, img_size=16, layer_scale=0.1).state_dict(), tmp_path / "vit.pt")
    flags = f"--weights {tmp_path}/vit.pt --k 5 1000 --linear"
    first, rows = scores(capsys, flags)
    assert first.startswith(f"{tmp_path}/vit.pt: 96 features from 16×16 pixels, on cpu, ") and " thread" in first
    assert [row[0] for row in rows] == ["k-NN (k = 5)", "linear probe", "logistic", "mIoU of parts",
                                     "mAP of things"]  # fmt: skip
    assert rows[1][2].startswith("[CLS] of ") and 0 < float(rows[3][1]) < 1 and 0.01 < float(rows[4][1]) < 1
    assert scores(capsys, f"{flags} logistic parts")[1] == [rows[0], *rows[2:]]
    monkeypatch.setattr(evaluate, "TOKENS", 96 * 16 * 12)  # of 12 images
    assert scores(capsys, f"{flags} parts")[1][1] != rows[3]


@pytest.mark.parametrize("streamed", [False, True])
def test_features_are_saved_for_numpy(tmp_path, labelled, capsys, monkeypatch, streamed):
    """They are those of the centre square, in any split and set.  A broken image has no row.  Without --k and --linear
    nothing is measured, and no labels are needed."""
    monkeypatch.setattr(image_module, "MEMORY_LIMIT", 0 if streamed else 2**20)
    network = vit_pico(patch_size=4, img_size=4).eval()
    torch.save(network.state_dict(), tmp_path / "vit.pt")
    (labelled / "train/a/1.png").write_text("broken")
    flags = f"--weights {tmp_path}/vit.pt --device cpu --save {tmp_path}/features.npz --data".split()
    assert main([*flags, str(labelled)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"features of 5 training and 6 test images saved: {tmp_path}/features.npz"
    saved = np.load(tmp_path / "features.npz")
    squares = 10 * torch.arange(12, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 3, 4, 4)
    squares[..., 2:] = 255
    x = frozen_features(network, squares, 4).numpy()
    assert np.allclose(saved["train_features"], x[[0, 2, 3, 4, 5]], atol=1e-5)
    assert np.allclose(saved["test_features"], x[6:], atol=1e-5)
    assert saved["train_names"].tolist() == [f"train/{x}.png" for x in ("a/0", "a/2", "b/0", "b/1", "b/2")]
    assert saved["train_labels"].tolist() == [0, 0, 1, 1, 1] and saved["classes"].tolist() == ["a", "b"]
    assert main([*flags, str(labelled / "test/a")]) == 0
    saved = np.load(tmp_path / "features.npz")
    assert np.allclose(saved["train_features"], x[6:9], atol=1e-5)
    assert np.allclose(saved["test_features"], x[6:7], atol=1e-5)
    assert saved["train_names"].tolist() == ["0.png", "1.png", "2.png"] and "train_labels" not in saved


class Grey(MeanColour):
    """A network whose [CLS] is a point on the circle: the angle grows with the mean of the image."""

    patch_size = img_size = 4

    def forward_features(self, x):
        angle = x.mean((1, 2, 3)) / 2
        return {"x_norm_clstoken": torch.stack([angle.cos(), angle.sin()], dim=1)}


@pytest.fixture
def grey(monkeypatch):
    monkeypatch.setattr(evaluate, "load_vit", lambda *_: Grey())


def test_a_class_without_training_images_is_left_out(labelled, grey, capsys):
    """Of b, where all training images are broken.  If a alone is left, nothing is measured: it could not be wrong."""
    command = f"--weights W --data {labelled} --size 4 --k 1 --linear logistic".split()
    for i in range(3):
        (labelled / f"train/b/{i}.png").write_text("broken")
    assert main(command) == 2 and "two classes need training images" in capsys.readouterr().err
    load_splits.cache_clear()
    shutil.move(labelled / "train/a", labelled / "train/c")
    shutil.copytree(labelled / "test/a", labelled / "train/a")
    assert main(command) == 0
    *_, left_out, chance, knn, logistic = capsys.readouterr().out.splitlines()
    assert left_out == "3 of 6 test images are of classes without training images, and are left out"
    assert [line.split()[n] for line, n in ((chance, 1), (knn, 4), (logistic, 1))] == ["50.00%", "100.00%", "100.00%"]


def test_a_second_test_set(labelled, grey, tmp_path, capsys):
    """All of its images, by the names of their classes, and by the classifiers that the first set chose: light is b."""
    command = f"--weights W --data {labelled} --size 4 --k 1 --linear logistic --other {tmp_path}/other".split()
    for i, (kind, level) in enumerate([("b", 150), ("b", 155), ("a", 0), ("a", 160), ("z", 0)]):
        save(tmp_path / "other" / kind / f"{i}.png", level)
    assert main(command) == 0
    *_, other, left_out, chance, knn, _ = capsys.readouterr().out.splitlines()
    assert other == f"{tmp_path}/other, all of its images:" and left_out.startswith("1 of 5 test images are of classes")
    assert (chance.split()[1], knn.split()[4]) == ("50.00%", "75.00%")
    shutil.rmtree(tmp_path / "other/b")
    shutil.rmtree(tmp_path / "other/a")
    assert main(command) == 2 and "has no class of --data" in capsys.readouterr().err


@pytest.mark.parametrize("argv, words", [
    ("--weights W", "required: --data"),
    ("--weights W --data shapes --k 0", "'0' is not a whole number"),
    ("--weights W --data shapes --labels none", "shapes has classes; leave --labels none out"),
    ("--weights W --data shapes --scale 3 2", "--scale: LOW must be below HIGH; got 3.0 2.0"),
    ("--weights W --data shapes --save nowhere/a.npz", "there is no folder nowhere"),
    ("--weights W --data cifar10 --linear parts", "--linear parts needs --data shapes"),
    ("--weights W --data shapes --other shapes", "--other shapes is --data, which holds the training"),
    ("--weights W --data LABELLED/test/a --save LABELLED/x.npz --k 1", "test/a does not have labels in both"),
])  # fmt: skip
def test_a_wrong_flag_or_dataset_is_one_line_and_status_2(capsys, argv, words, labelled, grey):
    assert main(argv.replace("LABELLED", str(labelled)).split()) == 2
    *_, error = capsys.readouterr().err.splitlines()  # after what is said of the dataset
    assert error.startswith("evaluate.py: error: ") and words in error
