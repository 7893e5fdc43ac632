"""Every format and mode of picture becomes one upright square of the right tone.

    pytest tests/test_pictures.py
"""

import io

import numpy as np
import pytest
from conftest import tiff
from PIL import Image

from support import images as pictures

GREY = pictures.ALPHA_BACKGROUND[0]


def decoded(image, size=1, place=0.5, format="PNG", scale=None, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return pictures.decode(file.getvalue(), size, place, scale)


def palette_with_transparency():
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    image.info["transparency"] = bytes([255, 0])  # entry 1, which is everywhere, is clear
    return image


ONE_PIXEL = {
    "greyscale": (Image.new("L", (2, 2), 77), "PNG", (77, 77, 77)),
    "black and white": (Image.new("1", (2, 2), 1), "PNG", (255, 255, 255)),
    "palette": (Image.new("RGB", (2, 2), (9, 8, 7)).quantize(2), "GIF", (9, 8, 7)),
    "clear palette entry": (palette_with_transparency(), "PNG", (GREY, GREY, GREY)),
    "clear": (Image.new("RGBA", (2, 2), (255, 0, 0, 0)), "PNG", (GREY, GREY, GREY)),
    "alpha 51/255 = 1/5": (Image.new("RGBA", (2, 2), (255, 0, 0, 51)), "PNG",
                           (round(255 / 5 + GREY * 4 / 5), round(GREY * 4 / 5), round(GREY * 4 / 5))),
    "grey with alpha": (Image.new("LA", (2, 2), (200, 255)), "PNG", (200, 200, 200)),
    "cmyk": (Image.new("CMYK", (2, 2), (255, 0, 255, 0)), "TIFF", (0, 255, 0)),
    "16 bits, white": (Image.fromarray(np.full((2, 2), 65535, np.uint16)), "PNG", (255, 255, 255)),
    "16 bits, 257 a step": (Image.fromarray(np.full((2, 2), 257 * 100, np.uint16)), "PNG", (100, 100, 100)),
    "16 bits, tiff": (Image.fromarray(np.full((2, 2), 257 * 71, np.uint16)), "TIFF", (71, 71, 71)),
    "32 bits, 16 used": (Image.fromarray(np.full((2, 2), 257 * 90, np.int32)), "TIFF", (90, 90, 90)),
    "float in [0, 1]": (Image.fromarray(np.full((2, 2), 0.2, np.float32)), "TIFF", (51, 51, 51)),
    "float in [0, 255]": (Image.fromarray(np.full((2, 2), 51, np.float32)), "TIFF", (51, 51, 51)),
    "bmp": (Image.new("RGB", (2, 2), (1, 2, 3)), "BMP", (1, 2, 3)),
    "webp": (Image.new("RGB", (2, 2), (255, 255, 255)), "WEBP", (255, 255, 255)),
    "one pixel": (Image.new("RGB", (1, 1), (1, 2, 3)), "PNG", (1, 2, 3)),
}


@pytest.mark.parametrize("kind", ONE_PIXEL)
def test_every_mode_keeps_its_tone(kind):
    """Flat pictures, so that whatever the resizing, the answer is the one colour."""
    image, format, expected = ONE_PIXEL[kind]
    assert decoded(image, size=3, format=format)[:, 1, 1].tolist() == list(expected)


def test_unusual_float_range_is_stretched():
    """No usual scale holds -10..30: -10 is black, 30 white, 0 a quarter of the way (63.75); NaN grey like clear parts.

    0.1 % at either end, of three values the difference of two times 0.002: -9.98 to 29.94.
    """
    x = np.array([[-10, 30], [0, np.nan]], np.float32)
    got = decoded(Image.fromarray(x), size=2, format="TIFF")[0]
    assert got.tolist() == [[0, 255], [64, GREY]]  # (0 + 9.98) / 39.92 · 255 = 63.75


@pytest.mark.parametrize("values, expected", [
    ([0, 1, 0.2], (0, 1)), ([0, 51, 255], (0, 255)), ([0, 3], (0, 255)),
    ([0, 256], (0, 1023)), ([7, 4095], (0, 4095)), ([4096], (0, 16383)), ([20000], (0, 65535)),
    ([], (0, 1)), ([5.5], (5.5, 6.5)),
    (np.arange(1001) * 3.5, (3.5, 3496.5)),  # 0 to 3500 by fractions: all but one of a thousand steps at either end
    (np.arange(1001) - 500, (-499, 499)), (np.arange(1001) * 100, (100, 99900)),
])  # fmt: skip
def test_usual_scales_by_hand(values, expected):
    assert pictures.usual_scale(np.array(values, dtype=np.float64)) == pytest.approx(expected)


def test_a_scale_is_the_same_for_all_pictures():
    """0, 1000, 2000 and 5000 on the scale 0 to 4000: a quarter is 63.75, a half 127.5, and what is above white."""
    x = np.array([[0, 1000], [2000, 5000]], np.uint16)
    assert decoded(Image.fromarray(x), size=2, scale=(0, 4000))[0].tolist() == [[0, 64], [128, 255]]
    assert decoded(Image.fromarray(x[:1]), size=1, scale=(0, 4000), place=1.0)[0].tolist() == [[64]]
    assert decoded(Image.new("L", (1, 1), 9), scale=(0, 4000))[0].tolist() == [[9]]  # 8 bits are tones


@pytest.mark.parametrize("nodata, tag", [(-9999, None), (-32768, None), (-1, "-1"), (7, "7")])
def test_what_is_no_value_is_grey_and_does_not_count(nodata, tag):
    """One of 16: the others are 0 to 4095, of which 12 bits are the usual range."""
    x = np.linspace(0, 4095, 16).round().reshape(4, 4).astype(np.int32)
    x[0, 1] = nodata
    options = {"tiffinfo": {pictures.GDAL_NODATA: tag}} if tag else {}
    got = decoded(Image.fromarray(x), size=4, format="TIFF", **options)[0]
    expected = np.rint(np.linspace(0, 255, 16)).reshape(4, 4)
    expected[0, 1] = GREY
    assert got.tolist() == expected.tolist()


def test_a_large_picture_is_named_with_the_flag_unless_it_is_read_at_a_fraction(monkeypatch):
    """30 × 40 pixels against a limit of 0.001 megapixels; an eighth of a JPEG's sides is 4 × 5."""
    picture = Image.new("RGB", (30, 40), (9, 9, 9))
    monkeypatch.setattr(pictures.decode, "__defaults__", (None, 0.001))
    with pytest.raises(ValueError, match="^1 megapixels, and the limit is 0.001; --max_megapixels raises it$"):
        decoded(picture)
    assert decoded(picture, format="JPEG")[0].tolist() == [[9]]


def test_exif_turn():
    """Orientation 6 means: turn a quarter clockwise to view. Its left pixel (red) comes up on top."""
    image = Image.new("RGB", (2, 1), (0, 0, 255))
    image.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    for format in ("PNG", "TIFF"):  # Pillow turns a TIFF by itself: not to be turned twice
        top = decoded(image, place=0, format=format, exif=exif)
        bottom = decoded(image, place=1, format=format, exif=exif)
        assert top[:, 0, 0].tolist() == [255, 0, 0] and bottom[:, 0, 0].tolist() == [0, 0, 255], format


@pytest.mark.parametrize("orientation, expected", [
    (1, [[0, 85], [170, 255]]), (2, [[85, 0], [255, 170]]), (3, [[255, 170], [85, 0]]),
    (4, [[170, 255], [0, 85]]), (5, [[0, 170], [85, 255]]), (6, [[170, 0], [255, 85]]),
    (7, [[255, 85], [170, 0]]), (8, [[85, 255], [0, 170]])])
def test_all_eight_exif_orientations(orientation, expected):
    """A square of four greys, worked out from the EXIF standard: 5 transposes, 6 and 8 turn, 7 does both."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.array([[0, 85], [170, 255]], np.uint8))
    assert decoded(image, size=2, exif=exif)[0].tolist() == expected


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (2, 2), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    first = decoded(frames[0], format="GIF", save_all=True, append_images=frames[1:])
    assert first[:, 0, 0].tolist() == [255, 0, 0]


def test_window_along_the_long_side():
    """4×2, left half black and right half white: the left, the middle and the right 2×2 window."""
    image = Image.fromarray(np.array([[0, 0, 255, 255]] * 2, np.uint8))
    left, middle, right = (decoded(image, size=2, place=p)[0, 0].tolist() for p in (0, 0.5, 1))
    assert (left, middle, right) == ([0, 0], [0, 255], [255, 255])
    upright = image.transpose(Image.Transpose.ROTATE_90)
    assert decoded(upright, size=2, place=0)[0, :, 0].tolist() == [255, 255]


def test_very_long_picture_needs_no_memory():
    """40000×1 enlarged to a short side of 64 would be 40000·64 × 64 pixels; only the window is made."""
    assert decoded(Image.new("RGB", (40000, 1), (5, 6, 7)), size=64)[:, 9, 9].tolist() == [5, 6, 7]


def test_draft_of_a_large_jpeg_changes_little(monkeypatch):
    """A smooth 256² picture at 32²: decoding at a quarter moves no value by more than 3 of 255."""
    ramp = np.linspace(0, 255, 256)
    image = Image.fromarray(np.stack(np.broadcast_arrays(ramp, ramp[:, None], 128), axis=-1).astype(np.uint8))
    sizes = []
    resize = pictures.resize
    monkeypatch.setattr(pictures, "resize", lambda image, *rest: sizes.append(image.size) or resize(image, *rest))
    fast = decoded(image, size=32, format="JPEG", quality=95)
    slow = resize(image, 32, 0.5)
    assert sizes == [(64, 64)]  # the least that is no less than 2·32
    assert np.abs(fast.astype(int) - slow).max() <= 3


READ = [(1, 1, None), (3, 2, None), (4, 2, [2]), (2, 1, [2]), (4, 5, None)]  # grey, RGB, both with alpha, CMYK


@pytest.mark.parametrize("channels, photometric, extra", READ)
def test_channels_that_are_colours_or_a_declared_alpha_are_read(channels, photometric, extra):
    assert pictures.picture(tiff(channels, photometric, extra), 2).size == (2, 2)


@pytest.mark.parametrize("channels, extra", [(4, [0]), (4, None), (5, [0, 0]), (5, [2, 0]), (8, [0] * 5)])
def test_other_channels_are_not_dropped_without_a_word(channels, extra):
    """Near-infrared is no alpha, and what is left of eight channels no picture."""
    with pytest.raises(ValueError, match=f"^{channels} channels, of which 3 are colours|^a TIFF that Pillow") as error:
        pictures.picture(tiff(channels, 2, extra), 2)
    assert "\n" not in pictures.reason_of(error.value)
