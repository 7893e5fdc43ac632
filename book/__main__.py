"""Build the annotated DINOv2: a page for each file of the paper, text beside code, with numbers and pictures that ran.

    python -m book    docs/book/index.html, with pictures by a network that is trained for a minute
"""

import copy
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import train
from book.drawing import things
from support.cli import Parser, report_errors
from support.device import choose_threads
from support.files import UserError
from support.log import read_metrics
from support.weights import load_vit

ROOT = Path(__file__).parents[1]
STEPS = 1400  # ours: about a minute of training on one core
SEEN = 6  # images of the PCA page; ours


def train_a_minute(steps=STEPS):
    """Run train.py with its default recipe cut short.  Return vit, images that it did not see, rows of losses, and
    snapshots: (step, vit) of the moving average before training, at steps that double, and at the end; eight in all.
    run: everything that training had at half of its steps.
    """
    kept, runs, real = {0, *(round(steps / 2**i) for i in range(1, 7))}, [], train.train_step

    def train_step(run, *rest):
        if run.step in kept:
            runs.append(copy.deepcopy(run))
        return real(run, *rest)

    with tempfile.TemporaryDirectory() as out, mock.patch.object(train, "train_step", train_step):
        flags = ["--steps", str(steps), "--log_every", "5", "--device", "cpu", "--out", out]
        if train.main(flags):
            raise UserError("the network of the pictures was not trained; the lines above say why")
        vit, losses = load_vit(f"{out}/vit.pt"), read_metrics(Path(out) / "metrics.jsonl", steps)
    images, snapshots = things(SEEN, 8 * vit.patch_size), [(run.step, run.ema.backbone) for run in runs]
    return SimpleNamespace(vit=vit, images=images, losses=losses, snapshots=[*snapshots, (steps, vit)], run=runs[-1])


@report_errors("book")
def main(argv=None):
    """The program; returns its exit status."""
    parser = Parser(prog="python -m book", description="Build a page for each file of the paper.")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/book", help="folder of the pages (default: docs/book)")
    args = parser.parse_args(argv)
    if not find_spec("pygments"):
        raise UserError("the book needs pygments; run: pip install -r book/requirements.txt")
    from book.build import build  # imports pygments

    began = time.perf_counter()
    choose_threads()
    sizes = build(args.out.resolve(), train_a_minute())
    print(f"{len(sizes) - 2} pages, {sum(sizes.values()) / 1e6:.2f} MB, {time.perf_counter() - began:.0f} s: "
          f"{args.out}/index.html")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
