"""Build the annotated DINOv2: a page for each file of the paper, text beside code, with numbers and pictures that ran.

    python -m book                             docs/book/index.html, with a network trained for a minute
    python -m book --weights runs/mine/vit.pt  the same, with pictures by your own network
"""

import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

from support.cli import Parser, report_errors
from support.device import choose_threads
from support.files import UserError
from support.log import read_metrics
from support.weights import load_vit

ROOT = Path(__file__).parents[1]
STEPS = 700  # ours: about a minute of training on one core
SEEN = 6  # images of the PCA page; ours


def train_a_minute(steps=STEPS):
    """Run train.py with its default recipe cut short; return what the pictures need: vit, images, losses."""
    with tempfile.TemporaryDirectory() as out:
        flags = ["--steps", str(steps), "--log_every", "5", "--device", "cpu", "--out", out]
        subprocess.run([sys.executable, ROOT / "train.py", *flags], check=True)
        return load(f"{out}/vit.pt", read_metrics(Path(out) / "metrics.jsonl", steps))


def load(weights, losses=()):
    """The network of a file, images that it did not see, and the rows of its metrics.jsonl if known."""
    from book.drawing import things

    try:
        vit = load_vit(weights)
    except (OSError, ValueError) as error:
        raise UserError(str(error)) from None
    return SimpleNamespace(vit=vit, images=things(SEEN, 8 * vit.patch_size), losses=losses)


@report_errors("book")
def main(argv=None):
    """The program; returns its exit status."""
    parser = Parser(prog="python -m book", description="Build a page for each file of the paper.")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/book", help="folder of the pages (default: docs/book)")
    parser.add_argument("--weights", help="network for the pictures (default: train one for a minute)")
    args = parser.parse_args(argv)
    if not find_spec("pygments"):
        raise UserError("the book needs pygments; run: pip install -r book/requirements.txt")
    from book.build import build  # imports pygments

    began = time.perf_counter()
    choose_threads()
    made = load(args.weights) if args.weights else train_a_minute()
    sizes = build(args.out.resolve(), made)
    print(f"{len(sizes) - 1} pages, {sum(sizes.values()) / 1e6:.2f} MB, {time.perf_counter() - began:.0f} s: "
          f"{args.out}/index.html")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
