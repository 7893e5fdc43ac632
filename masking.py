"""Block-wise masks for the patch-level objective (iBOT, Zhou et al. 2022; BEiT, Bao et al. 2021).

Half of the global views are masked, each by rectangles until a share of 10 to 50 % of its patches is covered.  They are
drawn from all views alike, so of an image both, one or none may be masked; below an "image" is a view.

    s ~ U(4, what is still to cover)         area, in patches
    log r ~ U(log 0.3, log 1/0.3)            aspect: height h = √(s·r), width w = √(s/r)
    place uniform, over the edge too, so that every patch is covered about equally often

The shares of a batch are the middles of equal strata of `ratio`, so the number of masked patches M depends on
the arguments alone: no shape in a step ever changes.  The official M varies: each share is drawn within its stratum,
and on 16×16 patches 8 % of the masks end short, for all masks together by 0.1 %.  Its rectangles stay inside, so that
corners are masked 4 % of the time against 52 % in the centre.  An even spread has its price: rectangles meet less
often, and a mask of ours has 4.5 connected pieces on average, one of theirs 2.6.
"""

import math

import torch

MIN_AREA = 4  # patches, BEiT
ASPECT = (0.3, 1 / 0.3)  # BEiT
ROUNDS = 24  # rectangles tried for each image, ours; what then lacks, in 1 mask of 500, is filled up patch by patch


def sample_masks(n_images, height, width, ratio=(0.1, 0.5), probability=0.5, generator=None):
    """Masks (n_images, height·width), bool, on the CPU; True is masked.

    int(n_images·probability) images, at random places, are masked.  ratio and probability lie in [0, 1].
    """
    low, high = ratio
    assert 0 <= low <= high <= 1, f"the ratio must be an interval in [0, 1]; got {ratio}"
    assert 0 <= probability <= 1, f"the probability must lie in [0, 1]; got {probability}"
    n = int(n_images * probability)
    shares = low + (high - low) * (torch.arange(n) + 0.5) / max(n, 1)  # (n,)
    counts = (shares * height * width).round().long()  # (n,)

    blocks = torch.zeros(n, height, width, dtype=torch.bool)
    for _ in range(ROUNDS):
        left = counts - blocks.sum(dim=(1, 2))  # (n,)
        rectangle = _random_rectangles(left, height, width, generator)  # (n, height, width)
        new = (rectangle & ~blocks).sum(dim=(1, 2))  # (n,)
        blocks |= rectangle & (new <= left)[:, None, None]

    # masked patches sort first, then random ones: the first `counts` of each image are its mask
    order = torch.rand(n, height * width, generator=generator) - 2.0 * blocks.flatten(1)  # (n, N)
    masked = order.argsort(dim=1).argsort(dim=1) < counts[:, None]  # (n, N)

    masks = torch.zeros(n_images, height * width, dtype=torch.bool)
    masks[torch.randperm(n_images, generator=generator)[:n]] = masked
    return masks


def _random_rectangles(left, height, width, generator):
    """One rectangle for each image, of at most about `left` (n,) patches: (n, height, width) bool."""
    u_area, u_aspect, u_top, u_side = torch.rand(4, len(left), generator=generator)
    smallest = left.clamp(max=MIN_AREA)
    s = smallest + u_area * (left - smallest)
    low, high = map(math.log, ASPECT)
    r = (low + u_aspect * (high - low)).exp()
    h = (s * r).sqrt().round().clamp(1, height)[:, None]  # (n, 1)
    w = (s / r).sqrt().round().clamp(1, width)[:, None]  # (n, 1)
    top = (u_top[:, None] * (height + h - 1)).floor() - h + 1  # (n, 1)  from 1 − h to height − 1
    side = (u_side[:, None] * (width + w - 1)).floor() - w + 1  # (n, 1)
    y, x = torch.arange(height), torch.arange(width)
    in_rows = (y >= top) & (y < top + h)  # (n, height)
    in_columns = (x >= side) & (x < side + w)  # (n, width)
    return in_rows[:, :, None] & in_columns[:, None, :]
