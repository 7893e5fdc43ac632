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

import sys
from pathlib import Path

from tqdm import tqdm

from evaluate import frozen_features, linear_accuracy, measure_knn
from pca_viz import draw_split
from support.arms import FLAGS, flags_of, read_done, train_arm
from support.cli import Parser, parse_args, positive, report_errors
from support.device import choose_threads, find_device
from support.files import UserError, lock_folder, make_folder, write_safely
from support.images import in_memory
from support.log import read_metrics, write_metrics
from support.report import ablation_table, draw_ablation
from support.start import need_pictures, need_teacher
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


def measure(weights, recipe, device, picture):
    """The scores of a trained network, a dict; recipe: the whole one, whose last phase says the size."""
    network, size = load_vit(weights, device), sizes_at(recipe.steps, recipe)[1]
    splits = [in_memory(images, recipe.eval_images, size) for images in splits_at(recipe.steps, recipe)]
    scores = measure_knn(network, *splits, size)
    if scores:
        train, test = (frozen_features(network, images, size) for images in splits)
        scores["linear"] = linear_accuracy(train.to(device), splits[0].labels, test, splits[1].labels)
    return scores | draw_split(network, splits[1], size, picture)


def parse(argv):
    """Command line -> its options, train.py's, the whole recipe, and train.py's flags as they stand."""
    parser = Parser(prog="ablate.py", description="The paper's ablation; any flag of train.py holds for all arms.")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="which ones (default: all)")
    parser.add_argument("--seeds", type=positive, default=3, help="runs of each arm (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder of the runs and results (default: runs/ablation_RECIPE)")
    args, flags = parser.parse_known_args(argv)
    options, recipe, changes = parse_args(flags, parser)
    if contrary := sorted(set(changes) & {"seed", *(name for arm in args.arms for name in ARMS[arm])}):
        raise UserError(f"--{contrary[0]} is what the runs differ in")
    if options.resume:
        raise UserError("without --resume: the same command goes on")
    need_pictures(recipe)
    need_teacher(recipe)
    args.arms = list(dict.fromkeys(args.arms))
    args.out = args.out or Path(f"runs/ablation_{recipe.name}")
    return args, options, recipe, flags


def write_results(rows, out):
    """ablation.md and ablation.png."""
    table = ablation_table(rows, ARMS)
    write_safely(out / "ablation.md", lambda new: new.write_text(table, encoding="utf-8"))
    draw_ablation(rows, ARMS, out / "ablation.png")
    return table


@report_errors("ablate.py")
def main(argv=None):
    """The program; returns its exit status."""
    args, options, recipe, flags = parse(argv)
    device, _ = find_device(options.device), choose_threads(options.threads)
    out, images, failures = args.out, recipe.steps * recipe.batch, []
    make_folder(out, *RESULTS, FLAGS)
    with lock_folder(out):
        splits_at(recipe.steps, recipe)  # before anything is kept, so that a wrong --data is one line
        rows = read_done(out, flags)
        done = [(row["arm"], row["seed"]) for row in rows]
        runs = [(arm, seed) for seed in range(args.seeds) for arm in args.arms]  # a whole table after the first seed
        with tqdm(total=len(runs) * images, unit="img", mininterval=1, smoothing=0) as bar:
            for number, (arm, seed) in enumerate(runs, start=1):
                folder, arm_flags = out / f"{arm}_{seed}", [*flags, *flags_of(ARMS[arm]), "--seed", str(seed)]
                bar.set_description(f"{arm}, seed {seed}")
                if (arm, seed) in done:
                    bar.initial += images
                elif failure := train_arm(arm_flags, folder, bar, recipe.batch):
                    failures.append(f"{arm}, seed {seed}: {failure}")
                    bar.write(failures[-1], file=sys.stderr)
                    bar.initial += number * images - bar.n
                else:
                    scores = measure(folder / "vit.pt", recipe, device, folder / "pca.png")
                    flops = read_metrics(folder / "metrics.jsonl", recipe.steps)[-1]["training_flops"]
                    rows.append({"arm": arm, "seed": seed, **scores, "tflop": flops / 1e12})
                    write_metrics(out / "ablation.jsonl", rows)
                    write_results(rows, out)
                bar.update(number * images - bar.n)
        if rows:
            print(write_results(rows, out))
    failed = f", {len(failures)} failed ({'; '.join(failures)})" if failures else ""
    print(f"{len(args.arms)} arms, {args.seeds} seeds{failed}: {out}{'/ablation.md and ablation.png' if rows else ''}")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
