"""How a training step scales: bench.png, images/s and memory against batch, K, crop size and depth.

    images/s = (FLOP/s of the largest point) / (FLOPs of an image)       were all arithmetic equally fast
    memory   = a + b·x        straight in batch, K, depth and the patches of a crop, through the first and last point

Each point is a process of its own, since the peak of a process's memory never falls.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from matplotlib.figure import Figure
from tqdm import tqdm

import vit
from support.files import write_safely

SWEEPS = {  # flag, values: one is changed, the rest stays as the command line says; depth is no flag
    "batch": (4, 8, 16, 32, 64, 128),
    "n_prototypes": tuple(2**n for n in range(12, 18)),
    "global_size": (98, 196, 294, 392, 518),
    "depth": (3, 6, 9, 12),
}
SHALLOW = """
import sys, bench
from support.scaling import keep_blocks
keep_blocks(*sys.argv[1:3])
sys.exit(bench.main(sys.argv[3:]))
"""


def keep_blocks(arch, depth):
    """In this process the networks of that name have their first `depth` blocks alone."""
    whole = getattr(vit, arch)

    def shallow(**options):
        network = whole(**options)
        network.blocks = network.blocks[: int(depth)]
        return network

    setattr(vit, arch, shallow)


def point(flags, arch, field, value):
    """What `bench.py --json` says with one thing changed, or None where that does not fit or divide."""
    root = Path(__file__).parents[1]
    if field == "depth":
        command = ["-c", SHALLOW, arch, str(value), *flags]
    else:
        command = [str(root / "bench.py"), *flags, f"--{field}", str(value)]
    done = subprocess.run([sys.executable, *command, "--json", "--steps", "3"], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(root)})  # fmt: skip
    return json.loads(done.stdout) if done.returncode == 0 else None


def draw_scaling(flags, recipe, path):
    """Run all points and draw; the last line."""
    jobs = [(field, value) for field, values in SWEEPS.items() for value in values]
    results = {job: point(flags, recipe.arch, *job) for job in tqdm(jobs, "bench")}
    figure = Figure(figsize=(16, 7), layout="constrained")
    axes = figure.subplots(2, len(SWEEPS))
    for (field, values), (upper, lower) in zip(SWEEPS.items(), axes.T, strict=True):
        done = [value for value in values if results[field, value]]
        if not done:
            continue
        found = [results[field, value] for value in done]
        x = [value**2 for value in done] if field == "global_size" else done  # patches, but for a factor
        memory = [result["peak_memory"] / 2**30 for result in found]
        slope = (memory[-1] - memory[0]) / max(x[-1] - x[0], 1)
        theory = [found[-1]["flops_per_s"] / result["flops_per_image"] for result in found]
        panels = {
            "images/s": (upper, [result["images_per_s"] for result in found], theory, "at the last one's FLOP/s"),
            "peak memory, GiB": (lower, memory, [memory[0] + slope * (v - x[0]) for v in x], "a + b·x"),
        }
        for name, (ax, measured, line, label) in panels.items():
            ax.plot(x, measured, "o", label="measured")
            ax.plot(x, line, "-", color="grey", label=label)
            ax.set(xlabel=field, ylabel=name, ylim=(0, None))
            ax.set_xticks(x, done, rotation=60, fontsize=8)
            ax.legend()
    write_safely(Path(path), lambda new: figure.savefig(new, dpi=100, format="png"))
    return f"{sum(r is not None for r in results.values())} of {len(jobs)} points: {path}"
