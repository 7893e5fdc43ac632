"""docs/init.png: k-NN while training goes on from weights whose heads are new.

    python tests/measure_init.py docs/init.png 3 --init runs/shapes/vit.pt --steps 200 --eval_every 25
    python tests/measure_init.py docs/init.png 1 --recipe cifar10 --init runs/cifar10/vit.pt --elsewhere photos.tar ...

Any flag of train.py.  As many seeds as the number says, of two arms: the heads' warm-up, and none.  --elsewhere:
besides, on pictures of another set, while k-NN stays that of the first.  Runs are in runs/init; one that has ended is
kept.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from matplotlib.figure import Figure

import train
from evaluate import measure_knn
from support.cli import parse_args
from support.weights import load_vit

ARMS = {"heads first, then all at init_lr": [], "all at once at the recipe's rate": ["--head_warmup", "0", "--init_lr"]}
FOLDER = Path("runs/init")


def rows_of(out, words):
    """The rows of a run, which is trained if it has not ended."""
    if not (out / "vit.pt").exists():
        train.main([*words, "--out", str(out), "--resume"])
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def knn_of(weights, r):
    """k-NN of a file, by as many training images as on the way."""
    splits, size = train.splits_at(r.steps, r), train.sizes_at(r.steps, r)[1]
    return measure_knn(load_vit(weights), *splits, size, r.eval_images)["knn_20"]


def points_of(rows, out, r, start):
    """[(images, points of k-NN since the start)]: start, evaluations, end; prints k-NN."""
    knn = [(row["step"], row["knn_20"]) for row in rows if "knn_20" in row and "final" not in row]
    knn = [(0, start), *knn, (r.steps, knn_of(out / "vit.pt", r))]
    print(f"{out}: k-NN {', '.join(f'{x:.1%}' for _, x in knn)}")
    return [(step * r.batch, 100 * (x - start)) for step, x in knn]


def draw_arms(axes, words, r, starts):
    """Both arms, all seeds."""
    axes.axhline(0, color="grey", linestyle=":")
    for (name, more), colour in zip(ARMS.items(), ("tab:blue", "tab:red")):
        for seed, start in starts.items():
            seeded = [*words, *more, *([str(r.lr)] if more else []), "--seed", str(seed)]
            out = FOLDER / f"{name.split()[0]}-{seed}"
            points = points_of(rows_of(out, seeded), out, replace(r, seed=seed), start)
            axes.plot(*zip(*points), "o-", color=colour, label=None if seed else name)
    axes.set(xlabel="images", ylabel="points of k-NN (k = 20) since the start")
    axes.legend()


def draw_elsewhere(axes, words, r, start, data):
    """k-NN on the set of r, and the loss, while another set is trained on."""
    splits, size = train.splits_at(r.steps, r), train.sizes_at(r.steps, r)[1]
    train.evaluate = lambda run, network, out: {**measure_knn(network, *splits, size, r.eval_images),
                                                "evaluation_flops": 0}  # fmt: skip
    rows = rows_of(FOLDER / "elsewhere", [*words, "--data", data])
    losses = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    tenth = -(-len(losses) // 10)
    parts = [losses[i : i + tenth] for i in range(0, len(losses), tenth)]
    print(f"loss, means of tenths of the run: {', '.join(f'{sum(x for _, x in p) / len(p):.2f}' for p in parts)}")
    axes.plot([step * r.batch for step, _ in losses], [x for _, x in losses], color="lightgrey")
    axes.set(xlabel="images", ylabel="loss on the other set", title="trained on another set")
    axes = axes.twinx()
    axes.axhline(0, color="grey", linestyle=":")
    axes.plot(*zip(*points_of(rows, FOLDER / "elsewhere", r, start)), "o-", color="tab:blue")
    axes.set(ylabel="points of k-NN on the first set")


def main(argv):
    path, seeds, *words = argv
    at = words.index("--elsewhere") if "--elsewhere" in words else len(words)
    elsewhere, words = words[at + 1 : at + 2], words[:at] + words[at + 2 :]
    _, r, _ = parse_args(words)
    starts = {seed: knn_of(r.init, replace(r, seed=seed)) for seed in range(int(seeds))}  # `shapes` differs by seed
    figure = Figure(figsize=(7 + 6 * len(elsewhere), 4), layout="constrained")
    axes = figure.subplots(1, 1 + len(elsewhere), squeeze=False)[0]
    draw_arms(axes[0], words, r, starts)
    for data in elsewhere:
        draw_elsewhere(axes[1], words, r, starts[0], data)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main(sys.argv[1:])
