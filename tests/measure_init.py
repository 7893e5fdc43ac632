"""docs/init.png: k-NN while training goes on from weights whose heads are new, with their warm-up and without.

    python tests/measure_init.py docs/init.png --init runs/shapes/vit.pt --steps 200 --eval_every 25

Any flag of train.py.  Three seeds of each arm, in runs/init; an arm that has ended is not run again.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from matplotlib.figure import Figure

import train
from evaluate import measure_knn
from support.flags import parse_args
from support.weights import load_vit

ARMS = {"heads first, then all at init_lr": [], "all at once at the recipe's rate": ["--head_warmup", "0", "--init_lr"]}
SEEDS, FOLDER = (0, 1, 2), Path("runs/init")


def curve(name, words, seed):
    """[(step, k-NN)] of an arm, all but the last by the same number of training images."""
    out = FOLDER / f"{name.split()[0]}-{seed}"
    if not (out / "vit.pt").exists():
        train.main([*words, "--seed", str(seed), "--out", str(out)])
    rows = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [(row["step"], row["knn_20"]) for row in rows if "knn_20" in row and "final" not in row]


def main(argv):
    path, *words = argv
    _, r, _ = parse_args(words)
    network, size = load_vit(r.init), train.sizes_at(r.steps, r)[1]
    starts = {}  # the built-in pictures are drawn from the seed
    for seed in SEEDS:
        splits = train.splits_at(r.steps, replace(r, seed=seed))
        starts[seed] = measure_knn(network, *splits, size, r.eval_images)["knn_20"]
        print(f"seed {seed} at the start: {starts[seed]:.1%}")
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color="grey", linestyle=":")
    for (name, more), colour in zip(ARMS.items(), ("tab:blue", "tab:red")):
        for seed, start in starts.items():
            points = curve(name, [*words, *more, *([str(r.lr)] if more else [])], seed)
            print(f"{name}, seed {seed}: {', '.join(f'{knn:.1%}' for _, knn in points)}")
            points = [(step, 100 * (knn - start)) for step, knn in [(0, start), *points]]
            axes.plot(*zip(*points), "o-", color=colour, label=None if seed else name)
    axes.set(xlabel="step", ylabel="points of k-NN (k = 20) since the start")
    axes.legend()
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main(sys.argv[1:])
