"""The crop against Pillow, changes of colour by hand and by `colorsys`, whole views by a slow loop, chances.

    pytest tests/test_augment.py

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


def number(s):
    return torch.tensor(s).view(1, 1, 1, 1)


# ---------------------------------------------------------------------------- crop

BOXES = [  # side of the image, box, size of the view
    (300, (0, 0, 300, 300), 224),  # the whole image, down
    (300, (20, 31, 240, 251), 224),
    (300, (0, 170, 131, 130), 98),  # at the edges
    (300, (169, 0, 131, 67), 98),
    (300, (101, 57, 61, 83), 98),  # up
    (300, (299, 299, 1, 1), 17),  # one pixel
    (97, (13, 5, 71, 92), 37),  # all odd
    (97, (0, 0, 97, 97), 13),  # far down
    (32, (3, 9, 29, 23), 32),  # small, up
    (32, (0, 0, 32, 30), 16),
    (64, (20, 1, 40, 53), 45),  # up in x, down in y
]


@pytest.mark.parametrize("side, box, size", BOXES)
@pytest.mark.parametrize("flip", [False, True])
def test_crop_is_pillows(side, box, size, flip):
    """Pillow rounds to 8 bit after the columns and after the rows, half a level each; the second product
    amplifies the first error by the sum of the cubic's absolute weights, below 1.6. So 0.5 + 1.6·0.5 = 1.3
    levels, 1.5 to be safe. Versions of Pillow differ in which side comes first; that shows where overshoot is
    cut."""
    left, top, width, height = box
    image = picture(side) if width == height else picture(side) // 2 + 64
    pil = Image.fromarray(image.permute(1, 2, 0).numpy()).crop((left, top, left + width, top + height))
    pil = pil.resize((size, size), Image.BICUBIC)
    pil = pil.transpose(Image.FLIP_LEFT_RIGHT) if flip else pil
    expected = torch.from_numpy(np.array(pil)).permute(2, 0, 1) / 255
    crop, row = MultiCrop(size, size, 1, blur_sigma=(0.1, 1.0)), torch.zeros(1, 5, dtype=torch.bool)
    p = {"shape": torch.tensor([[width, height]]), "corner": torch.tensor([[left, top]]), "order": row[:, :4].int(),
         "chosen": row | torch.tensor([flip, False, False, False, False]), "strength": torch.ones(1, 4),
         "sigma": torch.ones(1)}  # fmt: skip
    crop.draw = lambda *_: p
    ours = as_picture(crop.views(image[None].float(), 1 / 255, *crop.kinds[1], None))[0]
    assert (ours - expected).abs().max() < 1.5 / 255


def test_two_pixels_to_four_by_hand():
    """A box of 2 pixels a, b grows to 4: scale 1/2, centres 1/4, 3/4, 5/4, 7/4. The second, 3/4, is 1/4 from
    pixel a (its middle is 1/2) and 3/4 from b. Keys' cubic: c(1/4) = 3/2·1/64 − 5/2·1/16 + 1 = 111/128 and
    c(3/4) = 3/2·27/64 − 5/2·9/16 + 1 = 29/128, so it is (111·a + 29·b)/140. The first, 1/4, is 1/4 from a on
    the other side and 5/4 from b: c(5/4) = −1/2·125/64 + 5/2·25/16 − 4·5/4 + 2 = −9/128, so (111·a −
    9·b)/102."""
    rows, weights = augment.bicubic_taps(torch.tensor([2]), 2, torch.tensor([False]), 4)
    matrix = torch.zeros(4, 2).scatter_add_(1, rows[0], weights[0])
    expected = [[111 / 102, -9 / 102], [111 / 140, 29 / 140], [29 / 140, 111 / 140], [-9 / 102, 111 / 102]]
    torch.testing.assert_close(matrix, torch.tensor(expected))


# ---------------------------------------------------------------------------- a slow reference, by DINO's recipe


def slow_crop(x, first, length, size):
    """Rows first to first + length of x (3, H, W) as `size` rows: each is a mean of the rows around its place in the
    box, weighted by Keys' cubic, which is stretched where the box shrinks, and cut where the box ends."""

    def cubic(t):
        t = abs(t)
        return 1.5 * t**3 - 2.5 * t**2 + 1 if t < 1 else -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t < 2 else 0.0

    scale, rows = length / size, []
    for i in range(size):
        weights = [cubic((j + 0.5 - (i + 0.5) * scale) / max(scale, 1)) for j in range(length)]
        rows.append(sum(w * x[:, first + j] for j, w in enumerate(weights) if w) / sum(weights))
    return torch.stack(rows, dim=1).clamp(0, 1)


def slow_hue(x, turn):
    """The hue of each pixel moved by `turn` of the circle."""
    out = x.clone()
    for row in range(x.shape[1]):
        for column in range(x.shape[2]):
            h, s, v = colorsys.rgb_to_hsv(*x[:, row, column].tolist())
            out[:, row, column] = torch.tensor(colorsys.hsv_to_rgb((h + turn) % 1, s, v), dtype=x.dtype)
    return out


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
    """An image (3, S, S) uint8 -> one view (3, size, size) in [0, 1], with the random numbers p of this view.

        crop to a random box         of a random share of the area, and an aspect from 3/4 to 4/3
        flip                         chance 1/2
        jitter, in random order      chance 0.8; brightness and contrast ±0.4, saturation ±0.2, hue ±0.1
        grey                         chance 0.2
        blur, σ from 0.1 to 2        chance 1 in the first global view, 0.1 in the second, 1/2 in the local ones
        solarise                     chance 0.2 in the second global view
    """
    (left, top), (width, height) = p["corner"].tolist(), p["shape"].tolist()
    flip, jitter, grey, blur, solarise = p["chosen"].tolist()
    x = image.double() / 255
    x = slow_crop(x.mT, left, width, size).mT  # columns first, as Pillow
    x = slow_crop(x, top, height, size)
    x = x.flip(2) if flip else x
    s = p["strength"].tolist()
    changes = [
        lambda x: s[0] * x,  # brightness: towards black
        lambda x: s[1] * x + (1 - s[1]) * slow_grey(x).mean(),  # contrast: towards the mean grey
        lambda x: s[2] * x + (1 - s[2]) * slow_grey(x),  # saturation: towards each pixel's grey
        lambda x: slow_hue(x, s[3]),
    ]
    for number in p["order"].tolist() if jitter else []:
        x = changes[number](x).clamp(0, 1)
    x = slow_grey(x) if grey else x
    x = slow_blur(x, p["sigma"].item(), radius) if blur else x
    return torch.where(x > 0.5, 1 - x, x) if solarise else x


def test_each_view_is_the_slow_one():
    """Both global and three local views of each of 4 images; a view that differs has another box, order or change.

    All that is random is drawn by the crop, and taken from it; its chances and ranges are tested by themselves below.
    """
    crop, images = MultiCrop(18, 12, 3), torch.stack([picture(40, i) for i in range(4)])
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


# ---------------------------------------------------------------------------- colour


def test_brightness_and_saturation_by_hand():
    """Half as bright again, cut to 1.  Grey is 0.299 + 0.114·0.5 = 0.356: half of the way 0.5·x + 0.178, twice the
    distance 2·x − 0.356, cut to [0, 1]."""
    torch.testing.assert_close(augment.brightness(pixels((0.2, 0.5, 0.9)), number(1.5)), pixels((0.3, 0.75, 1.0)))
    x = pixels((1.0, 0.0, 0.5))
    torch.testing.assert_close(augment.saturation(x, number(0.5)), pixels((0.678, 0.178, 0.428)))
    torch.testing.assert_close(augment.saturation(x, number(2.0)), pixels((1.0, 0.0, 0.644)))


def test_contrast_by_hand():
    """Greys of the pixels: 0.299 + 0.114·0.5 = 0.356 and 0.587; mean 0.4715. Half of the way: 0.5·x +
    0.23575."""
    x = augment.contrast(pixels((1.0, 0.0, 0.5), (0.0, 1.0, 0.0)), number(0.5))
    torch.testing.assert_close(x, pixels((0.73575, 0.23575, 0.48575), (0.23575, 0.73575, 0.23575)))
    x = augment.contrast(pixels((1.0, 0.0, 0.5), (0.0, 1.0, 0.0)), number(2.0))  # 2·x − 0.4715, cut
    torch.testing.assert_close(x, pixels((1.0, 0.0, 0.5285), (0.0, 1.0, 0.0)))


def test_solarize_by_hand():
    torch.testing.assert_close(augment.solarize(pixels((0.2, 0.5, 0.9))), pixels((0.2, 0.5, 0.1)))


def test_hue_by_hand():
    """A twelfth of a turn takes red half of the way to yellow, and half of a twelfth the other way a quarter
    to magenta."""
    red = (0.8, 0.2, 0.2)
    torch.testing.assert_close(augment.hue(pixels(red), number(1 / 12)), pixels((0.8, 0.5, 0.2)))
    torch.testing.assert_close(augment.hue(pixels(red), number(-1 / 24)), pixels((0.8, 0.2, 0.35)))


@pytest.mark.parametrize("turn", [-1 / 6, -0.1, -0.03, 0.0, 0.01, 0.1, 0.16, 1 / 6])
def test_hue_is_that_of_colorsys(turn):
    values = [i / 8 for i in range(9)]
    colours = [(r, g, b) for r in values for g in values for b in values]
    expected = []
    for colour in colours:
        h, s, v = colorsys.rgb_to_hsv(*colour)
        expected.append(colorsys.hsv_to_rgb((h + turn) % 1, s, v))
    x = augment.hue(pixels(*colours), number(turn))
    torch.testing.assert_close(x, pixels(*expected), atol=2e-6, rtol=0)


# ---------------------------------------------------------------------------- blur


def test_blur_of_an_impulse_is_the_kernel():
    """Sigma 1, radius 2: weights 1, e^(−1/2), e^(−2) over their sum 1 + 2·e^(−1/2) + 2·e^(−2); in 2-D their
    products."""
    x = torch.zeros(1, 3, 9, 9)
    x[:, :, 4, 4] = 1
    side = [math.exp(-2), math.exp(-1 / 2), 1.0, math.exp(-1 / 2), math.exp(-2)]
    kernel = torch.tensor(side) / sum(side)
    out = augment.blur(x, torch.ones(1), 2)
    torch.testing.assert_close(out[0, 1, 2:7, 2:7], kernel[:, None] * kernel)
    assert out[0, :, :2].abs().max() == 0 and out[0, :, :, 7:].abs().max() == 0
    torch.testing.assert_close(augment.blur(x, torch.zeros(1), 2), x)  # sigma 0 is no blur


# ---------------------------------------------------------------------------- chances


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
        return {
            "left": b[:, 0], "top": b[:, 1], "width": b[:, 2],
            "area": b[:, 2] * b[:, 3] / side**2, "aspect": b[:, 2] / b[:, 3],
        }  # fmt: skip

    for name, a in curves(ours).items():
        b = curves(slow)[name].sort()[0]
        points = torch.cat([a, b]).unique()
        gap = torch.searchsorted(a.sort()[0], points, right=True) - torch.searchsorted(b, points, right=True)
        assert gap.abs().max() / n < 0.038, name
        if name == "aspect":  # rounding to whole pixels may leave the range by a pixel of about 20
            assert 0.75 / 1.06 < a.min() and a.max() < 1.06 * 4 / 3
        if name == "area":
            assert scale[0] - 0.01 < a.min() and a.max() < scale[1] + 0.01


# ---------------------------------------------------------------------------- the whole


def test_seed_repeats_and_another_does_not():
    crop, images = MultiCrop(24, 16, 3), torch.stack([picture(40, i) for i in range(4)])
    for a, b, c, d in zip(crop(images, 7), crop(images, 7), crop(images, 8),
                          crop(images, torch.Generator().manual_seed(7)), strict=True):  # fmt: skip
        assert torch.equal(a, b) and torch.equal(a, d)
        assert not torch.equal(a, c)


def test_float_and_uint8_agree_and_the_input_stays():
    crop, images = MultiCrop(24, 16, 3), torch.stack([picture(40, i) for i in range(4)])
    as_float = images / 255
    copies = images.clone(), as_float.clone()
    for a, b in zip(crop(images, 1), crop(as_float, 1), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)
    assert torch.equal(images, copies[0]) and torch.equal(as_float, copies[1])
    turned = as_float.mT  # of which `mT` is the original, not a copy
    crop(turned, 1)
    assert torch.equal(as_float, copies[1])


def test_sizes_that_divide_nothing_and_no_locals():
    images = torch.stack([picture(101, i) for i in range(3)])
    g, local = MultiCrop(37, 19, 5)(images, 0)
    assert g.shape == (6, 3, 37, 37) and local.shape == (15, 3, 19, 19)
    assert g.dtype == local.dtype == torch.float32 and g.isfinite().all() and local.isfinite().all()
    g, local = MultiCrop(37, 1, 0)(images, 0)  # without local views their size does not matter
    assert g.shape == (6, 3, 37, 37) and local.shape == (0, 3, 1, 1)


def test_normalize():
    colour = torch.tensor(MEAN) + torch.tensor(STD)
    torch.testing.assert_close(normalize(colour[:, None, None].expand(2, 3, 4, 4)), torch.ones(2, 3, 4, 4))
    images = torch.stack([picture(8), picture(8, 1)])
    torch.testing.assert_close(normalize(images), normalize(images / 255), atol=1e-5, rtol=0)


def test_misuse_is_told():
    with pytest.raises(AssertionError, match="squares"):
        MultiCrop(24, 16, 1)(torch.zeros(1, 3, 20, 30))
    with pytest.raises(AssertionError, match="views larger than 4"):
        MultiCrop(24, 4, 1)
    with pytest.raises(AssertionError, match="jitter 2"):
        MultiCrop(24, 16, 1, jitter=2.0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_gpu_agrees_and_does_not_wait():
    """The same numbers are drawn, so the views agree up to rounding; a synchronisation would raise an
    error."""
    crop, images = MultiCrop(24, 16, 3), torch.stack([picture(40, i) for i in range(16)])
    on_gpu = images.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = crop(on_gpu, 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for a, b in zip(crop(images, 1), out, strict=True):
        torch.testing.assert_close(a, b.cpu(), atol=1e-4, rtol=0)
