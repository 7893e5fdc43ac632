"""What a run reports: rows, speed, signals, the collapse meter, curves.  `pytest tests/support/test_log.py`"""

import json
import math
import os
import signal
import warnings
from types import SimpleNamespace

import pytest
import torch
from matplotlib.axes import Axes
from PIL import Image

from recipes import get_recipe
from support import log
from support.log import RunLog, catch_signals, collapse_meter, collapse_warning, draw_curves, read_metrics


def make_log(out, step=0, fp16=False):
    """A RunLog of a run that trains nothing."""
    recipe = get_recipe("shapes", steps=7, log_every=3)
    scaler, cpu = torch.amp.GradScaler("cpu", init_scale=4, enabled=fp16), torch.device("cpu")
    return RunLog(SimpleNamespace(recipe=recipe, step=step, training_flops=0, out=out, device=cpu, scaler=scaler))


def take_step(run_log, grad_norm=1.0, loss=1.0):
    """A step with losses of 1; its targets are (1/2, 1/2) for both of two images, whose [CLS] are orthogonal."""
    run_log.run.step += 1
    run_log.run.training_flops += 10
    losses = {"dino": torch.tensor(1.0), "loss": torch.tensor(loss), "grad_norm": torch.tensor(grad_norm)}
    run_log.add_step(losses, torch.full((2, 2, 2), 0.5), torch.eye(2).repeat(2, 1), {"lr": 0.1})


def test_every_third_step_and_the_last_are_logged(tmp_path):
    """A run resumed at step 4 drops the later rows and adds to the seconds."""
    run_log = make_log(tmp_path)
    for _ in range(7):
        take_step(run_log)
    rows = read_metrics(tmp_path / "metrics.jsonl", 7)
    assert rows == run_log.rows and [row["step"] for row in rows] == [3, 6, 7]
    assert [row["training_flops"] for row in rows] == [30, 60, 70]
    for row in rows:
        assert (row["loss"], row["lr"], row["entropy_image"], row["cosine"]) == pytest.approx((1, 0.1, 1, 0))
        assert row["seconds"] > 0 and row["images_per_s"] > 0 and "healthy" not in row
    again = make_log(tmp_path, step=4)
    assert again.rows == read_metrics(tmp_path / "metrics.jsonl", 9) == rows[:1]
    again.add_row({})
    assert again.rows[-1]["seconds"] > again.rows[0]["seconds"]


@pytest.mark.parametrize("line", [b"[1]", b'{"loss": 1}', b'{"step": "1"}', b"\xff\xfe", b"[" * 10**5, b'{"step": 1, '])
def test_a_damaged_line_ends_the_rows(tmp_path, line):
    rows = [{"step": 1}, {"step": 3}, {"step": 2, "final": True}]
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (tmp_path / "metrics.jsonl").write_bytes(text + line + b'\n{"step": 2}\n')
    assert read_metrics(tmp_path / "metrics.jsonl", 2) == [{"step": 1}] and read_metrics(tmp_path / "none", 2) == []


def test_images_per_second_are_those_of_the_steps_taken(tmp_path, monkeypatch):
    """32 images a second, batches of 32, rows at steps 3 and 6: also after resuming at step 2, one step before a row,
    and after an evaluation of an hour between two rows."""
    monkeypatch.setattr(log, "draw_curves", lambda *_: None)
    monkeypatch.setattr(log.time, "perf_counter", lambda: now)
    now = 0
    run_log = make_log(tmp_path, step=2)
    for step in range(2, 6):
        now += 1
        take_step(run_log)
        if step == 3:
            now += 3600
            run_log.add_evaluation({"knn_20": 1.0})
    assert [row["images_per_s"] for row in run_log.rows if "images_per_s" in row] == [32, 32]


def test_flops_by_hand(tmp_path, monkeypatch):
    """A (2, 3) matrix times a (3, 5) one is 2·2·3·5 = 60 FLOPs, on each of three processes; counted once per kind."""
    monkeypatch.setattr(log.distributed, "world_size", lambda: 3)
    run_log = make_log(tmp_path)
    for columns in (5, 7):  # the second time it is taken to be the same
        with run_log.count_flops("low"):
            torch.ones(2, 3) @ torch.ones(3, columns)
    assert run_log.run.training_flops == 360


def test_fp16_may_skip_steps_but_not_for_ever(tmp_path):
    """Two of the first three steps are skipped, and none of the next.  A loss scale below 1 ends the run, and a loss
    that is not finite."""
    run_log = make_log(tmp_path, fp16=True)
    for norm in (1.0, math.nan, math.inf, 1.0, 1.0, 1.0):
        take_step(run_log, norm)
    assert [(row["skipped_steps"], row["loss_scale"]) for row in run_log.rows] == [(2, 4), (0, 4)]
    assert [row["grad_norm"] for row in run_log.rows] == [None, 1]  # JSON has no Infinity
    run_log.run.scaler.scale(torch.ones(()))  # makes its tensor
    run_log.run.scaler.update(0.5)
    with pytest.raises(SystemExit, match="step 7: the loss or its gradients are not finite"):
        take_step(run_log, math.inf)
    run_log = make_log(tmp_path, fp16=True)
    take_step(run_log, math.inf, loss=math.nan)
    take_step(run_log)
    with pytest.raises(SystemExit, match="step 3: the loss or its gradients are not finite"):
        take_step(run_log)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)])
def test_the_first_signal_is_caught_and_the_second_has_its_usual_effect(number):
    heard = []
    usual = signal.signal(number, lambda n, _: heard.append(n))
    mine = signal.getsignal(number)
    try:
        with pytest.raises(ZeroDivisionError), catch_signals() as caught:
            os.kill(os.getpid(), number)
            assert (caught, heard) == ([number], [])
            os.kill(os.getpid(), number)
            assert (caught, heard) == ([number], [number])
            raise ZeroDivisionError
        assert signal.getsignal(number) is mine
    finally:
        signal.signal(number, usual)


def test_a_hangup_that_is_ignored_stays_ignored():
    """As under nohup."""
    usual, caught = signal.getsignal(signal.SIGHUP), []
    for handler in (signal.SIG_IGN, signal.SIG_DFL):
        signal.signal(signal.SIGHUP, handler)
        with catch_signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
        caught.append(len(signals))
    signal.signal(signal.SIGHUP, usual)  # ignored, if the tests run under nohup
    assert caught == [0, 1]


def test_collapse_meter_by_hand():
    """K = 4, two images.  View 1: targets (1, 0, 0, 0) and (0, 1, 0, 0), of entropy 0.  View 2: (0, 0, ½, ½) twice, of
    entropy ln 2 = ½ ln 4.  On average ¼ ln 4; their mean is uniform.  [CLS] (1, 0) and (3, 4), cosine 3/5."""
    p = torch.tensor([[[1.0, 0, 0, 0], [0, 1.0, 0, 0]], [[0, 0, 0.5, 0.5], [0, 0, 0.5, 0.5]]])
    cls = torch.tensor([[1.0, 0], [3.0, 4.0], [9.0, 9.0], [9.0, 9.0]])  # the second view is not read
    assert collapse_meter(p, cls) == pytest.approx({"entropy_image": 0.25, "entropy_mean": 1, "cosine": 0.6})


def test_collapse_warnings():
    healthy = {"entropy_image": 0.5, "entropy_mean": 0.99, "cosine": 0.3}
    assert collapse_warning(healthy) is None
    assert "uniform" in collapse_warning({**healthy, "entropy_image": 0.995})
    assert "same prototype" in collapse_warning({**healthy, "entropy_image": 0.01, "entropy_mean": 0.01})
    assert "same" in collapse_warning({**healthy, "cosine": 0.999})


def test_curves(tmp_path, monkeypatch):
    """A loss, k-NN in percent, of another k at the end, the network before training as a line, high resolution in
    grey; runs without rows, labels, high resolution or step 0, and of one step, have a picture too."""
    drawn, plot = [], Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda axes, *xy, **look: drawn.append(xy[:2]) or plot(axes, *xy, **look))
    monkeypatch.setattr(Axes, "axhline", lambda axes, y, **look: drawn.append((look["linestyle"], y)))
    monkeypatch.setattr(Axes, "axvspan", lambda axes, *ends, **look: drawn.append(ends))
    rows = [{"step": 0, "knn_20": 0.5}, {"step": 1, "dino": 3.0}, {"step": 2, "dino": 3.0, "knn_20": 0.75, "knn_9": 1}]
    for some in ([], rows[1:2], rows[1:], rows):
        drawn.clear()
        few = {} if some is rows else {"steps": 1}  # of high resolution none
        with warnings.catch_warnings(action="error"):
            draw_curves(some, get_recipe("shapes", **few), tmp_path / "curves.png")
        assert Image.open(tmp_path / "curves.png").size == (1660, 1280)
        assert ("--" in dict(drawn), ":" in dict(drawn), (1, 1) in drawn) == (some is rows, True, False)
    losses, uniform, knn, before = ((1, 2), (3.0, 3.0)), (":", math.log(128)), ((0, 2), (50.0, 75.0)), ("--", 50.0)
    assert drawn == [(2411, 2460), losses, uniform, (2411, 2460), (2411, 2460), ((2,), (100,)), knn, before]
