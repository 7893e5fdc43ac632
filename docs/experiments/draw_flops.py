"""Draw docs/flops.png: k-NN over the FLOPs of the training, from the lines that sweep.py and peers.py print.

    python -m docs.experiments.draw_flops      docs/experiments/flops.txt holds the lines, with names for the legend
"""

import re
import sys
from collections import defaultdict
from pathlib import Path

from matplotlib.figure import Figure


def main():
    """Draw a dot for each run, and a line through the means; returns the exit status."""
    runs = defaultdict(lambda: defaultdict(list))  # {arm: {TFLOP: [k-NN]}}
    for line in Path("docs/experiments/flops.txt").read_text().splitlines():
        tflop, arm, knn = re.match(r"([\d.]+) TFLOP, seed \d+, (.+?): ([\d.]+),", line).groups()
        runs[arm][float(tflop)].append(float(knn))
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    colours = ("#0072B2", "#E69F00", "#CC79A7", "#009E73", "#000000")
    for (arm, points), colour in zip(runs.items(), colours, strict=True):
        axes.plot([x for x in points for _ in points[x]], sum(points.values(), []), ".", color=colour, label=arm)
        axes.plot(sorted(points), [sum(points[x]) / len(points[x]) for x in sorted(points)], color=colour, linewidth=1)
    axes.set(xscale="log", xlabel="TFLOP of the training", title="CIFAR-10: k-NN accuracy (k = 20), %", ylim=(15, 70))
    axes.set_xticks([5, 14, 28.5, 57, 114, 285])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.legend(frameon=False, loc="lower left")
    figure.savefig("docs/flops.png", dpi=150)
    return 0


if __name__ == "__main__":
    sys.exit(main())
