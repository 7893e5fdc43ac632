"""The picture of DINOv2: two PCAs of the patch features, shown as colours. (DINOv2, Fig. 1 and Fig. 9, §7.5)

    s = scale((X − μ) v₁)                    scale(a) = (a − min a) / (max a − min a), column by column
    F = {rows of X with s > θ}
    rgb = scale((F − μ_F) [u₁ u₂ u₃])

    X     (I·N, D)  patch features of all images together: the same part has the same colour in each
    μ     (D,)      mean of X, as μ_F is that of F
    v₁    (D,)      first principal component of X: its covariance's eigenvector of largest eigenvalue
    s     (I·N,)    how far along it each patch lies, from 0 to 1
    θ     ()        threshold
    F     (P, D)    the P patches in the foreground; the rest is black
    u_j   (D,)      j-th principal component of F, for red, green and blue

The official repository has no code for these pictures. The sign of an eigenvector is arbitrary, so `s > θ`
picks the object in one run and the background in the next: `foreground_mask` says how we choose the side. All
arithmetic is in float64 on the CPU, and the signs of the colours are fixed too, so each run draws the same
picture.
"""

import math
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from matplotlib.figure import Figure

FLAT = 1e-6  # ours: a component with less spread than this share of the largest feature is float32 rounding
PAIRS_PER_ROW = 4  # ours: image and colours side by side, four times in a row

# --------------------------------------------------------------------------------------------------------
# The two PCAs


def pca_rgb(patch_tokens, threshold=0.5, grid=None, invert=False):
    """Colours of the patches by two PCAs, over all images together.

    patch_tokens: (I, N, D), N = h·w in row order. threshold: in [0, 1), higher keeps less. grid: (h, w),
    needed only where h ≠ w. invert: take the other side of the first component as the foreground. Returns rgb
    (I, N, 3) float32 in [0, 1], 0 in the background, and foreground (I, N) bool, on the tokens' device.
    Nothing to see is never NaN: tokens that are all equal have no foreground, and a colour that does not vary
    over the foreground (fewer than 3 dimensions, or than 4 patches) is 0.5.
    """
    images, n, d = patch_tokens.shape
    h, w = grid or (math.isqrt(n), math.isqrt(n))
    assert images * n * d > 0, f"pca_rgb needs at least one number, got tokens of shape {(images, n, d)}"
    assert h * w == n, f"{n} patches do not fill a grid of {h}×{w}; give grid=(h, w) with h·w = {n}"
    assert 0 <= threshold < 1, f"threshold must be in [0, 1), got {threshold}"
    x = rearrange(patch_tokens.detach().cpu().double(), "i n d -> (i n) d")  # (I·N, D)
    assert x.isfinite().all(), "patch_tokens hold NaN or infinite values: the network has diverged"
    rgb = torch.zeros(images * n, 3)  # (I·N, 3)
    first = scaled_components(x, 1)[:, 0]  # (I·N,)
    foreground = foreground_mask(rearrange(first, "(i n) -> i n", n=n), threshold, (h, w), invert)  # (I, N)
    inside = foreground.flatten()  # (I·N,)
    if inside.any():
        colours = scaled_components(x[inside], 3)  # (P, 3)
        rgb[inside] = torch.where(colours.isnan(), 0.5, colours).float()
    rgb = rearrange(rgb, "(i n) c -> i n c", n=n)  # (I, N, 3)
    return rgb.to(patch_tokens.device), foreground.to(patch_tokens.device)


def scaled_components(x, k):
    """The first k principal components of the rows of x, each from 0 to 1: (n, D) -> (n, k) float64.

    A component without variance, or beyond the D-th, is NaN: it has no minimum and maximum to scale by. Each
    eigenvector is signed so that its entry of largest absolute value is positive.
    """
    centred = x - x.mean(0)  # (n, D)
    _, vectors = torch.linalg.eigh(centred.T @ centred / len(x))  # (D, D), columns by rising variance
    vectors = vectors.flip(1)[:, :k]  # (D, k)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))  # (1, k)
    y = centred @ (vectors * largest.sign())  # (n, k)
    low, high = y.amin(0), y.amax(0)  # (k,)
    varies = high - low > FLAT * x.abs().max()  # (k,)
    y = torch.where(varies, (y - low) / (high - low), math.nan)  # (n, k)
    return F.pad(y, (0, k - y.shape[1]), value=math.nan)  # (n, k), also where D < k


def foreground_mask(first, threshold, grid, invert):
    """Which side of the first component is the object: (I, N) in [0, 1], or NaN -> (I, N) bool.

    The sides are `first > threshold` and, for the opposite sign, `1 − first > threshold`. Photographers put
    things in the middle, so the border of a picture is mostly background: the object is the side whose share
    of the border patches, less its share of the inner patches, is smaller. ("The smaller side" would fail on
    close-ups.) All images vote together, for they share the component.

    A tie goes to the side with fewer patches (so on a grid under 3×3, which has no inner patches), then to
    the side where the first corner has the lower value. None of this depends on the eigenvector's sign, so X
    and −X have the same foreground.
    """
    h, w = grid
    border = torch.ones(h, w, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    border = border.flatten()  # (N,)
    n_border, n_inner = border.sum().item(), (~border).sum().item()

    def rank(s):
        side = s > threshold  # (I, N)
        on_border, inner = side[:, border].sum().item(), side[:, ~border].sum().item()
        # Both shares over their common denominator: whole numbers, so that a tie is a tie.
        return on_border * n_inner - inner * n_border, on_border + inner, s[0, 0].item()

    sides = sorted((first, 1 - first), key=rank)
    return sides[1 if invert else 0] > threshold  # NaN is above no threshold


# --------------------------------------------------------------------------------------------------------
# Score and picture


def foreground_iou(foreground, masks, grid=None):
    """Intersection over union with the true foreground: the mean over images of each image's own.

    foreground: (I, N) bool. masks: (I, H, W) bool; a patch is true if more than half of its pixels are.
    grid: (h, w), needed only where h ≠ w. An image whose two masks are both empty counts 1.
    """
    n = foreground.shape[1]
    h, w = grid or (math.isqrt(n), math.isqrt(n))
    assert h * w == n, f"{n} patches do not fill a grid of {h}×{w}; give grid=(h, w) with h·w = {n}"
    truth = F.adaptive_avg_pool2d(masks.float(), (h, w)).flatten(1) > 0.5  # (I, N)
    truth = truth.to(foreground.device)
    intersection, union = (foreground & truth).sum(1), (foreground | truth).sum(1)  # (I,), (I,)
    return torch.where(union == 0, 1.0, intersection / union.clamp(min=1)).mean().item()


def draw_pca(images, rgb, grid, path):
    """A PNG of each image beside the colours of its patches, written whole or not at all.

    images: (I, 3, H, W) uint8, or float in [0, 1]. rgb: (I, N, 3) of pca_rgb. grid: (h, w).
    """
    images = images.cpu().float() / (255 if images.dtype == torch.uint8 else 1)
    images = rearrange(images, "i c h w -> i h w c").numpy()  # (I, H, W, 3)
    colours = rearrange(rgb.cpu().float(), "i (h w) c -> i h w c", h=grid[0], w=grid[1]).numpy()
    columns = min(PAIRS_PER_ROW, len(images))
    rows = math.ceil(len(images) / columns)
    height = 1.6 * images.shape[1] / images.shape[2]  # inches, of a picture 1.6 wide
    # Figure rather than pyplot, which keeps every figure of the process and picks a window system.
    figure = Figure(figsize=(3.4 * columns, (height + 0.1) * rows), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, 2 * columns)).reshape(-1)
    for ax in axes:
        ax.axis("off")
    extent = (0, images.shape[2], images.shape[1], 0)  # patches are drawn over the same area as the image
    for i, (image, colour) in enumerate(zip(images, colours, strict=True)):
        axes[2 * i].imshow(image, extent=extent)
        axes[2 * i + 1].imshow(colour, extent=extent, interpolation="nearest")
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        figure.savefig(temporary, dpi=150, format="png")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
