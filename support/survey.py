"""What must be known of a set before its first picture is decoded: seen in some of its files.

A tone shall mean the same in all pictures of a set, so the range of deep ones cannot be each picture's own.
"""

import numpy as np

from support.pictures import EXTENSIONS, MAX_MEGAPIXELS, deep_values, is_deep, opened, usual_scale

LOOKED_AT = 64  # ours: files; a set of 8 bits costs their headers
VALUES = 2**16  # ours: of each of them
SHALLOW = {".jpg", ".jpeg", ".jfif", ".jpe", ".webp", ".gif", ".bmp", ".avif", ".heic", ".heif"}  # 8 bits to Pillow
DEEP = tuple(EXTENSIONS - SHALLOW)


def survey(names, read, scale=None, max_megapixels=MAX_MEGAPIXELS):
    """Names and a function to a file's bytes -> (scale or None, lines to be said).

    scale: (low, high) of deep pictures as asked; otherwise the usual range of what files all over the set hold.
    """
    names = [name for name in names if name.lower().endswith(DEEP)]
    values, paged = [], 0
    some = [names[i] for i in np.linspace(0, len(names) - 1, min(LOOKED_AT, len(names))).astype(int)]
    for name in some:
        try:
            image = opened(read(name))
            paged += image.format == "TIFF" and image.n_frames > 1
            if is_deep(image) and image.width * image.height <= max_megapixels * 1e6:
                x = deep_values(image).ravel()
                x = x[~np.isnan(x)]
                if len(x) > VALUES:  # the ends are exact, for bits; what lies between, for percentiles, a sample
                    x = np.concatenate([[x.min(), x.max()], x[:: len(x) // VALUES]])
                values.append(x)
        except Exception:  # Pillow raises every kind on a broken file, which is named when it is read
            continue
    notes = [f"{paged} of {len(some)} files looked at have several pages, of which the first is read"] if paged else []
    if values:
        scale = scale or usual_scale(np.concatenate(values))
        notes += [f"deep pictures, their values {scale[0]:g} to {scale[1]:g} shown as 0 to 255 (--scale LOW HIGH)"]
    return scale, notes
