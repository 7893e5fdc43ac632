"""What is told of a run while it trains, in metrics.jsonl, curves.png and on the screen; and whether it shall stop."""

import contextlib
import json
import math
import signal
import sys
import time

import torch
from torch.nn import functional as F
from tqdm import tqdm

import distributed
from distributed import sum_over_ranks, world_size
from support.device import peak_memory
from support.files import write_safely
from support.report import draw_curves, scores_in_words


@contextlib.contextmanager
def catch_signals():
    """A list that gets the first Ctrl-C or SIGTERM while the block runs; a second one does what it always did."""
    noted, usual = [], {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in usual:
        signal.signal(number, lambda n, _: (noted.append(n), signal.signal(n, usual[n])))
    try:
        yield noted
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)


class RunLog:
    """The rows of metrics.jsonl so far, those after a run's step dropped; its bar, its clock, its health.  All ranks
    have one, and the first one writes."""

    def __init__(self, run, out, device):
        self.run, self.out, self.device, self.first = run, out, device, distributed.rank() == 0
        self.rows = read_metrics(out / "metrics.jsonl", run.step)
        if self.first:
            write_metrics(out / "metrics.jsonl", self.rows)
        self.before, self.began = seconds_of(self.rows), time.perf_counter()
        self.count_from_here()
        self.healthy = torch.ones((), dtype=torch.bool, device=device)
        r = run.recipe
        self.bar = tqdm(total=r.steps * r.batch, initial=run.step * r.batch, unit="img", disable=not self.first,
                        mininterval=1)  # fmt: skip

    def count_from_here(self):
        """From now on images/s are those of the steps that come."""
        self.logged, self.logged_step = time.perf_counter(), self.run.step

    def row(self, numbers):
        """A row, with the step, the arithmetic and the seconds so far."""
        so_far = {"training_flops": self.run.training_flops, "seconds": self.before + time.perf_counter() - self.began}
        self.rows.append({"step": self.run.step, **numbers, **so_far})
        if self.first:
            add_metrics(self.out / "metrics.jsonl", self.rows[-1])

    def evaluated(self):
        """Whether the rows hold the evaluation at this step: not if the run was killed or stopped before it."""
        return any(row["step"] == self.run.step and "evaluation_flops" in row for row in self.rows)

    def evaluation(self, scores):
        """Tell the scores at this step."""
        self.row(scores)
        if self.first:
            draw_curves(self.rows, self.run.recipe, self.out / "curves.png")
            self.bar.write(f"step {self.run.step}: {scores_in_words(scores)}", file=sys.stderr)
        self.count_from_here()

    def due(self):
        """Whether the step that was just taken is to be told of."""
        return self.run.step % self.run.recipe.log_every == 0 or self.run.step == self.run.recipe.steps

    def step(self, losses, p_t, cls, values):
        """After a step: what train_step returned of it, and the schedules' values.  If it is due the losses, the
        collapse meter, speed and memory are told, and that waits for the device, once."""
        run, r = self.run, self.run.recipe
        self.healthy &= losses["grad_norm"].isfinite()
        self.bar.update(r.batch)
        if not self.due():
            return
        meter = collapse_meter(p_t, losses["dino"], cls)
        numbers = means({"healthy": self.healthy, **losses, **meter})
        check_health(numbers.pop("healthy") == 1, run.step, self.out)
        rate = (run.step - self.logged_step) * r.batch / (time.perf_counter() - self.logged)
        self.row({**numbers, **values, "images_per_s": rate, "peak_memory": peak_memory(self.device)})
        self.bar.set_postfix_str(f"loss {numbers['loss']:.3f}, entropy {numbers['entropy_image']:.2f} of ln K")
        warning = collapse_warning(numbers)
        if warning and self.first and run.step > 0.1 * r.steps:  # at first all features are alike
            self.bar.write(f"step {run.step}: {warning}", file=sys.stderr)
        self.count_from_here()


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


def collapse_meter(p_t, loss, cls):
    """Targets (2, B, K), L_DINO (a scalar tensor), teacher [CLS] (2·B, D) -> a dict of scalar tensors.

    entropy_image: mean H(p_t) / ln K.  entropy_mean: H(mean p_t) / ln K.  kl: L_DINO − mean H(p_t), the
    divergence of the student from the teacher.  cosine: mean between the [CLS] of different images in view 1.
    """
    log_K = math.log(p_t.shape[-1])
    entropy_image = -torch.special.xlogy(p_t, p_t).sum(dim=-1).mean()
    mean = p_t.mean(dim=(0, 1))  # (K,)
    entropy_mean = -torch.special.xlogy(mean, mean).sum()
    x = F.normalize(cls.float().chunk(2)[0], dim=1)  # (B, D)
    B = len(x)
    cosine = (x.sum(dim=0).square().sum() - B) / max(B * (B - 1), 1)  # ‖Σx‖² is B and twice each pair
    return {"entropy_image": entropy_image / log_K, "entropy_mean": entropy_mean / log_K, "kl": loss - entropy_image,
            "cosine": cosine}  # fmt: skip


def collapse_warning(meter):
    """A sentence in plain words when the meter says collapse, otherwise None."""
    if meter["entropy_image"] > 0.98 and meter["entropy_mean"] > 0.98:
        return "uniform collapse: every image gets the same flat target; lower teacher_temp or n_prototypes"
    if meter["entropy_mean"] < 0.05:
        return "collapse to one code: every image gets the same prototype; raise teacher_temp or use sinkhorn"
    if meter["cosine"] > 0.99:
        return "the features of all images are nearly the same; lower the rate or raise koleo_weight"
    return None


def check_health(healthy, step, out):
    """Exit with status 1, the last good checkpoint in place, once a gradient was not finite."""
    if not healthy:
        good = f"the last good checkpoint stays in {out}" if (out / "checkpoint.pt").exists() else "nothing was saved"
        print(f"step {step}: the loss became NaN; stopped, {good}", file=sys.stderr)
        sys.exit(1)
