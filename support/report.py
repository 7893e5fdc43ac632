"""What a person sees of a run: k-NN accuracy, the PCA picture, the curves, the memory."""

import math
import resource
import sys

import torch
from einops import rearrange
from matplotlib.figure import Figure

from evaluate import frozen_features, knn_accuracies
from pca_viz import draw_pca, foreground_iou, pca_rgb
from support.checkpoint import write_safely


def measure_knn(vit, train, test, size, n_train=None):
    """k-NN accuracy of [CLS] features of size² images: {"knn_20": a, "knn_200": b}, {} without labels.

    train, test: splits from load_images.  n_train: measure against that many training images, drawn at random,
    rather than all.
    """
    if train.labels is None or train.pixels is None or test.pixels is None:
        return {}
    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:n_train]
    train_features = frozen_features(vit, train.pixels[chosen], size)
    test_features = frozen_features(vit, test.pixels, size)
    k20, k200 = knn_accuracies(train_features, train.labels[chosen], test_features, test.labels, (20, 200))
    return {"knn_20": k20, "knn_200": k200}


def draw_pictures(vit, test, size, path):
    """pca.png of 12 test images; the mean IoU of 200 foregrounds where the masks are known, otherwise None."""
    if test.pixels is None:
        return None
    chosen = torch.linspace(0, len(test) - 1, min(len(test), 200)).long()
    tokens = frozen_features(vit, test.pixels[chosen], size, "x_norm_patchtokens")  # (I, N, D)
    rgb, foreground = pca_rgb(tokens)
    shown = torch.linspace(0, len(chosen) - 1, min(len(chosen), 12)).long()
    colours = rearrange(rgb[shown], "i (h w) c -> i h w c", h=size // vit.patch_size)
    draw_pca(test.pixels[chosen][shown], colours, path)
    return None if test.masks is None else foreground_iou(foreground, test.masks[chosen])


def draw_curves(rows, recipe, path):
    """curves.png: losses beside ln K, the collapse meter, and k-NN over the steps."""
    figure = Figure(figsize=(15, 4), layout="constrained")
    panels = {
        "losses": ("dino", "ibot"),
        "collapse meter": ("entropy_image", "entropy_mean", "cosine"),
        "k-NN accuracy of the teacher": ("knn_20", "knn_200"),
    }
    for axes, (title, names) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for name in names:
            points = [(row["step"], row[name]) for row in rows if name in row]
            if points:
                axes.plot(*zip(*points, strict=True), "o-" if "knn" in name else "-", label=name)
        if title == "losses":
            axes.axhline(math.log(recipe.n_prototypes), color="grey", linestyle=":", label="ln K (uniform)")
        axes.set(title=title, xlabel="step")
        if axes.lines:
            axes.legend()
    write_safely(path, lambda temporary: figure.savefig(temporary, dpi=100, format="png"))


def peak_memory(device):
    """Most memory so far, in bytes: allocated on the GPU, or resident on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
