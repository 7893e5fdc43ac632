"""Multi-crop augmentation (B.1, which refers to DINO, Caron et al. 2021, and through it to BYOL, appendix B).

Each image gives 2 global and L local random views.  Each view gets these changes, in this order, with its own random
numbers (X has values in [0, 1]):

    crop      X = W_y · image · W_xᵀ        a random box, resized by antialiased bicubic; a flip reverses W_x
    jitter    X ← cut(s·X + (1 − s)·ref)    s random; ref = 0: brightness; mean grey: contrast; grey: saturation;
                                            and the hue; cut to [0, 1]; the four in random order
    grey      X ← grey(X)
    blur      X ← K_y · X · K_xᵀ            Gaussian, mirrored at the edges
    solarise  X ← min(X, 1 − X)             the second global view only
    output    (X − mean) / std

    images    (B, 3, S, S)    uint8, or float in [0, 1]
    W_y, W_x  (g, S)          weights of the crop, zero outside of the box; l for g in local views
    K_y, K_x  (g, g)          weights of the Gaussian
    globals   (2·B, 3, g, g)  view-major: view 0 of every image, then view 1 of every image
    locals    (L·B, 3, l, l)  view-major

The whole batch is computed at once, on the device of the images.  Rows of W and K are mostly zero, so we store their
"taps": T row numbers and T weights.  The product is then a weighted sum of T rows, which is `embedding_bag`.
All random numbers are drawn on the CPU, a few per view, so that nothing waits for a GPU.

The reference code augments one image at a time in CPU workers, rounds to 8 bit after every change, and passes 1 − p
to a blur that takes p: its first global view is never blurred, its second 9 times in 10.  Ours follows DINO.
"""

import math
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
from einops import rearrange, repeat

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet
GREY = (0.299, 0.587, 0.114)  # ITU-R 601, as in PIL
ASPECT, TRIES = (3 / 4, 4 / 3), 10  # torchvision's RandomResizedCrop
CHANCES = (  # DINO: of a flip, jitter, grey, blur, solarisation
    (0.5, 0.8, 0.2, 1.0, 0.0),  # of the first global view
    (0.5, 0.8, 0.2, 0.1, 0.2),  # of the second
    (0.5, 0.8, 0.2, 0.5, 0.0),  # of a local view
)
STRENGTH = (0.4, 0.4, 0.2, 0.1)  # DINO: of brightness, contrast, saturation, hue


def move(x, device):
    """x on the device; to a GPU through pinned memory, so that the CPU does not wait for the copy."""
    pinned = x.device.type == "cpu" and device.type == "cuda"
    return x.pin_memory().to(device, non_blocking=True) if pinned else x.to(device)


# ---------------------------------------------------------------------------- products with sparse matrices


def weighted_rows(x, source, rows, weights):
    """Images (m, 3, H, W), the image that each sample reads (n,), taps (n, h, T) -> products (n, 3, h, W)."""
    channel = 3 * source[:, None] + torch.arange(3, device=x.device)  # (n, 3)
    rows = rows[:, None] + (x.shape[2] * channel)[:, :, None, None]  # (n, 3, h, T), rows of all images end to end
    weights = repeat(weights, "n h t -> (n c h) t", c=3)
    out = F.embedding_bag(rows.flatten(0, 2), x.flatten(0, 2), mode="sum", per_sample_weights=weights)
    return rearrange(out, "(n c h) w -> n c h w", c=3, n=len(source))


def bicubic_taps(length, longest, flip, out_size):
    """Taps (n, out_size, T) of Pillow's bicubic filter: rows, counted from the start of the box, and weights.

    length (n,): side of each box; longest: the largest, as a number; flip (n,) bool.  When the image shrinks, Pillow
    widens the cubic by the scale; it cuts the cubic at the edge of the box, and normalises the weights.
    """
    n_taps = math.ceil(4 * max(1.0, longest / out_size)) + 1
    length, flip = length.float()[:, None], flip[:, None]  # (n, 1)
    scale = length / out_size
    grid = scale.clamp(min=1)  # the cubic reaches 2·grid pixels to each side
    i = torch.arange(out_size, device=length.device)
    centre = (torch.where(flip, out_size - 1 - i, i) + 0.5) * scale  # (n, out_size)
    first = (centre - 2 * grid + 0.5).floor().clamp(min=0)
    rows = first[:, :, None] + torch.arange(n_taps, device=length.device)  # (n, out_size, T)
    x = ((rows + 0.5 - centre[:, :, None]) / grid[:, :, None]).abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((2.5 - 0.5 * x) * x - 4) * x + 2  # Keys 1981, a = −1/2
    weights = torch.where(x < 1, near, far) * ((x < 2) & (rows < length[:, :, None]))
    return torch.minimum(rows, length[:, :, None] - 1).long(), weights / weights.sum(2, keepdim=True)


def gaussian_taps(sigma, radius, size):
    """Taps (n, size, 2·radius + 1) for sigmas in pixels (n,): rows and weights.  Mirrors without the edge pixel."""
    t = torch.arange(-radius, radius + 1, device=sigma.device)
    rows = (torch.arange(size, device=sigma.device)[:, None] + t).abs()
    rows = size - 1 - (size - 1 - rows).abs()  # (size, T)
    sigma = sigma[:, None].clamp(min=1e-3)  # 0 is no blur
    weights = torch.softmax(-t.square() / (2 * sigma.square()), 1)  # (n, T)
    return repeat(rows, "h t -> n h t", n=len(sigma)), repeat(weights, "n t -> n h t", h=size)


# ---------------------------------------------------------------------------- changes of x (n, 3, h, w) in [0, 1]


def blur(x, sigma, radius):
    """Gaussian blur; sigmas in pixels (n,)."""
    each, taps = torch.arange(len(x), device=x.device), gaussian_taps(sigma, radius, x.shape[2])
    for _ in range(2):  # rows, then columns: the sides swap twice
        x = weighted_rows(x, each, *taps).mT.contiguous()
    return x


def grey(x):
    """Luma of each pixel: (n, 1, h, w)."""
    return (GREY[0] * x[:, :1]).add(x[:, 1:2], alpha=GREY[1]).add(x[:, 2:], alpha=GREY[2])


def brightness(x, s):
    """s · x, cut to [0, 1].  Strengths s (n, 1, 1, 1), here and below."""
    return (s * x).clamp(max=1)


def contrast(x, s):
    """s · x + (1 − s) · mean luma of the image, cut to [0, 1]."""
    mean = grey(x.mean((2, 3), keepdim=True))  # (n, 1, 1, 1)
    return (s * x + (1 - s) * mean).clamp(0, 1)


def saturation(x, s):
    """s · x + (1 − s) · luma of the pixel, cut to [0, 1]."""
    return x.lerp(grey(x), 1 - s).clamp(0, 1)


def hue(x, turn):
    """Add `turn` (n, 1, 1, 1), at most a sixth of the circle either way, to the hue of HSV; saturation and value stay.

    Along the circle each channel is a trapezoid between the pixel's minimum m and maximum v: it rises for one
    sixth of a turn, stays at v for two sixths, falls for one, stays at m for two.  Let C = v − m and k = 6·C·|turn|.
    On the way red → green → blue, the channel X, with P before it and N after it, becomes the smaller of
        2·X − mid + k        mid: the middle channel; on its rising side that is X: X + k
        X + P − N + C − k    on its falling side P = m and N = v: X − k
    cut to [m, v].  This needs no case for each colour and no division.  The other way round, P and N change places.
    """
    v, m, total = x.amax(1, keepdim=True), x.amin(1, keepdim=True), x.sum(1, keepdim=True)  # (n, 1, h, w)
    k = (v - m) * (6 * turn.abs())
    after = torch.where(turn < 0, x.roll(1, dims=1), x.roll(-1, dims=1))  # P, or N
    rising = k - total + v + m + 2 * x  # mid = total − v − m
    falling = total + v - m - k - 2 * after  # X + P = total − N
    return torch.minimum(rising, falling).clamp(m, v)


def normalize(images, check=True):
    """(..., 3, H, W) uint8, or float in [0, 1] -> float32 with ImageNet's mean and deviation taken out."""
    if not isinstance(images, torch.Tensor):
        raise TypeError(f"normalize needs a tensor (..., 3, H, W), not {type(images).__name__}; convert RGB images "
                        "with torch.from_numpy(numpy.array(image)).permute(2, 0, 1)")  # fmt: skip
    whole = images.dtype == torch.uint8
    if check and not whole and not (images.is_floating_point() and images.min() >= 0 and images.max() <= 1):
        raise ValueError("normalize needs uint8 from 0 to 255, or floats from 0 to 1: divide by 255, or clamp")
    mean, std = move(torch.tensor((MEAN, STD)), images.device)[:, :, None, None]  # (3, 1, 1)
    x = images.float() / 255 if whole else images.float()
    return (x - mean) / std


def change_some(x, change, chosen, *parameters):
    """x (n, ...) with a change of the samples that are chosen, (n,) bool on the CPU; in place."""
    i = move(chosen.nonzero()[:, 0], x.device)
    if len(i):
        x.index_copy_(0, i, change(x.index_select(0, i), *(p.index_select(0, i) for p in parameters)))


# ---------------------------------------------------------------------------- the views


class MultiCrop:
    """Two global and `n_local` local views of each image.

    blur_sigma: its range in pixels of the view; small views need less than DINO's.  jitter multiplies the strengths.
    """

    def __init__(self, global_size, local_size, n_local, global_scale=(0.32, 1.0), local_scale=(0.05, 0.32),
                 blur_sigma=(0.1, 2.0), jitter=1.0):  # fmt: skip
        self.radius = math.ceil(2 * blur_sigma[1])  # 9 taps at DINO's largest sigma, as in the reference code
        smallest = min(global_size, local_size) if n_local else global_size
        assert smallest > self.radius, f"a blur of radius {self.radius} needs views larger than {smallest}"
        assert 6 * STRENGTH[3] * jitter <= 1, f"jitter {jitter} is above 1.66, where the hue turns by a sixth"
        self.blur_sigma, self.strength = blur_sigma, jitter * torch.tensor(STRENGTH)
        self.kinds = (
            (global_size, global_scale, torch.tensor(CHANCES[:2])),
            (local_size, local_scale, torch.tensor(CHANCES[2]).expand(n_local, -1)),
        )

    def draw(self, n_images, side, scale, chances, generator):
        """All random numbers for chances (V, 5) and images of `side` pixels: n = V·B rows, on the CPU."""
        n = n_images * len(chances)

        def uniform(low, high, *shape):
            return low + (high - low) * torch.rand(n, *shape, generator=generator, dtype=torch.float64)

        # boxes as in torchvision: the first try that fits, else the whole square, whose aspect is allowed
        area = uniform(*scale, TRIES) * side**2  # (n, TRIES)
        aspect = uniform(math.log(ASPECT[0]), math.log(ASPECT[1]), TRIES).exp()
        tries = torch.stack([area * aspect, area / aspect], 2).sqrt().round()  # (n, TRIES, 2)
        tries = F.pad(tries, (0, 0, 0, 1), value=side)
        first = ((tries >= 1) & (tries <= side)).all(2).int().argmax(1)
        shape = tries[torch.arange(n), first]  # (n, 2), width and height
        strength = uniform(-1, 1, 4).float() * self.strength  # (n, 4)
        return {
            "shape": shape.long(),
            "corner": (uniform(0, 1, 2) * (side - shape + 1)).long(),  # (n, 2), left and top
            "chosen": uniform(0, 1, 5) < chances.repeat_interleave(n_images, 0),  # (n, 5)
            "order": uniform(0, 1, 4).argsort(1),  # (n, 4)
            "strength": torch.cat([(1 + strength[:, :3]).clamp(min=0), strength[:, 3:]], 1),
            "sigma": uniform(*self.blur_sigma).float(),  # (n,)
        }

    def views(self, images, unit, size, scale, chances, generator):
        """Float images (B, 3, S, S), of values up to 1/unit -> n = V·B views (n, 3, size, size), normalised."""
        n, device = len(images) * len(chances), images.device
        if n == 0:
            return images.new_empty(0, 3, size, size)
        p = self.draw(len(images), images.shape[2], scale, chances, generator)
        flip, jitter, to_grey, to_blur, to_solarize = p["chosen"].T  # (n,) each
        widest, highest = p["shape"].amax(0).tolist()
        shape, corner, strength, sigma = (move(p[name], device) for name in ("shape", "corner", "strength", "sigma"))
        each = torch.arange(n, device=device)

        rows, weights = bicubic_taps(shape[:, 0], widest, move(flip, device), size)
        x = weighted_rows(images.mT, each % len(images), rows + corner[:, :1, None], unit * weights)  # (n, 3, size, S)
        x = x.clamp(0, 1).mT.contiguous()  # (n, 3, S, size); Pillow, too, cuts between the two products
        rows, weights = bicubic_taps(shape[:, 1], highest, torch.zeros_like(each, dtype=torch.bool), size)
        x = weighted_rows(x, each, rows + corner[:, 1:, None], weights).clamp(0, 1)  # (n, 3, size, size)
        for turn, i in product(range(4), range(4)):  # each view's first change, then its second, ...
            change = (brightness, contrast, saturation, hue)[i]
            change_some(x, change, jitter & (p["order"][:, turn] == i), strength[:, i, None, None, None])
        change_some(x, lambda x: grey(x).expand_as(x), to_grey)
        change_some(x, partial(blur, radius=self.radius), to_blur, sigma)
        change_some(x, lambda x: torch.minimum(x, 1 - x), to_solarize)
        return normalize(x, check=False)  # the check would make the CPU wait for a GPU

    def __call__(self, images, generator=None):
        """Images -> globals (2·B, 3, g, g), locals (L·B, 3, l, l), normalised.  generator: of the CPU, or a seed."""
        assert images.shape[2] == images.shape[3], f"need squares (B, 3, S, S), got {tuple(images.shape)}"
        if isinstance(generator, int):
            generator = torch.Generator().manual_seed(generator)
        unit = 1 / 255 if images.dtype == torch.uint8 else 1.0
        return tuple(self.views(images.float(), unit, *kind, generator) for kind in self.kinds)
