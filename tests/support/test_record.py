"""What is told of a run: its rows across a kill, when a step is due, and the signals that end it.

    pytest tests/test_record.py
"""

import os
import signal
from types import SimpleNamespace

import pytest
import torch

from recipes import get_recipe
from support import log as record
from support.log import RunLog, catch_signals, read_metrics


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(record, "draw_curves", lambda *_: None)


def recorder(out, step=0, **changes):
    """A RunLog of a run that trains nothing."""
    run = SimpleNamespace(recipe=get_recipe("shapes", steps=7, log_every=3, **changes), step=step, training_flops=0)
    return RunLog(run, out, torch.device("cpu"))


def take(seen, grad_norm=1.0):
    """A step with losses of 1; its targets are (1/2, 1/2) for both of two images, whose [CLS] are orthogonal."""
    seen.run.step += 1
    seen.run.training_flops += 10
    losses = {"dino": torch.tensor(1.0), "loss": torch.tensor(1.0), "grad_norm": torch.tensor(grad_norm)}
    seen.step(losses, torch.full((2, 2, 2), 0.5), torch.eye(2).repeat(2, 1), {"lr": 0.1})


def test_steps_are_told_of_when_they_are_due_and_the_last_one(tmp_path):
    seen = recorder(tmp_path)
    for _ in range(7):
        take(seen)
    rows = read_metrics(tmp_path / "metrics.jsonl", 7)
    assert rows == seen.rows and [row["step"] for row in rows] == [3, 6, 7]
    assert [row["training_flops"] for row in rows] == [30, 60, 70]
    for row in rows:
        assert (row["loss"], row["lr"], row["entropy_image"], row["cosine"]) == pytest.approx((1, 0.1, 1, 0))
        assert row["seconds"] > 0 and row["images_per_s"] > 0 and "healthy" not in row


def test_going_on_drops_what_came_after_the_checkpoint_and_adds_the_seconds(tmp_path):
    seen = recorder(tmp_path)
    for _ in range(7):
        take(seen)
    again = recorder(tmp_path, step=4)
    assert [row["step"] for row in again.rows] == [3]
    assert read_metrics(tmp_path / "metrics.jsonl", 9) == again.rows
    again.row({})
    assert again.rows[-1]["seconds"] > again.rows[0]["seconds"]


def test_images_per_second_are_those_of_the_steps_that_were_taken(tmp_path, monkeypatch):
    """32 images a second, batches of 32, a row at steps 3 and 6: also after going on at step 2, one step before a row,
    and after an evaluation of an hour between two rows."""
    monkeypatch.setattr(record.time, "perf_counter", lambda: now)
    now = 0
    seen = recorder(tmp_path, step=2)
    for step in range(2, 6):
        now += 1
        take(seen)
        if step == 3:
            now += 3600
            seen.evaluation({"evaluation_flops": 1})
    assert [row["images_per_s"] for row in seen.rows if "images_per_s" in row] == [32, 32]


def test_an_evaluation_is_known_after_a_kill(tmp_path, capsys):
    seen = recorder(tmp_path, step=2)
    assert not seen.evaluated()
    seen.evaluation({"knn_20": 0.5, "evaluation_flops": 1})
    assert seen.evaluated() and recorder(tmp_path, step=2).evaluated() and not recorder(tmp_path, step=1).evaluated()
    assert "step 2: k-NN 50.0% (k = 20)" in capsys.readouterr().err


def test_a_gradient_that_is_not_finite_is_remembered_until_the_next_row(tmp_path, capsys):
    seen = recorder(tmp_path)
    take(seen, grad_norm=float("nan"))
    take(seen)
    with pytest.raises(SystemExit):
        take(seen)
    assert "step 3: the loss became NaN" in capsys.readouterr().err and not seen.healthy


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_the_second_does_what_it_did(number):
    heard, usual = [], signal.getsignal(number)
    signal.signal(number, lambda n, _: heard.append(n))
    mine = signal.getsignal(number)
    try:
        with pytest.raises(ZeroDivisionError), catch_signals() as noted:
            os.kill(os.getpid(), number)
            assert (noted, heard) == ([number], [])
            os.kill(os.getpid(), number)
            assert (noted, heard) == ([number], [number])
            raise ZeroDivisionError
        assert signal.getsignal(number) is mine
    finally:
        signal.signal(number, usual)
