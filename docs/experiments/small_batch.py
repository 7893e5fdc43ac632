"""Draw docs/small_batch.png: CIFAR-10 in batches of 32, by the recipe and with some of its values changed.

    python -m docs.experiments.small_batch [DATA [FOLDER]]    default: cifar10 runs/small_batch

DATA is CIFAR-10 in any form that train.py's --data takes.  The runs go into FOLDER; a second call continues them.
"""

import json
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure

import train
from evaluate import measure_knn
from recipes import get_recipe
from support.start import load_splits_of, start_run

FLAGS = "--recipe cifar10 --batch 32 --steps 400 --hires_share 0 --eval_every 0 --resume"
TEMPERATURE, SLOW, SCALE = "--teacher_temp_start 0.04 --teacher_temp 0.07", "--momentum 0.994", "--layer_scale 1e-5"
SOFTMAX, K = "--centering softmax", "--n_prototypes 65536"
OTHERS = "--no-stem --head_hidden 2048 --dino_bottleneck 256 --ibot_bottleneck 256 --ibot_weight 1 --lr 0.004"
ARMS = {  # name: (flags, seeds)
    "the recipe, unchanged": ("", 2),
    "teacher temperature 0.04 to 0.07": (TEMPERATURE, 2),
    "softmax centering": (SOFTMAX, 2),
    "teacher momentum 0.994": (SLOW, 2),
    "LayerScale 1e-5": (SCALE, 2),
    "K = 65,536 prototypes": (K, 1),
    "defaults of recipes.py, softmax": (f"{TEMPERATURE} {SOFTMAX} {SLOW} {SCALE} {K} {OTHERS} --patch_embed_lr 0.2", 1),
}
METER = {"entropy_mean": "entropy of the mean target / ln K", "entropy_image": "entropy of a target / ln K",
         "cosine": "cosine between images"}  # fmt: skip
BLUE, ORANGE, BLACK = "#0072B2", "#E69F00", "#000000"  # by Okabe and Ito


def main(data="cifar10", folder="runs/small_batch"):
    """Train the arms that are missing, draw the picture and print the scores; returns the exit status."""
    recipe, runs = get_recipe("cifar10", data=data, hires_share=0.0), {}
    size, n = recipe.global_size, 10_000  # k-NN is measured at this size, by so many training images
    train.evaluate_run = lambda run, vit, splits: measure_knn(vit, *splits, size, n)
    for seed, (number, arm) in ((seed, arm) for seed in (0, 1) for arm in enumerate(ARMS) if seed < ARMS[arm[1]][1]):
        path = Path(folder, f"{number}_{seed}", "metrics.jsonl")
        if not path.exists() or '"final"' not in path.read_text():
            words = f"{FLAGS} {ARMS[arm][0]} --seed {seed}".split() + ["--data", data, "--out", str(path.parent)]
            if status := train.main(words):
                return status
        runs[arm, seed] = [json.loads(line) for line in path.read_text().splitlines()]
    network = start_run(recipe, torch.device("cpu")).ema.backbone
    untrained = 100 * measure_knn(network, *load_splits_of(recipe, recipe.image_size), size, n)["knn_20"]
    figure = Figure(figsize=(8.3, 6.8), layout="constrained")
    top, bottom = figure.subfigures(2)
    for axes, arm in zip(top.subplots(1, 2, sharey=True), (list(ARMS)[-1], list(ARMS)[0])):
        for (key, name), colour in zip(METER.items(), (BLUE, ORANGE, BLACK)):
            axes.plot(*zip(*((row["step"], row[key]) for row in runs[arm, 0] if key in row)), color=colour, label=name)
        axes.set_title(f"{arm}, over steps", loc="left")
    top.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    axes = bottom.subplots()
    axes.axvline(untrained, color="0.4", linestyle="--", label=f"before training: {untrained:.1f}")
    for (arm, seed), rows in runs.items():
        axes.plot(100 * rows[-1]["knn_20"], arm, "o", color=BLUE)
        print(f"{arm}, seed {seed}: {100 * rows[-1]['knn_20']:.1f} %,", *(f"{rows[-2][key]:.2f}" for key in METER))
    axes.invert_yaxis()
    axes.set_title("k-NN accuracy, %, after 400 steps; a dot for each seed", loc="left")
    axes.legend(loc="upper left", fontsize=9)
    figure.savefig(Path(__file__).parents[1] / "small_batch.png", dpi=200)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
