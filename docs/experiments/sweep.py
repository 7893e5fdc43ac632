"""Train a recipe with other values, each arm for the same FLOPs, and print k-NN.  An arm is a string of flags.

    OMP_NUM_THREADS=1 python -m docs.experiments.sweep FOLDER TFLOP SEEDS "FLAGS" ["FLAGS" ...]
    ... runs/sweep 28.5 0,1 "--recipe cifar10" "--recipe cifar10 --lr 0.01"

The flags are train.py's.  A second call continues the runs in FOLDER.  k-NN is train.py's, k = 20 and 200; then k = 20
with the mean patch token beside [CLS].
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

import train
from bench import count_step
from evaluate import frozen_features, knn_accuracies, knn_accuracy
from support.cli import parse_args

COMMON = "--eval_every 0 --log_every 50 --save_every 1000 --resume --device cpu"


def score(run, vit, splits):
    """k-NN by [CLS], and by [CLS] beside the mean patch token."""
    def both(vit, images):
        out = vit.forward_features(images)
        return torch.cat([out["x_norm_clstoken"], out["x_norm_patchtokens"].mean(1)], 1)

    size = train.schedules_at(run.recipe.steps - 1, run.recipe)["global_size"]
    x = [frozen_features(vit, images.pixels, size, both) for images in splits]
    labels, dim = [images.labels for images in splits], vit.embed_dim
    knn = knn_accuracies(x[0][:, :dim], labels[0], x[1][:, :dim], labels[1])
    return {"knn_20": knn[20], "knn_200": knn[200], "both_20": knn_accuracy(x[0], labels[0], x[1], labels[1])}


def main(folder, tflop, seeds, *arms):
    """Train the runs that are missing, arm after arm, and print a line for each; returns the exit status."""
    train.evaluate_run = score
    for seed, arm in ((seed, arm) for seed in seeds.split(",") for arm in arms):
        words = [*arm.split(), *COMMON.split(), "--seed", seed]
        r = parse_args(words)[1]
        high = replace(r, global_size=r.hires_size) if r.hires_share else r
        low, high = (count_step(some, "cpu")[2] for some in (r, high))
        steps = round(float(tflop) * 1e12 / (low + r.hires_share * (high - low)))
        path = Path(folder, f"{tflop}_{seed}_{arm.replace('/', '|')}", "metrics.jsonl")
        if not path.exists() or '"final"' not in path.read_text():
            if status := train.main([*words, "--steps", str(steps), "--out", str(path.parent)]):
                return status
        row = json.loads(path.read_text().splitlines()[-1])
        scores = ", ".join(f"{100 * row[name]:.1f}" for name in ("knn_20", "knn_200", "both_20"))
        print(f"{tflop} TFLOP, seed {seed}, {arm}: {scores} %; {steps} steps, {row['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
