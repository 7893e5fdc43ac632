"""Record book/collapse.json: three seeds of the default recipe, whole and with one part changed.

    OMP_NUM_THREADS=1 python -m docs.experiments.collapse    its runs are in runs/collapse; a second call continues them
"""

import json
import subprocess
import sys
from pathlib import Path

import train
from evaluate import measure_knn
from sinkhorn import sinkhorn_knopp

FLAGS = "--steps 700 --hires_share 0 --log_every 20 --eval_every 100 --save_every 700 --device cpu --resume"
ARMS = {"whole": "", "plain": "", "centre": "--centering softmax", "copy": "--momentum 0 --momentum_end 0",
        "warm": "--teacher_temp_start 0.07 --teacher_temp 0.07"}  # fmt: skip
METER = ("entropy_image", "entropy_mean", "knn_20")


def plain_softmax(logits, temp):
    """Targets of the arm "plain": without any centering, which no recipe offers."""
    return (logits.float() / temp).softmax(dim=1)


def main(folder="runs/collapse"):
    """Train the runs that are missing and write the file; returns the exit status."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    train.evaluate_run, runs = lambda run, vit, splits: measure_knn(vit, *splits, 32, 2000), {}
    for seed, arm in ((seed, arm) for seed in (0, 1, 2) for arm in ARMS):
        path = Path(folder, f"{arm}_{seed}", "metrics.jsonl")
        train.sinkhorn_knopp = plain_softmax if arm == "plain" else sinkhorn_knopp
        if not path.exists() or '"final"' not in path.read_text():
            if status := train.main(f"{FLAGS} {ARMS[arm]} --seed {seed} --out {path.parent}".split()):
                return status
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        curves = {name: [(row["step"], round(row[name], 3) + 0.0) for row in rows if name in row] for name in METER}
        runs.setdefault(arm, []).append(curves)
    command = "OMP_NUM_THREADS=1 python -m docs.experiments.collapse"
    text = json.dumps({"command": command, "commit": commit, "flags": ARMS, "meter": METER, "runs": runs})
    Path("book/collapse.json").write_text(text + "\n")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
