"""How good are frozen features? Weighted k-NN and a linear probe. (DINOv2 §7.1, "ImageNet Classification")

    k-NN:    ŷ = argmax_c  Σ_{i ∈ N_k(x)}  exp(⟨x, x_i⟩ / τ) · 1[y_i = c]
    linear:  ŷ = argmax_c  (x W + b)_c,    W, b = argmin  −(1/N) Σ_i log softmax(x_i W + b)_{y_i}

    x      (D,)    feature of a test image: the normalised [CLS] token of the network (unit length for k-NN)
    x_i    (D,)    feature of training image i, of N
    y_i    ()      its label, one of C classes
    N_k    (k,)    the k training images of the largest cosine ⟨x, x_i⟩
    τ      ()      temperature of the vote: a neighbour counts more the nearer it is
    W, b   (D, C)  and (C,): the only weights trained here

The paper (B.3) probes with the [CLS] tokens of 1 or 4 blocks, with and without the mean patch token, on
augmented images, for 13 learning rates, and reports whichever did best ON THE VALIDATION SET. We use the last
[CLS] token of each image as it is, computed once, and choose the learning rate on a tenth of the TRAINING
set: the test labels are read once, for the final number. In k-NN the reference divides each image's weights
by their sum (a softmax), we by their largest: the argmax is the same.
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
from schedule import cosine_schedule
from support.data import Images, in_order, load_images
from support.failures import in_one_line
from support.files import DataError, write_safely
from support.flags import (
    CHOICES,
    Parser,
    add_device,
    add_pictures,
    check_out,
    check_scale,
    find_device,
    positive,
    side,
)
from support.pictures import whole_patches
from support.precision import autocast
from support.threads import choose_threads
from support.weights import load_vit

KS = (20, 200)  # neighbours; 20 is DINO's best, 200 the far end of its sweep (10, 20, 100, 200)
RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # ours: for standardised features; the paper sweeps 13
STEPS = 2000  # ours; the paper takes 12 500 (B.3)
BATCH = 512  # ours
MOMENTUM = 0.9  # official probe: SGD, momentum 0.9, no weight decay, cosine to 0
SIMILARITIES = 2**24  # ours: cosines held at once by k-NN, 64 MiB
EVAL_SIZE = 224  # paper: resolution of the evaluations; a network trained at less is evaluated at its own
LAYER_SCALE = 0.1  # ours: of the untrained network, as in the small recipes; at 1e-5 its blocks would do nothing
PIXEL_SIZE = 32  # ours: of the baselines; 3·32² = 3072 features for raw pixels

# --------------------------------------------------------------------------------------------------------
# Features


@torch.no_grad()
def frozen_features(vit, pixels, size, key="x_norm_clstoken", batch=256, progress=False):
    """One output of the frozen network for each image, by its name in forward_features.

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
                output = vit.forward_features(normalize(images))[key]  # (b, D) or (b, P, D)
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


def check(train_features, train_labels, test_features, test_labels):
    """One ValueError for arguments that no accuracy can be computed from; otherwise the number of classes."""
    for name, x, y in (("train", train_features, train_labels), ("test", test_features, test_labels)):
        if x.ndim != 2 or y.shape != x.shape[:1] or len(x) == 0:
            shapes = f"{tuple(x.shape)} and {tuple(y.shape)}"
            raise ValueError(f"{name}: need features (N, D) and labels (N,) with N above 0, got {shapes}")
        if not x.isfinite().all():
            raise ValueError(f"{name} features hold NaN or infinite values: the network has diverged")
    return int(max(train_labels.max(), test_labels.max())) + 1


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
# Linear probe


def linear_accuracy(train_features, train_labels, test_features, test_labels):
    """Test accuracy of a logistic regression, its learning rate chosen on a tenth of the training set.

    (N, D), (N,), (M, D), (M,) as for k-NN, N ≥ 2. One head for each of the L learning rates, all in one (L,
    D+1, C) tensor and trained on the same batches. Features are standardised by mean and deviation of the
    training set, so that one set of rates serves any network. The same seed each time, whatever the global
    one. Returns a fraction in [0, 1]. Raises ValueError as for k-NN.
    """
    n_classes = check(train_features, train_labels, test_features, test_labels)
    n, device = len(train_features), train_features.device
    if n < 2:
        raise ValueError("the linear probe needs 2 training images or more: to train on, and to hold out")
    train_labels = train_labels.to(device)
    variance, mean = torch.var_mean(train_features.float(), dim=0, correction=0)  # (D,), (D,)
    deviation = variance.sqrt()  # (D,)
    deviation[deviation <= 1e-6 * mean.abs()] = 1  # a constant column, but for rounding: it becomes 0

    def standardise(x):
        """(b, D) -> (b, D+1); the last column is 1, so that the last row of W is the bias."""
        return F.pad((x.to(device).float() - mean) / deviation, (0, 1), value=1.0)

    def accuracies(features, labels, W):
        """(n, D), (n,), (L, D+1, C) -> (L,)"""
        correct = torch.zeros(len(W), device=device)  # (L,)
        for x, y in zip(features.split(4096), labels.split(4096), strict=True):
            predicted = torch.einsum("bd,ldc->lbc", standardise(x), W).argmax(-1)  # (L, b)
            correct += (predicted == y.to(device)).sum(1)
        return correct / len(features)

    generator = torch.Generator().manual_seed(0)
    held_out, fit = torch.randperm(n, generator=generator).tensor_split([max(1, n // 10)])  # n/10 and 9n/10
    rates = torch.tensor(RATES, device=device).view(-1, 1, 1)  # (L, 1, 1)
    W = torch.zeros(len(RATES), len(mean) + 1, n_classes, device=device)  # (L, D+1, C)
    velocity = torch.zeros_like(W)  # (L, D+1, C)
    for step in range(STEPS):
        batch = fit[torch.randint(len(fit), (min(BATCH, len(fit)),), generator=generator)]  # (b,)
        x = standardise(train_features[batch])  # (b, D+1)
        y = F.one_hot(train_labels[batch], n_classes)  # (b, C)
        p = torch.einsum("bd,ldc->lbc", x, W).softmax(-1)  # (L, b, C)
        gradient = torch.einsum("bd,lbc->ldc", x, p - y) / len(x)  # (L, D+1, C), of the mean cross-entropy
        velocity.mul_(MOMENTUM).add_(gradient)
        W -= rates * cosine_schedule(step, STEPS, 1.0, 0.0) * velocity

    best = accuracies(train_features[held_out], train_labels[held_out], W).argmax()  # ()
    return accuracies(test_features, test_labels, W[best][None]).item()


# --------------------------------------------------------------------------------------------------------
# Command line


def evaluate(args):
    """Prints the table of one set of weights on one data set. Raises DataError, ValueError or OSError."""
    if args.weights == "pixels":
        vit, size = None, min(args.size or PIXEL_SIZE, PIXEL_SIZE)
    elif args.weights == "random":
        size = whole_patches(args.size or PIXEL_SIZE, args.patch_size)
        torch.manual_seed(0)
        build = getattr(networks, args.arch)
        vit = build(patch_size=args.patch_size, img_size=size, layer_scale=LAYER_SCALE).to(args.device)
    else:
        vit = load_vit(args.weights, args.device)
        native = math.isqrt(vit.pos_embed.shape[1] - 1) * vit.patch_size
        size = whole_patches(args.size or min(native, EVAL_SIZE), vit.patch_size)
    splits = []
    for split in ("train", "test"):
        try:
            splits.append(load_images(args.data, split, size, scale=args.scale, max_megapixels=args.max_megapixels))
        except DataError:
            if not (splits and vit and args.save):  # features of training images alone can be saved
                raise
    labelled = len(splits) == 2 and all(images.labels is not None for images in splits)
    if not labelled and not args.save:
        where = f"the test split of {args.data}" if splits[0].classes else args.data
        raise DataError(f"{where} has no labels: put the images of each class into a folder of its own, or list them "
                        "in a .csv with path,label; --save FILE.npz needs none")  # fmt: skip
    start = time.perf_counter()
    if vit:
        features = [frozen_features(vit, images, size, progress=True) for images in splits]  # (N, D), (M, D)
    elif any(images.pixels is None for images in splits):
        raise DataError(f"{args.data} is too large for --weights pixels, which holds all images in memory")
    else:
        features = pixel_features(*(images.pixels for images in splits))  # (N, D), (M, D)
    good = [images.readable() for images in splits]  # (N,), (M,); streamed sets know broken files only now
    features = [x[readable] for x, readable in zip(features, good)]
    rows = [("features", None, time.perf_counter() - start)]
    images = " and ".join(f"{len(x)} {split}" for x, split in zip(features, ("training", "test"))) + " images"
    skipped, classes = len(dict(pair for split in splits for pair in split.skipped)), len(splits[0].classes)
    width = features[0].shape[1]
    print(f"{args.weights}: {width} features from {size}×{size} pixels, on {args.device}, {args.threads}")
    print(f"{args.data}: {images}, {classes} classes, {skipped} files skipped as unreadable")
    for note in dict.fromkeys(note for split in splits for note in split.notes):
        print(f"{args.data}: {note}")
    if args.save:
        save_features(args.save, splits, features, good)
    if not labelled:
        print(f"\nresult: features of {images}, {args.save}")
        return
    train, test = features
    sets = (train.to(args.device), splits[0].labels[good[0]], test, splits[1].labels[good[1]])
    ks = possible(args.k, len(train))
    start = time.perf_counter()
    found = dict(zip(ks, knn_accuracies(*sets, ks)))
    seconds = time.perf_counter() - start  # of one search for all k
    rows += [(f"k-NN, k = {k}", accuracy, seconds if k == ks[0] else None) for k, accuracy in found.items()]
    start = time.perf_counter()
    linear = linear_accuracy(*sets)
    rows += [("linear probe", linear, time.perf_counter() - start)]
    print(f"\n{'':16}{'accuracy':>10}{'seconds':>10}")
    for name, accuracy, seconds in rows:
        cells = "" if accuracy is None else f"{accuracy:.2%}", "" if seconds is None else f"{seconds:.1f}"
        print(f"{name:16}{cells[0]:>10}{cells[1]:>10}")
    words = ", ".join(f"{accuracy:.2%} (k = {k})" for k, accuracy in found.items())
    saved = f", {args.save}" if args.save else ""
    print(f"\nresult: {args.weights} on {args.data}: k-NN {words}, linear {linear:.2%}, "
          f"chance {1 / classes:.2%}{saved}")


def save_features(path, splits, features, good):
    """A .npz with features (N, D), labels (N,), names (N,) and classes of both splits, under train_… and test_….

    Without classes every tenth image is in both, as everywhere.  Labels and names only where there are some.
    good: which images of a split could be read, (N,) bool of each.
    """
    arrays = {"classes": np.array(splits[0].classes, dtype=str)}
    for which, images, x, readable in zip(("train", "test"), splits, features, good):
        arrays[f"{which}_features"] = x.numpy()
        if images.labels is not None:
            arrays[f"{which}_labels"] = images.labels[readable].numpy()
        if images.names:
            arrays[f"{which}_names"] = np.array(images.names, dtype=str)[readable.numpy()]
    write_safely(path, lambda new: np.savez(open(new, "wb"), **arrays))


def parse_args(argv):
    """Command line -> its options, the device found. Raises UserError."""
    parser = Parser(prog="evaluate.py", description="k-NN and linear probe of frozen features.")
    parser.add_argument("--weights", required=True, help="vit.pt, checkpoint.pt, an official name or file; "
                        "or a baseline: 'random' for an untrained network, 'pixels' for none")
    parser.add_argument("--data", required=True, help="labelled images, in any form that train.py takes")
    parser.add_argument("--size", type=side, help="side of the images in pixels (default: the network's "
                        f"own, at most {EVAL_SIZE}; {PIXEL_SIZE} for a baseline, the most for 'pixels')")
    parser.add_argument("--arch", choices=CHOICES["arch"], default="vit_nano", help="network of --weights random")
    parser.add_argument("--patch-size", type=side, default=4, help="its patch side in pixels")
    parser.add_argument("--k", type=positive, nargs="+", default=KS, help="neighbours that vote (default: 20 200)")
    parser.add_argument("--save", type=Path, metavar="FILE.npz", help="features, labels and names of all images, for "
                        "NumPy; needs no labels")
    add_pictures(parser)
    add_device(parser)
    args = parser.parse_args(argv)
    check_scale(args.scale)
    if args.save:
        check_out(args.save, "--save")
    args.device, args.threads = find_device(args.device), choose_threads(args.threads)
    return args


@in_one_line("evaluate.py", ValueError)
def main(argv=None):
    """The program; returns its exit status."""
    evaluate(parse_args(argv))
    return 0


if __name__ == "__main__":
    sys.exit(main())
