"""What is told of a run while it trains, in metrics.jsonl, curves.png and on the screen; and whether it shall stop."""

import contextlib
import signal
import sys
import time

import torch
from tqdm import tqdm

import distributed
from support.collapse import check_health, collapse_meter, collapse_warning
from support.memory import peak_memory
from support.metrics import add_metrics, means, read_metrics, seconds_of, write_metrics
from support.report import draw_curves, scores_in_words


@contextlib.contextmanager
def signals_noted():
    """A list that gets the first Ctrl-C or SIGTERM while the block runs; a second one does what it always did."""
    noted, usual = [], {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in usual:
        signal.signal(number, lambda n, _: (noted.append(n), signal.signal(n, usual[n])))
    try:
        yield noted
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)


class Recorder:
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
