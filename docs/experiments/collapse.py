"""Record book/collapse.json: the default recipe without one of the parts that keep it from collapse.

    OMP_NUM_THREADS=1 python -m docs.experiments.collapse [FOLDER]    default: runs/collapse

Trains each arm for 700 steps with three seeds.  The runs go into FOLDER; a second call continues them.
"""

import json
import subprocess
import sys
from pathlib import Path

import train
from evaluate import measure_knn
from sinkhorn import sinkhorn_knopp

STEPS, SEEDS = 700, (0, 1, 2)
FLAGS = f"--steps {STEPS} --hires_share 0 --log_every 20 --eval_every 100 --save_every {STEPS} --device cpu --resume"
ARMS = {"whole": "", "softmax": "", "no average": "--momentum 0 --momentum_end 0",
        "warm": "--teacher_temp_start 0.07 --teacher_temp 0.07"}  # fmt: skip
METER = ("entropy_image", "entropy_mean", "knn_20")


def plain_softmax(logits, temp):
    """Targets without any centering; no recipe offers it."""
    return (logits.float() / temp).softmax(dim=1)


def main(folder="runs/collapse"):
    """Train the runs that are missing and write the file; returns the exit status."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    train.evaluate_run = lambda run, vit, splits: measure_knn(vit, *splits, 32, 2000)
    runs = {}
    for seed, arm in ((seed, arm) for seed in SEEDS for arm in ARMS):
        path = Path(folder, f"{arm.replace(' ', '_')}_{seed}", "metrics.jsonl")
        train.sinkhorn_knopp = plain_softmax if arm == "softmax" else sinkhorn_knopp
        if not path.exists() or '"final"' not in path.read_text():
            if status := train.main(f"{FLAGS} {ARMS[arm]} --seed {seed} --out {path.parent}".split()):
                return status
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        curves = {name: [(row["step"], round(row[name], 3)) for row in rows if name in row] for name in METER}
        runs.setdefault(arm, []).append(curves)
    about = {"command": "OMP_NUM_THREADS=1 python -m docs.experiments.collapse", "commit": commit, "flags": ARMS}
    Path(__file__).parents[2].joinpath("book/collapse.json").write_text(json.dumps(about | {"runs": runs}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
