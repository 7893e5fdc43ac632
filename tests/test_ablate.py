"""The ablation: its arms as recipes, their processes, the results.  `pytest tests/test_ablate.py`"""

import json
import os
import signal
import threading
from dataclasses import asdict

import pytest
from conftest import MeanColour, save, split_of

import ablate
import train
from ablate import ARMS, main
from recipes import get_recipe
from support.checkpoint import read_checkpoint
from support.images import load_splits

SMALL = {"batch": 4, "steps": 2, "n_prototypes": 16, "head_hidden": 16, "dino_bottleneck": 8, "ibot_bottleneck": 8,
         "global_size": 8, "local_size": 4, "hires_size": 16, "hires_image_size": 16, "image_size": 16}  # fmt: skip


def test_each_of_the_first_arms_adds_one_component(tmp_path):
    """From both losses with one head to the whole recipe, one field changes from each arm to the next."""
    ladder = [asdict(get_recipe("shapes", **ARMS[arm]))
              for arm in ("both-tied", "both-untied", "+sinkhorn", "+koleo", "whole")]  # fmt: skip
    changed = [[name for name in old if old[name] != new[name]] for old, new in zip(ladder, ladder[1:])]
    assert changed == [["tied_heads"], ["centering"], ["koleo_weight"], ["hires_share"]]
    flags = {tuple(ablate.flags_of(arm, 0, get_recipe("shapes"), tmp_path)) for arm in ARMS}
    assert len(flags) == len(ARMS) - 1  # nothing trains the untrained arm, which has the flags of the whole recipe
    assert {"--global_size=96", "--image_size=96"} < set(ablate.flags_of("high", 0, get_recipe("shapes"), tmp_path))
    larger = [ablate.flags_of("larger", 0, get_recipe(name), tmp_path)[0] for name in ("shapes", "cifar10", "vitg14")]
    assert larger == ["--arch=vit_mini", "--arch=vit_tiny", "--arch=vit_giant2"]


def test_the_table_by_hand(tmp_path):
    """Two seeds with 0.5 and 0.6 have a mean of 0.55; measures without values and other numbers have no column."""
    rows = [{"arm": "whole", "seed": seed, "knn_20": knn, "knn_200": 0.1, "tflop": 2.0}
            for seed, knn in enumerate((0.5, 0.6))]  # fmt: skip
    table = ablate.write_results([*rows, {**rows[0], "arm": "dino", "knn_20": 0.25}], tmp_path)
    assert table == (tmp_path / "ablation.md").read_text()
    assert table.splitlines() == [
        "| arm | seeds | k-NN | TFLOP |",
        "|---|---|---|---|",
        "| dino | 1 | 0.25 (0.25 to 0.25) | 2 (2 to 2) |",
        "| whole | 2 | 0.55 (0.5 to 0.6) | 2 (2 to 2) |",
    ]
    without_labels = ablate.write_results([{"arm": "dino", "seed": 0, "tflop": 2.0}], tmp_path)
    assert without_labels.endswith("| dino | 1 | 2 (2 to 2) |\n")


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    """Flags of a small ablation on twelve flat images, light and dark; the linear classifier takes two steps."""
    monkeypatch.setattr("linear_probe.STEPS", 2)
    for i in range(12):
        save(tmp_path / "images" / "ab"[i % 2] / f"{i}.png", 200 * (i % 2) + i, (16, 16))
    flags = [f"--{name}={value}" for name, value in SMALL.items()]
    return [*flags, "--recipe=cifar10", f"--data={tmp_path}/images", "--device=cpu", "--log_every=1",
            f"--out={tmp_path}/out"]  # fmt: skip


@pytest.mark.slow
def test_an_arm_is_trained_in_a_process_and_measured(arguments, tmp_path, monkeypatch, capsys):
    """At 16 pixels, where the recipe ends; train.py starts at 8.  The loss has the weights of the recipe."""
    sizes, measure_knn = [], ablate.measure_knn
    monkeypatch.setattr(ablate, "measure_knn", lambda *a: sizes.append(a[-1]) or measure_knn(*a))
    weights = ["--dino_weight", "0.25", "--ibot_weight", "0.5", "--koleo_weight", "0"]
    assert main(["--arms", "no-untying", "--seeds", "1", "--hires_share", "0.5", *weights, *arguments]) == 0
    step = json.loads((tmp_path / "out/no-untying_0/metrics.jsonl").read_text().splitlines()[0])
    assert step["loss"] == pytest.approx(0.25 * step["dino"] + 0.5 * step["ibot"], rel=1e-5)
    row = json.loads((tmp_path / "out/ablation.jsonl").read_text())
    assert sizes == [16, 8] and row["tflop"] > 0 and 0 <= row["linear"] <= 1
    assert read_checkpoint(tmp_path / "out/no-untying_0/checkpoint.pt")["recipe"]["tied_heads"] is True
    assert "| no-untying | 1 |" in capsys.readouterr().out


@pytest.mark.slow
def test_failed_arms_are_named_and_the_same_command_continues(arguments, tmp_path, monkeypatch, capsys):
    """Two seeds of two arms.  One arm fails at first.  Later only the missing runs are trained."""
    trained, broken = [], ["dino"]

    def train_here(flags, out):
        if out.name.split("_")[0] in broken:
            return 1
        trained.append(out.name)
        return train.main([*flags, "--eval_every=0", "--out", str(out)])

    monkeypatch.setattr(ablate, "train_arm", train_here)
    command = ["--arms", "dino", "no-ema", "--seeds", "2", *arguments]
    assert main(command) == 1
    assert capsys.readouterr().out.splitlines()[-1].endswith("2 runs, dino_0 failed, dino_1 failed")
    broken.clear()
    assert main(command) == 0
    assert trained == ["no-ema_0", "no-ema_1", "dino_0", "dino_1"]
    assert {line[:12] for line in (tmp_path / "out/ablation.md").read_text().splitlines()[2:]} == {
        "| dino | 2 |", "| no-ema | 2"}  # fmt: skip
    save(tmp_path / "images/a/new.png", 9, (16, 16))
    load_splits.cache_clear()
    assert main(command) == 2 and "other flags or images" in capsys.readouterr().err


def test_the_linear_classifier_leaves_out_classes_without_training_images(tmp_path, monkeypatch):
    splits = [split_of([(250, 0, 0), (240, 0, 0), (0, 0, 250), (0, 0, 240)] * 5, [0, 0, 1, 1] * 5),
              split_of([(245, 0, 0), (0, 0, 245), (245, 0, 0)], [0, 1, 2])]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text('{"training_flops": 0}')
    monkeypatch.setattr(ablate, "draw_split", lambda *_: {})
    assert ablate.measure(MeanColour(), splits, 8, tmp_path)["linear"] == 1


@pytest.mark.parametrize("flags, words", [
    (["--seed", "3"], "ablate.py sets --seed itself"),
    (["--centering", "softmax"], "ablate.py sets --centering itself"),
    (["--data", ""], "--data"), (["--arm", "dino"], "unknown argument --arm"), ([], "other flags or images"),
])  # fmt: skip
def test_wrong_flags_are_one_line(arguments, tmp_path, monkeypatch, capsys, flags, words):
    monkeypatch.setattr(ablate, "train_arm", lambda *_: 1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/ablation.jsonl").write_text('{"arm": "dino", "seed": 0, "flags": ["--steps", "9"]}\n')
    assert main([*arguments, *flags]) == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
    for damaged in ('{"flags": ["--st', '{"arm": "dino"}', '{"arm": "dino", "seed": 0}\n{"arm": "dino", "seed": 0}'):
        (tmp_path / "out/ablation.jsonl").write_text(damaged)
        assert main(arguments) == 2 and "a damaged line" in capsys.readouterr().err


def test_a_network_in_training_does_not_teach(arguments, monkeypatch, capsys):
    """Only a finished larger network, which has a vit.pt, teaches the distilled arm."""
    monkeypatch.setattr(ablate, "train_arm", lambda *_: pytest.fail("it was trained"))
    assert main(["--arms", "distilled", "--seeds", "1", *arguments]) == 1
    assert "0 runs, distilled_0 (run the arm larger first) failed" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_arm_save_and_leaves_no_process(tmp_path, monkeypatch, number):
    (tmp_path / "train.py").write_text("""
import pathlib, signal, sys, time
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), (out / "saved").touch(), sys.exit(130)))
(out / "ready").touch()
time.sleep(60)
""")
    monkeypatch.setattr(ablate, "__file__", str(tmp_path / "ablate.py"))

    def send():
        while not (tmp_path / "ready").exists():
            pass
        os.kill(os.getpid(), number)

    threading.Thread(target=send, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        ablate.train_arm([], tmp_path)
    assert (tmp_path / "saved").exists()
