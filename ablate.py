"""Which component does what: the paper's ablations in miniature (§6.1 and Table 1; §6.4 and Table 3; §6.6).

    python ablate.py                                              16 arms, three seeds each, the built-in images
    python ablate.py --arms dino whole --seeds 2 --steps 1000     any flag of train.py applies to all arms

The first arms add one component after another, from DINO alone to the whole recipe.  The next ones remove one.  Then
come high resolution from the first step (Fig. 6), a larger network, and the small network distilled from it (Fig. 5).
train.py trains each arm in a process and a folder of its own, and the same command continues after Ctrl-C or a crash.
All arms are measured at the recipe's last resolution: k-NN, also at half of it; a linear classifier; and for the
built-in images the retrieval of things, and the foreground and the matches of patches.
"""

import json
import math
import subprocess
import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import fmean

import torch
from matplotlib.figure import Figure

from evaluate import frozen_features, measure_knn, measure_retrieval
from linear_probe import linear_accuracy
from pca_viz import draw_split
from support.cli import CHOICES, Parser, parse_args, positive, report_errors
from support.device import choose_threads, find_device
from support.files import UserError, lock_folder, make_folder, write_safely
from support.images import in_memory
from support.log import catch_signals, read_metrics, write_metrics
from support.start import load_splits_of, start_run
from support.weights import load_vit
from train import schedules_at

PLAIN = {"centering": "softmax", "koleo_weight": 0.0, "hires_share": 0.0}  # what iBOT does not have
ARMS = {
    "untrained": {},  # measured only
    "dino": {**PLAIN, "ibot_weight": 0.0, "mask_probability": 0.0},  # the image loss alone
    "ibot": {**PLAIN, "dino_weight": 0.0},  # the patch loss alone
    "both-tied": {**PLAIN, "tied_heads": True},  # iBOT
    "both-untied": PLAIN,
    "+sinkhorn": {"koleo_weight": 0.0, "hires_share": 0.0},
    "+koleo": {"hires_share": 0.0},
    "whole": {},  # with the high-resolution phase; below: without one of its components
    "no-untying": {"tied_heads": True},
    "no-sinkhorn": {"centering": "softmax"},
    "no-masks": {"mask_probability": 0.0},  # and so no patch loss
    "no-local": {"n_local": 0},
    "no-ema": {"momentum": 0.0, "momentum_end": 0.0},  # no average: the teacher starts each step as the student
    "high": {"hires_share": 0.0},  # at the high resolution from the first step
    "larger": {"arch": "two sizes up"},
    "distilled": {"teacher": "larger"},  # whole, taught by the larger network of the same seed
}
MEASURES = {"knn_20": "k-NN", "knn_half": "k-NN, half the size", "linear": "linear", "retrieval": "retrieval mAP",
            "iou": "foreground IoU", "agreement": "part agreement", "tflop": "TFLOP"}  # fmt: skip


def flags_of(arm, seed, r, out):
    """The flags that make an arm of recipe r; out: the folder of all runs."""
    fields = {**ARMS[arm], "seed": seed}
    if arm == "high":
        fields |= {"global_size": r.hires_size, "image_size": r.hires_image_size}
    if arm == "larger":
        sizes = CHOICES["arch"]
        fields["arch"] = sizes[min(sizes.index(r.arch) + 2, len(sizes) - 1)]
    if arm == "distilled":
        fields["teacher"] = out / f"larger_{seed}" / "checkpoint.pt"
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in fields.items()]


def train_arm(flags, out):
    """Run train.py to the end, and return its exit status.  Ctrl-C and SIGTERM let it save a checkpoint first."""
    command = [sys.executable, Path(__file__).with_name("train.py"), "--eval_every=0", *flags, "--out", out, "--resume"]
    with catch_signals() as signals, subprocess.Popen(command) as process:
        while process.poll() is None and not signals:
            time.sleep(0.1)
        process.terminate()  # if a signal came; otherwise it has ended
    if signals:
        raise KeyboardInterrupt
    return process.returncode


def measure(network, splits, size, folder):
    """Scores of an arm on the training and the test split, at size² pixels, and its arithmetic: a dict."""
    if scores := measure_knn(network, *splits, size):  # empty without labels
        scores["knn_half"] = next(iter(measure_knn(network, *splits, size // 2).values()))
        train, test = (frozen_features(network, images, size) for images in splits)
        known = torch.isin(splits[1].labels, splits[0].labels)  # test images of classes with training images
        train = train.to(next(network.parameters()).device)
        scores["linear"] = linear_accuracy(train, splits[0].labels, test[known], splits[1].labels[known])
    if splits[1].parts is not None:
        scores["retrieval"] = measure_retrieval(network, size)
    rows = read_metrics(folder / "metrics.jsonl", math.inf)
    scores["tflop"] = max((row.get("training_flops", 0) for row in rows), default=0) / 1e12
    return scores | draw_split(network, splits[1], size, folder / "pca.png")


def write_results(rows, out):
    """Write ablation.md, means over seeds and their range, and ablation.png, a dot for each seed; return the table."""
    names = [name for name in MEASURES if all(name in row for row in rows)]
    table = f"| arm | seeds | {' | '.join(map(MEASURES.get, names))} |\n|{'---|' * (2 + len(names))}\n"
    arms = sorted({row["arm"] for row in rows}, key=list(ARMS).index)
    for arm in arms:
        columns = [[row[name] for row in rows if row["arm"] == arm] for name in names]
        cells = [f"{fmean(x):.3g} ({min(x):.3g} to {max(x):.3g})" for x in columns]
        table += f"| {arm} | {len(columns[0])} | {' | '.join(cells)} |\n"
    write_safely(out / "ablation.md", lambda new: new.write_text(table))
    scores = [name for name in names if name != "tflop"]
    lines = max(math.ceil(len(scores) / 3), 1)
    figure = Figure(figsize=(10, lines * (0.8 + 0.2 * len(arms))), layout="constrained")
    heights = [-arms.index(row["arm"]) for row in rows]
    for axes, name in zip(figure.subplots(lines, 3, sharey=True, squeeze=False).flat, scores):
        axes.plot([row[name] for row in rows], heights, "o", color="#0072B2", alpha=0.5)
        if "untrained" in arms:
            axes.axvline(fmean(row[name] for row in rows if row["arm"] == "untrained"), color="#D55E00", linestyle="--")
        axes.set(title=MEASURES[name], yticks=[-i for i in range(len(arms))], yticklabels=arms)
    figure.suptitle("A dot for each seed; the dashed line is the untrained network")
    write_safely(out / "ablation.png", lambda new: figure.savefig(new, dpi=150, format="png"))
    return table


@report_errors("ablate.py")
def main(argv=None):
    """Run the program and return its exit status."""
    parser = Parser(prog="ablate.py", description="The paper's ablation.  Any flag of train.py applies to all arms.")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM",
                        help=f"{', '.join(ARMS)} (default: all)")
    parser.add_argument("--seeds", type=positive, default=3, help="runs of each arm (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder of the runs and results (default: runs/ablation_RECIPE)")
    args, flags = parser.parse_known_args(argv)
    options, r, changes = parse_args(flags, "ablate.py")
    if differ := changes.keys() & {"seed", *(name for arm in args.arms for name in ARMS[arm])}:
        raise UserError(f"ablate.py sets --{min(differ)} itself; leave it out")
    device, out = find_device(options.device), args.out or Path(f"runs/ablation_{r.name}")
    choose_threads()
    image_size, size = (schedules_at(r.steps - 1, r)[name] for name in ("image_size", "global_size"))
    splits = [in_memory(images, r.eval_images, size) for images in load_splits_of(r, image_size)]
    make_folder(out, "ablation.jsonl", "ablation.md", "ablation.png")
    with lock_folder(out):
        path, failed = out / "ablation.jsonl", []
        same = {"flags": flags, "images": "".join(images.digest for images in splits)}
        try:
            rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
            done = {(row["arm"], row["seed"]) for row in rows if row["arm"] in ARMS and row | same == row}
            if len(done) < len(rows):
                raise ValueError
        except (LookupError, TypeError, ValueError):
            raise UserError(f"{path} holds runs with other flags or images, or a damaged line; use the same flags "
                            "and images, delete the damaged line, or choose another --out") from None  # fmt: skip
        for seed, arm in product(range(args.seeds), args.arms):
            if (arm, seed) in done:
                continue
            print(f"arm {arm}, seed {seed}", flush=True)
            folder = out / f"{arm}_{seed}"
            if arm == "untrained":
                make_folder(folder)
                network = start_run(replace(r, seed=seed), device).ema.backbone
            elif arm == "distilled" and not (out / f"larger_{seed}" / "vit.pt").exists():  # it may be in training still
                failed.append(f"{folder.name} (run the arm larger first)")
                continue
            elif train_arm([*flags, *flags_of(arm, seed, r, out)], folder):
                failed.append(folder.name)
                continue
            else:
                network = load_vit(folder / "vit.pt", device)
            rows.append({"arm": arm, "seed": seed, **same, **measure(network, splits, size, folder)})
            write_metrics(path, rows)
            write_results(rows, out)
        print(write_results(rows, out) if rows else "", end="")
    print(f"{out}: {len(rows)} runs" + "".join(f", {name} failed" for name in failed))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
