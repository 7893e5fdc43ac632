"""Linear classifiers: each equation by hand, and what they must and what they cannot learn.

    pytest tests/test_linear_probe.py
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import linear_probe as probe
from linear_probe import (
    commonest_parts,
    configurations,
    confusion,
    linear_accuracy,
    logistic_regression,
    mean_iou,
    minimise,
    probe_tokens,
    segmentation_iou,
    standard_of,
    standardised,
)
from vit import vit_pico

# --------------------------------------------------------------------------------------------------------
# Linear probe


@pytest.fixture
def short(monkeypatch):
    """A tenth of the steps: enough for a few hundred points."""
    monkeypatch.setattr(probe, "STEPS", 200)


def clouds(n, scale=1.0, seed=2):
    """Three classes at the corners of a triangle of side 5·√2, with deviation 0.3: planes part them."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (n,), generator=generator)
    return scale * (5 * torch.eye(3)[y] + 0.3 * torch.randn(n, 3, generator=generator) + 7), y


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_probe_separates_clouds_of_any_scale(short, scale):
    assert linear_accuracy(*clouds(300, scale), *clouds(200, scale, seed=3)) == 1.0


def test_probe_survives_constant_columns_and_keeps_its_inputs(short):
    """0.1 is not a float32: by rounding, a column of it has a deviation, which must not be scaled to 1."""
    (x, y), (test_x, test_y) = clouds(300), clouds(200, seed=3)
    x, test_x = (torch.cat([f, torch.full((len(f), 1), 0.1), torch.zeros(len(f), 1)], 1) for f in (x, test_x))
    test_x[:, 3] += 1e-7  # a rounding error on the other side of the column
    copies = [f.clone() for f in (x, y, test_x, test_y)]
    assert linear_accuracy(x, y, test_x, test_y) == 1.0
    assert all(torch.equal(f, copy) for f, copy in zip((x, y, test_x, test_y), copies, strict=True))


def test_probe_needs_its_bias(short):
    """4 points about −1, 396 about 1: less their mean of 0.98, half of the latter are negative too, and only
    a bias tells 0.85 from −1."""
    x = torch.cat([torch.linspace(-1.2, -0.8, 4), torch.linspace(0.8, 1.2, 396)])[:, None]
    y = (x[:, 0] > 0).long()
    shuffle = torch.randperm(400, generator=torch.Generator().manual_seed(0))
    test = torch.tensor([[-1.0], [0.85]]), torch.tensor([0, 1])
    assert linear_accuracy(x[shuffle], y[shuffle], *test) == 1.0


def test_probe_learns_nothing_from_random_labels(short):
    """Labels are fair coins: 2000 test images, so the accuracy has deviation √(¼/2000) = 0.0112 and leaves
    0.5 ± 0.05 (4.5 deviations) with probability 7e-6; the seed is fixed besides."""
    generator = torch.Generator().manual_seed(4)
    x, test_x = (torch.randn(n, 5, generator=generator) for n in (500, 2000))
    y, test_y = (torch.randint(2, (n,), generator=generator) for n in (500, 2000))
    assert abs(linear_accuracy(x, y, test_x, test_y) - 0.5) < 0.05


def test_probe_chooses_the_rate_that_works(short, monkeypatch):
    """A rate of 0 leaves W = 0, which says class 0 for all: the sweep must take the other."""
    sets = *clouds(300), *clouds(200, seed=3)
    for rates in ((0.0, 0.1), (0.1, 0.0)):
        monkeypatch.setattr(probe, "RATES", rates)
        assert linear_accuracy(*sets) == 1.0
    monkeypatch.setattr(probe, "RATES", (0.0,))
    assert linear_accuracy(*sets) == (sets[3] == 0).float().mean().item()


@pytest.mark.parametrize("rate", [0.3, 30.0])
def test_probe_is_sgd_on_the_mean_cross_entropy(monkeypatch, rate):
    """25 steps of ours are 25 steps of torch.optim.SGD and autograd on the same batches; noise in the labels
    makes the accuracy depend on each. Rounding may turn over one of the 1000 test images."""
    monkeypatch.setattr(probe, "STEPS", 25)
    monkeypatch.setattr(probe, "BATCH", 8)
    monkeypatch.setattr(probe, "RATES", (rate,))
    generator = torch.Generator().manual_seed(8)
    x, test_x = (torch.randn(n, 6, generator=generator) for n in (200, 1000))
    y, test_y = ((f[:, :4] + torch.randn(len(f), 4, generator=generator)).argmax(1) for f in (x, test_x))

    deviation, mean = torch.std_mean(x, dim=0, correction=0)
    linear = nn.Linear(6, 4)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    optimizer = torch.optim.SGD(linear.parameters(), momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    fit = torch.randperm(200, generator=generator)[20:]
    for step in range(25):
        batch = fit[torch.randint(180, (8,), generator=generator)]
        optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * step / 24)) / 2
        optimizer.zero_grad()
        F.cross_entropy(linear((x[batch] - mean) / deviation), y[batch]).backward()
        optimizer.step()
    expected = (linear((test_x - mean) / deviation).argmax(1) == test_y).float().mean().item()
    assert linear_accuracy(x, y, test_x, test_y) == pytest.approx(expected, abs=0.0011)


def test_heads_trained_at_once_do_not_touch_each_other(short, monkeypatch):
    """Noisy labels, so that rates differ: the sweep of two is the one that it chose, to the digit."""
    generator = torch.Generator().manual_seed(5)
    x, test_x = (torch.randn(n, 5, generator=generator) for n in (200, 400))
    y, test_y = ((f[:, 0] + torch.randn(len(f), generator=generator) > 0).long() for f in (x, test_x))
    scores = {}
    for rates in ((0.003,), (100.0,), (0.003, 100.0)):
        monkeypatch.setattr(probe, "RATES", rates)
        scores[rates] = linear_accuracy(x, y, test_x, test_y)
    assert scores[(0.003,)] != scores[(100.0,)]
    assert scores[(0.003, 100.0)] in (scores[(0.003,)], scores[(100.0,)])


def test_probe_never_sees_the_test_labels(short, monkeypatch):
    """With two classes, the accuracies on the test labels and on their opposites add up to 1. A sweep that
    peeked would choose the better of two heads each time, and the sum would exceed 1."""
    generator = torch.Generator().manual_seed(6)
    x, test_x = (torch.randn(n, 3, generator=generator) for n in (200, 500))
    y, test_y = ((f[:, 0] + torch.randn(len(f), generator=generator) > 0).long() for f in (x, test_x))
    monkeypatch.setattr(probe, "RATES", (0.0, 0.1))
    opposite = linear_accuracy(x, y, test_x, 1 - test_y)
    assert linear_accuracy(x, y, test_x, test_y) + opposite == pytest.approx(1)


def test_probe_is_the_same_under_any_global_seed(short):
    generator = torch.Generator().manual_seed(7)
    x, y = torch.randn(120, 5, generator=generator), torch.randint(3, (120,), generator=generator)
    torch.manual_seed(0)
    first = linear_accuracy(x, y, x, y)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert linear_accuracy(x, y, x, y) == first
    assert torch.equal(torch.get_rng_state(), state)


def test_probe_of_two_images_and_of_one(short):
    x, y = torch.eye(2), torch.tensor([0, 1])
    assert linear_accuracy(x, y, x, y) in (0.0, 0.5, 1.0)  # one to train on, one held out: no crash is all
    with pytest.raises(ValueError, match="need 2 training images"):
        linear_accuracy(x[:1], y[:1], x, y)


def shuffled_clouds(n, seed):
    """Clouds, and labels that say nothing of them."""
    x, y = clouds(n, seed=seed)
    return x, y[torch.randperm(n, generator=torch.Generator().manual_seed(seed))]


def test_the_feature_is_chosen_on_training_images(short):
    """One feature is noise, the other says the class: the sweep takes the latter, wherever it stands; of equals the
    first.  With test labels that contradict all, the choice is the same: they are not read for it."""
    (x, y), (test_x, test_y) = clouds(300), clouds(200, seed=3)
    noise, test_noise = (torch.randn(n, 3, generator=torch.Generator().manual_seed(n)) for n in (300, 200))
    for names in (("noise", "good"), ("good", "noise"), ("good", "again")):
        train = {name: noise if name == "noise" else x for name in names}
        test = {name: test_noise if name == "noise" else test_x for name in names}
        accuracy, name, rate = probe.linear_probe(train, y, test, test_y)
        assert (accuracy, name) == (1.0, "good") and rate in probe.RATES
        assert probe.linear_probe(train, y, test, (test_y + 1) % 3) == (0.0, "good", rate)


def test_a_feature_of_a_sweep_scores_as_it_does_alone(short):
    """Same images held out, same batches: the others do not touch it."""
    (x, y), (test_x, test_y) = shuffled_clouds(200, 5), shuffled_clouds(300, 6)
    alone = {columns: linear_accuracy(x[:, :columns], y, test_x[:, :columns], test_y) for columns in (1, 2, 3)}
    train, test = ({columns: f[:, :columns] for columns in (1, 2, 3)} for f in (x, test_x))
    accuracy, chosen, _ = probe.linear_probe(train, y, test, test_y)
    assert accuracy == alone[chosen]


# --------------------------------------------------------------------------------------------------------
# B.3's four features


def test_features_are_cls_of_four_blocks_and_the_mean_patch():
    """Of a ViT of 4 blocks: [CLS] of blocks 1 to 4 beside each other, then the mean of the last one's patches."""
    torch.manual_seed(0)
    vit, D = vit_pico(patch_size=4, img_size=8, layer_scale=0.1, n_registers=2).eval(), 96
    images = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        x, out = probe_tokens(vit, images), vit.forward_features(images)
        layers = vit.get_intermediate_layers(images, n=4, return_class_token=True)
    mean = (out["x_norm_patchtokens"][:, 0] + out["x_norm_patchtokens"][:, 1:].sum(1)) / 4
    found = configurations(x, D)
    assert [f.shape[1] for f in found.values()] == [D, 2 * D, 4 * D, 5 * D]
    assert torch.equal(found["[CLS] of 1 block"], out["x_norm_clstoken"])
    torch.testing.assert_close(found["[CLS] of 1 block and mean patch"], torch.cat([out["x_norm_clstoken"], mean], 1))
    assert torch.equal(found["[CLS] of 4 blocks"], torch.cat([cls for _, cls in layers], 1))
    torch.testing.assert_close(found["[CLS] of 4 blocks and mean patch"][:, 4 * D :], mean)


def test_features_of_a_network_of_one_block_are_two():
    assert list(configurations(torch.zeros(1, 4), 2)) == ["[CLS] of 1 block", "[CLS] of 1 block and mean patch"]
    assert "[CLS] of 3 blocks" in configurations(torch.zeros(1, 8), 2)


# --------------------------------------------------------------------------------------------------------
# Logistic regression


def test_logistic_regression_by_hand():
    """x = −1 and 1 with labels 0 and 1: by symmetry w₁ = −w₀ = v and no bias, so the loss is
    log(1 + e^(−2v)) + λ/2 · 2v².  Its derivative −2 / (1 + e^(2v)) + 2λv is 0 at v = (ln 3)/2, where e^(2v) = 3, if
    λ = 1 / (4v) = 1 / (2 ln 3); there the right class has 3/4."""
    x, y = torch.tensor([[-1.0, 1.0], [1.0, 1.0]]), torch.tensor([0, 1])  # the column of the bias is 1
    W = minimise(x, y, 1 / (2 * math.log(3)), torch.zeros(2, 2))
    v = math.log(3) / 2
    torch.testing.assert_close(W, torch.tensor([[-v, v], [0.0, 0.0]]), rtol=0, atol=1e-4)
    torch.testing.assert_close((x @ W).softmax(1), torch.tensor([[3 / 4, 1 / 4], [1 / 4, 3 / 4]]), rtol=0, atol=1e-4)


def test_the_bias_is_not_regularised():
    """Features that say nothing, labels 1 : 3, λ huge: W is 0, and the bias alone has the odds of 3."""
    x = torch.randn(400, 3, generator=torch.Generator().manual_seed(9))
    x = torch.cat([x, torch.ones(400, 1)], 1)
    y = (torch.arange(400) % 4 > 0).long()
    W = minimise(x, y, 1e4, torch.zeros(4, 2))
    assert W[:-1].abs().max() < 1e-3 and (W[-1, 1] - W[-1, 0]).item() == pytest.approx(math.log(3), abs=1e-3)


@pytest.mark.parametrize("start", [0.0, 3.0])
def test_the_minimum_is_one_from_anywhere(start):
    """The gradient vanishes: (1/N) Σ x (p − y) + λ W = 0, but for the bias without λ."""
    x, y = clouds(100)
    x = standardised(x, *standard_of(x))
    W = minimise(x, y, 0.1, torch.full((4, 3), start))
    gradient = x.T @ ((x @ W).softmax(1) - F.one_hot(y, 3)) / 100 + 0.1 * torch.cat([W[:-1], torch.zeros(1, 3)])
    assert gradient.abs().max() < 1e-4


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_logistic_regression_separates_clouds_of_any_scale(scale):
    accuracy, penalty = logistic_regression(*clouds(300, scale), *clouds(200, scale, seed=3))
    assert accuracy == 1.0 and penalty == 1.0  # the largest that parts them, whatever the scale


def test_logistic_regression_learns_nothing_from_random_labels():
    """As for the probe: 2000 fair coins leave 0.5 ± 0.05 with probability 7e-6; the seed is fixed besides."""
    generator = torch.Generator().manual_seed(4)
    x, test_x = (torch.randn(n, 5, generator=generator) for n in (500, 2000))
    y, test_y = (torch.randint(2, (n,), generator=generator) for n in (500, 2000))
    assert abs(logistic_regression(x, y, test_x, test_y)[0] - 0.5) < 0.05


def test_logistic_regression_never_sees_the_test_labels():
    generator = torch.Generator().manual_seed(6)
    x, test_x = (torch.randn(n, 3, generator=generator) for n in (200, 500))
    y, test_y = ((f[:, 0] + torch.randn(len(f), generator=generator) > 0).long() for f in (x, test_x))
    accuracy, penalty = logistic_regression(x, y, test_x, test_y)
    opposite, same = logistic_regression(x, y, test_x, 1 - test_y)
    assert accuracy + opposite == pytest.approx(1) and same == penalty


def test_the_chosen_strength_is_fitted_to_all_training_images(monkeypatch):
    """Class 0 lies from −9 to −6, class 1 from 4 to 8, and the one held out to choose by is of class 0 at 3: with it
    the border is beyond 3, and without it about (−6 + 4)/2 = −1.  So 1 is of class 0."""
    monkeypatch.setattr(probe, "PENALTIES", (1e-4,))
    i = torch.randperm(10, generator=torch.Generator().manual_seed(0))[0]
    others = torch.tensor([-9.0, -8, -7, -6, 4, 5, 6, 7, 8])
    x = torch.cat([others[:i], torch.tensor([3.0]), others[i:]])[:, None]
    y = (x[:, 0] > 3).long()
    assert logistic_regression(x, y, torch.tensor([[1.0]]), torch.tensor([0]))[0] == 1.0
    held_out, rows = probe.held_out_tenth(10, torch.Generator().manual_seed(0))
    assert held_out.tolist() == [i]
    W = minimise(F.pad(x[rows], (0, 1), value=1.0), y[rows], 1e-4, torch.zeros(2, 2))
    assert (torch.tensor([1.0, 1.0]) @ W).argmax() == 1


# --------------------------------------------------------------------------------------------------------
# Segmentation


def test_mean_iou_by_hand():
    """Rows are the truth.  Class 0: 2 both, 2 + 1 true, 2 + 0 predicted, union 3: 2/3.  Class 1: 3 both, union
    3 + 1 = 4: 3/4.  Class 2 neither occurs nor is predicted, and does not count.  Mean (2/3 + 3/4)/2 = 17/24."""
    counts = torch.tensor([[2, 1, 0], [0, 3, 0], [0, 0, 0]])
    assert mean_iou(counts) == pytest.approx(17 / 24)
    assert mean_iou(torch.diag(torch.tensor([5, 1, 7]))) == 1.0
    assert mean_iou(torch.tensor([[0, 4], [2, 0]])) == 0.0


def test_a_patch_is_what_most_of_its_pixels_are():
    """A 4×4 picture of 2×2 patches: three pixels of four are 2; all are 1; two of each, the lower; all ground."""
    parts = torch.tensor([[2, 2, 1, 1], [2, 0, 1, 1], [1, 2, 0, 0], [2, 1, 0, 0]], dtype=torch.uint8)
    assert commonest_parts(parts[None], 2, 2).tolist() == [[2, 1, 1, 0]]


def test_logits_are_upsampled_before_the_part_is_taken():
    """A grid of 2×2 patches: logits of part 1 are 3, −1 in each row; part 0 has 0.  Bilinear, from their middles at 1
    and 3 of 4 pixels: pixels at 0.5, 1.5, 2.5, 3.5 have 3, 3 − 4/4 = 2, 3 − 3·4/4 = 0, −1.  So part 1 is
    in the first two columns; at 0 the lower part wins."""
    tokens = torch.tensor([[[3.0], [-1.0], [3.0], [-1.0]]])
    W = torch.tensor([[0.0, 1.0], [0.0, 0.0]])  # one feature and the bias, two parts
    standard = torch.zeros(1), torch.ones(1)
    parts = torch.tensor([[0, 1, 1, 0]]).expand(4, 4)[None]
    assert confusion(tokens, parts, W, standard).tolist() == [[4, 4], [4, 4]]
    parts = torch.tensor([[1, 1, 0, 0]]).expand(4, 4)[None]
    assert confusion(tokens, parts, W, standard).tolist() == [[8, 0], [0, 8]]


def pictures(n, seed, shuffle=False):
    """n pictures of 4×4 patches of 4×4 pixels, each patch of one of three parts, which its token says but for noise."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randint(3, (n, 2, 2), generator=generator)
    kinds = kinds.repeat_interleave(2, 1).repeat_interleave(2, 2)  # (n, 4, 4)
    tokens = F.one_hot(kinds.flatten(1), 3) + 0.1 * torch.randn(n, 16, 3, generator=generator)
    if shuffle:
        kinds = kinds[torch.randperm(n, generator=generator)]
    return tokens, kinds.repeat_interleave(4, 1).repeat_interleave(4, 2).byte()


def test_segmentation_finds_parts_that_tokens_say(short):
    """Bilinear upsampling rounds the corners of blocks of 8×8 pixels, so not all of it: more than 9 of 10."""
    iou, rate = segmentation_iou(*pictures(40, 0), *pictures(20, 1))
    assert 0.9 < iou <= 1 and rate in probe.RATES
    x, y = pictures(40, 0)
    other = segmentation_iou(100 * x - 7, y, 100 * pictures(20, 1)[0] - 7, pictures(20, 1)[1])
    assert other[0] == pytest.approx(iou, abs=0.01)  # standardised: no scale matters


def test_segmentation_learns_nothing_from_shuffled_parts(short):
    """Three parts by chance: a pixel is right 1 time in 3, and IoU is then (1/9) / (1/3 + 1/3 − 1/9) = 1/5, or one part
    everywhere (1/3 + 0 + 0)/3 = 1/9."""
    iou, _ = segmentation_iou(*pictures(80, 0, shuffle=True), *pictures(80, 1, shuffle=True))
    assert 0.08 < iou < 0.3


def test_segmentation_never_sees_the_test_parts(short):
    """Whatever the test pictures show, the same rate."""
    train, (x, parts) = pictures(30, 2, shuffle=True), pictures(20, 3)
    rates = {segmentation_iou(*train, x, p)[1] for p in (parts, (parts + 1) % 3, parts.flip(0))}
    assert len(rates) == 1


def test_segmentation_of_a_diverged_network_is_named(short):
    x, parts = pictures(4, 0)
    x[1, 2, 0] = float("nan")
    with pytest.raises(ValueError, match="train features hold NaN"):
        segmentation_iou(x, parts, x, parts)
