"""
Multi-crop augmentation (DINOv2, B.1, which points to DINO, Caron et al. 2021, and that to BYOL, appendix B):
2 global and L local random views of each image, a whole batch at a time, on the device of the images.

What is computed, for each view of each image on its own, in this order (X has values in [0, 1]):

    crop      X = W_y · image · W_xᵀ        a random box, antialiased bicubic; a flip reverses the rows of W_x
    jitter    X ← cut(s·X + (1 − s)·ref)    ref = 0: brightness; mean grey: contrast; grey: saturation;
                                            and the hue. Cut to [0, 1]; the four in random order
    grey      X ← grey(X)
    blur      X ← K_y · X · K_xᵀ            Gaussian, reflected at the edges
    solarise  X ← min(X, 1 − X)             the second global view only
    output    (X − mean) / std

    images    (B, 3, S, S)    uint8, or float in [0, 1]
    W_y, W_x  (g, S)          weights of the crop, zero outside of the box; l for g in local views
    K_y, K_x  (g, g)          weights of the Gaussian
    globals   (2·B, 3, g, g)  view-major: view 0 of every image, then view 1 of every image
    locals    (L·B, 3, l, l)  view-major

Why it is fast. A row of W or K has a few numbers that are not zero, so we store its "taps": T row numbers and
T weights. The product is then a weighted sum of T rows for each row of the result, and that is
`embedding_bag`. On a CPU, work goes in chunks of the size of a core's L2 cache, on a GPU in chunks of 256 MB.
Everything random is drawn on the CPU, a few numbers for each view, so nothing waits for a GPU.

The reference code takes one image at a time in CPU workers, rounds to 8 bit after every step, and hands 1 − p
to a blur that takes p: its first global view is never blurred, its second 9 times in 10. Ours is
as DINO says.
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
CHUNK, GPU_CHUNK = 2**18, 2**26  # ours: numbers in the views of a chunk; 2¹⁸ floats are 1 MB
WHOLE = 64  # ours: on a CPU, the boxes of squares above this side are cut out first


def move(x, device):
    """x on the device; by way of pinned memory to a GPU, so that the CPU does not wait for the copy."""
    pinned = x.device.type == "cpu" and device.type == "cuda"
    return x.pin_memory().to(device, non_blocking=True) if pinned else x.to(device)


# ------------------------------------------------------------------------------------------------------------
# Products with sparse matrices: crop and blur


def weighted_rows(x, source, rows, weights):
    """Pictures (m, 3, H, W), which one each sample reads (n,), taps (n, h, T) -> products (n, 3, h, W)."""
    channel = 3 * source[:, None] + torch.arange(3, device=x.device)  # (n, 3)
    rows = rows[:, None] + (x.shape[2] * channel)[:, :, None, None]  # (n, 3, h, T), in all pictures
    weights = repeat(weights, "n h t -> (n c h) t", c=3)
    out = F.embedding_bag(rows.flatten(0, 2), x.flatten(0, 2), mode="sum", per_sample_weights=weights)
    return rearrange(out, "(n c h) w -> n c h w", c=3, n=len(source))


def bicubic_taps(length, longest, flip, out_size):
    """Sides of boxes (n,), the longest as a number, flips (n,) -> rows in the box and weights of Pillow's filter,
    (n, out_size, T).

    Pillow widens the cubic by the scale when it shrinks, cuts it at the edge of the box, and renormalises.
    """
    n_taps = math.ceil(4 * max(1.0, longest / out_size)) + 1
    length, flip = length.float()[:, None], flip[:, None]  # (n, 1)
    scale = length / out_size
    grid = scale.clamp(min=1)  # pixels of the coarser grid; the cubic reaches 2 of them to each side
    i = torch.arange(out_size, device=length.device)
    centre = (torch.where(flip, out_size - 1 - i, i) + 0.5) * scale  # (n, out_size)
    first = (centre - 2 * grid + 0.5).floor().clamp(min=0)
    rows = first[:, :, None] + torch.arange(n_taps, device=length.device)  # (n, out_size, T)
    x = ((rows + 0.5 - centre[:, :, None]) / grid[:, :, None]).abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((2.5 - 0.5 * x) * x - 4) * x + 2  # Keys 1981, a = −1/2
    weights = torch.where(x < 1, near, far).mul_((x < 2) & (rows < length[:, :, None]))
    return torch.minimum(rows, length[:, :, None] - 1).long(), weights.div_(weights.sum(2, keepdim=True))


def gaussian_taps(sigma, radius, size):
    """Sigmas in pixels (n,) -> rows, weights, (n, size, 2·radius + 1); the edge pixel is not repeated."""
    t = torch.arange(-radius, radius + 1, device=sigma.device)
    rows = (torch.arange(size, device=sigma.device)[:, None] + t).abs()
    rows = size - 1 - (size - 1 - rows).abs()  # (size, T)
    sigma = sigma[:, None].clamp(min=1e-3)  # 0 is no blur
    weights = torch.softmax(-t.square() / (2 * sigma.square()), 1)  # (n, T)
    return repeat(rows, "h t -> n h t", n=len(sigma)), repeat(weights, "n t -> n h t", h=size)


def blur(x, sigma, radius):
    """(n, 3, h, h), sigmas in pixels (n,) -> the same shape."""
    everyone, taps = torch.arange(len(x), device=x.device), gaussian_taps(sigma, radius, x.shape[2])
    for _ in range(2):  # the sides swap twice
        x = weighted_rows(x, everyone, *taps).mT.contiguous()
    return x


def cut(pictures, image, corner, shape):
    """Pictures (B, 3, S, S), and for each box the picture (n,), corner (n, 2), shape (n, 2) -> (n, 3, W, H)
    float, all as large as the largest box, and the corners (n, 2) of the boxes in them. For the CPU: one copy
    a box."""
    w, h = shape.amax(0).tolist()
    start = torch.minimum(corner, torch.tensor(pictures.shape[2:]) - torch.tensor((w, h)))
    boxes = torch.empty(len(image), 3, w, h)
    for box, i, (x, y) in zip(boxes, image.tolist(), start.tolist(), strict=True):
        box.copy_(pictures[i, :, x : x + w, y : y + h])
    return boxes, corner - start


# ------------------------------------------------------------------------------------------------------------
# Colour, in place: x (n, 3, h, w) in [0, 1], strengths (n, 1, 1, 1)


def grey(x):
    """Luma of (n, 3, h, w) in [0, 1]: (n, 1, h, w)."""
    return (x[:, :1] * GREY[0]).add_(x[:, 1:2], alpha=GREY[1]).add_(x[:, 2:], alpha=GREY[2])  # (n, 1, h, w)


def brightness(x, s):
    """s · x, at most 1; in place.  s (n, 1, 1, 1), here and below."""
    return x.mul_(s).clamp_(max=1)


def contrast(x, s):
    """s · x + (1 − s) · mean luma of the image, within [0, 1]; in place."""
    mean = grey(x.mean((2, 3), keepdim=True))  # (n, 1, 1, 1)
    return x.mul_(s).add_(mean * (1 - s)).clamp_(0, 1)


def saturation(x, s):
    """s · x + (1 − s) · luma of the pixel, within [0, 1]; in place."""
    return x.lerp_(grey(x), 1 - s).clamp_(0, 1)


def hue(x, turn):
    """Adds `turn`, at most a sixth of the circle either way, to the hue of HSV; saturation and value stay.

    Along the circle each channel is a trapezoid between the pixel's minimum m and maximum v: it rises for a
    sixth of a turn, stays at v for two, falls for one, stays at m for two. Let C = v − m and k = 6·C·|turn|.
    On the way red → green → blue, the channel X, with P before it and N after it, becomes the smaller of
        2·X − mid + k        (on its rising side X is the middle one: X + k)
        X + P − N + C − k    (on its falling side P = m and N = v: X − k)
    cut to [m, v]. No branch by colour, no division. For the other way round, P and N change places.
    """
    v, m, total = x.amax(1, keepdim=True), x.amin(1, keepdim=True), x.sum(1, keepdim=True)  # (n, 1, h, w)
    k = (v - m) * (6 * turn.abs())
    after = torch.arange(3, device=x.device) + 1 + (turn[:, :, 0, 0] < 0)  # (n, 3)
    after = after % 3 + 3 * torch.arange(len(x), device=x.device)[:, None]
    after = x.flatten(0, 1).index_select(0, after.flatten()).view_as(x)  # N, or P
    rising = torch.add(k - total + v + m, x, alpha=2)
    falling = torch.sub(total + v - m - k, after, alpha=2)  # X + P = total − N
    return torch.clamp(torch.minimum(rising, falling, out=rising), m, v, out=x)


def solarize(x):
    """What is above one half becomes 1 − x; in place."""
    return torch.minimum(x, 1 - x, out=x)


JITTER = (brightness, contrast, saturation, hue)


def normalize(images):
    """(..., 3, H, W) uint8, or float in [0, 1] -> float32, with ImageNet's mean 0 and deviation 1."""
    mean, std = move(torch.tensor((MEAN, STD)), images.device)[:, :, None, None]  # (3, 1, 1)
    x = images.float()
    return (x - 255 * mean).div_(255 * std) if images.dtype == torch.uint8 else (x - mean).div_(std)


# ------------------------------------------------------------------------------------------------------------
# The views


def on_chosen(op, x, chosen, *parameters):
    """x (n, ...) with op applied to the samples whose flag in the list `chosen` is set."""
    if all(chosen):
        return op(x, *parameters)
    if any(chosen):
        i = move(torch.tensor([i for i, flag in enumerate(chosen) if flag]), x.device)
        x.index_copy_(0, i, op(x.index_select(0, i), *(p.index_select(0, i) for p in parameters)))
    return x


class MultiCrop:
    """Two global and `n_local` local views of each image. A recipe may change `blur_sigma`, in pixels of the
    view, so small views want less, and `jitter`, which multiplies the strengths."""

    def __init__(self, global_size, local_size, n_local, global_scale=(0.32, 1.0), local_scale=(0.05, 0.32),
                 blur_sigma=(0.1, 2.0), jitter=1.0):  # fmt: skip
        self.radius = math.ceil(2 * blur_sigma[1])  # 9 taps at DINO's largest sigma, as in the reference code
        least = min(global_size, local_size) if n_local else global_size
        assert least > self.radius, f"blur of radius {self.radius} needs larger views"
        assert 6 * STRENGTH[3] * jitter <= 1, f"jitter {jitter}: the hue can turn by a sixth, jitter 1.66"
        self.blur_sigma, self.strength = blur_sigma, jitter * torch.tensor(STRENGTH)
        self.kinds = (
            (global_size, global_scale, torch.tensor(CHANCES[:2])),
            (local_size, local_scale, torch.tensor(CHANCES[2]).expand(n_local, -1)),
        )

    def draw(self, n_images, side, scale, chances, generator):
        """All that is random, for chances (V, 5) and images with `side` pixels: n = V·B rows, on the CPU."""
        n = n_images * len(chances)

        def uniform(low, high, *shape):
            return low + (high - low) * torch.rand(n, *shape, generator=generator, dtype=torch.float64)

        # Boxes as in torchvision: the first try that fits, else the whole square, whose aspect is allowed.
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

    def views(self, columns, unit, size, scale, chances, generator):
        """Images transposed, (B, 3, width, height), so that the crop in x gathers rows; values·unit lie in [0, 1]
        -> (V·B, 3, size, size), normalised. In shapes below, c is the number of views in a chunk."""
        n_images, side, device = len(columns), columns.shape[2], columns.device
        out = torch.empty(n_images * len(chances), 3, size, size, device=device)
        if not len(out):
            return out
        p = self.draw(n_images, side, scale, chances, generator)
        place = p["shape"][:, 0].argsort()  # (n,)  so that the boxes of a chunk are about as wide
        p = {name: x[place] for name, x in p.items()}
        to_jitter = p["chosen"][:, 1]  # (n,)
        order = p["order"].masked_fill(~to_jitter[:, None], -1).tolist()  # n lists of 4
        to_grey, to_blur, to_solarize = p["chosen"][:, 2:].T.tolist()  # lists of n
        widest, highest = p["shape"].amax(0).tolist()
        moved = (place, p["corner"], p["shape"], p["strength"], p["sigma"], p["chosen"][:, 0])
        place, corner, shape, strength, sigma, flip = (move(x, device) for x in moved)
        rows_x, weights_x = bicubic_taps(shape[:, 0], widest, flip, size)
        rows_y, weights_y = bicubic_taps(shape[:, 1], highest, torch.zeros_like(flip), size)
        weights_x.mul_(unit)  # the crop brings the pixels to [0, 1]
        whole = device.type != "cpu" or side <= WHOLE
        columns = columns.float() if whole else columns
        everyone = torch.arange(len(out), device=device)

        step = max(1, (CHUNK if device.type == "cpu" else GPU_CHUNK) // (3 * size * size))
        for a in range(0, len(out), step):
            s = slice(a, a + step)
            x, source, start, itself = columns, place[s] % n_images, corner[s], everyone[: len(place[s])]
            if not whole:
                x, start = cut(columns, source, start, shape[s])
                source = itself
            x = weighted_rows(x, source, rows_x[s] + start[:, :1, None], weights_x[s])  # (c, 3, size, H)
            x = x.clamp_(0, 1).mT.contiguous()  # (c, 3, H, size), between the two products, as in Pillow
            x = weighted_rows(x, itself, rows_y[s] + start[:, 1:, None], weights_y[s]).clamp_(0, 1)
            for turn, i in product(range(4), range(4)):  # each sample's first change, then its second, ...
                chosen = [changes[turn] == i for changes in order[s]]
                if any(chosen):  # mostly not, where a chunk is a single view
                    x = on_chosen(JITTER[i], x, chosen, strength[s, i, None, None, None])
            x = on_chosen(lambda x: x.copy_(grey(x)), x, to_grey[s])
            x = on_chosen(partial(blur, radius=self.radius), x, to_blur[s], sigma[s])
            x = on_chosen(solarize, x, to_solarize[s])
            out.index_copy_(0, place[s], normalize(x))
        return out

    def __call__(self, images, generator=None):
        """(B, 3, S, S) uint8, or float in [0, 1] -> (2·B, 3, g, g) and (L·B, 3, l, l), normalised float32,
        view-major; `generator` is a seed, or a generator on the CPU."""
        assert images.shape[2] == images.shape[3], f"need squares (B, 3, S, S), got {tuple(images.shape)}"
        if isinstance(generator, int):
            generator = torch.Generator().manual_seed(generator)
        unit = 1 / 255 if images.dtype == torch.uint8 else 1.0
        columns = images.mT.contiguous()
        return tuple(self.views(columns, unit, *kind, generator) for kind in self.kinds)
