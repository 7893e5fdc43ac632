"""Show patch features as colours, by two PCAs. (DINOv2 Fig. 1, Fig. 9, §7.5)

    python pca_viz.py IMAGE [IMAGE ...] --weights runs/mine/vit.pt --out pca.png [--matches | --attention]

    s = scale((X − μ) v₁)                    scale(a) = (a − min a) / (max a − min a), per column
    F = {rows of X with s > θ}               or with 1 − s > θ: the side that looks like the object
    rgb = scale((F − μ_F) [u₁ u₂ u₃])

    X     (P, D)    patch features of all images together, so that a part has one colour in every image
    μ     (D,)      mean of X; μ_F is the mean of F
    v₁    (D,)      first principal component of X: the eigenvector of its covariance with the largest eigenvalue
    s     (P,)      position of each patch along v₁, from 0 to 1
    θ     ()        threshold between the extremes of s (ours; the paper keeps patches with a positive first component)
    F     (P', D)   foreground patches; the rest is black
    u_j   (D,)      j-th principal component of F, for red, green and blue
"""

import math
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch
from tqdm import tqdm

from attention import cls_attention
from augment import normalize
from matching import mutual_matches, part_agreement, suppress_close
from support.cli import Parser, add_device, add_scale, number, report_errors, side
from support.device import choose_threads, find_device
from support.files import UserError, check_out, write_safely
from support.images import read_images
from support.weights import load_vit

FLAT = 1e-6  # ours: a component that varies less than this share of the largest feature is float32 rounding
PAIRS_PER_ROW = 4  # ours: an image beside its colours, four times per row
LARGEST, MOST = 518, 32  # ours: default side of an image at most; images drawn at most
ROWS, PER_CLASS = 6, 20  # ours: classes in a run's picture; images per class that its scores are computed from


def pca_rgb(patch_tokens, threshold=0.5, invert=False, grids=None):
    """Colours of the patches by two PCAs over all images together.

    patch_tokens: (I, N, D), N patches in a square grid; or (P, D) and the grids, (h, w) of each image.  threshold: from
    0 to 1; higher keeps less.  invert: swap the two sides.  Returns rgb (I, N, 3) or (P, 3) float32 in [0, 1], 0 in the
    background, and foreground (I, N) or (P,) bool, on the tokens' device.  Equal patches have no foreground.
    """
    shape, device = patch_tokens.shape[:-1], patch_tokens.device
    x = patch_tokens.detach().cpu().double().flatten(0, -2)  # (P, D)
    grids = grids or [(math.isqrt(shape[1]), math.isqrt(shape[1]))] * shape[0]
    if not x.isfinite().all():
        raise ValueError("patch_tokens hold NaN or infinite values: the network diverged; use an earlier checkpoint")
    foreground = foreground_mask(pca(x, 1)[:, 0], grids, threshold, invert)
    return foreground_rgb(x, foreground).view(*shape, 3).to(device), foreground.view(shape).to(device)


def foreground_rgb(x, foreground):
    """The second PCA: patches (P, D) float64, foreground (P,) bool -> colours (P, 3) float32, 0 in the background."""
    rgb = torch.zeros(len(x), 3)
    if foreground.any():
        rgb[foreground] = pca(x[foreground], 3).nan_to_num(0.5).float()  # (P', 3)
    return rgb


def pca(x, k):
    """The first k principal components of the rows of x, each scaled to 0 … 1: (n, D) -> (n, k) float64.

    A component without variance is NaN.  The largest entry of each eigenvector is made positive.
    """
    centred = x - x.mean(0)  # (n, D)
    _, vectors = torch.linalg.eigh(centred.T @ centred / len(x))  # (D, D), columns by increasing variance
    vectors = vectors.flip(1)[:, :k]  # (D, k)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))  # (1, k)
    y = centred @ (vectors * largest.sign())  # (n, k)
    low, high = y.amin(0), y.amax(0)
    return torch.where(high - low > FLAT * x.abs().max(), (y - low) / (high - low), math.nan)


def foreground_mask(first, grids, threshold, invert):
    """Choose the side that is the object (ours), since the component's sign is arbitrary: (P,) -> (P,) bool.

    The sides are `first > threshold` and `1 − first > threshold`.  The border of a photo is mostly background, so the
    object is the side with the smaller (share of all border patches) − (share of all inner patches).  On a tie the side
    with fewer patches wins, then the one without the first patch.
    """
    border = torch.ones(len(first), dtype=torch.bool)  # (P,), the outermost patches of each image
    for part, grid in zip(border.split([h * w for h, w in grids]), grids):
        part.view(grid)[1:-1, 1:-1] = False
    # A side's sum of weights is proportional to the difference of its shares, and exact, because weights are whole.
    weight = torch.where(border, (~border).sum(), -border.sum())  # (P,)

    sides = [first > threshold, 1 - first > threshold]  # (P,) each; NaN is above no threshold
    sides.sort(key=lambda side: (weight[side].sum().item(), side.sum().item(), side[0].item()))
    return sides[1 if invert else 0]


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


def drawn_classes(images):
    """The labels (N,) of a split, 0 without classes, and those of them that have a row in pca.png."""
    labels = torch.zeros(len(images)) if images.labels is None else images.labels
    classes = labels.unique()
    return labels, classes[torch.linspace(0, len(classes) - 1, min(len(classes), ROWS)).long()]


def draw_split(vit, images, size, path):
    """Write pca.png of a split, one class per row, and return its scores.

    The first PCA is over all images, the second over one class (the "related images" of Fig. 1).  If the parts of the
    pixels are known, the scores are "iou" of the foregrounds, "agreement" and "agreement_chance"; otherwise {}.
    """
    scored = images.parts is not None
    labels, drawn = drawn_classes(images)
    classes, n = (labels.unique(), PER_CLASS) if scored else (drawn, PAIRS_PER_ROW)
    groups = [(labels == label).nonzero()[:n, 0] for label in classes]
    tokens = [fine_tokens(vit, images.pixels[group], size) for group in groups]  # of each class (I, N, D)
    foreground = pca_rgb(torch.cat(tokens))[1]  # (ΣI, N)
    side, rows = math.isqrt(foreground.shape[1]), []
    for label, group, x, inside in zip(classes, groups, tokens, foreground.split(list(map(len, groups)))):
        if label in drawn:
            colours = foreground_rgb(x.flatten(0, 1).double(), inside.flatten())  # (I·N, 3)
            colours = rearrange(colours, "(i h w) c -> i h w c", h=side, w=side)
            pairs = zip(images.pixels[group][:PAIRS_PER_ROW], colours)
            rows.append([panel for pair in pairs for panel in pair])
    draw_panels(rows, path)
    if not scored:
        return {}
    group = torch.cat(groups)
    parts = patch_parts(images.parts[group], side, side)
    agreement, chance = part_agreement(torch.cat(tokens), parts, labels[group])
    return {"iou": foreground_iou(foreground, parts > 0), "agreement": agreement, "agreement_chance": chance}


def draw_matches(images, grids, pairs, path):
    """Write a PNG of two images (3, H, W) uint8, with a line for each pair of patches (P, 2); grids: their (h, w)."""
    patch = images[0].shape[1] / grids[0][0]
    middles = [torch.stack([i % w, i // w], 1) * patch + (patch - 1) / 2 for i, (_, w) in zip(pairs.T, grids)]
    draw_panels([images], path, torch.stack(middles, 1).tolist(), width=4.5)


def draw_panels(rows, path, lines=(), width=1.6):
    """Write a PNG with a row of panels per list, each `width` inches wide, and lines from the first panel to the next.

    Panels: images (3, H, W) uint8; or values of patches, drawn smoothly: colours (h, w, 3), or (h, w) from 0.
    """
    columns = max(map(len, rows))
    height = width * max(x.shape[1] / x.shape[2] for row in rows for x in row if x.dtype == torch.uint8)  # the highest
    figure = Figure((columns * (width + 0.1), len(rows) * (height + 0.1)), layout="constrained")  # pyplot would keep it
    empty = {"xticks": [], "yticks": [], "frame_on": False}
    for row, places in zip(rows, figure.subplots(len(rows), columns, squeeze=False, subplot_kw=empty)):
        for panel, ax in zip(row, places):
            if panel.dtype == torch.uint8:
                ax.imshow(panel.permute(1, 2, 0).numpy())
            else:
                ax.imshow(panel.numpy(), vmin=0, interpolation="bilinear")
    for i, ends in enumerate(lines):
        line = ConnectionPatch(*ends, "data", axesA=figure.axes[0], axesB=figure.axes[1])
        line.set_color(colormaps["hsv"](i / len(lines)))
        figure.add_artist(line)
    write_safely(path, lambda new: figure.savefig(new, dpi=150, format="png"))


def open_images(parser, argv, out):
    """Parse the parser's flags and IMAGE, --weights, --out, --scale, --device; load the network: (options, ViT).

    UserError if --out cannot be written, or is one of the images.
    """
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or folders of them")
    parser.add_argument("--weights", required=True, help="vit.pt, checkpoint.pt, or an official name or file")
    parser.add_argument("--out", type=Path, default=Path(out), help="the file to write (default: %(default)s)")
    add_scale(parser)
    add_device(parser)
    args = parser.parse_args(argv)
    check_out(args.out)
    if args.out.absolute() in [Path(image).absolute() for image in args.images]:
        raise UserError(f"--out {args.out} would replace one of the images; choose another name")
    args.device, threads = find_device(args.device), choose_threads()
    vit = load_vit(args.weights, args.device)
    print(f"{args.weights} on {args.device}, {threads}")
    return args, vit


@report_errors("pca_viz.py", ValueError)
@torch.inference_mode()
def main(argv=None):
    """Draw the picture that the command line asks for, and return the exit status."""
    parser = Parser(prog="pca_viz.py", description="Draw images beside the PCA colours of their patches.")
    parser.add_argument("--size", type=side, help="short side in pixels (default: the network's own)")
    parser.add_argument("--keep-aspect", action="store_true", help="show the whole image, not only its middle square")
    parser.add_argument("--threshold", type=number(0, 1), default=0.5, help="foreground: patches whose first component "
                        "is above it, from 0 to 1 (default: %(default)s)")
    parser.add_argument("--invert", action="store_true", help="swap foreground and background")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--matches", action="store_true", help="draw lines between matching patches of two images")
    instead.add_argument("--attention", action="store_true", help="show where [CLS] looks, for each head")
    args, vit = open_images(parser, argv, "pca.png")
    size = args.size or min(vit.img_size, LARGEST)
    images = read_images(args.images, size, vit.patch_size, args.keep_aspect, args.scale, MOST)
    if args.matches and len(images) != 2:
        raise UserError(f"--matches needs two images that can be read; there are {len(images)}")
    grids = [(image.shape[1] // vit.patch_size, image.shape[2] // vit.patch_size) for image in images]
    batches = (normalize(x[None].to(args.device)) for x in tqdm(images, "features", unit="img"))  # their shapes differ
    if args.attention:
        maps = [cls_attention(vit, x, vit.n_blocks - 1)[0].unflatten(1, grid).cpu() for x, grid in zip(batches, grids)]
        draw_panels([[image, a.mean(0), *a] for image, a in zip(images, maps)], args.out)
        result = f"the mean of {len(maps[0])} heads of the last block, and each head"
    else:
        tokens = [vit.forward_features(x)["x_norm_patchtokens"][0].cpu() for x in batches]  # I of (h·w, D)
        rgb, foreground = pca_rgb(torch.cat(tokens), args.threshold, args.invert, grids)
        counts = [len(x) for x in tokens]
        result = f"{foreground.float().mean().item():.0%} of the patches in the foreground"
        if args.matches:
            pairs, cosine = mutual_matches(*tokens, *foreground.split(counts))
            drawn = suppress_close(pairs, cosine, grids)
            draw_matches(images, grids, drawn, args.out)
            result += f", {len(pairs)} mutual matches, {len(drawn)} of them drawn"
        else:
            colours = [c.unflatten(0, grid) for c, grid in zip(rgb.split(counts), grids)]  # I of (h, w, 3)
            panels, n = [panel for pair in zip(images, colours) for panel in pair], 2 * PAIRS_PER_ROW
            draw_panels([panels[i : i + n] for i in range(0, len(panels), n)], args.out)
    print(f"{len(images)} images, {result}: {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
