"""Patch features as colours: components by hand, the choice of sides, drawn scenes.  `pytest tests/test_pca_viz.py`"""

import matplotlib.image
import numpy as np
import pytest
import torch
from conftest import MeanColour, split_of
from PIL import Image

import pca_viz
from augment import normalize
from pca_viz import draw_matches, draw_panels, draw_split, fine_tokens, foreground_iou, main, patch_parts, pca, pca_rgb
from vit import vit_nano


def test_components_of_points_on_paper():
    """(±4, 0), (0, ±1) about (2, 3): the axes are the components, with variances 32/4 and 2/4.

    Along x the points lie at 4, −4, 0, 0, so (a + 4)/8 = 1, 0, ½, ½; along y at 0, 0, 1, −1, so ½, ½, 1, 0.
    """
    x = torch.tensor([[4.0, 0], [-4, 0], [0, 1], [0, -1]], dtype=torch.float64) + torch.tensor([2.0, 3.0])
    expected = torch.tensor([[1, 1 / 2], [0, 1 / 2], [1 / 2, 1], [1 / 2, 0]], dtype=torch.float64)
    torch.testing.assert_close(pca(x, 2), expected)


def test_components_have_the_same_sign_in_any_order_of_dimensions():
    """`eigh` chooses signs at will."""
    x = torch.randn(50, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 9)
    for shift in range(1, 8):
        torch.testing.assert_close(pca(x.roll(shift, dims=1), 3), pca(x, 3))


def ramp(*values):
    """One image whose tokens are (v, 0, 0) for these numbers: the first component is the number itself. (1, N, 3)"""
    return torch.tensor(values)[None, :, None] * torch.tensor([1.0, 0, 0])


def test_threshold_on_the_scaled_component():
    """3×3 with 10 in the middle and 0, 2, 4, 6 on the border: scaled 1 and 0, 0.2, 0.4, 0.6."""
    tokens = ramp(0.0, 2, 4, 6, 10, 0, 0, 0, 0)
    for threshold, patches in ((0.5, [3, 4]), (0.7, [4]), (0.3, [2, 3, 4]), (1.0, [])):
        _, foreground = pca_rgb(tokens, threshold)
        assert foreground[0].nonzero().flatten().tolist() == patches
    assert pca_rgb(ramp(0.0, 2, 4, 5, 10, 0, 0, 0, 0))[1].sum() == 1  # 0.5 is not above 0.5


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("scene", ["00000 01110 01110 01110 00100", "00000 11111 11111 11111 00011",
                                   "00000 00001 11111 11111 11111",
                                   "10 00", "00 11", "1110 0100 0000 0000"])  # fmt: skip
def test_a_close_up_is_not_its_background(sign, scene):
    """5×5 patches, 16 of them on the border; the object is 1.  Shares of border and inner patches, less is better:

    1 and 9:   1/16 − 9/9 < 15/16 − 0/9; the smaller side.
    8 and 9:   8/16 − 9/9 < 8/16 − 0/9; the larger side.
    10 and 6:  10/16 − 6/9 = −0.04 < 6/16 − 3/9 = 0.04; in patches 10 − 6 = 4 is more than 6 − 3 = 3.

    Ties: 2×2 has no inner patch, so the smaller side wins; of equal sides the one without the first corner.
    4×4, 3 and 1:  3/12 − 1/4 = 0 on both sides, and the smaller side wins.
    """
    values = [float(digit) for digit in scene.replace(" ", "")]
    _, foreground = pca_rgb(sign * ramp(*values))
    assert foreground[0].tolist() == [value == 1 for value in values]


def test_images_of_any_shape_share_their_components():
    """A 3×5 image and a 5×3 one: the three inner patches of each are the object."""
    wide, high = torch.zeros(3, 5), torch.zeros(5, 3)
    wide[1, 1:4] = high[1:4, 1] = 1
    scene = torch.cat([wide.flatten(), high.flatten()])
    x = 1 - ramp(*scene.tolist())[0]
    rgb, foreground = pca_rgb(x, grids=[(3, 5), (5, 3)])
    assert torch.equal(foreground, scene.bool()) and rgb.shape == (30, 3)
    assert torch.equal(pca_rgb(x, invert=True, grids=[(3, 5), (5, 3)])[1], ~scene.bool())


def test_nothing_to_see():
    """Equal tokens have no foreground, and differences of float32 rounding are none.  NaN is named."""
    for tokens in (torch.full((2, 9, 4), 0.1), torch.ones(1, 1, 5)):
        rgb, foreground = pca_rgb(tokens)
        assert (rgb == 0).all() and not foreground.any()
    rounding = 1e6 + torch.tensor([0.0, 0.0625] * 8).view(1, 16, 1)  # one float32 apart
    assert not pca_rgb(rounding)[1].any()
    with pytest.raises(ValueError, match="NaN"):
        pca_rgb(torch.full((1, 9, 2), float("nan")))


def test_a_colour_without_variance_is_one_half():
    """One foreground patch: all three.  Two patches: all but the first."""
    rgb, foreground = pca_rgb(ramp(0.0, 0, 0, 0, 9, 0, 0, 0, 0))
    assert foreground.sum() == 1 and rgb[foreground].tolist() == [[0.5, 0.5, 0.5]]
    rgb, foreground = pca_rgb(ramp(*[0.0] * 5, 9, 10, *[0.0] * 9))
    assert rgb[foreground].tolist() == [[0, 0.5, 0.5], [1, 0.5, 0.5]]


def test_iou_is_the_mean_over_images():
    """Image 1: found {0, 1}, true {1, 2}, IoU 1/3.  Image 2: nothing, nothing: 1.  Image 3: found {0}, true {0}: 1.
    Their mean is (1/3 + 1 + 1)/3; over all patches together it would be 2/4."""
    foreground = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]).bool()
    truth = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]]).bool()
    assert foreground_iou(foreground, truth) == pytest.approx((1 / 3 + 1 + 1) / 3)


def test_parts_of_patches_by_hand():
    """Patches of 2×2 pixels: parts 1 1 2 ground: 1.  One pixel of part 3: ground.  Two of part 2: ground, because half
    is not enough.  Parts 1 2 2 2: 2."""
    parts = torch.tensor([[[1, 1, 3, 0], [2, 0, 0, 0], [2, 2, 1, 2], [0, 0, 2, 2]]], dtype=torch.uint8)
    assert patch_parts(parts, 2, 2).tolist() == [[1, 0, 0, 2]]


def test_fine_tokens_by_hand():
    """An 8×8 image of 2×2 patches of 4×4, in 4×4 cells of 2×2 pixels with brightness 0 ... 15, row by row.

    MeanColour's tokens are mean colours, so a cell's is the mean of 3×3 cells with weights 1 2 1 in each direction, and
    cells beyond the border repeat the border: in the middle (cell 5) it is 5, in the corner (cell 0)
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
    test.parts = (test.pixels[:, 0] > 0).to(torch.uint8)
    assert draw_split(MeanColour(), test, 16, tmp_path / "pca.png") == {"iou": 1, "agreement": 1, "agreement_chance": 1}
    test.labels = test.parts = None
    assert draw_split(MeanColour(), test, 16, tmp_path / "pca.png") == {}
    assert min(Image.open(tmp_path / "pca.png").size) > 100


@pytest.mark.parametrize("scored", [False, True])
def test_a_class_has_a_row_of_its_own(tmp_path, monkeypatch, scored):
    """Seven classes with one, five and twice-five images: six rows, of at most four images each."""
    rows, labels = [], [0, *[1] * 5, *[2, 3, 4, 5, 6] * 2]
    test = split_of([(9, 99, i) for i in range(len(labels))], labels)
    test.parts = torch.ones(len(labels), 8, 8, dtype=torch.uint8) if scored else None
    monkeypatch.setattr(pca_viz, "draw_panels", lambda given, path: rows.extend(given) or draw_panels(given, path))
    draw_split(MeanColour(), test, 8, tmp_path / "pca.png")
    drawn = [[image[2, 0, 0].item() for image in row[::2]] for row in rows]
    assert drawn == [[0], [1, 2, 3, 4], [6, 11], [7, 12], [8, 13], [10, 15]]
    assert all(colours.shape == (4, 4, 3) for row in rows for colours in row[1::2])


def test_a_line_connects_the_middles_of_patches(tmp_path):
    """Two black images of 9×9 pixels, with patches of 3×3.  Patch 3 of the first is in the middle of the left edge,
    patch 8 of the second in its lower right corner: red from 1/2 to 5/6 of the height, from 1/6 of the first width."""
    images = [torch.zeros(3, 9, 9, dtype=torch.uint8)] * 2
    draw_matches(images, [(3, 3)] * 2, torch.tensor([[3, 8]]), tmp_path / "a.png")
    picture = matplotlib.image.imread(tmp_path / "a.png")[..., :3]
    rows, columns = np.nonzero(abs(picture - [1, 0, 0]).max(-1) < 0.5)
    ys, xs = np.nonzero(picture.max(-1) < 0.1)
    height = np.ptp(ys)
    assert (np.array([rows.min(), rows.max()]) - ys.min()) / height == pytest.approx([1 / 2, 5 / 6], abs=0.02)
    assert (columns.min() - xs.min()) / height == pytest.approx(1 / 6, abs=0.02)
    assert (xs.max() - columns.max()) / height == pytest.approx(1 / 6, abs=0.02)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The working folder, with weights and four images, one of them wide and one broken."""
    torch.manual_seed(0)
    torch.save(vit_nano(patch_size=4, img_size=16, layer_scale=1.0).state_dict(), tmp_path / "vit.pt")
    generator = np.random.default_rng(0)
    for name, shape in {"a": (20, 20, 3), "b": (16, 40, 3), "c": (30, 30, 3)}.items():
        Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    monkeypatch.chdir(tmp_path)
    return tmp_path


COMMON = ["--weights", "vit.pt", "--device", "cpu", "--out", "out.png"]  # the size is the network's, 16 pixels


@pytest.mark.parametrize("flags, words", [
    ("a.png b.png c.png ./a.png ./b.png broken.png", "5 images, "),
    ("a.png --threshold 1", "1 images, 0% of the patches in the foreground"),
    ("b.png", "1 images, 44%"), ("b.png --invert", "1 images, 56%"), ("b.png --keep-aspect", "1 images, "),
    ("a.png b.png --attention --keep-aspect", "2 images, the mean of 3 heads of the last block, and each head"),
    ("--matches a.png ./a.png --threshold 0", "2 images, 94% of the patches in the foreground, 15 mutual matches, "),
    (".", "3 images, "),
])  # fmt: skip
def test_the_program_draws(place, capsys, flags, words, monkeypatch):
    """It reads no more images than it draws."""
    monkeypatch.setattr(pca_viz, "MOST", 5)
    assert main([*COMMON, *flags.split()]) == 0
    out, err = capsys.readouterr()
    last = out.splitlines()[-1]
    assert last.startswith(words) and last.endswith(": out.png")
    assert ("only the first 5 of 6 images, up to ./b.png; " in err) == words.startswith("5")
    assert ("broken.png: not an image of a format that is read here" in err) == flags.startswith(".")
    height, width, _ = matplotlib.image.imread("out.png").shape
    assert min(height, width) > 100 and (not words.startswith("5") or height > width / 5)  # two rows


@pytest.mark.parametrize("flags, words", [
    ("", "the following arguments are required: IMAGE"),
    ("--attention --matches a.png c.png", "--matches: not allowed with argument --attention"),
    ("--matches a.png broken.png", "two images"),
    ("a.png --weights overflow.pt", "the network diverged"),
    ("a.png --out no/such/folder.png", "there is no folder no/such"),
    ("b.png a.png --out ./a.png", "--out a.png would replace one of the images"),
])  # fmt: skip
def test_bad_input_is_one_line(place, capsys, flags, words):
    if "overflow" in flags:
        torch.save({**torch.load("vit.pt"), "norm.weight": torch.full((192,), 3e38)}, "overflow.pt")
    assert main([*COMMON, *flags.split()]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "pca_viz" in line or "Traceback" in line]
    assert len(lines) == 1 and words in lines[0] and lines[0].startswith("pca_viz.py: error: ")
    assert not list(place.glob("out.png"))
