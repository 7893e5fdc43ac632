"""Frozen features: the k-NN vote by hand, and the program.

    pytest tests/test_evaluate.py
"""

import math

import numpy as np
import pytest
import torch
from conftest import MeanColour, split_of
from torch import nn

import evaluate
import linear_probe
from augment import normalize
from evaluate import (
    frozen_features,
    knn_accuracies,
    knn_accuracy,
    linear_accuracy,
    main,
    measure_knn,
    pixel_features,
)
from support import shapes
from support.images import Images
from vit import vit_pico


def at(*degrees):
    """Unit vectors in the plane at these angles: their cosines with the x axis are known."""
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)  # (n, 2)


# --------------------------------------------------------------------------------------------------------
# k-NN


def test_knn_near_neighbour_outvotes_the_majority():
    """The test image is at 0°, with cosines 1, 1/2, 1/2 to the training images at 0°, 60°, −60°.

    At τ = 1 class 1 has e^½ + e^½ = 2·1.649 = 3.297 votes and class 0 has e¹ = 2.718: the majority wins.
    At τ = 1/2 class 1 has e¹ + e¹ = 5.437 and class 0 has e² = 7.389: the near one wins.
    """
    train, labels, test = at(0.0, 60.0, -60.0), torch.tensor([0, 1, 1]), at(0.0)
    assert 2 * math.exp(1 / 2) > math.exp(1) and 2 * math.exp((1 / 2) / (1 / 2)) < math.exp(1 / (1 / 2))
    assert knn_accuracy(train, labels, test, torch.tensor([1]), k=3, temp=1.0) == 1.0
    assert knn_accuracy(train, labels, test, torch.tensor([0]), k=3, temp=1.0) == 0.0
    assert knn_accuracy(train, labels, test, torch.tensor([0]), k=3, temp=0.5) == 1.0


def test_knn_vote_flips_where_the_arithmetic_says():
    """e^(1/τ) = 2 e^(1/(2τ)) at τ = 1 / (2 ln 2) = 0.7213: below it the near one wins, above it the two."""
    train, labels, test, near = at(0.0, 60.0, -60.0), torch.tensor([0, 1, 1]), at(0.0), torch.tensor([0])
    flip = 1 / (2 * math.log(2))
    assert knn_accuracy(train, labels, test, near, k=3, temp=0.999 * flip) == 1.0
    assert knn_accuracy(train, labels, test, near, k=3, temp=1.001 * flip) == 0.0


def test_knn_counts_k_neighbours_by_cosine():
    """Cosines cos 10° (class 0), cos 20°, cos 30° (class 1): k = 1 says 0, k = 3 at a high τ says 1.

    The lengths 1, 100, 1 do not matter: by dot product the second would come first.
    """
    train = at(10.0, 20.0, 30.0) * torch.tensor([1.0, 100.0, 1.0])[:, None]
    sets = train, torch.tensor([0, 1, 1]), at(0.0), torch.tensor([0])
    assert knn_accuracies(*sets, ks=(1, 3), temp=10.0) == [1.0, 0.0]


def random_sets(n=60, m=25, d=4, n_classes=5):
    generator = torch.Generator().manual_seed(1)
    y, test_y = (torch.randint(n_classes, (rows,), generator=generator) for rows in (n, m))
    centre = torch.randn(n_classes, d, generator=generator)
    x, test_x = (centre[labels] + torch.randn(len(labels), d, generator=generator) for labels in (y, test_y))
    return x, y, test_x, test_y


@pytest.mark.parametrize("k", [1, 7, 20])
@pytest.mark.parametrize("temp", [0.07, 0.5])
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


def test_knn_clamps_k_and_keeps_its_inputs():
    sets = random_sets()
    copies = [x.clone() for x in sets]
    assert knn_accuracy(*sets, k=1000) == knn_accuracy(*sets, k=60)
    assert all(torch.equal(x, copy) for x, copy in zip(sets, copies, strict=True))


def test_knn_in_chunks(monkeypatch):
    sets = random_sets()
    whole = knn_accuracies(*sets, ks=(1, 7))
    monkeypatch.setattr(evaluate, "SIMILARITIES", 60 * 3)  # 3 rows at a time: 25 = 8·3 + 1
    assert knn_accuracies(*sets, ks=(1, 7)) == whole


def test_knn_of_half_precision_is_computed_in_float32():
    x, y, test_x, test_y = random_sets()
    for dtype in (torch.bfloat16, torch.float16):
        half, test_half = x.to(dtype), test_x.to(dtype)
        expected = knn_accuracy(half.float(), y, test_half.float(), test_y)
        assert knn_accuracy(half, y, test_half, test_y) == expected


def test_knn_ties_go_to_the_lower_class():
    """Two training images at one place: classes 1 and 0 have a vote each."""
    sets = at(0.0, 0.0), torch.tensor([1, 0]), at(0.0, 30.0), torch.tensor([0, 0])
    assert knn_accuracy(*sets, k=2) == 1.0


def test_knn_does_not_overflow():
    """At τ = 0.001 the near one, class 1, has e^1000 votes and the far one e^866: both are inf."""
    sets = at(0.0, 30.0), torch.tensor([1, 0]), at(0.0), torch.tensor([1])
    assert knn_accuracy(*sets, k=2, temp=0.001) == 1.0


@pytest.mark.parametrize("accuracy", [knn_accuracy, linear_accuracy])
def test_a_diverged_network_is_named(accuracy):
    x, y, test_x, test_y = random_sets()
    x[3, 1] = float("nan")
    with pytest.raises(ValueError, match="train features hold NaN"):
        accuracy(x, y, test_x, test_y)
    with pytest.raises(ValueError, match=r"test: need features .* got \(25, 4\) and \(24,\)"):
        accuracy(x.nan_to_num(), y, test_x, test_y[:-1])


def test_knn_by_hand():
    """Red and blue pictures are nearest to their own; the third test picture is red with the label of blue: 2 of 3."""
    train = split_of([(250, 0, 0), (240, 0, 0), (0, 0, 250), (0, 0, 240)], [0, 0, 1, 1])
    test = split_of([(245, 0, 0), (0, 0, 245), (245, 0, 0)], [0, 1, 1])
    found = measure_knn(MeanColour(), train, test, 8)
    assert found == {"knn_4": pytest.approx(2 / 3)}  # there are no 20 training images


def test_knn_of_a_share_of_the_training_images():
    """Only one training image is drawn, so all get its label: of two test images with labels 0 and 1, one is right."""
    train = split_of([(250, 0, 0), (0, 0, 250)], [0, 1])
    test = split_of([(245, 0, 0), (0, 0, 245)], [0, 1])
    assert measure_knn(MeanColour(), train, test, 8, n_train=1) == {"knn_1": 0.5}


def test_no_labels_no_knn():
    assert measure_knn(MeanColour(), split_of([(1, 2, 3)]), split_of([(1, 2, 3)]), 8) == {}


# --------------------------------------------------------------------------------------------------------
# Features


class Mean(nn.Module):
    """A stand-in ViT whose [CLS] token is the mean normalised colour and the side of the image."""

    patch_size = 4

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.drop = nn.Dropout(0.5)
        self.batches = []

    def forward_features(self, x):
        assert not self.training and not torch.is_grad_enabled()
        self.batches.append(len(x))
        side = x.new_full((len(x), 1), x.shape[-1])
        return {"x_norm_clstoken": torch.cat([self.drop(self.weight * x.mean((2, 3))), side], 1)}


def plain_images(n, side):
    """Each image has one colour, a multiple of 3, which no resize changes."""
    colour = 3 * torch.arange(3 * n, dtype=torch.uint8).view(n, 3, 1, 1)
    return colour.expand(n, 3, side, side).clone()


@pytest.mark.parametrize("size, side", [(16, 16), (8, 8), (9, 8), (11, 12), (1, 4)])
def test_features_are_those_of_resized_and_normalised_images(size, side):
    pixels = plain_images(5, 16)
    features = frozen_features(Mean(), pixels, size, batch=2)
    assert features.shape == (5, 4) and features.dtype == torch.float32 and features.device.type == "cpu"
    assert (features[:, 3] == side).all()
    torch.testing.assert_close(features[:, :3], normalize(pixels).mean((2, 3)), rtol=0, atol=1e-4)


def test_features_of_any_name():
    class Patches(Mean):
        def forward_features(self, x):
            return {"x_norm_patchtokens": x.flatten(2).transpose(1, 2)}  # every pixel a patch

    pixels = plain_images(3, 4)
    features = frozen_features(Patches(), pixels, 4, "x_norm_patchtokens", batch=2)
    assert torch.equal(features, normalize(pixels).flatten(2).transpose(1, 2))  # (3, 16, 3)


def test_a_resized_image_stays_within_black_and_white():
    """Bicubic overshoots beside an edge between 0 and 255; the network must not see that."""
    class Extremes(Mean):
        def forward_features(self, x):
            return {"x_norm_clstoken": torch.stack([x.amin((1, 2, 3)), x.amax((1, 2, 3))], 1)}

    edge = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    edge[..., 4:] = 255
    low, high = frozen_features(Extremes(), edge, 16)[0]
    assert low == normalize(edge).min() and high == normalize(edge).max()


@pytest.mark.parametrize("training", [True, False])
def test_features_in_batches_and_the_mode_comes_back(training):
    vit = Mean().train(training)
    pixels = plain_images(5, 4)
    features = frozen_features(vit, pixels, 4, batch=2)
    assert vit.batches == [2, 2, 1] and torch.equal(features, frozen_features(Mean(), pixels, 4))
    assert vit.training == vit.drop.training == training
    vit.forward_features = None  # an error inside must not leave the mode changed
    with pytest.raises(TypeError):
        frozen_features(vit, pixels, 4)
    assert vit.training == vit.drop.training == training


def test_features_of_a_split_are_those_of_its_pixels():
    pixels = plain_images(5, 4)
    images = Images("five", pixels, torch.zeros(5, dtype=torch.int64), ["one"])
    assert torch.equal(frozen_features(Mean(), images, 4, batch=2), frozen_features(Mean(), pixels, 4))


def test_skipped_files_of_a_streamed_set_do_not_count():
    images = Images("heap", None, torch.zeros(3), ["one"], skipped=[("b.jpg", "damaged")],
                    names=["a.jpg", "b.jpg", "c.jpg"], files=range(3))  # fmt: skip
    assert images.readable().tolist() == [True, False, True]
    images = Images("drawn", torch.zeros(2, 3, 4, 4), torch.zeros(2), ["one"])
    assert images.readable().tolist() == [True, True]


def test_pixels_lose_the_mean_training_image():
    """Train 0 and 102: the mean is 51 = 0.2·255, which leaves −0.2 and 0.2; the test image 153 leaves 0.4."""
    train = torch.tensor([0, 102], dtype=torch.uint8)[:, None, None, None].expand(2, 3, 2, 2)
    test = torch.full((1, 3, 2, 2), 153, dtype=torch.uint8)
    x, test_x = pixel_features(train, test)
    torch.testing.assert_close(x, torch.tensor([-0.2, 0.2])[:, None].expand(2, 12))
    torch.testing.assert_close(test_x, torch.full((1, 12), 0.6 - 0.2))


# --------------------------------------------------------------------------------------------------------
# Command line


@pytest.fixture
def few_shapes(monkeypatch):
    """The built-in set, cut to 200 + 100 images, and a tenth of the steps."""
    monkeypatch.setattr(linear_probe, "STEPS", 200)

    def load(data, split, size, **_):
        assert data == "shapes"
        n = 200 if split == "train" else 100
        pixels = torch.randint(256, (n, 3, size, size), dtype=torch.uint8)
        return Images(data, pixels, torch.arange(n) % 10, [str(i) for i in range(10)])

    monkeypatch.setattr(evaluate, "load_images", load)


@pytest.mark.parametrize("weights, width, size", [("pixels", 3 * 32 * 32, 32), ("random", 192, 16)])
def test_the_table_ends_in_one_line_with_the_result(few_shapes, capsys, weights, width, size):
    asked = {"pixels": 64, "random": 16}[weights]  # raw pixels are never more than 32×32
    assert main(["--weights", weights, "--data", "shapes", "--size", str(asked), "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{weights}: {width} features from {size}×{size} pixels, on cpu, ")
    assert " thread" in lines[0]
    assert "200 training and 100 test images, 10 classes" in lines[1]
    names = [line[:13].strip() for line in lines[4:9]]
    assert names == ["features", "k-NN, k = 20", "k-NN, k = 200", "linear probe", "logistic"]
    assert ("(pixels, rate " if weights == "pixels" else "([CLS] of ") in lines[-1] and "% (λ = " in lines[-1]
    assert lines[-1].startswith(f"result: {weights} on shapes: k-NN ") and lines[-1].endswith("chance 10.00%")


def test_other_numbers_of_neighbours(few_shapes, capsys):
    """1000 is more than the 200 training images."""
    assert main("--weights pixels --data shapes --k 3 1000 50 3 --device cpu".split()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:13].strip() for line in lines[4:8]] == ["features", "k-NN, k = 3", "k-NN, k = 50", "linear probe"]
    assert "(k = 3), " in lines[-1] and "(k = 50), linear" in lines[-1]


def test_linear_classifiers_by_name(monkeypatch, capsys):
    """Drawn pictures, whose parts are known; --linear alone is the default."""
    monkeypatch.setattr(linear_probe, "STEPS", 20)
    monkeypatch.setitem(shapes.N_IMAGES, "train", 60)
    monkeypatch.setitem(shapes.N_IMAGES, "test", 20)
    common = "--weights random --arch vit_pico --data shapes --size 16 --device cpu --k 5".split()
    for flags, names in ((["--linear"], ["linear probe", "logistic", "mIoU of parts"]),
                         (["--linear", "cls", "parts", "cls"], ["linear of [CLS]", "mIoU of parts"])):
        assert main([*common, *flags]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line[:16].strip() for line in lines[6:-2]] == names
        assert 0 < float(lines[-3].split()[3]) < 1 and f"mIoU of parts {lines[-3].split()[3]} (rate " in lines[-1]


def test_k_nn_of_the_sweeps_features_is_that_of_cls(few_shapes, monkeypatch, capsys):
    """[CLS] among B.3's features is the one that forward_features gives: the same k-NN, to the digit."""
    monkeypatch.setattr(linear_probe, "STEPS", 2)
    found = []
    for kind in ("grid", "cls"):
        torch.manual_seed(1)  # of the pictures
        assert main(f"--weights random --data shapes --size 16 --device cpu --linear {kind}".split()) == 0
        found.append(capsys.readouterr().out.splitlines()[-1].split(", linear")[0])
    assert found[0] == found[1]


def test_features_for_numpy(tmp_path, labelled, capsys):
    """Of raw pixels, less their mean; the broken picture has no row.  Without classes there is nothing to measure."""
    (labelled / "train/a/1.png").write_text("broken")
    flags = f"--weights pixels --size 2 --device cpu --save {tmp_path}/features.npz --data".split()
    assert main([*flags, str(labelled)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"{tmp_path}/features.npz")
    saved = np.load(tmp_path / "features.npz")
    assert saved["train_features"].shape == (5, 12) and saved["test_features"].shape == (6, 12)
    assert abs(saved["train_features"].mean(0)).max() < 1e-6
    assert saved["train_names"].tolist() == [f"train/{x}.png" for x in ("a/0", "a/2", "b/0", "b/1", "b/2")]
    assert saved["train_labels"].tolist() == [0, 0, 1, 1, 1] and saved["classes"].tolist() == ["a", "b"]
    assert main([*flags, str(labelled / "test" / "a")]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == f"result: features of 3 training and 1 test images, {tmp_path}/features.npz"
    saved = np.load(tmp_path / "features.npz")
    assert saved["train_names"].tolist() == ["0.png", "1.png", "2.png"] and "train_labels" not in saved


def test_features_of_a_set_without_a_test_split(tmp_path, labelled):
    """One image of each class: none is held out, and none needs to be."""
    for path in labelled.rglob("[12].png"):
        path.unlink()
    torch.save(vit_pico(patch_size=4, img_size=8).state_dict(), tmp_path / "vit.pt")
    words = ["--weights", tmp_path / "vit.pt", "--data", labelled / "train"]
    assert main([*map(str, words), "--save", f"{tmp_path}/x.npz", "--device", "cpu"]) == 0
    saved = np.load(tmp_path / "x.npz")
    assert saved["train_features"].shape == (2, 96) and "test_features" not in saved
    assert main(list(map(str, words))) == 2


@pytest.mark.parametrize("argv, words", [
    ("--weights pixels", "required: --data"),
    ("--weights pixels --data shapes --k 0", "'0' is not a whole number"),
    ("--weights pixels --data shapes --scale 3 2", "--scale: LOW must be below HIGH; got 3.0 2.0"),
    ("--weights pixels --data shapes --save nowhere/a.npz", "there is no folder nowhere for --save"),
    ("--data shapes", "required: --weights"),
    ("--weights pixels --data shapes --linear depth", "invalid choice: 'depth'"),
    ("--weights pixels --data shapes --linear parts", "--linear parts wants a network, and --data shapes"),
    ("--weights pixels --data shapes --colour 3", "unknown argument --colour"),
    ("--weights pixels --data shapes --size 0", "'0' is not a whole number from 1"),
    ("--weights pixels --data shapes --device warp", "there is no device warp here"),
    ("--weights random --data shapes --arch vit_huge", "vit_huge"),
    ("--weights nowhere.pt --data shapes", "nowhere.pt"),
    ("--weights random --data nowhere", "nowhere"),
])  # fmt: skip
def test_a_wrong_flag_is_one_line_and_status_2(capsys, argv, words):
    assert main(argv.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("evaluate.py: error: ") and words in captured.err
    assert captured.err.count("\n") == 1 and captured.err.endswith("\n")


def test_images_without_labels_are_one_line_and_status_2(capsys, monkeypatch):
    images = Images("heap", plain_images(4, 32), None, [])
    monkeypatch.setattr(evaluate, "load_images", lambda data, split, size, **_: images)
    assert main(["--weights", "pixels", "--data", "heap"]) == 2
    assert capsys.readouterr().err.startswith("evaluate.py: error: heap has no labels")
    images.pixels, images.labels, images.files = None, torch.zeros(4, dtype=torch.int64), range(4)
    assert main(["--weights", "pixels", "--data", "heap"]) == 2
    assert "heap is too large for --weights pixels" in capsys.readouterr().err
