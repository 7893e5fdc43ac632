"""The arms of an ablation: each a run of train.py in a process of its own, all of a folder with the same flags."""

import json
import subprocess
import sys
import time
from pathlib import Path

from support.files import UserError, write_safely
from support.log import catch_signals, read_metrics

PROGRAM = Path(__file__).parents[1] / "train.py"
FLAGS = "flags.json"  # those with which a folder's arms are trained


def flags_of(fields):
    """Fields of a recipe -> the flags of train.py that say so."""
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in fields.items()]


def train_arm(flags, out, bar, batch):
    """Train in a process of its own, to the end or from where it was; the line that says why, if it failed."""
    out.mkdir(parents=True, exist_ok=True)
    before = bar.n

    def trained():
        rows = read_metrics(out / "metrics.jsonl", 10**9)
        return batch * rows[-1]["step"] if rows else 0

    bar.initial += trained()  # speed and time left are of what is done now
    with open(out / "log.txt", "w") as log, catch_signals() as signals:
        command = [sys.executable, PROGRAM, "--eval_every", "0", *flags, "--out", out, "--resume"]
        process = subprocess.Popen(command, stdout=log, stderr=log)
        while process.poll() is None:
            time.sleep(1)
            bar.update(before + trained() - bar.n)
            if signals:
                process.terminate()  # it saves a checkpoint
                process.wait()
    if signals:
        raise KeyboardInterrupt
    return reason_of(process.returncode, (out / "log.txt").read_text(errors="replace"))


def reason_of(status, log):
    """Why a process failed, in a line: its last one, unless it was killed before it could say; None if it did not."""
    lines = [line for line in log.split("\n") if line.strip() and "\r" not in line]  # no progress bars
    if status:
        return lines[-1] if status > 0 and lines else f"status {status}"


def read_done(out, flags):
    """The rows of ablation.jsonl; notes the flags in the folder.  UserError if its arms have others, or the rows are
    none."""
    path = out / "ablation.jsonl"
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        others = json.loads((out / FLAGS).read_text()) if (out / FLAGS).exists() else flags
        whole = all({"arm", "seed"} <= set(row) for row in rows) and isinstance(others, list)
    except (ValueError, TypeError):
        whole = False
    if not whole:
        raise UserError(f"{out} holds what ablate.py does not write; --out for another folder")
    if others != flags:
        others = " ".join(map(str, others)) or "none"
        raise UserError(f"the arms in {out} have other flags: {others}; the same ones, or --out for another folder")
    write_safely(out / FLAGS, lambda new: new.write_text(json.dumps(flags)))
    return rows
