"""A hundred kills at random moments, and what comes of going on.  Not a test of its own: it takes minutes.

    python tests/measure_kills.py [KILLS]

Training with a k-NN and a checkpoint every other step, and curation with all its stages, each in a process that is
killed (SIGKILL) at a random moment and started again with the same command, until it ends.  Then metrics, weights and
selections must be those of an uninterrupted run, to the last bit.
"""

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

import hostile  # noqa: E402
import matplotlib.figure  # noqa: E402, F401  what a program imports late, once for all processes
import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.distributed.checkpoint.state_dict  # noqa: E402, F401
from PIL import Image  # noqa: E402

import curate  # noqa: E402
import train  # noqa: E402
from support import log as record  # noqa: E402
from vit import vit_pico  # noqa: E402

CLOCK = ("seconds", "images_per_s", "peak_memory")


def in_a_process(main, words, seconds=None):
    """The exit status of main(words) in a process of its own; None if it was killed after so many seconds."""
    child = os.fork()
    if child == 0:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1), os.dup2(null, 2)
        os._exit(main([str(word) for word in words]) or 0)
    end = time.monotonic() + (seconds or 600)
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def of_training(out):
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rows = [{k: v for k, v in row.items() if k not in CLOCK} for row in rows]
    saved = torch.load(out / "checkpoint.pt", weights_only=True)
    weights = {f"{part}.{k}": v.tolist() for part in ("student", "teacher") for k, v in saved[part].items()}
    return rows, weights, {k: v.tolist() for k, v in torch.load(out / "vit.pt", weights_only=True).items()}


def of_curation(out):
    return [(out / name).read_bytes() for name in ("list.txt", "list.csv", "list.png")]


def main(kills):
    torch.set_num_threads(1)
    for place in (train, record):  # pictures take most of the time of so small a run
        place.draw_curves = lambda *_: None
    train.draw_split = lambda *_: {}
    folder = Path(tempfile.mkdtemp())
    noise = np.random.default_rng(0)
    for i in range(200):
        path = folder / "good" / "abc"[i % 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((32, 32)).save(path)
    torch.save(vit_pico(patch_size=4, img_size=8).state_dict(), folder / "vit.pt")
    flags = ["--device", "cpu", "--threads", "1"]
    jobs = {
        "training": (train.main, of_training, lambda out: [
            *hostile.SMALL, "--data", folder / "good", "--steps", "24", "--eval_every", "2", "--save_every", "2",
            "--log_every", "1", "--out", out, *flags, *(["--resume"] if (out / "checkpoint.pt").exists() else [])]),
        "curation": (curate.main, of_curation, lambda out: [
            "--curated", folder / "good/a", "--uncurated", folder / "good", "--exclude", folder / "good/b",
            "--size", "32", "--self-threshold", "0.99999", "--reference-threshold", "0.999999", "--weights",
            folder / "vit.pt", "--mode", "samples", "--out", out / "list.txt", *flags]),
    }  # fmt: skip
    generator, counts = random.Random(0), Counter()
    for name, (program, result, words) in jobs.items():
        whole = folder / f"{name} whole"
        whole.mkdir()
        began = time.monotonic()
        assert in_a_process(program, words(whole)) == 0
        usual, expected = time.monotonic() - began, result(whole)
        while counts[name] < kills // 2:
            out = folder / f"{name} killed"
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            while (status := in_a_process(program, words(out), generator.uniform(0.05, usual))) is None:
                counts[name] += 1
            assert status == 0 and result(out) == expected, f"{name}: status {status}, or another result"
            assert not [path for path in out.rglob("*") if path.name.endswith((".tmp", ".lock"))]
            counts[f"{name}, ended"] += 1
        print(f"{name}: {counts[name]} kills in {counts[f'{name}, ended']} runs of {usual:.1f} s, all as uninterrupted")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
