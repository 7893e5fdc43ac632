"""An arm in a process of its own: why it failed, how it is stopped, and the flags of its folder.

    pytest tests/test_arms.py
"""

import json
import os
import signal
import threading
from types import SimpleNamespace

import pytest

from support import arms
from support.files import UserError

BAR = "\rdino, seed 0:  50%|#####     | 16/32 [00:01<00:01, 16.0img/s]"
SAVES_ON_SIGTERM = """
import pathlib, signal, sys, time
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), (out / "saved").touch(), sys.exit(130)))
(out / "ready").touch()
time.sleep(60)
"""


def a_bar(n=0):
    """What train_arm needs of a progress bar."""
    bar = SimpleNamespace(n=n, initial=0)
    bar.update = lambda more: setattr(bar, "n", bar.n + more)
    return bar


@pytest.mark.parametrize("status, log, reason", [
    (0, "one line\n" + BAR, None),
    (2, "runs/x: starts\ntrain.py: error: --lr must be\n", "train.py: error: --lr must be"),
    (1, f"runs/x: starts\n{BAR}{BAR}\nstep 3: the loss became NaN\n\n", "step 3: the loss became NaN"),
    (1, BAR, "status 1"), (1, "", "status 1"), (-9, f"runs/x: starts\n{BAR}", "status -9"),
])  # fmt: skip
def test_why_a_process_failed(status, log, reason):
    """Its last line, which no progress bar is; a killed one said nothing of it."""
    assert arms.reason_of(status, log) == reason


def test_a_process_that_dies_without_a_word_is_told_by_its_status(tmp_path, monkeypatch):
    """Not by what an attempt before it had said."""
    (tmp_path / "arm").mkdir()
    (tmp_path / "arm/log.txt").write_text("train.py: error: of before\n")
    monkeypatch.setattr(arms.sys, "executable", "/bin/false")
    assert arms.train_arm([], tmp_path / "arm", a_bar(), 4) == "status 1"


def test_what_an_arm_had_trained_does_not_count_as_speed(tmp_path, monkeypatch):
    """Five steps of four images before, none now."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 5}\n')
    monkeypatch.setattr(arms.sys, "executable", "/bin/true")
    bar = a_bar(n=100)
    assert arms.train_arm([], tmp_path, bar, 4) is None
    assert bar.initial == 20


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_arm_save_and_leaves_no_process(tmp_path, monkeypatch, number):
    (tmp_path / "program.py").write_text(SAVES_ON_SIGTERM)
    monkeypatch.setattr(arms, "PROGRAM", tmp_path / "program.py")
    out, ended = tmp_path / "arm", threading.Event()

    def send():
        while not (out / "ready").exists() and not ended.wait(0.05):
            pass
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    with pytest.raises(KeyboardInterrupt):
        arms.train_arm([], out, a_bar(), 4)
    ended.set()
    sender.join()
    assert (out / "saved").exists()


def test_flags_belong_to_a_folder_before_any_arm_has_ended(tmp_path):
    assert arms.read_done(tmp_path, ["--lr", "1"]) == []
    (tmp_path / "ablation.jsonl").write_text(json.dumps({"arm": "dino", "seed": 0}) + "\n")
    assert arms.read_done(tmp_path, ["--lr", "1"]) == [{"arm": "dino", "seed": 0}]
    with pytest.raises(UserError, match="have other flags: --lr 1; the same ones, or --out"):
        arms.read_done(tmp_path, [])


@pytest.mark.parametrize("flags", ["{", "5", "null"])
def test_flags_that_are_none(tmp_path, flags):
    (tmp_path / "flags.json").write_text(flags)
    with pytest.raises(UserError, match="does not write"):
        arms.read_done(tmp_path, [])
