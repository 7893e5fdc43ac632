"""Linear classifiers: each equation by hand, and what they must learn.  `pytest tests/test_linear_probe.py`"""

import math

import pytest
import torch
import torch.nn.functional as F

import linear_probe as probe
from linear_probe import b3_features, confusion, fit_logistic, linear_accuracy, logistic_regression, mean_iou
from vit import vit_pico


@pytest.fixture
def short(monkeypatch):
    """A tenth of the steps: enough for a few hundred points."""
    monkeypatch.setattr(probe, "STEPS", 200)


def clouds(n, scale=1.0, seed=2):
    """Three classes at the corners of a triangle of side 5·√2, with deviation 0.3: planes separate them."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (n,), generator=generator)
    return scale * (5 * torch.eye(3)[y] + 0.3 * torch.randn(n, 3, generator=generator) + 7), y


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_both_separate_clouds_of_any_scale(short, scale):
    x, y, test_x, test_y = *clouds(300, scale), *clouds(200, scale, seed=3)
    assert linear_accuracy(x, y, test_x, test_y) == 1.0
    assert logistic_regression(x, y, test_x, test_y) == (1.0, 1.0)  # λ is the largest that separates them
    assert logistic_regression(x, y, test_x, (test_y + 1) % 3) == (0.0, 1.0)  # and does not depend on test labels


def test_probe_survives_constant_columns_and_useless_rates(short, monkeypatch):
    """0.1 is not a float32: by rounding, a column of it has a deviation, which must not be scaled to 1.  A rate of 0
    predicts class 0 everywhere: the other rate must win."""
    monkeypatch.setattr(probe, "RATES", (0.0, 0.1, 0.0))
    (x, y), (test_x, test_y) = clouds(300), clouds(200, seed=3)
    x, test_x = (torch.cat([f, torch.full((len(f), 1), 0.1), torch.zeros(len(f), 1)], 1) for f in (x, test_x))
    test_x[:, 3] += 1e-7  # a rounding error on the other side of the column
    assert linear_accuracy(x, y, test_x, test_y) == 1.0


def test_probe_is_sgd_on_the_mean_cross_entropy(monkeypatch):
    """25 steps of two heads at once are 25 steps of torch.optim.SGD and autograd for each, on the same batches."""
    rates = (0.3, 3.0)
    for name, value in {"STEPS": 25, "BATCH": 8, "RATES": rates}.items():
        monkeypatch.setattr(probe, name, value)
    generator = torch.Generator().manual_seed(8)
    x, y = torch.randn(200, 6, generator=generator), torch.randint(4, (200,), generator=generator)
    (deviation, mean), rows = torch.std_mean(x, dim=0, correction=0), torch.arange(20, 200)
    heads = probe.train_heads(x, y, rows, 4, (mean, deviation), torch.Generator().manual_seed(0))
    for rate, found in zip(rates, heads, strict=True):
        W, b = torch.zeros(6, 4, requires_grad=True), torch.zeros(4, requires_grad=True)
        optimizer = torch.optim.SGD([W, b], momentum=0.9)
        generator = torch.Generator().manual_seed(0)
        for step in range(25):
            batch = rows[torch.randint(180, (8,), generator=generator)]
            optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * step / 24)) / 2
            optimizer.zero_grad()
            F.cross_entropy((x[batch] - mean) / deviation @ W + b, y[batch]).backward()
            optimizer.step()
        torch.testing.assert_close(found, torch.cat([W, b[None]]), rtol=1e-4, atol=1e-4)


def test_probe_of_two_images_and_of_one(short):
    x, y = torch.eye(2), torch.tensor([0, 1])
    assert linear_accuracy(x, y, x, y) in (0.0, 0.5, 1.0)  # one to train on, one held out: no crash is all
    assert [len(part) for part in probe.hold_out_tenth(29)[:2]] == [2, 27]
    with pytest.raises(ValueError, match="need 2 training images"):
        linear_accuracy(x[:1], y[:1], x, y)


def test_the_feature_is_chosen_on_training_images(short):
    """One feature is noise, the other gives the class: the latter is chosen at either place, and the first of equals.
    Test labels that contradict every training label do not change the choice."""
    (x, y), (test_x, test_y) = clouds(300), clouds(200, seed=3)
    noise, test_noise = (torch.randn(n, 3, generator=torch.Generator().manual_seed(n)) for n in (300, 200))
    for names in (("noise", "good"), ("good", "noise"), ("good", "again")):
        train = {name: noise if name == "noise" else x for name in names}
        test = {name: test_noise if name == "noise" else test_x for name in names}
        accuracy, name, rate = probe.linear_probe(train, y, test, test_y)
        assert (accuracy, name) == (1.0, "good") and rate in probe.RATES
        assert probe.linear_probe(train, y, test, (test_y + 1) % 3) == (0.0, "good", rate)


def test_features_are_cls_of_four_blocks_and_the_mean_patch():
    """In a ViT of 4 blocks: [CLS] of blocks 1 to 4 beside each other, then the mean patch token of the last block."""
    torch.manual_seed(0)
    vit, D = vit_pico(patch_size=4, img_size=8, layer_scale=0.1, n_registers=2).eval(), 96
    images = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        x, out = probe.probe_tokens(vit, images), vit.forward_features(images)
        layers = vit.get_intermediate_layers(images, n=4, return_class_token=True)
    mean = (out["x_norm_patchtokens"][:, 0] + out["x_norm_patchtokens"][:, 1:].sum(1)) / 4
    found = b3_features(x, D)
    assert [f.shape[1] for f in found.values()] == [D, 2 * D, 4 * D, 5 * D]
    torch.testing.assert_close(found["[CLS] of 1 block and mean patch"], torch.cat([out["x_norm_clstoken"], mean], 1))
    assert torch.equal(found["[CLS] of 4 blocks"], torch.cat([cls for _, cls in layers], 1))
    torch.testing.assert_close(found["[CLS] of 4 blocks and mean patch"][:, 4 * D :], mean)


def test_logistic_regression_by_hand():
    """x = −1 and 1 with labels 0 and 1: by symmetry w₁ = −w₀ = v and no bias, so the loss is
    log(1 + e^(−2v)) + λ/2 · 2v².  Its derivative −2 / (1 + e^(2v)) + 2λv is 0 at v = (ln 3)/2, where e^(2v) = 3, if
    λ = 1 / (4v) = 1 / (2 ln 3); there the right class has 3/4."""
    x, y = torch.tensor([[-1.0, 1.0], [1.0, 1.0]]), torch.tensor([0, 1])  # the column of the bias is 1
    W = fit_logistic(x, y, 1 / (2 * math.log(3)), torch.zeros(2, 2))
    v = math.log(3) / 2
    torch.testing.assert_close(W, torch.tensor([[-v, v], [0.0, 0.0]]), rtol=0, atol=1e-4)
    torch.testing.assert_close((x @ W).softmax(1), torch.tensor([[3 / 4, 1 / 4], [1 / 4, 3 / 4]]), rtol=0, atol=1e-4)


def test_the_bias_is_not_regularised():
    """Features that say nothing, labels 1 : 3, λ huge: W is 0, and the bias alone has the odds of 3."""
    x = torch.randn(400, 3, generator=torch.Generator().manual_seed(9))
    x = torch.cat([x, torch.ones(400, 1)], 1)
    y = (torch.arange(400) % 4 > 0).long()
    W = fit_logistic(x, y, 1e4, torch.zeros(4, 2))
    assert W[:-1].abs().max() < 1e-3 and (W[-1, 1] - W[-1, 0]).item() == pytest.approx(math.log(3), abs=1e-3)


def test_the_chosen_strength_is_fitted_to_all_training_images(monkeypatch):
    """Class 0 lies from −9 to −6, class 1 from 4 to 8, and the held-out image has class 0 at 3.  With it the border is
    beyond 3, so 1 has class 0; without it the border is about (−6 + 4)/2 = −1."""
    monkeypatch.setattr(probe, "PENALTIES", (1e-4,))
    i = torch.randperm(10, generator=torch.Generator().manual_seed(0))[0]
    others = torch.tensor([-9.0, -8, -7, -6, 4, 5, 6, 7, 8])
    x = torch.cat([others[:i], torch.tensor([3.0]), others[i:]])[:, None]
    y = (x[:, 0] > 3).long()
    assert logistic_regression(x, y, torch.tensor([[1.0]]), torch.tensor([0]))[0] == 1.0


def test_mean_iou_by_hand():
    """Rows are the truth.  Class 0: 2 both, 2 + 1 true, 2 + 0 predicted, union 3: 2/3.  Class 1: 3 both, union
    3 + 1 = 4: 3/4.  Class 2 neither occurs nor is predicted, and does not count.  Mean (2/3 + 3/4)/2 = 17/24."""
    assert mean_iou(torch.tensor([[2, 1, 0], [0, 3, 0], [0, 0, 0]])) == pytest.approx(17 / 24)


def test_logits_are_upsampled_before_the_part_is_taken():
    """A grid of 2×2 patches: part 1 has logits 1, −3 in each row; part 0 has 0.  Bilinear interpolation between the
    centres at 1 and 3 of 4 pixels: pixels at 0.5, 1.5, 2.5, 3.5 get 1, 1 − 4/4 = 0, 1 − 3·4/4 = −2, −3.  At 0 the lower
    part wins, so part 1 is predicted in the first column alone."""
    tokens = torch.tensor([[[1.0], [-3.0], [1.0], [-3.0]]])
    W = torch.tensor([[0.0, 1.0], [0.0, 0.0]])  # one feature and the bias, two parts
    for columns, counts in (([1, 1, 0, 0], [[8, 0], [4, 4]]), ([0, 1, 1, 0], [[4, 4], [8, 0]])):
        parts = torch.tensor([columns]).expand(4, 4)[None]
        assert confusion(tokens, parts, W, (torch.zeros(1), torch.ones(1))).tolist() == counts


def pictures(n, seed):
    """n images of 4×4 patches of 4×4 pixels.  A patch has one of three parts, but for one pixel of part 0; its token
    is the part with some noise."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randint(3, (n, 2, 2), generator=generator)
    kinds = kinds.repeat_interleave(2, 1).repeat_interleave(2, 2)  # (n, 4, 4)
    tokens = F.one_hot(kinds.flatten(1), 3) + 0.1 * torch.randn(n, 16, 3, generator=generator)
    parts = kinds.repeat_interleave(4, 1).repeat_interleave(4, 2).byte()
    parts[:, ::4, ::4] = 0
    return tokens, parts


def test_segmentation_learns_the_parts_of_tokens(short):
    """Bilinear upsampling rounds the corners of blocks of 8×8 pixels, and 1 pixel of 16 is another part.  Standardized
    features make the scale irrelevant.  The rate is the same for any test parts.  NaN is named."""
    (x, parts), (test_x, test_parts) = pictures(40, 0), pictures(20, 1)
    iou, rate = probe.segmentation_iou(x, parts, test_x, test_parts)
    assert 0.85 < iou <= 1 and rate in probe.RATES
    other, _ = probe.segmentation_iou(100 * x - 7, parts, 100 * test_x - 7, test_parts)
    assert other == pytest.approx(iou, abs=0.01)
    assert probe.segmentation_iou(x, parts, test_x, (test_parts + 1) % 3)[1] == rate
    x[1, 2, 0] = float("nan")
    with pytest.raises(ValueError, match="train features are not finite"):
        probe.segmentation_iou(x, parts, x, parts)
