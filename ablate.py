"""Which component does what: the paper's ablations in miniature (§6.1 and Table 1; §6.4 and Table 3; §6.6).

    python ablate.py                                   12 arms, three seeds each, the built-in pictures
    python ablate.py --arms dino whole --seeds 2       two of them, two seeds
    python ablate.py --recipe cifar10 --steps 1000     any flag of train.py holds for all arms

The paper adds one component after another to iBOT.  So do the first arms, from DINO alone to the whole recipe; the
others take one component out of the whole.  An arm is a few fields of the recipe and is trained by train.py itself, in
a process and a folder of its own; the same command goes on where it was stopped.

All arms are measured alike, at the size in which the recipe ends: k-NN and a linear probe of the [CLS] token, and where
the parts of the pictures are known, foreground IoU and part agreement of the patches.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

from tqdm import tqdm

from evaluate import frozen_features, linear_accuracy, measure_knn
from pca_viz import draw_split
from support.data import in_memory
from support.failures import in_one_line
from support.files import write_safely
from support.flags import Parser, UserError, alone_in, find_device, make_folder, parse_args, positive
from support.metrics import read_metrics, write_metrics
from support.report import ablation_table, draw_ablation
from support.threads import choose_threads
from support.weights import load_vit
from train import sizes_at, splits_at

PLAIN = {"centering": "softmax", "koleo_weight": 0.0, "hires_share": 0.0}  # what iBOT has not
ARMS = {
    # one component after another
    "dino": {**PLAIN, "ibot_weight": 0.0, "mask_probability": 0.0},  # the image loss alone
    "ibot": {**PLAIN, "dino_weight": 0.0},  # the patch loss alone
    "both-tied": {**PLAIN, "tied_heads": True},  # iBOT
    "both-untied": PLAIN,
    "+sinkhorn": {"koleo_weight": 0.0, "hires_share": 0.0},
    "+koleo": {"hires_share": 0.0},
    "whole": {},  # and the high-resolution end
    # the whole without one of them
    "no-untying": {"tied_heads": True},
    "no-sinkhorn": {"centering": "softmax"},
    "no-masks": {"mask_probability": 0.0},  # and so no patch loss
    "no-local": {"n_local": 0},
    "no-ema": {"momentum": 0.0, "momentum_end": 0.0},  # the student of the last step is the teacher
}
RESULTS = ("ablation.jsonl", "ablation.md", "ablation.png")


def flags_of(fields):
    """Fields of a recipe -> the flags of train.py that say so."""
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in fields.items()]


def train_arm(flags, out, bar, batch):
    """Train in a process of its own, to the end or from where it was; the line that says why, if it failed."""
    out.mkdir(parents=True, exist_ok=True)
    before, program = bar.n, Path(__file__).with_name("train.py")
    with open(out / "log.txt", "a") as log:
        command = [sys.executable, program, *flags, "--out", out, "--eval_every", "0", "--resume"]
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            while process.poll() is None:
                time.sleep(1)
                rows = read_metrics(out / "metrics.jsonl", 10**9)
                bar.update(before + batch * (rows[-1]["step"] if rows else 0) - bar.n)
        finally:
            process.wait()  # after Ctrl-C, which it has had too, it saves a checkpoint
    if process.returncode:
        lines = (out / "log.txt").read_text(errors="replace").splitlines()
        return lines[-1] if lines else f"status {process.returncode}"


def measure(weights, recipe, device, picture):
    """The scores of a trained network, a dict; recipe: the whole one, whose last phase says the size."""
    network, size = load_vit(weights, device), sizes_at(recipe.steps, recipe)[1]
    splits = [in_memory(images, recipe.eval_images, size) for images in splits_at(recipe.steps, recipe)]
    scores = measure_knn(network, *splits, size)
    if scores:
        train, test = (frozen_features(network, images, size) for images in splits)
        scores["linear"] = linear_accuracy(train.to(device), splits[0].labels, test, splits[1].labels)
    return scores | draw_split(network, splits[1], size, picture)


def read_done(path, flags):
    """The rows of ablation.jsonl; UserError if they were made with other flags than these, or are none."""
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        others = [row for row in rows if row["flags"] != flags or {"arm", "seed"} - set(row)]
    except (ValueError, TypeError, LookupError):
        raise UserError(f"{path} is not what ablate.py writes; --out for another folder") from None
    if others:
        raise UserError(f"{path} was made with other flags; the same ones, or --out for another folder")
    return rows


def parse(argv):
    """Command line -> its options, train.py's, the whole recipe, and train.py's flags as they stand."""
    parser = Parser(prog="ablate.py", description="The paper's ablation; any flag of train.py holds for all arms.")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="which ones (default: all)")
    parser.add_argument("--seeds", type=positive, default=3, help="runs of each arm (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder of the runs and results (default: runs/ablation_RECIPE)")
    args, flags = parser.parse_known_args(argv)
    options, recipe, changes = parse_args(flags)
    if contrary := sorted(set(changes) & {"seed", *(name for arm in args.arms for name in ARMS[arm])}):
        raise UserError(f"--{contrary[0]} is what the runs differ in")
    if options.resume:
        raise UserError("without --resume: the same command goes on")
    args.out = args.out or Path(f"runs/ablation_{recipe.name}")
    return args, options, recipe, flags


def write_results(rows, out):
    """ablation.md and ablation.png."""
    table = ablation_table(rows, ARMS)
    write_safely(out / "ablation.md", lambda new: new.write_text(table, encoding="utf-8"))
    draw_ablation(rows, ARMS, out / "ablation.png")
    return table


@in_one_line("ablate.py")
def main(argv=None):
    """The program; returns its exit status."""
    args, options, recipe, flags = parse(argv)
    device, _ = find_device(options.device), choose_threads(options.threads)
    out, images, failures = args.out, recipe.steps * recipe.batch, []
    make_folder(out, *RESULTS)
    with alone_in(out):
        rows = read_done(out / "ablation.jsonl", flags)
        done = [(row["arm"], row["seed"]) for row in rows]
        runs = [(arm, seed) for seed in range(args.seeds) for arm in args.arms]  # a whole table after the first seed
        with tqdm(total=len(runs) * images, unit="img", mininterval=1) as bar:
            for number, (arm, seed) in enumerate(runs, start=1):
                folder, arm_flags = out / f"{arm}_{seed}", [*flags, *flags_of(ARMS[arm]), "--seed", str(seed)]
                bar.set_description(f"{arm}, seed {seed}")
                if (arm, seed) in done:
                    bar.initial += images  # time left is counted from what is done now
                elif failure := train_arm(arm_flags, folder, bar, recipe.batch):
                    failures.append(f"{arm}, seed {seed}: {failure}")
                    bar.write(failures[-1], file=sys.stderr)
                else:
                    scores = measure(folder / "vit.pt", recipe, device, folder / "pca.png")
                    flops = read_metrics(folder / "metrics.jsonl", recipe.steps)[-1]["training_flops"]
                    rows.append({"arm": arm, "seed": seed, **scores, "tflop": flops / 1e12, "flags": flags})
                    write_metrics(out / "ablation.jsonl", rows)
                    write_results(rows, out)
                bar.update(number * images - bar.n)
        table = write_results(rows, out) if rows else "no arm was trained\n"
    print(table)
    failed = f", {len(failures)} failed ({'; '.join(failures)})" if failures else ""
    print(f"{len(args.arms)} arms, {args.seeds} seeds{failed}: {out}/ablation.md and ablation.png")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
