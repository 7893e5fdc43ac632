"""The bytes of an image file, in any format and mode that Pillow reads -> one upright RGB square of 8 bits.

No format that runs a program is opened, and nothing is decoded larger than it is needed.
"""

import io

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

ALPHA_BACKGROUND = (128, 128, 128)  # grey: on white a white drawing vanishes, on black a black one

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

TURNS = {orientation: Image.Transpose[name] for orientation, name in enumerate(
    "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE ROTATE_90".split(), start=2)}


def decode(raw, size, place):
    """The bytes of an image file -> (3, size, size) uint8; place in [0, 1], the window's on the long side."""
    return resize(picture(raw, size), size, place)


def picture(raw, size):
    """The bytes of an image file -> upright RGB image, whole; a JPEG may be smaller than stored, but ≥ 2·size."""
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
    short = min(image.size)
    image.draft(None, [2 * size * side // short for side in image.size])  # JPEG: at ½, ¼ or ⅛, still ≥ 2·size
    image.load()
    turn = TURNS.get(image.getexif().get(0x0112))  # EXIF orientation; after load, where a TIFF turns itself
    image = to_rgb(image)
    return image if turn is None else image.transpose(turn)


def check_channels(tags):
    """ValueError where a TIFF has more channels than colours and a declared alpha: near-infrared is neither."""
    colours = {2: 3, 5: 4, 6: 3, 8: 3}.get(tags.get(PHOTOMETRIC), 1)  # RGB, CMYK, YCbCr, Lab; grey or a palette
    channels, alpha = tags.get(SAMPLES, 1), sum(kind in (1, 2) for kind in tags.get(EXTRA, ()))
    if channels > colours + alpha:
        raise ValueError(f"{channels} channels, of which {colours} are colours; write the three to be seen as RGB")


def to_rgb(image):
    """Any mode of Pillow's -> RGB. Transparent parts show grey; deep pixels keep their tones."""
    if image.mode[0] in "IF":  # 16 and 32 bits and floats, which `convert` would clip to white
        x = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0, neginf=0)
        low, high = x.min(), x.max()
        tops = (1, 255, 65535) if image.mode == "F" else (65535,)
        if low >= 0 and high <= tops[-1]:  # otherwise no usual scale: the picture's own range
            low, high = 0, next(top for top in tops if high <= top)
        x = np.rint((x - low) * (255 / max(high - low, 1e-9)))
        return Image.fromarray(x.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, ALPHA_BACKGROUND), image).convert("RGB")
    return image.convert("RGB")


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
