"""Patch features as colours: components known on paper, the choice of sides, and drawn scenes.

    pytest tests/test_pca_viz.py
"""

import matplotlib.image
import numpy as np
import pytest
import torch
from conftest import MeanColour, split_of
from einops import rearrange
from PIL import Image

import pca_viz
from augment import normalize
from pca_viz import (
    border_patches,
    draw_split,
    fine_tokens,
    foreground_iou,
    foreground_mask,
    main,
    patch_parts,
    pca,
    pca_rgb,
    scale,
    tokens_of,
)
from support.images import resized
from support.report import draw_pca
from vit import vit_nano

# --------------------------------------------------------------------------------------------------------
# The components


def test_components_of_points_on_paper():
    """(±4, 0), (0, ±1) about (2, 3): the axes are the components, with variances 32/4 and 2/4.

    Along x the points lie at 4, −4, 0, 0, so (a + 4)/8 = 1, 0, ½, ½; along y at 0, 0, 1, −1, so ½, ½, 1, 0.
    There is no third.
    """
    x = torch.tensor([[4.0, 0], [-4, 0], [0, 1], [0, -1]], dtype=torch.float64) + torch.tensor([2.0, 3.0])
    y = scale(pca(x, 3))
    torch.testing.assert_close(y[:, 0], torch.tensor([1, 0, 1 / 2, 1 / 2], dtype=torch.float64))
    torch.testing.assert_close(y[:, 1], torch.tensor([1 / 2, 1 / 2, 1, 0], dtype=torch.float64))
    assert y[:, 2].isnan().all()


def test_component_along_a_diagonal_and_its_sign():
    """Points t·(1, −2), t = 0, 1, 4: v₁ = (−1, 2)/√5, for the larger entry is made positive. Along it they
    lie at −√5·t, so scaled at 1, 3/4, 0."""
    t = torch.tensor([0.0, 1.0, 4.0], dtype=torch.float64)
    y = scale(pca(t[:, None] * torch.tensor([1.0, -2.0]), 2))
    torch.testing.assert_close(y[:, 0], 1 - t / 4)
    assert y[:, 1].isnan().all()  # a line has one component; the second is rounding


def test_components_are_those_of_the_svd():
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):  # eigh and svd choose signs at will: 15 that agree have had theirs fixed
        x = torch.randn(50, 8, dtype=torch.float64, generator=generator) * torch.arange(1, 9)
        _, _, v = torch.linalg.svd(x - x.mean(0), full_matrices=False)
        v = torch.stack([row if row.max() > -row.min() else -row for row in v[:3]])  # (3, 8)
        expected = (x - x.mean(0)) @ v.T  # (50, 3)
        expected = (expected - expected.amin(0)) / (expected.amax(0) - expected.amin(0))
        torch.testing.assert_close(scale(pca(x, 3)), expected)


# --------------------------------------------------------------------------------------------------------
# The foreground


def ramp(*values):
    """One image whose tokens are these numbers: the first component is the number itself. (1, N, 1)"""
    return torch.tensor(values)[None, :, None]


def test_threshold_on_the_scaled_component():
    """3×3 with 10 in the middle and 0, 2, 4, 6 on the border: scaled 1 and 0, 0.2, 0.4, 0.6."""
    tokens = ramp(0.0, 2, 4, 6, 10, 0, 0, 0, 0)
    for threshold, patches in ((0.5, [3, 4]), (0.7, [4]), (0.3, [2, 3, 4])):
        _, foreground = pca_rgb(tokens, threshold)
        assert foreground[0].nonzero().flatten().tolist() == patches
    assert pca_rgb(ramp(0.0, 2, 4, 5, 10, 0, 0, 0, 0))[1].sum() == 1  # 0.5 is not above 0.5


@pytest.mark.parametrize("sign", [1, -1])
def test_the_side_with_less_border_is_the_object(sign):
    """5×5, the object fills the 3×3 inside and one of the 16 border patches: 10 of 25, border share 1/16."""
    scene = torch.zeros(5, 5)
    scene[1:4, 1:4] = 1
    scene[4, 2] = 1
    _, foreground = pca_rgb(sign * ramp(*scene.flatten().tolist()))
    assert torch.equal(foreground[0].view(5, 5), scene.bool())


@pytest.mark.parametrize("sign", [1, -1])
def test_a_close_up_is_not_its_background(sign):
    """The object is the larger side: all 9 inner and 8 of the 16 border patches; 8/16 − 9/9 < 8/16 − 0/9."""
    scene = torch.ones(5, 5)
    scene[0] = scene[4, :3] = 0
    assert scene.sum() == 17
    _, foreground = pca_rgb(sign * ramp(*scene.flatten().tolist()))
    assert torch.equal(foreground[0].view(5, 5), scene.bool())


@pytest.mark.parametrize("sign", [1, -1])
def test_shares_count_not_patches(sign):
    """The object has 10 of 16 border and 6 of 9 inner patches, 10/16 − 6/9 = −0.04. In patches it has
    10 − 6 = 4 more on the border than inside, the background only 6 − 3 = 3 more."""
    scene = torch.ones(5, 5)
    scene[0] = scene[1, :4] = 0
    _, foreground = pca_rgb(sign * ramp(*scene.flatten().tolist()))
    assert torch.equal(foreground[0].view(5, 5), scene.bool())


def test_the_sides_are_judged_at_the_threshold():
    """5×5: 3 inner patches at 0.7 and 6 at 0, one of the border at 1 and 15 at 0.4.

    θ = 0.5: high is 1/16 − 3/9 < 0. θ = 0.8: high is 1/16 − 0 > 0, low (below 0.2) is 0 − 6/9 < 0.
    """
    scene = torch.full((5, 5), 0.4)
    scene[0, 0], scene[1, 1:4], scene[2:4, 1:4] = 1, 0.7, 0
    tokens = ramp(*scene.flatten().tolist())
    assert torch.equal(pca_rgb(tokens)[1][0].view(5, 5), scene > 0.5)
    assert torch.equal(pca_rgb(tokens, threshold=0.8)[1][0].view(5, 5), scene == 0)


def test_images_vote_together():
    """The last image alone would find its middle; the two before it, of the opposite kind, outvote it."""
    middle = torch.zeros(3, 3)
    middle[1, 1] = 1
    tokens = torch.stack([middle, middle, 1 - middle]).flatten(1)[..., None]  # (3, 9, 1)
    _, foreground = pca_rgb(tokens)
    assert torch.equal(foreground, tokens[..., 0] > 0.5)
    assert torch.equal(pca_rgb(tokens[2:])[1], tokens[2:, :, 0] < 0.5)


@pytest.mark.parametrize("sign", [1, -1])
def test_ties(sign):
    """2×2 has no inner patch: the smaller side wins; of equal sides the one without the first corner."""
    assert pca_rgb(sign * ramp(1.0, 0, 0, 0))[1].tolist() == [[True, False, False, False]]
    assert pca_rgb(sign * ramp(1.0, 1, 1, 0))[1].tolist() == [[False, False, False, True]]
    assert pca_rgb(sign * ramp(1.0, 1, 0, 0))[1].tolist() == [[False, False, True, True]]
    # 4×4: one of 4 inner and 3 of 12 border patches, 3/12 − 1/4 = 0 on both sides, though the counts differ
    scene = torch.zeros(16)
    scene[[5, 0, 1, 2]] = 1
    assert torch.equal(pca_rgb(sign * ramp(*scene.tolist()))[1][0], scene.bool())


def test_invert_takes_the_other_side():
    tokens = ramp(0.0, 2, 4, 6, 10, 0, 0, 0, 0)
    _, foreground = pca_rgb(tokens)
    _, inverted = pca_rgb(tokens, invert=True)
    assert torch.equal(inverted, ~foreground)


def test_any_grid():
    """3×5: the middle row's inner three of 15 patches. As 5×3 the same order has other neighbours."""
    first = torch.zeros(1, 15, dtype=torch.float64)
    first[0, 6:9] = 1
    tokens = 1 - first[..., None].float()
    assert torch.equal(pca_rgb(tokens, grid=(3, 5))[1], first.bool())
    scene = torch.zeros(5, 3)
    scene[1:4, 1] = 1
    assert torch.equal(pca_rgb(-scene.view(1, 15, 1), grid=(5, 3))[1][0].view(5, 3), scene.bool())
    with pytest.raises(AssertionError, match="15 patches do not fill a grid of 3×3"):
        pca_rgb(tokens)


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.8])
def test_random_components_keep_their_foreground_when_negated(threshold):
    generator = torch.Generator().manual_seed(1)
    border = border_patches([(3, 3)] * 2)
    for _ in range(50):
        first = torch.rand(18, generator=generator, dtype=torch.float64)
        sides = [foreground_mask(s, border, threshold, False) for s in (first, 1 - first)]
        assert torch.equal(*sides)


# --------------------------------------------------------------------------------------------------------
# Colours


def scenes(sign=1.0, noise=0.05):
    """Four images of 8×8 patches with one thing each, at another place: its top half is one part, its bottom
    half another. Background, top and bottom are three directions in 16 dimensions.

    Returns tokens (4, 64, 16) and parts (4, 64): 0 background, 1 top, 2 bottom.
    """
    generator = torch.Generator().manual_seed(2)
    parts = torch.zeros(4, 8, 8, dtype=torch.int64)
    for i, (row, column) in enumerate([(1, 1), (2, 3), (1, 4), (3, 2)]):
        parts[i, row : row + 2, column : column + 3] = 1
        parts[i, row + 2 : row + 4, column : column + 3] = 2
    kinds = torch.zeros(3, 16)
    kinds[0, 0], kinds[1, 0], kinds[2, 0] = -4.0, 4.0, 4.0  # the thing against the background
    kinds[1, 1], kinds[2, 1] = 1.0, -1.0  # top against bottom
    parts = parts.flatten(1)  # (4, 64)
    return sign * (kinds[parts] + noise * torch.randn(4, 64, 16, generator=generator)), parts


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_parts_have_one_colour_in_all_images(sign):
    tokens, parts = scenes(sign)
    rgb, foreground = pca_rgb(tokens)
    assert rgb.shape == (4, 64, 3) and rgb.dtype == torch.float32 and foreground.dtype == torch.bool
    assert foreground_iou(foreground, rearrange(parts > 0, "i (h w) -> i h w", h=8)) > 0.95
    assert (rgb[~foreground] == 0).all() and rgb.min() == 0 and rgb.max() == 1
    red = [[rgb[i, parts[i] == part, 0].mean().item() for i in range(4)] for part in (1, 2)]
    assert max(red[0]) - min(red[0]) < 0.1 and max(red[1]) - min(red[1]) < 0.1  # one part, four images
    assert abs(red[0][0] - red[1][0]) > 0.7  # two parts


def test_each_colour_fills_its_range_over_the_foreground_of_all_images():
    tokens, _ = scenes()
    rgb, foreground = pca_rgb(tokens)
    torch.testing.assert_close(rgb[foreground].amin(0), torch.zeros(3))
    torch.testing.assert_close(rgb[foreground].amax(0), torch.ones(3))
    # The second PCA is of the foreground alone: moving the background along its direction changes no colour.
    far = tokens.clone()
    far[..., 0][~foreground] -= 100
    torch.testing.assert_close(pca_rgb(far)[0], rgb)


def test_the_same_on_each_run_and_in_each_precision():
    tokens, _ = scenes()
    copy = tokens.clone()
    rgb, foreground = pca_rgb(tokens)
    assert torch.equal(tokens, copy)
    assert torch.equal(pca_rgb(tokens)[0], rgb) and torch.equal(pca_rgb(tokens)[1], foreground)
    half = tokens.bfloat16()
    assert torch.equal(pca_rgb(half)[0], pca_rgb(half.double())[0])
    assert torch.equal(pca_rgb(tokens.requires_grad_())[0], rgb)


def test_nothing_to_see():
    """Tokens that are all equal, zero or not, one patch or many: black, no foreground."""
    for shape, value in (((1, 9, 4), 0.0), ((2, 9, 4), 0.1), ((1, 1, 5), 1.0), ((3, 1, 1), 1.0)):
        tokens = torch.full(shape, value)
        rgb, foreground = pca_rgb(tokens)
        assert (rgb == 0).all() and not foreground.any()
    rounding = 1e6 + torch.tensor([0.0, 0.0625] * 8).view(1, 16, 1)  # one float32 apart
    assert not pca_rgb(rounding)[1].any()


def test_few_patches_and_few_dimensions():
    """A colour with no variance is 0.5. One patch in front: all three. Two: all but the first."""
    rgb, foreground = pca_rgb(ramp(0.0, 0, 0, 0, 9, 0, 0, 0, 0))
    assert foreground.sum() == 1 and rgb[foreground].tolist() == [[0.5, 0.5, 0.5]]
    rgb, foreground = pca_rgb(ramp(*[0.0] * 5, 9, 10, *[0.0] * 9))
    assert rgb[foreground].tolist() == [[0, 0.5, 0.5], [1, 0.5, 0.5]]
    tokens = torch.zeros(1, 25, 2)  # two dimensions: blue is 0.5
    tokens[0, [6, 7, 8]] = torch.tensor([[9.0, 0], [10, 1], [9, 2]])
    rgb, foreground = pca_rgb(tokens)
    assert foreground.sum() == 3 and (rgb[foreground][:, 2] == 0.5).all() and rgb.isfinite().all()
    for shape in ((1, 1, 1), (5, 1, 3), (1, 4, 2), (2, 9, 1)):
        rgb, foreground = pca_rgb(torch.randn(shape, generator=torch.Generator().manual_seed(3)))
        assert rgb.isfinite().all() and rgb.min() >= 0 and rgb.max() <= 1


def test_an_image_that_is_all_foreground():
    tokens, parts = scenes()
    full = tokens[:1].clone()
    full[0] = tokens[parts == 1][torch.arange(64) % 24]
    rgb, foreground = pca_rgb(torch.cat([tokens, full]))
    assert foreground[4].all() and rgb.isfinite().all() and (rgb[4].amax(1) > 0).all()


@pytest.mark.parametrize("tokens, threshold, words", [
    (torch.zeros(1, 9, 2), 1.0, "threshold must be in"),
    (torch.full((1, 9, 2), float("nan")), 0.5, "NaN"),
    (torch.zeros(0, 9, 2), 0.5, "at least one number"),
])  # fmt: skip
def test_misuse_is_named(tokens, threshold, words):
    with pytest.raises((AssertionError, ValueError), match=words):
        pca_rgb(tokens, threshold)


# --------------------------------------------------------------------------------------------------------
# Score and picture


def test_iou_is_the_mean_over_images():
    """2×2 patches of 2×2 pixels. Image 1: found {0, 1}, true {1, 2}, IoU 1/3. Image 2: nothing, nothing: 1.
    Image 3: found {0}, true {0}. Their mean is (1/3 + 1 + 1)/3; over all patches together it would be 2/4."""
    foreground = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]).bool()
    masks = torch.zeros(3, 4, 4, dtype=torch.bool)
    masks[0, 0, 2:] = masks[0, 1, 2] = True  # 3 of 4 pixels of patch 1
    masks[0, 2:, :2] = True  # patch 2
    masks[0, 2, 2:] = True  # 2 of 4 pixels of patch 3: not more than half
    masks[2, :2, :2] = True
    assert foreground_iou(foreground, masks) == pytest.approx((1 / 3 + 1 + 1) / 3)


def test_parts_of_patches_by_hand():
    """Patches of 2×2 pixels: parts 1 1 2 ground: 1.  One pixel of part 3: ground.  Two of part 2: ground, for half is
    not enough.  Parts 1 2 2 2: 2."""
    parts = torch.tensor([[[1, 1, 3, 0], [2, 0, 0, 0], [2, 2, 1, 2], [0, 0, 2, 2]]], dtype=torch.uint8)
    assert patch_parts(parts, 2, 2).tolist() == [[1, 0, 0, 2]]


def test_fine_tokens_by_hand():
    """An 8×8 picture of 2×2 patches of 4×4, in 2×2 quarters of 2×2 pixels of brightness 0 ... 15, row by row.

    MeanColour's tokens are mean colours, so a cell's is the mean of 3×3 cells with weights 1 2 1 in each direction, and
    those beyond the border repeat the border: in the middle (cell 5) it is 5, in the corner (cell 0)
    (¾·0 + ¼·1) along the row and (¾·0 + ¼·4) down: 1.25.
    """
    cells = torch.arange(16).view(1, 1, 4, 4)
    images = cells.repeat_interleave(2, 2).repeat_interleave(2, 3).expand(1, 3, 8, 8).to(torch.uint8)
    tokens = fine_tokens(MeanColour(), images, 8)
    expected = normalize(torch.tensor([5, 1.25]).view(2, 1, 1, 1).expand(2, 3, 1, 1) / 255).flatten(1)
    assert tokens.shape == (1, 16, 3)
    torch.testing.assert_close(tokens[0, [5, 0]], expected, atol=1e-5, rtol=0)


def test_a_split_is_drawn_and_scored(tmp_path):
    """The middle is white on black: it alone is foreground, of one part.  Without known parts there are no scores."""
    test = split_of([(0, 0, 0)] * 6, [0, 0, 0, 1, 1, 1])
    test.pixels = torch.zeros(6, 3, 16, 16, dtype=torch.uint8)
    test.pixels[:, :, 4:12, 4:12] = 255
    assert draw_split(MeanColour(), test, 16, tmp_path / "pca.png") == {}
    assert min(Image.open(tmp_path / "pca.png").size) > 100
    test.parts = (test.pixels[:, 0] > 0).to(torch.uint8)
    scores = draw_split(MeanColour(), test, 16, tmp_path / "pca.png")
    assert scores == {"iou": 1, "agreement": 1, "agreement_chance": 1}


def test_a_kind_has_a_row_of_its_own(tmp_path, monkeypatch):
    """Kinds of one, four and two pictures, four to a row: 1 and 3 empty places, 4, 2 and 2 empty ones."""
    test, drawn = split_of([(9, 99, 9)] * 7, [0, 1, 1, 1, 1, 2, 2]), []
    monkeypatch.setattr(pca_viz, "draw_pca", lambda *arguments: drawn.extend(arguments) or draw_pca(*arguments))
    draw_split(MeanColour(), test, 16, tmp_path / "pca.png")
    for places in drawn[:2]:
        assert [place is None for place in places] == [False, *[True] * 3, *[False] * 6, True, True]
    assert Image.open(tmp_path / "pca.png").height > Image.open(tmp_path / "pca.png").width / 4


def test_a_network_whose_tokens_overflow_is_one_line(tmp_path, capsys):
    network = vit_nano(patch_size=8, img_size=16)
    torch.nn.init.constant_(network.norm.weight, 3e38)
    torch.save(network.state_dict(), tmp_path / "vit.pt")
    Image.new("RGB", (20, 20), (9, 99, 9)).save(tmp_path / "a.png")
    assert main([str(tmp_path / "a.png"), "--weights", str(tmp_path / "vit.pt"), "--size", "16", "--out",
                 str(tmp_path / "pca.png"), "--device", "cpu"]) == 2  # fmt: skip
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == "pca_viz.py: error: patch_tokens hold NaN or infinite values: the network has diverged"
    assert not (tmp_path / "pca.png").exists()


def test_iou_on_a_grid_that_is_not_square():
    masks = torch.zeros(1, 4, 12, dtype=torch.bool)
    masks[0, 2:, 4:8] = True  # row 2 of 2, column 2 of 3
    foreground = torch.tensor([[0, 0, 0, 0, 1, 0]]).bool()
    assert foreground_iou(foreground, masks, grid=(2, 3)) == 1


@pytest.mark.parametrize("n", [1, 5])
def test_picture(tmp_path, n):
    """Grey images; colours red, green / blue, white in a 2×2 grid must come out at these places."""
    images = torch.full((n, 3, 8, 8), 128, dtype=torch.uint8)
    colours = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]])
    path = tmp_path / "pca.png"
    path.write_text("an older picture")
    draw_pca(images, colours.view(2, 2, 3).expand(n, 2, 2, 3), path, raw=True)
    assert [file.name for file in tmp_path.iterdir()] == ["pca.png"]  # nothing temporary is left
    picture = matplotlib.image.imread(path)[..., :3]  # (H, W, 3)
    centre = {}
    seek = {"red": [1, 0, 0], "green": [0, 1, 0], "blue": [0, 0, 1], "grey": [128 / 255] * 3}
    for name, colour in seek.items():
        hits = abs(picture - colour).max(-1) < 0.01  # (H, W)
        assert hits.sum() > 100 * n, name
        rows, columns = hits.nonzero()
        centre[name] = rows.min(), columns.min()
    assert centre["red"][0] == centre["green"][0] < centre["blue"][0]
    assert centre["grey"][1] < centre["red"][1] == centre["blue"][1] < centre["green"][1]


def test_colours_are_interpolated_for_the_eye(tmp_path):
    """Half black, half white patches: raw there is nothing between the two, interpolated there is mid grey."""
    images, colours = torch.zeros(1, 3, 4, 4, dtype=torch.uint8), torch.tensor([[[[0.0] * 3, [1.0] * 3]]])
    shares = []
    for raw in (True, False):
        draw_pca(images, colours, tmp_path / "pca.png", raw=raw)
        grey = matplotlib.image.imread(tmp_path / "pca.png")[..., 0]
        shares.append(((grey > 0.4) & (grey < 0.6)).mean())
    assert shares[0] < 0.005 < 0.02 < shares[1]


def test_a_failed_picture_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "pca.png"
    path.write_text("an older picture")

    def fail(self, target, **kwargs):
        target.write_text("half a picture")
        raise OSError("disk full")

    monkeypatch.setattr("support.report.Figure.savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        draw_pca(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), torch.zeros(1, 2, 2, 3), path)
    assert path.read_text() == "an older picture" and len(list(tmp_path.iterdir())) == 1


# --------------------------------------------------------------------------------------------------------
# Options


def test_without_a_mask_there_is_one_pca_of_all_patches():
    tokens, _ = scenes()
    rgb, foreground = pca_rgb(tokens, mask=False)
    expected = scale(pca(tokens.flatten(0, 1).double(), 3))
    assert foreground.all()
    torch.testing.assert_close(rgb.flatten(0, 1), expected.float())


def test_whitened_colours_by_hand():
    """Tokens −3, 1, 1, 1: deviation √(12/4) = √3, so σ(2·y/√3) at y = −3 and 1. The other colours do not vary."""
    rgb, _ = pca_rgb(ramp(-3.0, 1, 1, 1), mask=False, whiten=True)
    low, high = 1 / (1 + np.exp(2 * 3**0.5)), 1 / (1 + np.exp(-2 / 3**0.5))
    torch.testing.assert_close(rgb[0, :, 0], torch.tensor([low, high, high, high]).float())
    assert (rgb[0, :, 1:] == 0.5).all()


def test_images_of_different_shape_share_their_colours():
    tokens, _ = scenes()
    whole, _ = pca_rgb(tokens)
    parts, _ = pca_rgb([tokens[0], tokens[1:].flatten(0, 1)], grid=[(8, 8), (24, 8)], mask=False)
    assert [part.shape for part in parts] == [(64, 3), (192, 3)] and whole.shape == (4, 64, 3)
    torch.testing.assert_close(torch.cat(parts), pca_rgb(tokens, mask=False)[0].flatten(0, 1))


def test_border_patches_by_hand():
    """3×4: all but the two in the middle of row 2. 1×2: no inner patch."""
    border = border_patches([(3, 4), (1, 2)])
    assert border.int().tolist() == [1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1, 1]


def test_the_middle_of_the_long_side_or_all_of_it():
    """20×60 pixels, left third black, right third white: at 10² the grey middle; with its aspect 10×30, patch 5."""
    x = np.repeat(np.array([0, 128, 255], dtype=np.uint8), 20)
    wide = Image.fromarray(np.broadcast_to(x[None, :, None], (20, 60, 3)).copy())
    square = resized(wide, 10, 5, False)
    assert square.shape == (3, 10, 10) and (square[:, :, 2:8] == 128).all()  # bicubic reads a little beyond
    whole = resized(wide, 10, 5, True)
    assert whole.shape == (3, 10, 30) and whole[0, 5, 4] == 0 and whole[0, 5, 25] == 255
    # 20×33 at 10 would be 16.5 wide, rounded to 3 patches of 5: the picture is cut, never stretched
    disc = Image.new("RGB", (33, 20))
    disc.paste((255, 255, 255), (10, 4, 20, 14))  # a square stays as wide as high
    spot = resized(disc, 10, 5, True)[0] > 128
    assert spot.shape == (10, 15) and spot.any(0).sum() == spot.any(1).sum() == 5


# --------------------------------------------------------------------------------------------------------
# The program


@pytest.fixture
def place(tmp_path):
    """A folder with weights and four pictures, one of them wide and one broken."""
    torch.manual_seed(0)
    torch.save(vit_nano(patch_size=4, img_size=16, layer_scale=1.0).state_dict(), tmp_path / "vit.pt")
    generator = np.random.default_rng(0)
    for name, shape in {"a": (20, 20, 3), "b": (16, 40, 3), "c": (30, 30, 3)}.items():
        Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    return tmp_path


def run(place, capsys, *flags):
    status = main([*map(str, flags), "--weights", str(place / "vit.pt"), "--out", str(place / "out.png"),
                   "--device", "cpu"])  # fmt: skip
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.strip() and "img" not in line]
    return status, out.strip().split("\n")[-1], lines


@pytest.mark.parametrize("flags", [(), ("--keep-aspect", "--grid", "2"), ("--layer", "0", "--whiten", "--raw"),
                                   ("--no-mask",), ("--invert", "--threshold", "0.3")], ids=str)  # fmt: skip
def test_the_program_draws(place, capsys, flags):
    status, out, err = run(place, capsys, place / "a.png", place / "b.png", "--size", 16, *flags)
    assert status == 0 and out.startswith("2 images, ") and out.endswith(str(place / "out.png")) and err == []
    assert matplotlib.image.imread(place / "out.png").ndim == 3


def test_a_folder_and_a_broken_picture(place, capsys):
    status, out, err = run(place, capsys, place, "--size", 16)
    assert status == 0 and out.startswith("3 images, ")
    assert err == [f"skipped {place}/broken.png: not an image in a format that Pillow reads"]


def test_two_images_are_matched(place, capsys):
    status, out, _ = run(place, capsys, "--matches", place / "a.png", place / "a.png", "--size", 16, "--no-mask")
    assert status == 0 and "16 mutual matches" in out


def test_the_last_layer_is_what_forward_features_gives():
    torch.manual_seed(0)
    network = vit_nano(patch_size=4, img_size=16, n_registers=2, layer_scale=1.0).eval()
    image = torch.randint(0, 256, (3, 16, 12), dtype=torch.uint8)
    with torch.no_grad():
        expected = network.forward_features(normalize(image[None]))["x_norm_patchtokens"][0]
    torch.testing.assert_close(tokens_of(network, [image], 5)[0], expected)


@pytest.mark.parametrize("flags, words", [
    ((), "give image files, or --matches A B"),
    (("a.png", "--matches", "a.png", "c.png"), "give image files, or --matches A B"),
    (("broken.png",), "none of the images can be read"),
    (("missing.png",), "missing.png"),
    (("a.png", "--threshold", "1"), "--threshold must be at least 0 and below 1"),
    (("a.png", "--layer", "6"), "blocks 0 to 5"),
    (("a.png", "--size", "0"), "from 1 to 4096"),
    (("a.png", "--device", "cuda:99"), "there is no device"),
    (("--matches", "a.png", "broken.png"), "two images"),
    (("a.png", "--weights", "a.png"), "not a weights file"),
    (("a.png", "--out", "no/such/folder.png"), "there is no folder no/such"),
    (("a.png", "--colour"), "unknown argument --colour"),
])  # fmt: skip
def test_bad_input_is_one_line(place, capsys, monkeypatch, flags, words):
    monkeypatch.chdir(place)
    status = main(["--weights", "vit.pt", "--size", "16", "--device", "cpu", "--out", "out.png", *flags])
    lines = [line for line in capsys.readouterr().err.splitlines() if "pca_viz" in line or "Traceback" in line]
    assert status == 2 and len(lines) == 1 and words in lines[0] and lines[0].startswith("pca_viz.py: error: ")
    assert not list(place.glob("out.png"))
