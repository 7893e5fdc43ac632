"""bench.py --all: all that wants a GPU, in one command; a table, and bench.json.

Each part is a process of its own with a time limit, so one that fails or hangs leaves the others as they are.
"""

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tqdm import tqdm

from support.files import write_safely

ROOT = Path(__file__).parents[1]
STEP = "--recipe vitl14 --hires_share 0 --no-checkpointing --batch 64"  # 2×224² + 8×98², K = 131,072
VITS = f"{STEP} --arch vit_small --ffn mlp --dino_bottleneck 256 --drop_path 0.3"
HIGH = "--recipe vitl14 --hires_share 0 --checkpointing --batch 8 --global_size 518 --image_size 592"
CUT = "--arch vit_pico --ffn mlp --batch 2 --n_prototypes 64 --head_hidden 32 --global_size 28 --local_size 14 " \
      "--image_size 32 --n_local 1 --steps 1"  # of every size, for a CPU
SAME = "--steps 20 --log_every 1 --no-amp --hires_share 0 --eval_every 0 --eval_images 100"
AGREE = 1e-3  # how far apart the losses of a CPU and a GPU may be
SECONDS = 100  # of training on CIFAR-10


def plan(device, on_gpu, data):
    """Name -> (command, seconds that it may take)."""
    cut, on = "" if on_gpu else CUT, f"--json --device {device}"
    steps = {"ViT-S/14": VITS, "ViT-L/14": STEP, "ViT-L/14 at 518²": HIGH}
    if on_gpu:
        steps |= {"ViT-S/14, compiled": f"{VITS} --compile", "ViT-L/14, compiled": f"{STEP} --compile",
                  "ViT-S/14, largest batch": f"{VITS} --largest", "ViT-L/14, largest batch": f"{STEP} --largest"}
    parts = {name: (f"bench.py {flags} {cut} {on}", 90) for name, flags in steps.items()}
    if on_gpu:
        parts = {"CUDA tests": ("-m pytest -q -k cuda tests", 90)} | parts
        parts["launches and waits"] = (f"bench.py {STEP} --part launches {on}", 60)
    parts["cifar10, a step"] = (f"bench.py --recipe cifar10 {'' if on_gpu else '--batch 2 --steps 1'} {on}", 60)
    if data:
        data = shlex.quote(str(data))
        parts["cifar10, loader"] = (f"bench.py --recipe cifar10 --data {data} --part loader {on}", 120)
        parts["cifar10, trained"] = (f"train.py --recipe cifar10 --data {data} --device {device}", SECONDS + 60)
    return parts


def run(command, limit):
    """Start a program of ours; its last line, or RuntimeError with what it says of itself."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *shlex.split(command)], capture_output=True, text=True, timeout=limit,
                          cwd=ROOT, env=environment)  # fmt: skip
    if done.returncode:
        raise RuntimeError((done.stderr or done.stdout).strip().splitlines()[-1])
    return done.stdout.strip().splitlines()[-1]


def train_for_a_while(command, limit, step, folder):
    """A training run of about SECONDS, as long as the speed of `step` allows: its last row."""
    steps = max(1, int(SECONDS * step["images_per_s"] / step["batch"]))
    run(f"{command} --out {shlex.quote(folder)} --steps {steps} --eval_every 0", limit)
    last = json.loads((Path(folder) / "metrics.jsonl").read_text().splitlines()[-1])
    return {name: last[name] for name in ("step", "knn_20", "knn_200", "seconds")}


def agreement(device, limit):
    """The largest relative difference between the losses of 20 float32 steps on the CPU and on the device."""
    losses = []
    for where in ("cpu", device):
        with tempfile.TemporaryDirectory() as folder:
            run(f"train.py {SAME} --out {shlex.quote(f'{folder}/run')} --device {where}", limit)
            rows = map(json.loads, (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines())
            losses.append([row["loss"] for row in rows if "loss" in row])
    apart = max(abs(a - b) / abs(a) for a, b in zip(*losses, strict=True))
    if apart > AGREE:
        raise RuntimeError(f"the losses of 20 steps differ by {apart:.1e}")
    return {"largest difference of 20 losses": apart}


def run_everything(device, on_gpu, data, out):
    """Run all parts, write `out`, print the table; how many failed."""
    results = {}
    parts = plan(device, on_gpu, data)
    for name in tqdm([*parts, "CPU and GPU agree"], "bench --all", unit="part"):
        began, command = time.perf_counter(), "train.py"
        try:
            if name == "CPU and GPU agree":
                found = agreement(device, 120)
            else:
                command, limit = parts[name]
                if command.startswith("train.py"):
                    with tempfile.TemporaryDirectory() as folder:
                        found = train_for_a_while(command, limit, results["cifar10, a step"], f"{folder}/run")
                else:
                    line = run(command, limit)
                    found = json.loads(line) if line.startswith("{") else {"says": line}
        except Exception as error:  # whatever it is, the other parts go on
            found = {"failed": " ".join(f"{type(error).__name__}: {error}".split())}
        results[name] = {**found, "command": command, "wall_s": time.perf_counter() - began}
        whole = json.dumps(results, indent=1)
        write_safely(Path(out), lambda new, text=whole: new.write_text(text))  # also of a run that is killed
    print("\n".join(table(results)))
    if not on_gpu:
        print("every size cut down: a trial of the command, no measurement")
    failed = sum("failed" in found for found in results.values())
    print(f"{len(results) - failed} of {len(results)} parts: {out}")
    return failed


def table(results):
    """A line for each part."""
    for name, found in results.items():
        if "share_of_peak" in found:
            words = (f"{found['images_per_s']:.1f} images/s, {found['share_of_peak']:.0%} of the matrix peak, "
                     f"{found['peak_memory'] / 2**30:.1f} GiB, batch {found['batch']}, augmentation "
                     f"{found['parts']['augmentation'] / sum(found['parts'].values()):.0%}")  # fmt: skip
        else:
            left = {k: v for k, v in found.items() if k not in ("command", "wall_s")}
            words = ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in left.items())
        yield f"{name:28} {words}  ({found['wall_s']:.0f} s)"
