"""How good are frozen features? Weighted k-NN, and linear classifiers. (DINOv2 §7.1, §7.2, §7.4)

    k-NN:    ŷ = argmax_c  Σ_{i ∈ N_k(x)}  exp(⟨x, x_i⟩ / τ) · 1[y_i = c]

    x      (D,)    feature of a test image: the normalised [CLS] token of the network, of unit length
    x_i    (D,)    feature of training image i, of N
    y_i    ()      its label, one of C classes
    N_k    (k,)    the k training images of the largest cosine ⟨x, x_i⟩
    τ      ()      temperature of the vote: a neighbour counts more the nearer it is

The reference divides each image's weights by their sum (a softmax), we by their largest: the argmax is the same.  The
linear classifiers and what they are trained on: `linear_probe.py`.
"""

import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

import vit as networks
from augment import normalize
from distributed import in_shares, rank
from linear_probe import (
    check,
    configurations,
    linear_accuracy,  # noqa: F401  others have it from here
    linear_probe,
    logistic_regression,
    probe_tokens,
    segmentation_iou,
)
from support.cli import CHOICES, Parser, add_device, add_pictures, check_scale, positive, report_errors, side
from support.device import autocast, choose_threads, find_device
from support.files import UserError, check_out, write_safely
from support.images import Images, in_order, load_images, whole_patches
from support.weights import load_vit

KS = (20, 200)  # neighbours; 20 is DINO's best, 200 the far end of its sweep (10, 20, 100, 200)
LINEAR = ("grid", "cls", "logistic", "parts")  # the linear classifiers, by what --linear calls them
TOKENS = 2**27  # ours: floats of patch tokens for segmentation, 512 MiB; if need be fewer pictures are taken
SIMILARITIES = 2**24  # ours: cosines held at once by k-NN, 64 MiB
EVAL_SIZE = 224  # paper: resolution of the evaluations; a network trained at less is evaluated at its own
LAYER_SCALE = 0.1  # ours: of the untrained network, as in the small recipes; at 1e-5 its blocks would do nothing
PIXEL_SIZE = 32  # ours: of the baselines; 3·32² = 3072 features for raw pixels

# --------------------------------------------------------------------------------------------------------
# Features


@torch.no_grad()
def frozen_features(vit, pixels, size, key="x_norm_clstoken", batch=256, progress=False):
    """One output of the frozen network for each image: its name in forward_features, or a function of (vit, images).

    vit: has forward_features and patch_size; runs in eval mode on its own device, and gets its mode back.
    pixels: (N, 3, S, S) uint8, or a split from load_images, which may be larger than the memory.
    size: images are resized to it, rounded to a whole number of patches. Returns (N, D) float32 on the CPU,
    or (N, P, D) for the tokens of P patches.
    """
    device = next(vit.parameters()).device
    size = whole_patches(size, vit.patch_size)
    batches = in_order(pixels, batch, device) if isinstance(pixels, Images) else pixels.split(batch)
    total = math.ceil(len(pixels) / batch)
    was_training = vit.training
    vit.eval()
    features = []
    try:
        for images in tqdm(batches, "features", total, leave=False, disable=not progress):
            images = images.to(device)
            if images.shape[-2:] != (size, size):
                images = F.interpolate(images.float() / 255, (size, size), mode="bicubic", antialias=True)
                images = images.clamp(0, 1)  # (b, 3, size, size), and bicubic overshoots at edges
            with autocast(device):
                images = normalize(images)
                output = key(vit, images) if callable(key) else vit.forward_features(images)[key]  # (b, D) or (b, P, D)
            features.append(output.float().cpu())
    finally:
        vit.train(was_training)
    return torch.cat(features)  # (N, D) or (N, P, D)


def pixel_features(train_pixels, test_pixels):
    """The baseline a network must beat: the pixels themselves, less the mean training image.

    (N, 3, S, S) and (M, 3, S, S) uint8 -> (N, 3·S²) and (M, 3·S²) float32.
    """
    train = train_pixels.flatten(1).float() / 255  # (N, D)
    test = test_pixels.flatten(1).float() / 255  # (M, D)
    return train - train.mean(0), test - train.mean(0)


# --------------------------------------------------------------------------------------------------------
# k-NN


def knn_accuracies(train_features, train_labels, test_features, test_labels, ks=KS, temp=0.07):
    """Accuracy of the weighted k-NN vote for each k of ks, from one search for the neighbours.

    (N, D), (N,), (M, D), (M,): features of any float type and length, labels 0 … C−1, both left as they are.
    A k over N is N. Equal votes go to the lower class. Returns a list of fractions in [0, 1]. Raises
    ValueError for features that are not finite, or do not fit the labels.
    """
    n_classes = check(train_features, train_labels, test_features, test_labels)
    assert min(ks) >= 1 and temp > 0, f"need k of at least 1 and a temperature above 0, got {ks} and {temp}"
    device = train_features.device
    train = F.normalize(train_features.float(), dim=1)  # (N, D)
    train_labels = train_labels.to(device)
    ks = [min(k, len(train)) for k in ks]
    correct = [0] * len(ks)
    rows = max(1, SIMILARITIES // len(train))
    for x, y in zip(test_features.split(rows), test_labels.split(rows), strict=True):
        x, y = F.normalize(x.to(device).float(), dim=1), y.to(device)  # (m, D), (m,)
        similarity, neighbour = (x @ train.T).topk(max(ks), dim=1)  # (m, k) each, nearest first
        # Each row is divided by its largest weight: the winner is the same, and no temperature overflows.
        weight = ((similarity - similarity[:, :1]) / temp).exp()  # (m, k)
        label = train_labels[neighbour]  # (m, k)
        for i, k in enumerate(ks):
            votes = weight.new_zeros(len(x), n_classes).scatter_add_(1, label[:, :k], weight[:, :k])  # (m, C)
            correct[i] += (votes.argmax(1) == y).sum().item()
    return [c / len(test_features) for c in correct]


def knn_accuracy(train_features, train_labels, test_features, test_labels, k=20, temp=0.07):
    """`knn_accuracies` for one k: a fraction in [0, 1]."""
    return knn_accuracies(train_features, train_labels, test_features, test_labels, (k,), temp)[0]


def measure_knn(vit, train, test, size, n_train=None, progress=False):
    """k-NN accuracy of [CLS] features of size² images: {"knn_20": a, "knn_200": b}, {} without labels.

    train, test: splits in memory.  n_train: only so many of the training images, drawn at random.  No k is larger than
    the number of training images.
    """
    if train.labels is None or test.labels is None:
        return {}
    progress = progress and rank() == 0
    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:n_train]
    train_features, test_features = (in_shares(lambda some: frozen_features(vit, some, size, progress=progress), pixels)
                                     for pixels in (train.pixels[chosen], test.pixels))  # fmt: skip
    ks = possible(KS, len(chosen))
    found = knn_accuracies(train_features, train.labels[chosen], test_features, test.labels, ks)
    return {f"knn_{k}": accuracy for k, accuracy in zip(ks, found)}


def possible(ks, n):
    """Those of ks that n training images allow, or else n."""
    return sorted({k for k in ks if k <= n}) or [n]


# --------------------------------------------------------------------------------------------------------
# Command line


def network_of(args):
    """The network that the command line names, or None for raw pixels, and the side of its images."""
    if args.weights == "pixels":
        return None, min(args.size or PIXEL_SIZE, PIXEL_SIZE)
    if args.weights == "random":
        size = whole_patches(args.size or PIXEL_SIZE, args.patch_size)
        torch.manual_seed(0)
        build = getattr(networks, args.arch)
        return build(patch_size=args.patch_size, img_size=size, layer_scale=LAYER_SCALE).to(args.device), size
    vit = load_vit(args.weights, args.device)
    native = math.isqrt(vit.pos_embed.shape[1] - 1) * vit.patch_size
    return vit, whole_patches(args.size or min(native, EVAL_SIZE), vit.patch_size)


def load_both(args, vit, size):
    """The training and the test images, and whether all have labels; of those to be saved the latter may be missing."""
    splits = []
    for split in ("train", "test"):
        try:
            splits.append(load_images(args.data, split, size, scale=args.scale, max_megapixels=args.max_megapixels))
        except UserError:
            if not (splits and vit and args.save):  # features of training images alone can be saved
                raise
    labelled = len(splits) == 2 and all(images.labels is not None for images in splits)
    if not labelled and not args.save:
        where = f"the test split of {args.data}" if splits[0].classes else args.data
        raise UserError(f"{where} has no labels: put the images of each class into a folder of its own, or list them "
                        "in a .csv with path,label; --save FILE.npz needs none")  # fmt: skip
    if vit is None and any(images.pixels is None for images in splits):
        raise UserError(f"{args.data} is too large for --weights pixels, which holds all images in memory")
    return splits, labelled


def evaluate(args):
    """Prints the table of one set of weights on one data set. Raises UserError, ValueError or OSError."""
    vit, size = network_of(args)
    splits, labelled = load_both(args, vit, size)
    kinds = args.linear or ["grid", "logistic"] + ["parts"] * (vit is not None and splits[0].parts is not None)
    start, grid = time.perf_counter(), bool(vit) and labelled and "grid" in kinds
    if vit:
        key = probe_tokens if grid else "x_norm_clstoken"
        features = [frozen_features(vit, images, size, key, progress=True) for images in splits]
    else:
        features = pixel_features(*(images.pixels for images in splits))
    good = [images.readable() for images in splits]  # (N,), (M,); streamed sets know broken files only now
    features = [x[readable] for x, readable in zip(features, good)]
    features[0] = features[0].to(args.device)
    rows = [("features", "", time.perf_counter() - start)]
    name = "[CLS] of 1 block" if vit else "pixels"
    features = [configurations(x, vit.embed_dim) if grid else {name: x} for x in features]  # {name: (N, D')}, (M, D')
    plain = [found[name] for found in features]  # (N, D), (M, D)
    images = " and ".join(f"{len(x)} {split}" for x, split in zip(plain, ("training", "test"))) + " images"
    skipped, classes = len(dict(pair for split in splits for pair in split.skipped)), len(splits[0].classes)
    print(f"{args.weights}: {plain[0].shape[1]} features from {size}×{size} pixels, on {args.device}, {args.threads}")
    print(f"{args.data}: {images}, {classes} classes, {skipped} files skipped as unreadable")
    for note in dict.fromkeys(note for split in splits for note in split.notes):
        print(f"{args.data}: {note}")
    if args.save:
        save_features(args.save, splits, plain, good)
    if not labelled:
        print(f"\nresult: features of {images}, {args.save}")
        return
    labels = [split.labels[readable] for split, readable in zip(splits, good)]
    start = time.perf_counter()
    ks = possible(args.k, len(plain[0]))
    found = dict(zip(ks, knn_accuracies(plain[0], labels[0], plain[1], labels[1], ks)))
    seconds = time.perf_counter() - start  # of one search for all k
    rows += [(f"k-NN, k = {k}", f"{accuracy:.2%}", seconds if k == ks[0] else None) for k, accuracy in found.items()]
    words = ["k-NN " + ", ".join(f"{accuracy:.2%} (k = {k})" for k, accuracy in found.items())]
    for kind in kinds:
        start = time.perf_counter()
        row, score, how = classify(kind, vit, size, splits, *features, labels, name)
        rows += [(row, score, time.perf_counter() - start)]
        words += [f"{row.removesuffix(' probe')} {score} ({how})"]
    print(f"\n{'':16}{'score':>10}{'seconds':>10}")
    for row, score, seconds in rows:
        print(f"{row:16}{score:>10}{'' if seconds is None else f'{seconds:.1f}':>10}")
    saved = f", {args.save}" if args.save else ""
    print(f"\nresult: {args.weights} on {args.data}: {', '.join(words)}, chance {1 / classes:.2%}{saved}")


def classify(kind, vit, size, splits, train, test, labels, name):
    """One linear classifier: what to call it, its score on the test images in words, and what was chosen for it.

    train, test: {name: (N, D')}, {name: (M, D')}; name: the plain feature among them.
    """
    if kind == "parts":
        n = max(2, TOKENS // (vit.embed_dim * (size // vit.patch_size) ** 2))  # kinds of pictures come in turn
        sets = []
        for images in splits:
            sets += [frozen_features(vit, images.pixels[:n], size, "x_norm_patchtokens"), images.parts[:n]]
        sets[0] = sets[0].to(train[name].device)
        iou, rate = segmentation_iou(*sets)
        return "mIoU of parts", f"{iou:.3f}", f"rate {rate:g}"
    if kind == "logistic":
        accuracy, penalty = logistic_regression(train[name], labels[0], test[name], labels[1])
        return "logistic", f"{accuracy:.2%}", f"λ = {penalty:g}"
    if kind == "cls":
        train, test = {name: train[name]}, {name: test[name]}
    accuracy, chosen, rate = linear_probe(train, labels[0], test, labels[1])
    return "linear of [CLS]" if kind == "cls" else "linear probe", f"{accuracy:.2%}", f"{chosen}, rate {rate:g}"


def save_features(path, splits, features, good):
    """A .npz with features (N, D), labels (N,), names (N,) and classes of both splits, under train_… and test_….

    Without classes every tenth image is in both, as everywhere.  Labels and names only where there are some.
    good: which images of a split could be read, (N,) bool of each.
    """
    arrays = {"classes": np.array(splits[0].classes, dtype=str)}
    for which, images, x, readable in zip(("train", "test"), splits, features, good):
        arrays[f"{which}_features"] = x.cpu().numpy()
        if images.labels is not None:
            arrays[f"{which}_labels"] = images.labels[readable].numpy()
        if images.names:
            arrays[f"{which}_names"] = np.array(images.names, dtype=str)[readable.numpy()]
    write_safely(path, lambda new: np.savez(open(new, "wb"), **arrays))


def parse_args(argv):
    """Command line -> its options, the device found. Raises UserError."""
    parser = Parser(prog="evaluate.py", description="k-NN and linear classifiers of frozen features.")
    parser.add_argument("--weights", required=True, help="vit.pt, checkpoint.pt, an official name or file; "
                        "or a baseline: 'random' for an untrained network, 'pixels' for none")
    parser.add_argument("--data", required=True, help="labelled images, in any form that train.py takes")
    parser.add_argument("--size", type=side, help="side of the images in pixels (default: the network's "
                        f"own, at most {EVAL_SIZE}; {PIXEL_SIZE} for a baseline, the most for 'pixels')")
    parser.add_argument("--arch", choices=CHOICES["arch"], default="vit_nano", help="network of --weights random "
                        "(default: %(default)s)")
    parser.add_argument("--patch-size", type=side, default=4, help="its patch side in pixels (default: %(default)s)")
    parser.add_argument("--k", type=positive, nargs="+", default=KS, help="neighbours that vote (default: 20 200)")
    parser.add_argument("--linear", nargs="*", choices=LINEAR, default=[], help="grid: the probe of B.3, [CLS] of 1 or "
                        "4 blocks, with and without the mean patch token; cls: of the last [CLS] alone; logistic: "
                        "logistic regression on that; parts: segmentation of --data shapes (default: all but cls)")
    parser.add_argument("--save", type=Path, metavar="FILE.npz", help="features, labels and names of all images, for "
                        "NumPy; needs no labels")
    add_pictures(parser)
    add_device(parser)
    args = parser.parse_args(argv)
    check_scale(args.scale)
    if args.save:
        check_out(args.save, "--save")
    args.linear = list(dict.fromkeys(args.linear))
    if "parts" in args.linear and (args.weights == "pixels" or args.data != "shapes"):
        raise UserError("--linear parts wants a network, and --data shapes, of which alone the parts are known")
    args.device, args.threads = find_device(args.device), choose_threads(args.threads)
    return args


@report_errors("evaluate.py", ValueError)
def main(argv=None):
    """The program; returns its exit status."""
    evaluate(parse_args(argv))
    return 0


if __name__ == "__main__":
    sys.exit(main())
