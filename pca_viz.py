"""Show patch features as colours, by two PCAs. (DINOv2 Fig. 1, Fig. 9, §7.5)

    python pca_viz.py IMAGE [IMAGE ...] --weights runs/mine/vit.pt --out pca.png
    python pca_viz.py --matches A B --weights runs/mine/vit.pt --out matches.png
    python pca_viz.py --attention IMAGE [IMAGE ...] --weights runs/mine/vit.pt --out attention.png

    s = scale((X − μ) v₁)                    scale(a) = (a − min a) / (max a − min a), per column
    F = {rows of X with s > θ}
    rgb = scale((F − μ_F) [u₁ u₂ u₃])

    X     (P, D)    patch features of all images together, so that a part has one colour in every image
    μ     (D,)      mean of X; μ_F is the mean of F
    v₁    (D,)      first principal component of X: the eigenvector of its covariance with the largest eigenvalue
    s     (P,)      position of each patch along v₁, from 0 to 1
    θ     ()        threshold between the extremes of s (ours; the paper keeps patches with a positive first component)
    F     (P', D)   foreground patches; the rest is black
    u_j   (D,)      j-th principal component of F, for red, green and blue

The official repository has no code for these pictures.  The sign of an eigenvector is arbitrary, so `s > θ` selects the
object or the background; `foreground_mask` decides which (ours).  Arithmetic is in float64 on the CPU with fixed signs,
so every run draws the same picture.
"""

import math
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from matplotlib.figure import Figure
from tqdm import tqdm

from attention import cls_attention
from augment import normalize
from matching import draw_matches, mutual_matches, part_agreement, suppress_close
from support.cli import Parser, add_device, add_pictures, check_scale, number, report_errors, side
from support.device import choose_threads, find_device
from support.files import UserError, check_out, write_safely
from support.images import read_images
from support.weights import load_vit

FLAT = 1e-6  # ours: a component that varies less than this share of the largest feature is float32 rounding
PAIRS_PER_ROW = 4  # ours: an image beside its colours, four times per row
ROWS, PER_CLASS = 6, 20  # ours: classes in a run's picture; images per class that its scores are computed from

# ---------------------------------------------------------------------------- The two PCAs


def pca_rgb(patch_tokens, threshold=0.5):
    """Colours of the patches by two PCAs over all images together.

    patch_tokens: (I, N, D), N patches in a square grid.  threshold: from 0 to 1; higher keeps less.  Returns rgb
    (I, N, 3) float32 in [0, 1], 0 in the background, and foreground (I, N) bool, on the tokens' device.
    """
    n_images, n, _ = patch_tokens.shape
    grid = (math.isqrt(n), math.isqrt(n))
    rgb, foreground = two_pcas(patch_tokens.flatten(0, 1), [grid] * n_images, threshold)
    return rgb.view(n_images, n, 3), foreground.view(n_images, n)


def two_pcas(x, grids, threshold=0.5, invert=False, mask=True):
    """Patches of all images (P, D) -> their colours (P, 3) and foreground (P,) bool.

    grids: (h, w) per image, P = Σ h·w.  invert: the other side of the first component is the foreground.  mask: if
    False, all patches are foreground.  Equal patches have no foreground; a colour that does not vary is 0.5.
    """
    assert sum(h * w for h, w in grids) == len(x), f"{len(x)} patches do not fill grids of {grids}"
    device, x = x.device, x.detach().cpu().double()
    if not x.isfinite().all():
        raise ValueError("patch_tokens hold NaN or infinite values: the network has diverged")
    foreground = torch.ones(len(x), dtype=torch.bool)
    if mask:
        foreground = foreground_mask(scale(pca(x, 1)[:, 0]), border_patches(grids), threshold, invert)
    return foreground_rgb(x, foreground).to(device), foreground.to(device)


def foreground_rgb(x, foreground):
    """The second PCA: patches (P, D) float64, foreground (P,) bool -> colours (P, 3) float32, 0 in the background."""
    rgb = torch.zeros(len(x), 3)
    if foreground.any():
        colours = scale(pca(x[foreground], 3))  # (P', 3)
        rgb[foreground] = torch.where(colours.isnan(), 0.5, colours).float()
    return rgb


def pca(x, k):
    """The first k principal components of the rows of x: (n, D) -> (n, k) float64, with mean 0.

    A component without variance, or beyond the D-th, is NaN.  The largest entry of each eigenvector is made positive.
    """
    centred = x - x.mean(0)  # (n, D)
    _, vectors = torch.linalg.eigh(centred.T @ centred / len(x))  # (D, D), columns by increasing variance
    vectors = vectors.flip(1)[:, :k]  # (D, k)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))  # (1, k)
    y = centred @ (vectors * largest.sign())  # (n, k)
    varies = y.amax(0) - y.amin(0) > FLAT * x.abs().max()  # (k,)
    y = torch.where(varies, y, math.nan)
    return F.pad(y, (0, k - y.shape[1]), value=math.nan)  # (n, k), also if D < k


def scale(y):
    """(n, ...) -> each column scaled to 0 … 1."""
    low, high = y.amin(0), y.amax(0)
    return (y - low) / (high - low)


def border_patches(grids):
    """[(h, w), ...] -> (P,) bool: the outermost patches of each grid; P = Σ h·w."""
    borders = [torch.ones(h, w, dtype=torch.bool) for h, w in grids]
    for border in borders:
        border[1:-1, 1:-1] = False
    return torch.cat([border.flatten() for border in borders])


def foreground_mask(first, border, threshold, invert):
    """Choose the side of the first component that is the object: (P,) in [0, 1], or NaN -> (P,) bool.

    The sides are `first > threshold` and `1 − first > threshold`.  The border of a photo is mostly background, so the
    object is the side for which (share of the border patches) − (share of the inner patches) is smaller.  ("The smaller
    side" would fail on close-ups.)  All images vote together.  border: (P,) from border_patches.

    On a tie the side with fewer patches wins, then the side where the first patch has the lower value.  So X and −X
    have the same foreground.
    """
    n_border, n_inner = border.sum().item(), (~border).sum().item()

    def rank(s):
        side = s > threshold  # (P,)
        on_border, inner = side[border].sum().item(), side[~border].sum().item()
        # Both shares over their common denominator: whole numbers, so that a tie is a tie.
        return on_border * n_inner - inner * n_border, on_border + inner, s[0].item()

    sides = sorted((first, 1 - first), key=rank)
    return sides[1 if invert else 0] > threshold  # NaN is above no threshold


# ---------------------------------------------------------------------------- The picture and the scores of a run


def foreground_iou(foreground, truth):
    """Mean over the images of the intersection over union of two masks (I, N) bool; 1 where both are empty."""
    intersection, union = (foreground & truth).sum(1), (foreground | truth).sum(1)  # (I,), (I,)
    return torch.where(union == 0, 1.0, intersection / union.clamp(min=1)).mean().item()


def patch_parts(parts, h, w):
    """Parts of pixels (I, H, W), 0 the ground -> most common part of each patch (I, h·w); 0 if half of it is ground."""
    shares = F.adaptive_avg_pool2d(rearrange(F.one_hot(parts.long()), "i h w k -> i k h w").float(), (h, w))
    shares = shares.flatten(2)  # (I, k, N)
    return torch.where(shares[:, 0] < 0.5, shares[:, 1:].argmax(1) + 1, 0)


@torch.no_grad()
def fine_tokens(vit, images, size):
    """(I, 3, S, S) uint8 -> (I, 4·N, D): patch tokens on a grid twice as fine as the N patches of a size² image.

    The image is shifted by half a patch down, right, and both.  Each cell gets the mean of the patches that cover it.
    """
    patch, half, device = vit.patch_size, vit.patch_size // 2, next(vit.parameters()).device
    x = images.to(device).float() / 255
    x = F.interpolate(x, (size, size), mode="bicubic", antialias=True).clamp(0, 1) if size != x.shape[-1] else x
    x = F.pad(normalize(x), [half, patch, half, patch], mode="replicate")
    side = size + patch
    shifted = [x[..., top : top + side, left : left + side] for top in (0, half) for left in (0, half)]
    tokens = [vit.forward_features(y)["x_norm_patchtokens"].float().cpu() for y in shifted]  # 4 of (I, (g + 1)², D)
    grid = rearrange(tokens, "(y x) i (h w) d -> i d (h y) (w x)", y=2, h=side // patch)  # a patch every half patch
    return rearrange(F.avg_pool2d(grid, 2, 1)[..., :-1, :-1], "i d h w -> i (h w) d")


def draw_split(vit, images, size, path):
    """Write pca.png of a split, one class per row, and return its scores.

    The first PCA is over all images, the second over one class (the "related images" of Fig. 1).  If the parts of the
    pixels are known, the scores are "iou" of the foregrounds, "agreement" and "agreement_chance"; otherwise {}.
    """
    scored = images.parts is not None
    labels = torch.zeros(len(images)) if images.labels is None else images.labels
    classes = labels.unique()
    drawn = classes[torch.linspace(0, len(classes) - 1, min(len(classes), ROWS)).long()]
    classes, n = (classes, PER_CLASS) if scored else (drawn, PAIRS_PER_ROW)
    groups = [(labels == label).nonzero()[:n, 0] for label in classes]
    tokens = [fine_tokens(vit, images.pixels[group], size) for group in groups]  # of each class (I, N, D)
    foreground = pca_rgb(torch.cat(tokens))[1]  # (ΣI, N)
    side, rows = math.isqrt(foreground.shape[1]), []
    for label, group, x, inside in zip(classes, groups, tokens, foreground.split([len(group) for group in groups])):
        if label in drawn:
            colours = foreground_rgb(x.flatten(0, 1).double(), inside.flatten())  # (I·N, 3)
            colours = rearrange(colours, "(i h w) c -> i h w c", h=side, w=side)
            rows.append(list(zip(images.pixels[group], colours))[:PAIRS_PER_ROW])
    draw_pca(rows, path)
    if not scored:
        return {}
    group = torch.cat(groups)
    parts = patch_parts(images.parts[group], side, side)
    agreement, chance = part_agreement(torch.cat(tokens), parts, labels[group])
    return {"iou": foreground_iou(foreground, parts > 0), "agreement": agreement, "agreement_chance": chance}


def draw_pca(rows, path):
    """Write a PNG of images (3, H, W) uint8 beside their colours (h, w, 3); rows: lists of (image, colours)."""
    pairs = [[(image.permute(1, 2, 0), colours) for image, colours in row] for row in rows]
    draw_panels([sum(row, ()) for row in pairs], path)


def draw_panels(rows, path, titles=()):
    """Write a PNG with a row of panels per list; a short row leaves places empty.  titles: of the columns.

    Panels: (H, W, 3) uint8 images; features per patch, interpolated for the eye: colours (h, w, 3), or (h, w) from 0.
    """
    columns = max(map(len, rows))
    height = 1.6 * max(panel.shape[0] / panel.shape[1] for row in rows for panel in row)  # inches, of a panel 1.6 wide
    figure = Figure(figsize=(1.7 * columns, (height + 0.2) * len(rows)), layout="constrained")  # pyplot would keep it
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for y, row in enumerate(rows):
        for ax, panel in zip(axes[y], row):
            ax.imshow(panel.numpy(), vmin=0, interpolation="bilinear" if panel.is_floating_point() else None)
    for ax, title in zip(axes[0], titles):
        ax.set_title(title, fontsize=8)
    write_safely(path, lambda new: figure.savefig(new, dpi=150, format="png"))


# ---------------------------------------------------------------------------- The program


def parse_args(argv):
    """Parse the command line and find the device; UserError for a wrong flag."""
    parser = Parser(prog="pca_viz.py", description="Draw images beside the PCA colours of their patches.")
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="image files, or folders of them")
    parser.add_argument("--weights", required=True, help="vit.pt, checkpoint.pt, or an official name or file")
    parser.add_argument("--out", type=Path, default=Path("pca.png"), help="the picture (default: %(default)s)")
    parser.add_argument("--size", type=side, default=518, help="short side in pixels (default: %(default)s)")
    parser.add_argument("--keep-aspect", action="store_true", help="show the whole image, not only its middle square")
    parser.add_argument("--threshold", type=number(0, 1), default=0.5, help="higher keeps less foreground (default: "
                        "%(default)s)")
    parser.add_argument("--invert", action="store_true", help="swap foreground and background")
    parser.add_argument("--no-mask", dest="mask", action="store_false", help="colour all patches, by one PCA")
    parser.add_argument("--layer", type=int, help="take tokens of this block, from 0 (default: the last)")
    parser.add_argument("--matches", nargs=2, metavar=("A", "B"), help="instead: draw lines between matching patches")
    parser.add_argument("--attention", action="store_true", help="instead: show where [CLS] looks, for each head")
    add_pictures(parser)
    add_device(parser)
    args = parser.parse_args(argv)
    check_scale(args.scale)
    if bool(args.matches) == bool(args.images) or (args.matches and args.attention):
        raise UserError("give image files, or --matches A B")
    check_out(args.out)
    args.device, args.threads = find_device(args.device), choose_threads(args.threads)
    return args


@torch.inference_mode()
def draw(args):
    """Write the picture that the command line asks for, and print one line about it."""
    start = time.perf_counter()
    vit = load_vit(args.weights, args.device)
    print(f"{args.weights} on {args.device}, {args.threads}")
    depth, patch = len(vit.blocks), vit.patch_size
    layer = depth - 1 if args.layer is None else args.layer
    if not 0 <= layer < depth:
        raise UserError(f"--layer {layer}: the network has blocks 0 to {depth - 1}")
    paths = args.matches or args.images
    images = read_images(paths, args.size, patch, args.keep_aspect, args.scale, args.max_megapixels)
    if args.matches and len(images) != 2:
        raise UserError(f"--matches needs two images that can be read; there are {len(images)}")
    grids = [(image.shape[1] // patch, image.shape[2] // patch) for image in images]
    # One by one: shapes differ, and at 518² one image is a batch.
    batches = (normalize(image[None].to(args.device)) for image in tqdm(images, "features", unit="img"))
    if args.attention:
        maps = [cls_attention(vit, x, layer)[0].cpu().unflatten(1, grid) for x, grid in zip(batches, grids)]
        rows = [[image.permute(1, 2, 0), a.mean(0), *a] for image, a in zip(images, maps)]
        draw_panels(rows, args.out, ["", "mean", *(f"head {i}" for i in range(len(maps[0])))])
        result = f"{len(maps[0])} heads of block {layer}"
    else:
        tokens = [vit.get_intermediate_layers(x, n=[layer])[0][0].cpu() for x in batches]  # I of (h·w, D)
        result = draw_colours(args, images, grids, tokens)
    print(f"{len(images)} images, {result}, {time.perf_counter() - start:.1f} s, {args.out}")


def draw_colours(args, images, grids, tokens):
    """Write the picture of the PCA or of the matches; return what to print about it."""
    rgb, foreground = two_pcas(torch.cat(tokens), grids, args.threshold, args.invert, args.mask)
    result = f"{foreground.float().mean().item():.0%} of the patches in the foreground"
    counts = [h * w for h, w in grids]
    if not args.matches:
        pairs = [(image, c.unflatten(0, grid)) for image, c, grid in zip(images, rgb.split(counts), grids)]
        draw_pca([pairs[i : i + PAIRS_PER_ROW] for i in range(0, len(pairs), PAIRS_PER_ROW)], args.out)
        return result
    pairs, cosine = mutual_matches(*tokens, *foreground.split(counts))
    drawn = suppress_close(pairs, cosine, grids)
    figure = draw_matches(images, grids, drawn)
    write_safely(args.out, lambda new: figure.savefig(new, dpi=150, format="png"))
    return f"{result}, {len(pairs)} mutual matches, {len(drawn)} of them drawn"


@report_errors("pca_viz.py", ValueError)
def main(argv=None):
    """Run the program and return its exit status."""
    draw(parse_args(argv))
    return 0


if __name__ == "__main__":
    sys.exit(main())
