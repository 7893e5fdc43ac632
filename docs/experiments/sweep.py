"""Train `cifar10` with one value changed at a time, each arm for the same FLOPs, and print k-NN.  In ARMS, words with
"=" are changes that no flag makes.

    OMP_NUM_THREADS=1 python -m docs.experiments.sweep DATA TFLOP SEEDS [ARM ...]     ... cifar10 28.5 0,1

DATA is CIFAR-10 in any form that train.py's --data takes.  The runs go into runs/sweep; a second call continues them.
k-NN is measured at 24², by all training images: k = 20 and 200, [CLS]; then k = 20, [CLS] beside the mean patch token.
"""

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

import augment
import train
import vit
from bench import count_step
from evaluate import frozen_features, knn_accuracies, knn_accuracy
from recipes import get_recipe
from stem import conv_stem
from support import start
from support.cli import parse_args
from support.start import load_splits_of, make_crop

RECIPE = "--recipe cifar10 --hires_share 0 --eval_every 0 --log_every 50 --save_every 100000 --resume --device cpu"
CHANCES, step, init = augment.CHANCES, train.train_step, vit.ViT.__init__
ARMS = {
    "recipe": "", "jitter .6": "--jitter 0.6", "jitter .3": "--jitter 0.3", "no blur": "--blur_sigma 0 0",
    "no solarisation": "solarise=0", "globals from .25": "--global_scale 0.25 1",
    "globals from .6": "--global_scale 0.6 1", "locals .08 to .4": "--local_scale 0.08 0.4",
    "locals .25 to .6": "--local_scale 0.25 0.6", "2 locals": "--n_local 2",
    "8 locals": "--n_local 8", "τ_t .02": "--teacher_temp_start 0.02 --teacher_temp 0.02",
    "τ_t .005": "--teacher_temp_start 0.005 --teacher_temp 0.005", "τ_s .15": "--student_temp 0.15",
    "τ_s .07": "--student_temp 0.07", "momentum .9": "--momentum 0.9", "momentum .98": "--momentum 0.98",
    "K 256": "--n_prototypes 256", "K 2048": "--n_prototypes 2048", "iBOT 1": "--ibot_weight 1",
    "iBOT .1": "--ibot_weight 0.1", "KoLeo .05": "--koleo_weight 0.05", "KoLeo .2": "--koleo_weight 0.2",
    "batch 32": "--batch 32", "batch 128": "--batch 128", "rate .003": "--lr 0.003", "rate .01": "--lr 0.01",
    "small crops first": "small=0.7", "wide stem": "stem=2", "both": "small=0.7 stem=2",
    "small crops for 85 %": "small=0.85 stem=2", "drop path .3": "--drop_path 0.3", "β₂ .95": "beta2=0.95",
}  # fmt: skip


def wide_init(network, dim, *args, **options):
    """Build a ViT whose stem is twice as wide."""
    init(network, dim, *args, **options)
    network.patch_embed.stem = conv_stem(network.patch_size, 2 * dim)
    network.patch_embed.proj = torch.nn.Conv2d(dim, dim, 1)


def small_first(r, share):
    """A train_step with crops of 16² and 8² pixels for the first `share` of the steps."""
    small = make_crop(replace(r, local_size=8), 16)
    return lambda run, images, crop, values: step(run, images, small if run.step < share * r.steps else crop, values)


def score(run, vit, splits):
    """k-NN by [CLS], and by [CLS] beside the mean patch token."""
    def both(vit, images):
        out = vit.forward_features(images)
        return torch.cat([out["x_norm_clstoken"], out["x_norm_patchtokens"].mean(1)], 1)

    x = [frozen_features(vit, images.pixels, 24, both) for images in splits]
    labels, dim = [images.labels for images in splits], vit.embed_dim
    knn = knn_accuracies(x[0][:, :dim], labels[0], x[1][:, :dim], labels[1])
    return {"knn_20": knn[20], "knn_200": knn[200], "both_20": knn_accuracy(x[0], labels[0], x[1], labels[1])}


def main(data, tflop, seeds, *arms):
    """Train the runs that are missing, arm after arm, and print a line for each; returns the exit status."""
    splits = load_splits_of(get_recipe("cifar10", data=data), 32)
    train.evaluate_run, train.load_splits_of = score, lambda r, size: splits
    for seed, arm in ((seed, arm) for seed in seeds.split(",") for arm in arms or ARMS):
        flags = [word for word in ARMS[arm].split() if "=" not in word]
        ours = {name: float(x) for name, x in (word.split("=") for word in ARMS[arm].split() if "=" in word)}
        share = ours.get("small", 0.0)
        augment.CHANCES = tuple((*row[:4], row[4] * ours.get("solarise", 1.0)) for row in CHANCES)
        vit.ViT.__init__ = wide_init if "stem" in ours else init
        start.make_optimizer = partial(torch.optim.AdamW, betas=(0.9, ours.get("beta2", 0.999)), fused=True)
        words = [*RECIPE.split(), *flags, "--data", data, "--seed", seed]
        r = parse_args([*words, "--out", "-"])[1]
        full, small = (count_step(some, "cpu")[2] for some in (r, replace(r, global_size=16, local_size=8)))
        steps = round(float(tflop) * 1e12 / (share * small + (1 - share) * full))
        train.train_step = small_first(replace(r, steps=steps), share) if share else step
        path = Path("runs/sweep", f"{tflop}_{arm.replace(' ', '_')}_{seed}", "metrics.jsonl")
        if not path.exists() or '"final"' not in path.read_text():
            if status := train.main([*words, "--steps", str(steps), "--out", str(path.parent)]):
                return status
        row = json.loads(path.read_text().splitlines()[-1])
        scores = ", ".join(f"{100 * row[name]:.1f}" for name in ("knn_20", "knn_200", "both_20"))
        print(f"{tflop} TFLOP, seed {seed}, {arm}: {scores} %; {steps} steps, {row['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
