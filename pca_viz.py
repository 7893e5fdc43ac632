"""The picture of DINOv2: two PCAs of the patch features, shown as colours. (DINOv2, Fig. 1 and Fig. 9, §7.5)

    python pca_viz.py IMAGE [IMAGE ...] --weights runs/mine/vit.pt --out pca.png
    python pca_viz.py --matches A B --weights runs/mine/vit.pt --out matches.png
    python pca_viz.py --attention IMAGE [IMAGE ...] --weights runs/mine/vit.pt --out attention.png

    s = scale((X − μ) v₁)                    scale(a) = (a − min a) / (max a − min a), column by column
    F = {rows of X with s > θ}
    rgb = scale((F − μ_F) [u₁ u₂ u₃])

    X     (P, D)    patch features of all images together: the same part has the same colour in each
    μ     (D,)      mean of X, as μ_F is that of F
    v₁    (D,)      first principal component of X: its covariance's eigenvector of largest eigenvalue
    s     (P,)      how far along it each patch lies, from 0 to 1
    θ     ()        threshold
    F     (P', D)   the patches in the foreground; the rest is black
    u_j   (D,)      j-th principal component of F, for red, green and blue

The official repository has no code for these pictures. The sign of an eigenvector is arbitrary, so `s > θ`
picks the object in one run and the background in the next: `foreground_mask` says how we choose the side. All
arithmetic is in float64 on the CPU, and the signs of the colours are fixed too, so each run draws the same
picture.
"""

import math
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from tqdm import tqdm

from attention import cls_attention
from augment import normalize
from matching import mutual_matches, part_agreement, spread_out
from support.cli import Parser, add_device, add_pictures, check_scale, number, positive, report_errors, side
from support.device import choose_threads, find_device
from support.files import UserError, check_out, write_safely
from support.images import read_images
from support.report import PAIRS_PER_ROW, draw_attention, draw_matches, draw_pca
from support.weights import load_vit

FLAT = 1e-6  # ours: a component with less spread than this share of the largest feature is float32 rounding
ROWS, PER_KIND = 6, 20  # ours: kinds in a run's picture; pictures of a kind behind its numbers

# --------------------------------------------------------------------------------------------------------
# The two PCAs


def pca_rgb(patch_tokens, threshold=0.5, grid=None, invert=False, mask=True, whiten=False):
    """Colours of the patches by two PCAs, over all images together.

    patch_tokens: (I, N, D), N = h·w in row order. threshold: in [0, 1), higher keeps less. grid: (h, w),
    needed only where h ≠ w. invert: take the other side of the first component as the foreground. mask: False
    takes all patches as foreground. whiten: components of unit deviation through σ(2y) instead of min and max,
    so that a few extreme patches do not pale the rest (ours). Returns rgb (I, N, 3) float32 in [0, 1], 0 in the
    background, and foreground (I, N) bool, on the tokens' device. Images of different shape: lists of (N_i, D)
    and of grids, then the results are lists too.
    Nothing to see is never NaN: tokens that are all equal have no foreground, and a colour that does not vary
    over the foreground (fewer than 3 dimensions, or than 4 patches) is 0.5.
    """
    if isinstance(patch_tokens, torch.Tensor):
        grid = grid or (math.isqrt(patch_tokens.shape[1]),) * 2
        assert patch_tokens.numel() > 0, f"pca_rgb needs at least one number, got shape {tuple(patch_tokens.shape)}"
        results = pca_rgb(list(patch_tokens), threshold, [grid] * len(patch_tokens), invert, mask, whiten)
        return tuple(map(torch.stack, results))
    for tokens, (h, w) in zip(patch_tokens, grid, strict=True):
        assert h * w == len(tokens), f"{len(tokens)} patches do not fill a grid of {h}×{w}; give grid=(h, w)"
    assert 0 <= threshold < 1, f"threshold must be in [0, 1), got {threshold}"
    x = torch.cat([tokens.detach().cpu().double() for tokens in patch_tokens])  # (P, D)
    if not x.isfinite().all():
        raise ValueError("patch_tokens hold NaN or infinite values: the network has diverged")
    inside = torch.ones(len(x), dtype=torch.bool)
    if mask:
        inside = foreground_mask(scale(pca(x, 1)[:, 0]), border_patches(grid), threshold, invert)
    rgb = foreground_rgb(x, inside, whiten)  # (P, 3)
    counts, device = [len(tokens) for tokens in patch_tokens], patch_tokens[0].device
    return rgb.to(device).split(counts), inside.to(device).split(counts)


def foreground_rgb(x, inside, whiten=False):
    """Patches (P, D) float64, which are foreground (P,) bool -> (P, 3) float32: the second PCA, 0 in the background."""
    rgb = torch.zeros(len(x), 3)
    if inside.any():
        y = pca(x[inside], 3)  # (P', 3)
        colours = torch.sigmoid(2 * y / y.std(0, correction=0)) if whiten else scale(y)
        rgb[inside] = torch.where(colours.isnan(), 0.5, colours).float()
    return rgb


def pca(x, k):
    """The first k principal components of the rows of x: (n, D) -> (n, k) float64, of mean 0.

    A component without variance, or beyond the D-th, is NaN: nothing can be scaled by it. Each eigenvector is
    signed so that its entry of largest absolute value is positive.
    """
    centred = x - x.mean(0)  # (n, D)
    _, vectors = torch.linalg.eigh(centred.T @ centred / len(x))  # (D, D), columns by rising variance
    vectors = vectors.flip(1)[:, :k]  # (D, k)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))  # (1, k)
    y = centred @ (vectors * largest.sign())  # (n, k)
    varies = y.amax(0) - y.amin(0) > FLAT * x.abs().max()  # (k,)
    y = torch.where(varies, y, math.nan)
    return F.pad(y, (0, k - y.shape[1]), value=math.nan)  # (n, k), also where D < k


def scale(y):
    """(n, ...) -> each column from 0 to 1."""
    low, high = y.amin(0), y.amax(0)
    return (y - low) / (high - low)


def border_patches(grids):
    """[(h, w), ...] -> (P,) bool, the outermost patches of each grid; P = Σ h·w."""
    borders = [torch.ones(h, w, dtype=torch.bool) for h, w in grids]
    for border in borders:
        border[1:-1, 1:-1] = False
    return torch.cat([border.flatten() for border in borders])


def foreground_mask(first, border, threshold, invert):
    """Which side of the first component is the object: (P,) in [0, 1], or NaN -> (P,) bool.

    The sides are `first > threshold` and, for the opposite sign, `1 − first > threshold`. Photographers put
    things in the middle, so the border of a picture is mostly background: the object is the side whose share
    of the border patches, less its share of the inner patches, is smaller. ("The smaller side" would fail on
    close-ups.) All images vote together, for they share the component. border: (P,) of border_patches.

    A tie goes to the side with fewer patches (so on a grid under 3×3, which has no inner patches), then to
    the side where the first corner has the lower value. None of this depends on the eigenvector's sign, so X
    and −X have the same foreground.
    """
    n_border, n_inner = border.sum().item(), (~border).sum().item()

    def rank(s):
        side = s > threshold  # (P,)
        on_border, inner = side[border].sum().item(), side[~border].sum().item()
        # Both shares over their common denominator: whole numbers, so that a tie is a tie.
        return on_border * n_inner - inner * n_border, on_border + inner, s[0].item()

    sides = sorted((first, 1 - first), key=rank)
    return sides[1 if invert else 0] > threshold  # NaN is above no threshold


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


def patch_parts(parts, h, w):
    """Parts of pixels (I, H, W), 0 the ground -> of patches (I, h·w): the commonest, if less than half is ground."""
    shares = F.adaptive_avg_pool2d(rearrange(F.one_hot(parts.long()), "i h w k -> i k h w").float(), (h, w))
    shares = shares.flatten(2)  # (I, k, N)
    return torch.where(shares[:, 0] < 0.5, shares[:, 1:].argmax(1) + 1, 0)


@torch.no_grad()
def fine_tokens(vit, images, size):
    """(I, 3, S, S) uint8 -> (I, 4·N, D): patch tokens on a grid twice as fine as the N patches of a size² image.

    Seen four times, moved by half a patch down, across, and both, each cell gets the mean of the patches that cover it.
    """
    patch, half, device = vit.patch_size, vit.patch_size // 2, next(vit.parameters()).device
    x = images.to(device).float() / 255
    x = F.interpolate(x, (size, size), mode="bicubic", antialias=True).clamp(0, 1) if size != x.shape[-1] else x
    x = F.pad(normalize(x), [half, patch, half, patch], mode="replicate")
    side = size + patch
    moved = [x[..., top : top + side, left : left + side] for top in (0, half) for left in (0, half)]
    tokens = [vit.forward_features(y)["x_norm_patchtokens"].float().cpu() for y in moved]  # 4 of (I, (g + 1)², D)
    grid = rearrange(tokens, "(y x) i (h w) d -> i d (h y) (w x)", y=2, h=side // patch)  # a patch every half patch
    return rearrange(F.avg_pool2d(grid, 2, 1)[..., :-1, :-1], "i d h w -> i (h w) d")


def in_rows(groups):
    """The members of all groups, each of at most PAIRS_PER_ROW, and Nones that fill a group's row up."""
    return [x for group in groups for x in [*group, *[None] * (PAIRS_PER_ROW - len(group))]]


def draw_split(vit, images, size, path):
    """pca.png of a split from load_images, with the pictures of a kind in a row.

    The foreground is that of all together, the colours those of a kind alone, the "related images" of Figure 1.  Where
    the parts of the pictures are known, a dict of the mean "iou" of the foregrounds of PER_KIND of each kind, and their
    part "agreement" and "agreement_chance"; otherwise {}.
    """
    scored = images.parts is not None
    labels = torch.zeros(len(images)) if images.labels is None else images.labels
    kinds = labels.unique()
    some = torch.linspace(0, len(kinds) - 1, min(len(kinds), ROWS)).long()  # the rows of the picture
    kinds, some = (kinds, some) if scored else (kinds[some], range(len(some)))
    groups = [(labels == kind).nonzero()[: PER_KIND if scored else PAIRS_PER_ROW, 0] for kind in kinds]
    tokens = [fine_tokens(vit, images.pixels[rows], size) for rows in groups]  # of each kind (I, N, D)
    foreground = pca_rgb(torch.cat(tokens))[1]  # (ΣI, N)
    side, found = math.isqrt(foreground.shape[1]), foreground.split([len(rows) for rows in groups])
    colours = [foreground_rgb(tokens[i].flatten(0, 1).double(), found[i].flatten()) for i in some]  # (I·N, 3) each
    colours = [rearrange(c, "(i h w) c -> i h w c", h=side, w=side)[:PAIRS_PER_ROW] for c in colours]
    pictures = [images.pixels[groups[i][:PAIRS_PER_ROW]] for i in some]
    draw_pca(in_rows(pictures), in_rows(colours), path)
    if not scored:
        return {}
    rows = torch.cat(groups)
    parts = images.parts[rows]
    agreement, chance = part_agreement(torch.cat(tokens), patch_parts(parts, side, side), labels[rows])
    return {"iou": foreground_iou(foreground, parts > 0), "agreement": agreement, "agreement_chance": chance}


# --------------------------------------------------------------------------------------------------------
# The program


@torch.inference_mode()
def tokens_of(vit, images, layer):
    """I of (3, H, W) uint8 -> I of (N_i, D) patch tokens of a block, normalised, on the CPU; float32 throughout."""
    device = next(vit.parameters()).device
    tokens = []
    for image in tqdm(images, "features", unit="img"):  # one by one: shapes differ, and at 518² an image is a batch
        layers = vit.get_intermediate_layers(normalize(image[None].to(device)), n=[layer])
        tokens.append(layers[0][0].cpu())
    return tokens


@torch.inference_mode()
def attention_of(vit, images, layer, grids):
    """I of (3, H, W) uint8 -> I of (heads, h, w): where [CLS] looks in a block."""
    device, maps = next(vit.parameters()).device, []
    for image, (h, _) in zip(tqdm(images, "attention", unit="img"), grids):
        [found] = cls_attention(vit, normalize(image[None].to(device)), layer)
        maps.append(rearrange(found.cpu(), "heads (h w) -> heads h w", h=h))
    return maps


def parse_args(argv):
    """Command line -> its options, the device found. Raises UserError."""
    parser = Parser(prog="pca_viz.py", description="Images beside the PCA colours of their patches.")
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="image files, or folders of them")
    parser.add_argument("--weights", required=True, help="vit.pt, checkpoint.pt, an official file, or a name such as "
                        "dinov2_vits14")
    parser.add_argument("--out", type=Path, default=Path("pca.png"), help="the picture (default: %(default)s)")
    parser.add_argument("--size", type=side, default=518, help="side of an image in pixels, rounded to whole "
                        "patches (default: %(default)s)")
    parser.add_argument("--keep-aspect", action="store_true", help="all of the long side, not only its middle")
    parser.add_argument("--threshold", type=number(0, 1), default=0.5, help="of the first component: higher leaves "
                        "less foreground (default: %(default)s)")
    parser.add_argument("--invert", action="store_true", help="the other side of the first component is foreground")
    parser.add_argument("--no-mask", dest="mask", action="store_false", help="colours for all patches: one PCA")
    parser.add_argument("--whiten", action="store_true", help="components of unit deviation through a sigmoid")
    parser.add_argument("--raw", action="store_true", help="each patch in one colour, nothing interpolated")
    parser.add_argument("--layer", type=int, help="tokens of this block, from 0 (default: the last)")
    parser.add_argument("--grid", type=positive, default=PAIRS_PER_ROW, metavar="COLUMNS", help="images in a row "
                        "(default: %(default)s)")
    parser.add_argument("--matches", nargs=2, metavar=("A", "B"), help="instead: lines between patches of two images "
                        "that are each other's nearest (§7.5)")
    parser.add_argument("--attention", action="store_true", help="instead: where [CLS] looks, the mean of all heads "
                        "and each of them")
    add_pictures(parser)
    add_device(parser)
    args = parser.parse_args(argv)
    check_scale(args.scale)
    if bool(args.matches) == bool(args.images) or (args.matches and args.attention):
        raise UserError("give image files, or --matches A B")
    if not 0 <= args.threshold < 1:
        raise UserError(f"--threshold must be at least 0 and below 1, got {args.threshold}")
    check_out(args.out)
    args.device, args.threads = find_device(args.device), choose_threads(args.threads)
    return args


def draw(args):
    """The picture that the command line asks for; the last line."""
    began = time.perf_counter()
    vit = load_vit(args.weights, args.device)
    print(f"{args.weights} on {args.device}, {args.threads}")
    depth, patch = len(vit.blocks), vit.patch_size
    layer = depth - 1 if args.layer is None else args.layer
    if not 0 <= layer < depth:
        raise UserError(f"--layer {layer}: the network has blocks 0 to {depth - 1}")
    how = (args.scale, args.max_megapixels)
    images = read_images(args.matches or args.images, args.size, patch, args.keep_aspect, *how)
    grids = [(image.shape[1] // patch, image.shape[2] // patch) for image in images]
    if args.matches and len(images) != 2:
        raise UserError(f"--matches needs two images that can be read; there are {len(images)}")
    if args.attention:
        maps = attention_of(vit, images, layer, grids)
        draw_attention(images, maps, args.out)
        result = f"{len(maps[0])} heads of block {layer}"
    else:
        result = draw_colours(args, images, grids, tokens_of(vit, images, layer))
    print(f"{len(images)} images, {result}, {time.perf_counter() - began:.1f} s, {args.out}")


def draw_colours(args, images, grids, tokens):
    """The PCA picture, or that of the matches; what to say of it."""
    rgb, foreground = pca_rgb(tokens, args.threshold, grids, args.invert, args.mask, args.whiten)
    result = f"{torch.cat(foreground).float().mean().item():.0%} of the patches in the foreground"
    if not args.matches:
        colours = [rearrange(c, "(h w) c -> h w c", h=h) for c, (h, _) in zip(rgb, grids)]
        draw_pca(images, colours, args.out, args.grid, args.raw)
        return result
    pairs, cosine = mutual_matches(*tokens, *foreground)
    pairs = spread_out(pairs, cosine, grids)
    figure = draw_matches(images, grids, pairs)
    write_safely(args.out, lambda new: figure.savefig(new, dpi=150, format="png"))
    return f"{result}, {len(cosine)} mutual matches, {len(pairs)} of them drawn"


@report_errors("pca_viz.py", ValueError)
def main(argv=None):
    """The program; returns its exit status."""
    draw(parse_args(argv))
    return 0


if __name__ == "__main__":
    sys.exit(main())
