"""Build the annotated DINOv2: a page for each file of the paper, text beside code, with numbers and pictures that ran.

    python -m book    docs/book/index.html, with pictures by a network that is trained for a minute
"""

import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

from book.drawing import things
from support.cli import Parser, report_errors
from support.device import choose_threads
from support.files import UserError
from support.log import read_metrics
from support.weights import load_vit

ROOT = Path(__file__).parents[1]
STEPS = 700  # ours: about a minute of training on one core
SEEN = 6  # images of the PCA page; ours


def train_a_minute(steps=STEPS):
    """Run train.py with its default recipe cut short; return vit, images that it did not see, and rows of losses."""
    with tempfile.TemporaryDirectory() as out:
        flags = ["--steps", str(steps), "--log_every", "5", "--device", "cpu", "--out", out]
        subprocess.run([sys.executable, ROOT / "train.py", *flags], check=True)
        vit, losses = load_vit(f"{out}/vit.pt"), read_metrics(Path(out) / "metrics.jsonl", steps)
    return SimpleNamespace(vit=vit, images=things(SEEN, 8 * vit.patch_size), losses=losses)


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
    print(f"{len(sizes) - 1} pages, {sum(sizes.values()) / 1e6:.2f} MB, {time.perf_counter() - began:.0f} s: "
          f"{args.out}/index.html")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
