"""Views against Pillow and a slow loop, colours by hand and `colorsys`, chances.  `pytest tests/test_augment.py`

Every random check has a fixed seed.  A false-alarm chance is that of a correct program with another seed.
"""

import colorsys
import math
import random
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp

import augment
from augment import MEAN, STD, MultiCrop, normalize


def picture(side, seed=0):
    """(3, side, side) uint8: waves of several lengths with edges and a little noise."""
    g = torch.Generator().manual_seed(seed)
    x = torch.linspace(0, 9, side)
    waves = torch.stack([(x[:, None] * a + x * b).sin() for a, b in ((1, 2), (3, -1), (-2, 5))])
    edges = (x[:, None] > 4).float() * (x < 6)
    noise = torch.rand(3, side, side, generator=g) * 0.2
    return ((waves * 0.5 + edges + noise).clamp(0, 1) * 255).byte()


def as_picture(x):
    return x * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]


def pixels(*colours):
    """Colours -> (1, 3, 1, n)."""
    return torch.tensor(colours).T[None, :, None]


def slow_crop(x, box, size):
    """A box of x (3, H, W) in [0, 1], resized by Pillow in floats: its width, then its height, each cut to [0, 1]."""
    left, top, width, height = box
    channels = x[:, top : top + height, left : left + width].float().numpy()
    for shape in ((size, height), (size, size)):
        resized = [Image.fromarray(channel).resize(shape, Image.BICUBIC) for channel in channels]
        channels = np.stack([np.array(channel) for channel in resized]).clip(0, 1)
    return torch.from_numpy(channels)


def turned(colour, turn):
    """A colour (3,) with its hue moved by `turn` of the circle."""
    h, s, v = colorsys.rgb_to_hsv(*colour.tolist())
    return torch.tensor(colorsys.hsv_to_rgb((h + turn) % 1, s, v), dtype=colour.dtype)


def slow_grey(x):
    return (0.299 * x[0] + 0.587 * x[1] + 0.114 * x[2]).expand(3, -1, -1)


def slow_blur(x, sigma, radius):
    """Each pixel a mean of those around it with weights exp(−distance²/2σ²), the picture mirrored at its edges."""
    out, weights, n = torch.zeros_like(x), 0.0, x.shape[1]
    for dy, dx in product(range(-radius, radius + 1), repeat=2):
        mirrored = [[n - 1 - abs(n - 1 - abs(i + d)) for i in range(n)] for d in (dy, dx)]
        weight = math.exp(-(dy**2 + dx**2) / (2 * sigma**2))
        out, weights = out + weight * x[:, mirrored[0]][:, :, mirrored[1]], weights + weight
    return out / weights


def slow_view(image, size, p, radius):
    """An image (3, S, S) uint8 -> one view (3, size, size) in [0, 1], with the random numbers p of this view."""
    flip, jitter, grey, blur, solarise = p["chosen"].tolist()
    x = slow_crop(image / 255, [*p["corner"].tolist(), *p["shape"].tolist()], size).double()
    x = x.flip(2) if flip else x
    s = p["strength"].tolist()
    changes = [
        lambda x: s[0] * x,  # brightness: towards black
        lambda x: s[1] * x + (1 - s[1]) * slow_grey(x).mean(),  # contrast: towards the mean grey
        lambda x: s[2] * x + (1 - s[2]) * slow_grey(x),  # saturation: towards each pixel's grey
        lambda x: torch.stack([turned(colour, s[3]) for colour in x.flatten(1).T], dim=1).view(x.shape),
    ]
    for number in p["order"].tolist() if jitter else []:
        x = changes[number](x).clamp(0, 1)
    x = slow_grey(x) if grey else x
    x = slow_blur(x, p["sigma"].item(), radius) if blur else x
    return torch.where(x > 0.5, 1 - x, x) if solarise else x


@pytest.mark.parametrize("side", [300, 40, 16])  # far down, down, up
def test_each_view_is_the_slow_one(side):
    """Both global and three local views of each of 4 images; a view that differs has another box, order or change.

    All that is random is drawn by the crop, and taken from it; its chances and ranges are tested by themselves below.
    """
    crop, images = MultiCrop(18, 12, 3), torch.stack([picture(side, i) for i in range(4)])
    draw, drawn, seen = crop.draw, [], torch.zeros(5)

    def kept(*arguments):
        drawn.append(draw(*arguments))
        return drawn[-1]

    crop.draw = kept
    for out, size in zip(crop(images, 3), (18, 12)):
        p = drawn.pop(0)
        for n, view in enumerate(as_picture(out)):  # view-major
            of_view = {name: values[n] for name, values in p.items()}
            slow = slow_view(images[n % 4], size, of_view, crop.radius)
            torch.testing.assert_close(view.double(), slow, atol=2e-5, rtol=0)
            seen += of_view["chosen"]
    assert (seen > 0).all()  # each change was made at least once


GREY_BY_HAND = {  # change: strength, and what becomes of the colours (1, 0, ½), of grey 0.356, and (0, 1, 0), of 0.587
    "brightness 1.5": [(1.0, 0.0, 0.75), (0.0, 1.0, 0.0)],  # 1.5·x, cut to 1
    "saturation 0.5": [(0.678, 0.178, 0.428), (0.2935, 0.7935, 0.2935)],  # x/2 + grey/2
    "saturation 2.0": [(1.0, 0.0, 0.644), (0.0, 1.0, 0.0)],  # 2·x − grey, cut
    "contrast 0.5": [(0.73575, 0.23575, 0.48575), (0.23575, 0.73575, 0.23575)],  # x/2 + the mean grey 0.4715/2
    "contrast 2.0": [(1.0, 0.0, 0.5285), (0.0, 1.0, 0.0)],  # 2·x − 0.4715, cut
    "hue 0.0833333": [(1.0, 0.0, 0.0), (0.0, 1.0, 0.5)],  # a twelfth: 330° to red, green half of the way to cyan
    "hue -0.0416667": [(1.0, 0.0, 0.75), (0.25, 1.0, 0.0)],  # half of that the other way
}


@pytest.mark.parametrize("change", GREY_BY_HAND)
def test_colours_by_hand(change):
    x, (name, strength) = pixels((1.0, 0.0, 0.5), (0.0, 1.0, 0.0)), change.split()
    found = getattr(augment, name)(x, torch.tensor(float(strength)).view(1, 1, 1, 1))
    torch.testing.assert_close(found, pixels(*GREY_BY_HAND[change]), atol=1e-6, rtol=1e-5)


def test_rates_of_each_view():
    """4000 images: a rate p is off by more than 5 standard deviations, at most 0.04, with chance 6e-7; there
    are 55 rates, so a false alarm has chance 3e-5. Each 1 − p, apart from 1/2, is off by at least 0.6. Rates
    0 and 1 are exact."""
    crop, n = MultiCrop(32, 16, 9), 4000
    g = torch.Generator().manual_seed(0)
    rates = []
    for _, scale, chances in crop.kinds:
        chosen = crop.draw(n, 32, scale, chances, g)["chosen"]
        rates += chosen.view(-1, n, 5).float().mean(1).tolist()
    expected = [(0.5, 0.8, 0.2, 1.0, 0.0), (0.5, 0.8, 0.2, 0.1, 0.2)] + 9 * [(0.5, 0.8, 0.2, 0.5, 0.0)]
    for view, (row, target) in enumerate(zip(rates, expected, strict=True)):
        for name, rate, p in zip(("flip", "jitter", "grey", "blur", "solarize"), row, target, strict=True):
            assert abs(rate - p) <= 5 * math.sqrt(p * (1 - p) / n), f"view {view}: {name} {rate}, want {p}"


def slow_box(side, scale, rng):
    """torchvision's RandomResizedCrop.get_params for a square -> left, top, width, height."""
    for _ in range(10):
        area = side * side * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= side and 0 < h <= side:
            return rng.randint(0, side - w), rng.randint(0, side - h), w, h
    return 0, 0, side, side


@pytest.mark.parametrize("kind", [0, 1])
def test_boxes_are_distributed_as_in_a_slow_loop(kind):
    """Two samples of n = 10000 from one distribution have cumulative curves further apart than 2.7·√(2/n) =
    0.038 with chance 2·exp(−2·2.7²) = 9e-7 (Kolmogorov and Smirnov); 5 curves."""
    crop, n, side, rng = MultiCrop(64, 32, 1), 10000, 100, random.Random(0)
    _, scale, chances = crop.kinds[kind]
    p = crop.draw(n, side, scale, chances[:1], torch.Generator().manual_seed(0))
    ours = torch.cat([p["corner"], p["shape"]], 1).double()
    slow = torch.tensor([slow_box(side, scale, rng) for _ in range(n)]).double()
    assert (ours[:, :2] >= 0).all() and (ours[:, :2] + ours[:, 2:] <= side).all()

    inner = ours[ours[:, 2] < side - 10]  # each touches the right edge with a chance of at least 1/100
    assert (inner[:, 0] + inner[:, 2]).max() == side and inner[:, 0].min() == 0

    def curves(b):
        return [b[:, 0], b[:, 1], b[:, 2], b[:, 2] * b[:, 3], b[:, 2] / b[:, 3]]

    for name, a, b in zip(("left", "top", "width", "area", "aspect"), curves(ours), curves(slow)):
        assert ks_2samp(a, b).statistic < 0.038, name


def test_seeds_dtypes_and_shapes():
    """Sizes that divide nothing; a seed repeats, another does not; float and uint8 agree; the input stays."""
    crop, images = MultiCrop(37, 19, 5), torch.stack([picture(101, i) for i in range(3)])
    as_float = images / 255
    copy, views = as_float.clone(), crop(images, 7)
    assert [tuple(x.shape) for x in views] == [(6, 3, 37, 37), (15, 3, 19, 19)]
    for a, b, c, d in zip(views, crop(images, torch.Generator().manual_seed(7)), crop(images, 8), crop(as_float, 7)):
        assert torch.equal(a, b) and not torch.equal(a, c)
        torch.testing.assert_close(a, d, atol=1e-4, rtol=0)
    crop(as_float.mT, 1)  # whose `mT` is the original, not a copy
    assert torch.equal(as_float, copy)
    assert MultiCrop(37, 1, 0)(images, 0)[1].shape == (0, 3, 1, 1)  # without local views their size does not matter


def test_misuse_is_told():
    with pytest.raises(AssertionError, match="squares"):
        MultiCrop(24, 16, 1)(torch.zeros(1, 3, 20, 30))
    with pytest.raises(AssertionError, match="views larger than 4"):
        MultiCrop(24, 4, 1)
    with pytest.raises(AssertionError, match="jitter 2"):
        MultiCrop(24, 16, 1, jitter=2.0)
    for images in (np.zeros((8, 8, 3), np.uint8), Image.new("RGB", (8, 8))):
        with pytest.raises(TypeError, match="normalize needs a tensor"):
            normalize(images)
    for images in (picture(8).float(), picture(8) / 255 - 1, picture(8).long(), torch.full((3, 8, 8), math.nan)):
        with pytest.raises(ValueError, match="normalize needs uint8 from 0 to 255, or floats from 0 to 1"):
            normalize(images)
