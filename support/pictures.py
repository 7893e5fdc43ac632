"""The bytes of an image file, in any format and mode that Pillow reads -> one upright RGB square of 8 bits.

No format that runs a program is opened, and nothing is decoded larger than it is needed.

Deep pictures, of 16 or 32 bits or of floats, have values rather than tones.  A scale (low, high) makes tones of them; a
set has one for all its pictures (`survey`), so that a tone means the same in two of them.
"""

import contextlib
import io
import logging
import math

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

ALPHA_BACKGROUND = (128, 128, 128)  # grey: on white a white drawing vanishes, on black a black one
MAX_MEGAPIXELS = 178  # above which Pillow suspects that a small file shall fill the memory
logging.getLogger("PIL").addHandler(logging.NullHandler())  # what is wrong with a file is said once, by us
Image.MAX_IMAGE_PIXELS = None  # Pillow's own guard looks before a JPEG is asked for at a fraction; ours after
USUAL_BITS = (8, 10, 12, 14, 16)  # of cameras, scanners and microscopes
NODATA = (-9999.0, -32768.0, float(np.finfo(np.float32).min))  # of maps and heights: no value, if the least one

# Formats that are not pictures to Pillow (it can only hand them to other software), and EPS, which it
# would open by running Ghostscript, a program interpreter, on whatever the file holds.
NOT_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
Image.init()
FORMATS = [name for name in ["JPEG", "PNG", *Image.ID] if name not in NOT_PICTURES]  # tried in this order
EXTENSIONS = {end for end, name in Image.registered_extensions().items() if name in FORMATS}
EXTENSIONS |= {".heic", ".heif", ".avif", ".jxl"}  # not to be passed over in silence by a Pillow without them


def reason_of(error):
    """An exception as a few words on one line, the same in each run."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image in a format that Pillow reads"
    return " ".join(str(error).split()) or type(error).__name__


TIFF = (b"II*\0", b"MM\0*")  # how such a file begins
PHOTOMETRIC, SAMPLES, EXTRA = 262, 277, 338  # tags of a TIFF: what its channels are, how many, what those besides are
GDAL_NODATA = 42113  # tag of a TIFF: the value that is none

TURNS = {orientation: Image.Transpose[name] for orientation, name in enumerate(
    "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE ROTATE_90".split(), start=2)}


def decode(raw, size, place, scale=None, max_megapixels=MAX_MEGAPIXELS):
    """The bytes of an image file -> (3, size, size) uint8; place in [0, 1], the window's on the long side."""
    return resize(picture(raw, size, scale, max_megapixels), size, place)


def picture(raw, size, scale=None, max_megapixels=MAX_MEGAPIXELS):
    """The bytes of an image file -> upright RGB image, whole; a JPEG may be smaller than stored, but ≥ 2·size.

    scale: values of a deep picture that become 0 and 255; None: those that this picture alone suggests.
    """
    image = opened(raw)
    short = min(image.size)
    image.draft(None, [2 * size * side // short for side in image.size])  # JPEG: at ½, ¼ or ⅛, still ≥ 2·size
    if image.width * image.height > max_megapixels * 1e6:
        megapixels = math.ceil(image.width * image.height / 1e6)
        raise ValueError(f"{megapixels} megapixels, and the limit is {max_megapixels}; --max_megapixels raises it")
    image.load()
    turn = TURNS.get(image.getexif().get(0x0112))  # EXIF orientation; after load, where a TIFF turns itself
    image = to_rgb(image, scale)
    return image if turn is None else image.transpose(turn)


def opened(raw):
    """The bytes of an image file -> Pillow's image, of which nothing is decoded yet."""
    if not raw:
        raise ValueError("empty file")
    try:
        image = Image.open(io.BytesIO(raw), formats=FORMATS)
    except UnidentifiedImageError:
        if raw[:4] in TIFF:
            raise ValueError("a TIFF that Pillow does not read, as those of more than five channels") from None
        raise
    if image.format == "TIFF":
        check_channels(image.tag_v2)
    return image


def check_channels(tags):
    """ValueError where a TIFF has more channels than colours and a declared alpha: near-infrared is neither."""
    colours = {2: 3, 5: 4, 6: 3, 8: 3}.get(tags.get(PHOTOMETRIC), 1)  # RGB, CMYK, YCbCr, Lab; grey or a palette
    channels, alpha = tags.get(SAMPLES, 1), sum(kind in (1, 2) for kind in tags.get(EXTRA, ()))
    if channels > colours + alpha:
        raise ValueError(f"{channels} channels, of which {colours} are colours; write the three to be seen as RGB")


def to_rgb(image, scale=None):
    """Any mode of Pillow's -> RGB. Transparent parts, and those without a value, show grey."""
    if is_deep(image):
        x = deep_values(image)
        low, high = scale or usual_scale(x[~np.isnan(x)])
        x = np.nan_to_num((x - low) / (high - low) * 255, nan=ALPHA_BACKGROUND[0])
        return Image.fromarray(np.rint(x.clip(0, 255)).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, ALPHA_BACKGROUND), image).convert("RGB")
    return image.convert("RGB")


def is_deep(image):
    """Whether a picture has values of more than 8 bits, which Pillow's `convert` would clip to white."""
    return image.mode[0] in "IF"


def deep_values(image):
    """The values of a deep picture: (H, W) float64, NaN where there is none."""
    x = np.asarray(image).astype(np.float64)
    x[np.isinf(x)] = np.nan
    declared = image.tag_v2.get(GDAL_NODATA, "") if image.format == "TIFF" else ""
    with contextlib.suppress(ValueError):
        x[x == float(declared)] = np.nan
    if not np.isnan(x).all() and np.nanmin(x) in NODATA:
        x[x == np.nanmin(x)] = np.nan
    return x


def usual_scale(x):
    """Values (P,) of deep pictures -> (low, high): the range of the fewest usual bits that holds them.

    0 to 1 stays so; negative ones, fractions and larger ones have no usual range: all but 0.1 % at either end.
    """
    low, high = (x.min(), x.max()) if len(x) else (0, 1)
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    bits = next((b for b in USUAL_BITS if high < 2**b), None)
    if low >= 0 and bits and (x == np.rint(x)).all():
        return 0.0, 2.0**bits - 1
    low, high = np.percentile(x, (0.1, 99.9))
    return float(low), float(high) if high > low else float(low) + 1


def resize(image, size, place):
    """RGB image -> (3, size, size) uint8: the window is cut and scaled at once, however long the image."""
    width, height = image.size
    short = min(width, height)
    left, top = place * (width - short), place * (height - short)
    square = image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + short, top + short))
    return np.asarray(square).transpose(2, 0, 1)  # (3, S, S)


def resized(image, size, patch, keep_aspect):
    """RGB image -> (3, H, W) uint8, its short side `size` and its long side as much or, kept, a multiple of patch."""
    short = min(image.size)
    width, height = (whole_patches(side * size / short, patch) if keep_aspect else size for side in image.size)
    factor = min(image.width / width, image.height / height)  # the box has the shape of the result
    left, top = (image.width - factor * width) / 2, (image.height - factor * height) / 2
    box = (left, top, left + factor * width, top + factor * height)
    square = np.array(image.resize((width, height), Image.Resampling.BICUBIC, box=box))
    return torch.from_numpy(square.transpose(2, 0, 1).copy())


def whole_patches(size, patch_size):
    """The multiple of patch_size that is nearest to size, at least one patch."""
    return max(1, round(size / patch_size)) * patch_size
