"""What a run reports: metrics.jsonl, curves.png, the progress bar, the collapse meter (cf. Caron et al. 2021, §5.3).

Collapse: all images get the same target.  A loss near ln K (K prototypes) means slow learning or the uniform collapse;
a small loss means success or the collapse to one prototype.  Two entropies of the teacher's targets p_t, as shares of
ln K, tell them apart:

                      H(p_t), mean over images    H(mean of p_t over images)
    learning          below 1                     near 1
    uniform collapse  near 1                      near 1
    one prototype     near 0                      near 0
"""

import contextlib
import json
import math
import signal
import sys
import time

import torch
from matplotlib.figure import Figure
from torch.nn import functional as F
from tqdm import tqdm

import distributed
from support.device import flop_counter, peak_memory
from support.files import write_safely


@contextlib.contextmanager
def catch_signals():
    """Yield a list that receives the first Ctrl-C, SIGTERM or SIGHUP; a second one has its usual effect."""
    caught, hangup = [], getattr(signal, "SIGHUP", None)  # Windows has none
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, hangup) if number}

    def catch(number, _):
        caught.append(number)
        signal.signal(number, usual[number])

    for number in usual:
        if (number, usual[number]) != (hangup, signal.SIG_IGN):  # nohup ignores it
            signal.signal(number, catch)
    try:
        yield caught
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)


class RunLog:
    """The log of a run: rows of metrics.jsonl, progress bar, health.  Every rank has one; the first rank writes."""

    def __init__(self, run):
        self.run, self.path, self.first = run, run.out / "metrics.jsonl", distributed.rank() == 0
        self.rows = read_metrics(self.path, run.step) if run.step else []  # a resumed run repeats the later ones
        if self.first:
            write_metrics(self.path, self.rows)
        self.began = time.perf_counter() - (self.rows[-1].get("seconds", 0.0) if self.rows else 0.0)
        self.healthy = torch.ones((), dtype=torch.bool, device=run.device)
        self.skipped = torch.zeros((), device=run.device)  # steps since the last row that fp16 skipped
        self.flops = {}  # {kind of step: FLOPs}
        self.bar = tqdm(total=run.recipe.steps * run.recipe.batch, initial=run.step * run.recipe.batch, unit="img",
                        disable=not self.first, mininterval=1)  # fmt: skip
        self.last = time.perf_counter(), run.step  # images/s are measured from here on

    @contextlib.contextmanager
    def count_flops(self, *kind):
        """Add a step's FLOPs to run.training_flops; PyTorch counts them once for each kind of step."""
        with contextlib.nullcontext() if kind in self.flops else flop_counter() as counter:
            yield
        if counter:
            self.flops[kind] = counter.get_total_flops() * distributed.world_size()
        self.run.training_flops += self.flops[kind]

    def add_row(self, numbers):
        """Add a row to metrics.jsonl, with the step, the FLOPs and the seconds so far; null for what is not finite."""
        numbers = {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in numbers.items()}
        seconds = time.perf_counter() - self.began
        row = {"step": self.run.step, **numbers, "training_flops": self.run.training_flops, "seconds": seconds}
        self.rows.append(row)
        if self.first:
            with open(self.path, "a") as file:
                file.write(json.dumps(row) + "\n")

    def is_due(self):
        """Whether this step is logged."""
        return self.run.step % self.run.recipe.log_every == 0 or self.run.step == self.run.recipe.steps

    def add_step(self, losses, p_t, cls, values):
        """Log a step if it is due: losses, collapse meter, schedules, images/s, memory.  Waits for the device then."""
        r = self.run.recipe
        scaler, finite = self.run.scaler, losses["grad_norm"].isfinite()
        if scaler.is_enabled():  # a smaller scale mends a gradient, but not a loss
            self.skipped += ~finite
            finite = losses["loss"].isfinite()
        self.healthy &= finite
        self.bar.update(r.batch)
        if not self.is_due():
            return
        numbers = {"healthy": self.healthy, "skipped_steps": self.skipped, **losses, **collapse_meter(p_t, cls)}
        numbers = mean_over_ranks(numbers)
        numbers["loss_scale"] = scaler.get_scale()  # 1 but for fp16
        check_health(numbers.pop("healthy") == 1 and numbers["loss_scale"] >= 1, self.run)
        self.skipped.zero_()
        rate = (self.run.step - self.last[1]) * r.batch / (time.perf_counter() - self.last[0])
        self.add_row({**numbers, **values, "images_per_s": rate, "peak_memory": peak_memory(self.run.device)})
        self.bar.set_postfix_str(f"loss {numbers['loss']:.3f}, entropy {numbers['entropy_image']:.2f} of ln K")
        if self.first and self.run.step > 0.1 * r.steps and (warning := collapse_warning(numbers)):
            self.bar.write(f"step {self.run.step}: {warning}", file=sys.stderr)
        self.last = time.perf_counter(), self.run.step

    def add_evaluation(self, scores, final=False):
        """Log the scores of an evaluation at this step, and draw curves.png."""
        self.add_row({**scores, "final": True} if final else scores)
        if self.first:
            draw_curves(self.rows, self.run.recipe, self.run.out / "curves.png")
            if not final:
                self.bar.write(f"step {self.run.step}: {describe_scores(scores)}", file=sys.stderr)
        self.last = time.perf_counter(), self.run.step  # without the time of the evaluation

    def finish(self, scores, splits):
        """Log the final evaluation and print the run's last line; splits: the training and the test images."""
        self.add_evaluation(scores, final=True)
        sample = f" on a sample of {len(splits[0].sample)} images" if splits[0].sample else ""
        sample += f", {len(splits[0].skipped)} broken files skipped" * bool(splits[0].skipped)  # of both splits
        cost = f"{self.run.training_flops / 1e12:.1f} TFLOP, {self.rows[-1]['seconds']:.0f} s, {self.run.out}"
        distributed.print_first(f"{describe_scores(scores)}{sample}, {cost}")


def mean_over_ranks(values):
    """Scalar tensors by name -> their means over the ranks, as floats.  Waits for the device once."""
    x = torch.stack([value.float() for value in values.values()])
    return dict(zip(values, (distributed.sum_over_ranks(x) / distributed.world_size()).cpu().tolist()))


def read_metrics(path, last_step):
    """The rows of metrics.jsonl up to last_step, without a final row; reading stops at a damaged line."""
    rows = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
            if row["step"] <= last_step and "final" not in row:
                rows.append(row)
        except (ValueError, TypeError, LookupError, RecursionError):
            break
    return rows


def write_metrics(path, rows):
    """Write rows as a file with one line of JSON each."""
    write_safely(path, lambda new: new.write_text("".join(json.dumps(row) + "\n" for row in rows)))


def collapse_meter(p_t, cls):
    """Targets (2, B, K) and teacher [CLS] (2·B, D) -> a dict of scalar tensors.

    entropy_image: mean H(p_t) / ln K.  entropy_mean: H(mean p_t) / ln K.  cosine: mean cosine between the [CLS]
    tokens of different images in the first global view.
    """
    log_K = math.log(p_t.shape[-1])
    entropy_image = -torch.special.xlogy(p_t, p_t).sum(dim=-1).mean()
    mean = p_t.mean(dim=(0, 1))  # (K,)
    entropy_mean = -torch.special.xlogy(mean, mean).sum()
    x = F.normalize(cls.float().chunk(2)[0], dim=1)  # (B, D)
    B = len(x)
    cosine = (x.sum(dim=0).square().sum() - B) / max(B * (B - 1), 1)  # ‖Σx‖² is B and twice each pair
    return {"entropy_image": entropy_image / log_K, "entropy_mean": entropy_mean / log_K, "cosine": cosine}


def collapse_warning(meter):
    """A sentence if the meter shows a collapse, otherwise None."""
    if meter["entropy_image"] > 0.98 and meter["entropy_mean"] > 0.98:
        return "uniform collapse: every image gets the same flat target; lower --teacher_temp or --n_prototypes"
    if meter["entropy_mean"] < 0.05:
        return "collapse: every image gets the same prototype; raise --teacher_temp or use --centering sinkhorn"
    if meter["cosine"] > 0.99:
        return "the features of all images are nearly the same; lower --lr or raise --koleo_weight"


def check_health(healthy, run):
    """Exit with status 1 after a loss or gradient that was not finite; the last good checkpoint stays."""
    if not healthy:
        kept = f"; {run.out}/checkpoint.pt is of an earlier step" * (run.out / "checkpoint.pt").exists()
        what = f"step {run.step}: the loss or its gradients are not finite"
        sys.exit(f"train.py: error: {what}; start again with a lower --lr{kept}")


def draw_curves(rows, recipe, path):
    """curves.png: losses beside ln K, the collapse meter, and k-NN, over the steps; colours by Okabe and Ito."""
    r, knn = recipe, {name for row in rows for name in row if name.startswith("knn_")}
    panels = {"losses": {"dino": "$L_{DINO}$, images", "ibot": "$L_{iBOT}$, patches"},
              "collapse meter": {"entropy_mean": "entropy of the mean target / ln K",
                                 "entropy_image": "entropy of a target / ln K", "cosine": "cosine between images"},
              "k-NN accuracy, %": {f"knn_{k}": f"{k} neighbours" for k in sorted(int(x[4:]) for x in knn)}}  # fmt: skip
    figure = Figure(figsize=(8.3, 6.4), layout="constrained")
    for axes, (title, names) in zip(figure.subplots(3, sharex=True), panels.items(), strict=True):
        if (first := r.steps - round(r.steps * r.hires_share)) < r.steps:
            words = f"high resolution: crops of {r.hires_size}²,\nnot {r.global_size}² pixels; $L_{{DINO}}$ may jump"
            axes.axvspan(first, r.steps, color="0.85", label=words if title == "losses" else None)
        for (name, label), colour in zip(names.items(), ("#0072B2", "#E69F00", "#000000")):
            if points := [(row["step"], 100 * row[name] if name in knn else row[name]) for row in rows if name in row]:
                look = ".-" if len(points) < 20 else "-"  # a line does not show a single point
                axes.plot(*zip(*points, strict=True), look, color=colour, label=label, clip_on=False)
        if title == "losses":
            flat = "ln K: $L_{DINO}$ of a flat prediction"
            axes.axhline(math.log(r.n_prototypes), color="0.4", linestyle=":", label=flat)
        elif rows and rows[0]["step"] == 0 and (before := [100 * rows[0][name] for name in names if name in rows[0]]):
            axes.axhline(before[0], color="0.4", linestyle="--", label=f"before training: {before[0]:.1f}")
        axes.set_title(title, loc="left")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9, frameon=False)
    axes.set(xlim=(0, r.steps), xlabel="step")
    words = f"{r.name}: {r.arch}, {r.steps:,} steps of {r.batch:,} images, seed {r.seed}\n"
    figure.suptitle(words + describe_scores(rows[-1] if rows else {}), fontsize=10)
    write_safely(path, lambda new: figure.savefig(new, dpi=200, format="png"))


def describe_scores(scores):
    """The scores of an evaluation, as one line prints them."""
    knn = [f"{value:.1%} (k = {name[4:]})" for name, value in scores.items() if name.startswith("knn_")]
    words = [f"k-NN {', '.join(knn)}" if knn else "no labels"]
    if "iou" in scores:
        words += [f"foreground IoU {scores['iou']:.2f}"]
        words += [f"part agreement {scores['agreement']:.2f} (by chance {scores['agreement_chance']:.2f})"]
    return ", ".join(words)
