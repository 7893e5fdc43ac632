"""metrics.jsonl: a line of JSON for each logged step of a run."""

import json

import torch

from distributed import sum_over_ranks, world_size
from support.files import write_safely


def means(values):
    """Scalar tensors by name -> floats, each the mean over the ranks.  Waits for the device, once."""
    x = torch.stack([value.float() for value in values.values()])
    return dict(zip(values, (sum_over_ranks(x) / world_size()).cpu().tolist()))


def read_metrics(path, last_step):
    """The rows up to last_step; what a killed run wrote after its checkpoint, or a line that is no row, is dropped."""
    rows = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            break
        if not isinstance(row, dict) or type(row.get("step")) is not int:
            break
        rows.append(row)
    return [row for row in rows if row["step"] <= last_step and "final" not in row]


def seconds_of(rows):
    """The seconds that a run had taken at its last row, in all its sessions."""
    return rows[-1].get("seconds", 0.0) if rows else 0.0


def write_metrics(path, rows):
    """The file with these rows, a line of JSON each."""
    write_safely(path, lambda temporary: temporary.write_text("".join(json.dumps(row) + "\n" for row in rows)))


def add_metrics(path, row):
    """One more row at the end of the file."""
    with open(path, "a") as file:
        file.write(json.dumps(row) + "\n")
