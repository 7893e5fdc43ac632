"""Measure frozen features: weighted k-NN, linear classifiers, retrieval. (DINOv2 §7.1 to §7.4)

    python evaluate.py --weights runs/mine/vit.pt --data DIR

    k-NN:    ŷ = argmax_c  Σ_{i ∈ N_k(x)}  exp(⟨x, x_i⟩ / τ) · 1[y_i = c]

    x      (D,)    feature of a test image: the network's normalized [CLS] token, scaled to unit length
    x_i    (D,)    feature of training image i of N
    y_i    ()      its label, one of C classes
    N_k    (k,)    the k training images with the largest cosine ⟨x, x_i⟩
    τ      ()      temperature: at a low τ the nearest neighbours count most
"""

import math
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from augment import normalize
from distributed import in_shares, rank
from linear_probe import b3_features, count_classes, linear_probe, logistic_regression, probe_tokens, segmentation_iou
from retrieval import mean_average_precision
from support.cli import CHOICES, Parser, add_device, add_scale, positive, report_errors, side
from support.device import autocast, choose_threads, find_device
from support.files import UserError, check_out, write_safely
from support.images import Images, in_order, load_splits, whole_patches
from support.shapes import draw_things
from support.weights import load_vit

KS = (20, 200)  # neighbours; 20 is DINO's best, 200 the largest that it tries (10, 20, 100, 200)
TOKENS = 2**27  # ours: the most floats of patch tokens for segmentation, 512 MiB; fewer images are used if need be
SIMILARITIES = 2**24  # ours: cosines in memory at once in k-NN, 64 MiB
EVAL_SIZE = 224  # paper: resolution of the evaluations; a network trained at a lower one is evaluated at its own


@torch.no_grad()
def frozen_features(vit, pixels, size, key="x_norm_clstoken", batch=256):
    """One output of the frozen network for each image: (N, D) float32 on the CPU, or (N, P, D) for patch tokens.

    vit: runs on its own device, and is left in eval mode.  pixels: (N, 3, S, S) uint8, or a split.  size: images are
    resized to it, rounded to whole patches.  key: a key of forward_features, or a function of (vit, images).
    """
    device = next(vit.parameters()).device
    size = whole_patches(size, vit.patch_size)
    batches = in_order(pixels, batch, device) if isinstance(pixels, Images) else pixels.split(batch)
    vit.eval()
    features = []
    for images in tqdm(batches, "features", math.ceil(len(pixels) / batch), leave=False, delay=1, disable=rank() > 0):
        images = images.to(device)
        if images.shape[-2:] != (size, size):  # bicubic overshoots at edges, hence the clamp
            images = F.interpolate(images.float() / 255, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
        with autocast(device):
            images = normalize(images)
            output = key(vit, images) if callable(key) else vit.forward_features(images)[key]  # (b, D) or (b, P, D)
        features.append(output.float().cpu())
    return torch.cat(features)  # (N, D) or (N, P, D)


def knn_accuracies(train_features, train_labels, test_features, test_labels, ks=KS, temp=0.07):
    """{k: accuracy in [0, 1]} of the weighted k-NN vote for each k in ks up to N, or for N if there is none.

    (N, D), (N,), (M, D), (M,): features of any float type, not normalized; labels 0 … C−1.  Of two classes with equal
    votes the lower wins.  Raises ValueError like `count_classes`.
    """
    n_classes = count_classes(train_features, train_labels, test_features, test_labels)
    assert min(ks) >= 1 and temp > 0, f"need k of at least 1 and a temperature above 0, got {ks} and {temp}"
    train = F.normalize(train_features.float(), dim=1)  # (N, D)
    train_labels = train_labels.to(train.device)
    correct = dict.fromkeys(sorted(k for k in ks if k <= len(train)) or [len(train)], 0)  # {k: number}
    rows = max(1, SIMILARITIES // len(train))
    for x, y in zip(test_features.split(rows), test_labels.split(rows), strict=True):
        x, y = F.normalize(x.to(train.device).float(), dim=1), y.to(train.device)  # (m, D), (m,)
        similarity, neighbour = (x @ train.T).topk(max(correct), dim=1)  # (m, k) each, nearest first
        weight = ((similarity - similarity[:, :1]) / temp).exp()  # (m, k), divided by the largest: no overflow
        label = train_labels[neighbour]  # (m, k)
        for k in correct:
            votes = weight.new_zeros(len(x), n_classes).scatter_add_(1, label[:, :k], weight[:, :k])  # (m, C)
            correct[k] += (votes.argmax(1) == y).sum().item()
    return {k: number / len(test_features) for k, number in correct.items()}


def knn_accuracy(train_features, train_labels, test_features, test_labels, k=20, temp=0.07):
    """`knn_accuracies` for one k; a k above N means N."""
    [accuracy] = knn_accuracies(train_features, train_labels, test_features, test_labels, (k,), temp).values()
    return accuracy


def measure_knn(vit, train, test, size, n_train=None):
    """k-NN accuracy of [CLS] features at size²: {"knn_20": a, "knn_200": b}, or {} without two classes.

    train, test: splits in memory.  n_train: use only so many random training images.
    """
    if train.labels is None or test.labels is None or len(train.labels.unique()) < 2:
        return {}
    if not (known := torch.isin(test.labels, train.labels)).any():
        return {}
    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:n_train]
    pixels = train.pixels[chosen], test.pixels[known]
    x, test_x = (in_shares(lambda some: frozen_features(vit, some, size), p) for p in pixels)
    accuracies = knn_accuracies(x, train.labels[chosen], test_x, test.labels[known])
    return {f"knn_{k}": accuracy for k, accuracy in accuracies.items()}


def measure_retrieval(vit, size):
    """mAP of [CLS] features at size²: each picture of a built-in thing finds the other pictures of this thing."""
    pixels, things = draw_things(size, seed=0)
    x = frozen_features(vit, pixels, size)
    return mean_average_precision(x, x, things[:, None] == things, torch.eye(len(x), dtype=torch.bool))


# ---------------------------------------------------------------------------- Command line


def split_features(vit, images, size, key):
    """Features (N, D') of a split's readable images, and which these are, (N,) bool."""
    x = frozen_features(vit, images, size, key)
    good = images.readable()  # a streamed split finds broken files only while it is read
    return x[good], good


def other_test_set(args, vit, size, key, classes):
    """All images of --other whose class is one of `classes`: features (M, D'), labels (M,)."""
    features, labels = [], []
    for images in load_splits(args.other, size, 0, args.scale):
        if images.labels is not None:  # training images can stand in for absent test images
            x, good = split_features(vit, images, size, key)
            number = torch.tensor([classes.index(name) if name in classes else -1 for name in images.classes])
            features.append(x)
            labels.append(number[images.labels[good]])
    if not labels or all(x.max() < 0 for x in labels):
        raise UserError(f"--other {args.other} has no class of --data {args.data}; name its folders {classes[0]}, ...")
    return torch.cat(features), torch.cat(labels)


def evaluate(args):
    """Save the features, or print a line per classifier with its score and hyper-parameters, or both."""
    vit = load_vit(args.weights, args.device)
    size = whole_patches(args.size or min(vit.img_size, EVAL_SIZE), vit.patch_size)
    splits = load_splits(args.data, size, 0, args.scale, args.labels)
    measured = not args.save or args.k or args.linear is not None or args.other
    if measured and any(images.labels is None for images in splits):
        raise UserError(f"{args.data} does not have labels in both splits: put the images of each class into a folder, "
                        "or list them in a .csv with path,label; --save FILE.npz alone needs no labels")  # fmt: skip
    kinds = args.linear or ["grid", "logistic"] + ["parts"] * (splits[0].parts is not None)
    dim = vit.embed_dim if measured and "grid" in kinds else None  # None: x is [CLS] alone
    key = probe_tokens if dim else "x_norm_clstoken"
    (x, good), (test_x, test_good) = (split_features(vit, images, size, key) for images in splits)
    cls, test_cls = (next(iter(named_features(z, dim).values())) for z in (x, test_x))  # [CLS]
    print(f"{args.weights}: {cls.shape[1]} features from {size}×{size} pixels, on {args.device}, {args.threads}")
    if args.save:
        save_features(args.save, splits, (cls, test_cls), (good, test_good))
        print(f"features of {len(x)} training and {len(test_x)} test images saved: {args.save}")
    if not measured:
        return
    x, y, test_y = x.to(args.device), splits[0].labels[good], splits[1].labels[test_good]
    other = other_test_set(args, vit, size, key, splits[0].classes) if args.other else None
    print_scores(args, kinds, dim, x, y, test_x, test_y)
    if "parts" in kinds:
        n = max(2, TOKENS // (vit.embed_dim * (size // vit.patch_size) ** 2))
        tokens, test_tokens = (frozen_features(vit, images.pixels[:n], size, "x_norm_patchtokens") for images in splits)
        parts, test_parts = (images.parts[:n] for images in splits)
        iou, rate = segmentation_iou(tokens.to(args.device), parts, test_tokens, test_parts)
        print_row("mIoU of parts", f"{iou:.3f}", f"rate {rate:g}")
        print_row("mAP of things", f"{measure_retrieval(vit, size):.3f}")
    if args.other:
        print(f"{args.other}, all of its images:")
        print_scores(args, kinds, dim, x, y, *other)


def named_features(x, dim):
    """Features (N, D') -> {name: features}: the four of B.3 for a network `dim` wide, or x alone without dim."""
    return b3_features(x, dim) if dim else {"[CLS]": x}


def print_scores(args, kinds, dim, x, y, test_x, test_y):
    """Print k-NN and the linear classifiers of `kinds`; test images of classes without training images are left out.

    x, test_x: (N, D'), (M, D'), for `named_features`.  Hyper-parameters are chosen on training images.
    """
    known = torch.isin(test_y, y)
    if not known.any() or len(y.unique()) < 2:
        raise UserError(f"{args.data}: two classes need training images, and one of them test images; check folders")
    if not known.all():
        print(f"{(~known).sum()} of {len(known)} test images are of classes without training images, and are left out")
    test_y, train, test = test_y[known], named_features(x, dim), named_features(test_x[known], dim)
    cls, test_cls = (next(iter(named.values())) for named in (train, test))
    print_row("chance", f"{1 / len(y.unique()):.2%}")  # a guess names any class of training
    for k, accuracy in knn_accuracies(cls, y, test_cls, test_y, args.k or KS).items():
        print_row(f"k-NN (k = {k})", f"{accuracy:.2%}")
    if "grid" in kinds:
        accuracy, name, rate = linear_probe(train, y, test, test_y)
        print_row("linear probe", f"{accuracy:.2%}", f"{name}, rate {rate:g}")
    if "logistic" in kinds:
        accuracy, penalty = logistic_regression(cls, y, test_cls, test_y)
        print_row("logistic", f"{accuracy:.2%}", f"λ = {penalty:g}")


def print_row(name, score, chosen=""):
    """Print one line of the table."""
    print(f"{name:16}{score:>8}  {chosen}".rstrip())


def save_features(path, splits, features, readable):
    """Write a .npz: features (N, D), labels (N,), names (N,) of both splits as train_… and test_…; and classes.

    Labels and names are left out if the dataset has none.  readable: (N,) bool per split.
    """
    arrays = {"classes": np.array(splits[0].classes, dtype=str)}
    for split, images, x, good in zip(("train", "test"), splits, features, readable):
        arrays[f"{split}_features"] = x.cpu().numpy()
        if images.labels is not None:
            arrays[f"{split}_labels"] = images.labels[good].numpy()
        if images.names:
            arrays[f"{split}_names"] = np.array(images.names, dtype=str)[good.numpy()]
    write_safely(path, lambda new: np.savez(open(new, "wb"), **arrays))


@report_errors("evaluate.py", ValueError)
def main(argv=None):
    """Run the program and return its exit status."""
    parser = Parser(prog="evaluate.py", description="Measure frozen features by k-NN and linear classifiers.")
    parser.add_argument("--weights", required=True, help="vit.pt, checkpoint.pt, or an official name or file")
    parser.add_argument("--data", required=True, help="labelled images, in any form that train.py takes")
    parser.add_argument("--other", help="a second test set, of another kind, with the classes of --data (Table 6)")
    parser.add_argument("--labels", choices=CHOICES["labels"], default="auto", help="none: folders are not classes")
    parser.add_argument("--size", type=side, help="side of the images in pixels (default: the network's own, at most "
                        f"{EVAL_SIZE})")
    parser.add_argument("--k", type=positive, nargs="+", help="neighbours that vote (default: 20 200)")
    parser.add_argument("--linear", nargs="*", choices=("grid", "logistic", "parts"), help="grid: linear probes; "
                        "logistic: logistic regression; parts: segmentation and retrieval, for --data shapes (all)")
    parser.add_argument("--save", type=Path, metavar="FILE.npz", help="save the features of all images for NumPy; "
                        "measure only with --k, --linear or --other")
    add_scale(parser)
    add_device(parser)
    args = parser.parse_args(argv)
    if args.other == args.data:
        raise UserError(f"--other {args.other} is --data, which holds the training images; give another set")
    if args.save:
        check_out(args.save)
    if "parts" in (args.linear or ()) and args.data != "shapes":
        raise UserError("--linear parts needs --data shapes, the only dataset with known parts")
    args.device, args.threads = find_device(args.device), choose_threads()
    evaluate(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
