"""docs/small_batch.png: batches of 32, with the values that are usual at 2,048 and with those of our small recipes.

    python tests/measure_small_batch.py docs/small_batch.png --data cifar10.tar.xz --steps 400
    python tests/measure_small_batch.py docs/small_batch.png --data cifar10.tar.xz --steps 400 --seed 1

Any flag of train.py; the recipe is `cifar10` in batches of 32, without a high-resolution end.  Left the collapse meter
of a run with the usual values, in the middle that of the recipe, right k-NN of these two, and of either with a few
values of the other.  Runs are in runs/small_batch; one that has ended is kept, and the dots are of all seeds there.
"""

import json
import math
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from matplotlib.figure import Figure

import train
from evaluate import measure_knn
from recipes import Recipe
from support.cli import parse_args

OURS = ["--recipe", "cifar10", "--batch", "32", "--hires_share", "0", "--eval_every", "0"]
GROUPS = {  # fields of a recipe
    "K": ("n_prototypes",),
    "temperature": ("teacher_temp_start", "teacher_temp"),
    "momentum": ("momentum",),
    "LayerScale": ("layer_scale",),
    "centering": ("centering",),
    "rates": ("lr", "patch_embed_lr"),
    "heads": ("head_hidden", "dino_bottleneck", "ibot_bottleneck"),
    "patch loss": ("ibot_weight",),
    "optimizer": ("optimizer",),
    "stem": ("stem",),
}
USUAL = {**asdict(Recipe()), "centering": "softmax"}  # most are official
ARMS = {  # the groups that have the usual values
    "recipe": [],
    "recipe, K = 65,536": ["K"],
    "recipe, τ_t = 0.04 to 0.07": ["temperature"],
    "recipe, momentum 0.994": ["momentum"],
    "recipe, LayerScale 1e-5": ["LayerScale"],
    "recipe, softmax centering": ["centering"],
    "usual, τ_t = 0.01, Sinkhorn-Knopp, K = 512": [
        name for name in GROUPS if name not in ("temperature", "centering", "K")
    ],
    "usual, τ_t = 0.01": [name for name in GROUPS if name != "temperature"],
    "usual": list(GROUPS),
}
METER = {
    "dino": "L_DINO / ln K",
    "entropy_image": "entropy of an image's targets / ln K",
    "entropy_mean": "entropy of their mean / ln K",
    "cosine": "cosine between images",
}
FOLDER = Path("runs/small_batch")


def flags_of(groups):
    """The flags of train.py that give these groups the usual values."""
    fields = [(name, USUAL[name]) for group in groups for name in GROUPS[group]]
    return ["--no-stem" if name == "stem" else f"--{name}={value}" for name, value in fields]


def recipe_of(name, words):
    """The recipe of an arm, and the flags that say it."""
    flags = [*OURS, *flags_of(ARMS[name]), *words]
    return parse_args(flags)[1], flags


def folder_of(name, seed):
    """runs/small_batch/ARM_SEED, of letters that any file system has."""
    return FOLDER / f"{''.join(c if c.isalnum() and c.isascii() else '-' for c in name)}_{seed}"


def rows_of(out):
    """The rows of a run's metrics.jsonl."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def knn(network, r):
    """k-NN by eval_images training images."""
    splits, size = train.splits_at(r.steps, r), train.sizes_at(r.steps, r)[1]
    return measure_knn(network, *splits, size, r.eval_images)


def run_arm(name, words):
    """Train an arm, if it has not ended."""
    r, flags = recipe_of(name, words)
    out = folder_of(name, r.seed)
    if not (out / "vit.pt").exists():
        train.evaluate = lambda run, network, out: {**knn(network, r), "evaluation_flops": 0}
        train.main([*flags, "--out", str(out), "--resume"])


def draw_meter(axes, name, words):
    """The collapse meter and L_DINO of an arm over its steps."""
    r, _ = recipe_of(name, words)
    rows = [row for row in rows_of(folder_of(name, r.seed)) if "cosine" in row]
    for key, label in METER.items():
        values = [row[key] / (math.log(r.n_prototypes) if key == "dino" else 1) for row in rows]
        axes.plot([row["step"] for row in rows], values, label=label)
    axes.set(title=f"{name}: K = {r.n_prototypes:,}", xlabel="step", ylim=(-0.05, 1.3))


def draw_knn(axes, words):
    """A dot for each seed of each arm, and a line where an untrained network is."""
    r, _ = recipe_of("recipe", words)
    untrained = 100 * knn(train.start_run(r, torch.device("cpu")).ema.backbone, r)["knn_20"]
    print(f"untrained: k-NN {untrained:.1f} %")
    axes.axvline(untrained, color="grey", linestyle=":", label="the recipe, untrained")
    for y, name in enumerate(ARMS):
        ended = [folder_of(name, seed) for seed in range(10) if (folder_of(name, seed) / "vit.pt").exists()]
        values = [100 * rows_of(out)[-1]["knn_20"] for out in ended]
        axes.plot(values, [y] * len(values), "o", color="tab:blue", alpha=0.6)
        print(f"{name}: k-NN {', '.join(f'{value:.1f}' for value in values)} %")
    axes.set(yticks=range(len(ARMS)), yticklabels=list(ARMS), title="k-NN (k = 20), %")
    axes.invert_yaxis()
    axes.legend()


def main(argv):
    path, *words = argv
    for name in ARMS:
        run_arm(name, words)
    figure = Figure(figsize=(16, 4.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    draw_meter(left, "usual", words)
    draw_meter(middle, "recipe", words)
    left.legend(fontsize=8)
    draw_knn(right, words)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main(sys.argv[1:])
