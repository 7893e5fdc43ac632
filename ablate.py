"""Which component does what: the paper's ablations in miniature (§6.1 and Table 1; §6.4 and Table 3; §6.6).

    python ablate.py                                              12 arms, three seeds each, the built-in images
    python ablate.py --arms dino whole --seeds 2 --steps 1000     any flag of train.py applies to all arms

The first arms add one component after another, from DINO alone to the whole recipe.  The others remove one.  train.py
trains each arm in a process and a folder of its own, and the same command continues after Ctrl-C or a crash.  All arms
are measured at the recipe's last resolution: k-NN, a linear classifier, and with known parts foreground and agreement.
"""

import json
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from statistics import fmean

import torch

from evaluate import frozen_features, measure_knn
from linear_probe import linear_accuracy
from pca_viz import draw_split
from support.cli import Parser, parse_args, positive, report_errors
from support.device import choose_threads, find_device
from support.files import UserError, lock_folder, make_folder, write_safely
from support.images import in_memory
from support.log import catch_signals, write_metrics
from support.start import load_splits_of
from support.weights import load_vit
from train import schedules_at

PLAIN = {"centering": "softmax", "koleo_weight": 0.0, "hires_share": 0.0}  # what iBOT does not have
ARMS = {
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
    "no-ema": {"momentum": 0.0, "momentum_end": 0.0},  # the teacher is the student of the last step
}


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


def measure(folder, splits, size, device):
    """Scores of a trained arm on the training and the test split, at size² pixels, and its arithmetic: a dict."""
    network = load_vit(folder / "vit.pt", device)
    if scores := measure_knn(network, *splits, size):  # empty without labels
        train, test = (frozen_features(network, images, size) for images in splits)
        known = torch.isin(splits[1].labels, splits[0].labels)  # test images of classes with training images
        test, test_y = test[known], splits[1].labels[known]
        scores["linear"] = linear_accuracy(train.to(device), splits[0].labels, test, test_y)
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    return scores | draw_split(network, splits[1], size, folder / "pca.png") | {"tflop": last["training_flops"] / 1e12}


def write_results(rows, out):
    """Write ablation.md, means over seeds and their range; return the table."""
    knn = [name for name in rows[0] if name.startswith("knn_")][:1]  # 20 neighbours, if there are so many images
    names = knn + [name for name in ("linear", "iou", "agreement", "tflop") if name in rows[0]]
    table = f"| arm | seeds | {' | '.join(names)} |\n|{'---|' * (2 + len(names))}\n"
    for arm in sorted({row["arm"] for row in rows}, key=list(ARMS).index):
        columns = [[row[name] for row in rows if row["arm"] == arm] for name in names]
        cells = [f"{fmean(x):.3g} ({min(x):.3g} to {max(x):.3g})" for x in columns]
        table += f"| {arm} | {len(columns[0])} | {' | '.join(cells)} |\n"
    write_safely(out / "ablation.md", lambda new: new.write_text(table))
    return table


@report_errors("ablate.py")
def main(argv=None):
    """Run the program and return its exit status."""
    parser = Parser(prog="ablate.py", description="The paper's ablation.  Any flag of train.py applies to all arms.")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="default: all")
    parser.add_argument("--seeds", type=positive, default=3, help="runs of each arm (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder of the runs and results (default: runs/ablation_RECIPE)")
    args, flags = parser.parse_known_args(argv)
    options, r, changes = parse_args(flags, "ablate.py")
    if differ := changes.keys() & {"seed", *(name for arm in args.arms for name in ARMS[arm])}:
        raise UserError(f"the runs differ in --{min(differ)}; leave it out")
    device, out = find_device(options.device), args.out or Path(f"runs/ablation_{r.name}")
    choose_threads()
    image_size, size = (schedules_at(r.steps - 1, r)[name] for name in ("image_size", "global_size"))
    splits = [in_memory(images, r.eval_images, size) for images in load_splits_of(r, image_size)]
    make_folder(out, "ablation.jsonl", "ablation.md")
    with lock_folder(out):
        path, failed = out / "ablation.jsonl", []
        try:
            rows = [dict(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []
        except (TypeError, ValueError):
            raise UserError(f"{path} is damaged; delete its damaged lines, and their arms run again") from None
        same = {"flags": flags, "images": "".join(images.digest for images in splits)}
        if any({name: row.get(name) for name in same} != same for row in rows):
            raise UserError(f"{path} holds runs with other flags or images; use the same, or choose another --out")
        for seed, arm in product(range(args.seeds), args.arms):
            if any((arm, seed) == (row["arm"], row["seed"]) for row in rows):
                continue
            print(f"arm {arm}, seed {seed}", flush=True)
            folder, fields = out / f"{arm}_{seed}", {**ARMS[arm], "seed": seed}
            if train_arm([*flags, *(f"--{k}" if v is True else f"--{k}={v}" for k, v in fields.items())], folder):
                failed.append(folder.name)
            else:
                rows.append({"arm": arm, "seed": seed, **same, **measure(folder, splits, size, device)})
                write_metrics(path, rows)
                write_results(rows, out)
        print(write_results(rows, out) if rows else "", end="")
    print(f"{out}: {len(rows)} runs" + "".join(f", {name} failed" for name in failed))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
