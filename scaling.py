"""How a training step scales: bench.png, images/s and memory against batch, K, crop size and depth.

    a step ∝ a + b·x        in batch, in K and in depth: a straight line through two points
    a step ∝ N + c·N²       in the N patches of a crop: linear layers and attention

Each point is a process of its own, since the peak of a process's memory never falls.
"""

import json
import subprocess
import sys
from pathlib import Path

from matplotlib.figure import Figure
from tqdm import tqdm

from checkpoint import write_safely

SWEEPS = {  # flag, values: one is changed, the rest stays as the command line says
    "batch": (4, 8, 16, 32, 64, 128),
    "n_prototypes": tuple(2**n for n in range(12, 18)),
    "global_size": (98, 196, 294, 392, 518),
    "arch": ("vit_nano", "vit_tiny", "vit_small", "vit_base"),
}


def point(flags, field, value):
    """What `bench.py --json` says with one field changed, or None where that does not fit or divide."""
    command = [sys.executable, str(Path(__file__).with_name("bench.py")), *flags, f"--{field}", str(value), "--json"]
    done = subprocess.run([*command, "--steps", "3"], capture_output=True, text=True)
    return json.loads(done.stdout) if done.returncode == 0 else None


def draw_scaling(flags, recipe, path):
    """Run all points and draw; the last line."""
    figure = Figure(figsize=(16, 7), layout="constrained")
    jobs = [(field, value) for field, values in SWEEPS.items() for value in values]
    results = {job: point(flags, *job) for job in tqdm(jobs, "bench")}
    for column, (field, values) in enumerate(SWEEPS.items()):
        found = [(i if field == "arch" else value, results[field, value]) for i, value in enumerate(values)
                 if results[field, value]]  # fmt: skip
        for row, (name, unit) in enumerate((("seconds", 1), ("peak_memory", 2**30))):
            ax = figure.add_subplot(2, len(SWEEPS), row * len(SWEEPS) + column + 1)
            x, y = [x for x, _ in found], [result[name] / unit for _, result in found]
            ax.plot(x, y, "o", label="measured")
            if field in ("batch", "n_prototypes") and len(found) > 1:
                slope = (y[-1] - y[0]) / (x[-1] - x[0])
                ax.plot(x, [y[0] + slope * (v - x[0]) for v in x], "-", label="straight line")
            ax.set(xlabel=field, ylabel={"seconds": "s a step", "peak_memory": "GiB"}[name], ylim=(0, None))
            if field == "arch":
                ax.set_xticks(x, [values[i] for i in x])
            ax.legend()
    write_safely(Path(path), lambda new: figure.savefig(new, dpi=100, format="png"))
    return f"{sum(r is not None for r in results.values())} of {len(jobs)} points: {path}"
