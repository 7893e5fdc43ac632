"""Block-wise masks for the patch-level objective (iBOT, Zhou et al. 2022; BEiT, Bao et al. 2021).

Half of the global views are masked, each with rectangles until a share of 10 to 50 % of its patches is covered.

    s ~ U(min(4, m), m)              area in patches; m: patches that are still to cover
    log r ~ U(log 0.3, log 1/0.3)    aspect
    h = √(s·r),  w = √(s/r)          height and width
    (x, y) ~ uniform                 also across the edge, so that every patch is covered about equally often

A rectangle that covers more than m new patches is rejected.  After 24 rectangles (ROUNDS) random patches fill the rest.
The range `ratio` is cut into equal parts (strata), one for each masked view, whose share is the middle of its part.  So
the number of masked patches M depends on the arguments only, and no tensor in a step ever changes its shape.

The official M varies: each share is drawn within its stratum, and on 16×16 patches 8 % of the masks cover less than
their share.  The official rectangles stay inside, so corners are masked 4 % of the time and the centre 52 %.
"""

import math

import torch

MIN_AREA = 4  # patches, BEiT
ASPECT = (0.3, 1 / 0.3)  # BEiT
ROUNDS = 24  # ours: then 1 mask in 500 still covers less than its share


def sample_masks(n_images, height, width, ratio=(0.1, 0.5), probability=0.5, generator=None):
    """(n_images, height·width) bool on the CPU, True where masked; int(n_images·probability) views are masked."""
    low, high = ratio
    n = int(n_images * probability)
    shares = low + (high - low) * (torch.arange(n) + 0.5) / max(n, 1)  # (n,)
    counts = (shares * height * width).round().long()  # (n,)

    blocks = torch.zeros(n, height, width, dtype=torch.bool)
    for _ in range(ROUNDS):
        missing = counts - blocks.sum(dim=(1, 2))  # (n,)
        rectangle = random_rectangles(missing, height, width, generator)  # (n, height, width)
        new = (rectangle & ~blocks).sum(dim=(1, 2))  # (n,)
        blocks |= rectangle & (new <= missing)[:, None, None]

    # put the patches of each view in order, those of rectangles first, the others at random; mask the first `counts`
    order = torch.rand(n, height * width, generator=generator) - 2.0 * blocks.flatten(1)  # (n, N)
    masked = order.argsort(dim=1).argsort(dim=1) < counts[:, None]  # (n, N)

    masks = torch.zeros(n_images, height * width, dtype=torch.bool)
    masks[torch.randperm(n_images, generator=generator)[:n]] = masked
    return masks


def random_rectangles(missing, height, width, generator):
    """One rectangle for each view, of at most about `missing` (n,) patches: (n, height, width) bool."""
    u_area, u_aspect, u_top, u_left = torch.rand(4, len(missing), generator=generator)
    smallest = missing.clamp(max=MIN_AREA)
    s = smallest + u_area * (missing - smallest)
    low, high = map(math.log, ASPECT)
    r = (low + u_aspect * (high - low)).exp()
    h = (s * r).sqrt().round().clamp(1, height)[:, None]  # (n, 1)
    w = (s / r).sqrt().round().clamp(1, width)[:, None]  # (n, 1)
    top = (u_top[:, None] * (height + h - 1)).floor() - h + 1  # (n, 1)  from 1 − h to height − 1
    left = (u_left[:, None] * (width + w - 1)).floor() - w + 1  # (n, 1)
    y, x = torch.arange(height), torch.arange(width)
    in_rows = (y >= top) & (y < top + h)  # (n, height)
    in_columns = (x >= left) & (x < left + w)  # (n, width)
    return in_rows[:, :, None] & in_columns[:, None, :]
