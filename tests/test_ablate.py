"""The ablation: its arms as recipes, what only they use in train.py, the table by hand, and a run of the program.

    pytest tests/test_ablate.py
"""

import json
from dataclasses import asdict

import pytest
import torch
from PIL import Image
from test_train import small_run

import ablate
import train
from ablate import ARMS, flags_of, main
from recipes import get_recipe
from support.cli import parse_args
from support.report import ablation_table, draw_ablation

# ---------------------------------------------------------------------------- the arms


@pytest.mark.parametrize("arm", ARMS)
def test_flags_of_an_arm_give_its_recipe(arm):
    """As train.py reads them: the default recipe but for the arm's fields."""
    _, recipe, _ = parse_args(flags_of(ARMS[arm]))
    assert recipe == get_recipe("shapes", **ARMS[arm])


def test_arms_differ_and_the_whole_is_the_recipe():
    recipes = [get_recipe("shapes", **fields) for fields in ARMS.values()]
    assert len(set(recipes)) == len(ARMS) and recipes[list(ARMS).index("whole")] == get_recipe("shapes")


def test_each_arm_of_the_first_half_adds_one_component():
    """From both losses with one head to the whole: one field is another from each arm to the next."""
    ladder = [asdict(get_recipe("shapes", **ARMS[arm]))
              for arm in ("both-tied", "both-untied", "+sinkhorn", "+koleo", "whole")]  # fmt: skip
    changed = [[name for name in old if old[name] != new[name]] for old, new in zip(ladder, ladder[1:])]
    assert changed == [["tied_heads"], ["centering"], ["koleo_weight"], ["hires_share"]]


# ---------------------------------------------------------------------------- what only they use


def step(run):
    """A step on noise -> the losses."""
    images = torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    crop = train.MultiCrop(8, 4, run.recipe.n_local, blur_sigma=(0.1, 0.5))
    return train.train_step(run, images, crop, train.schedules_at(run.step, run.recipe))[0]


def test_tied_heads_are_one_head(tmp_path):
    """Both losses move it; the teacher's is one too; it comes back from a checkpoint as it was."""
    run = small_run(tied_heads=True, freeze_prototypes=0.0)
    for network in (run.student, run.teacher):
        assert network.dino_head is network.ibot_head
    step(run)
    train.save_checkpoint(run, tmp_path)
    again = small_run(tied_heads=True, freeze_prototypes=0.0)
    for p in [*again.student.parameters(), *again.ema.parameters()]:
        p.data.zero_()
    train.restore(again, train.read_checkpoint(tmp_path / "checkpoint.pt"))
    one, other = step(run), step(again)
    assert again.student.dino_head is again.student.ibot_head
    assert all(torch.equal(one[name], other[name]) for name in ("dino", "koleo"))
    heads = [sum(name.startswith("ibot_head") for name, _ in small_run(tied_heads=tied).student.named_parameters())
             for tied in (True, False)]  # fmt: skip
    assert heads[0] == 0 < heads[1]  # each parameter is in the optimizer once


def test_weight_of_the_image_loss():
    losses = step(small_run(dino_weight=0.5, koleo_weight=0.0))
    torch.testing.assert_close(losses["loss"], 0.5 * losses["dino"] + 0.5 * losses["ibot"])


def test_without_ema_the_teacher_is_the_student_of_the_last_step():
    run = small_run(**ARMS["no-ema"])
    step(run)
    assert all(torch.equal(s, t) for s, t in zip(run.student.parameters(), run.ema.parameters(), strict=True))


# ---------------------------------------------------------------------------- the table


def test_table_by_hand():
    """Two seeds: k-NN 50 and 60 %, mean 55; one arm has no linear probe; the order is that of the arms."""
    rows = [{"arm": "whole", "seed": 0, "knn_20": 0.5, "tflop": 2.0}, {"arm": "dino", "seed": 0, "knn_20": 0.25,
            "linear": 0.5, "tflop": 0.5}, {"arm": "whole", "seed": 1, "knn_20": 0.6, "tflop": 2.0}]  # fmt: skip
    assert ablation_table(rows, ARMS).splitlines() == [
        "| arm | seeds | k-NN, % | linear, % | TFLOP |",
        "| --- | --- | --- | --- | --- |",
        "| dino | 1 | 25.0 | 50.0 | 0.50 |",
        "| whole | 2 | 55.0 (50.0 to 60.0) |  | 2.0 (2.0 to 2.0) |",
    ]


def test_without_labels_and_parts_there_is_still_a_picture(tmp_path):
    rows = [{"arm": "dino", "seed": 0, "tflop": 2.0}]
    draw_ablation(rows, ARMS, tmp_path / "ablation.png")
    assert Image.open(tmp_path / "ablation.png").size[0] > 100
    assert ablation_table(rows, ARMS).splitlines()[-1] == "| dino | 1 | 2.0 |"


# ---------------------------------------------------------------------------- the program

SMALL = ("--recipe cifar10 --batch 4 --steps 2 --n_prototypes 16 --head_hidden 16 --dino_bottleneck 8 --log_every 1 "
         "--ibot_bottleneck 8 --global_size 8 --local_size 4 --hires_size 8 --hires_image_size 16 --image_size 16 "
         "--device cpu --threads 1 --optimizer adamw").split()  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve flat pictures, light and dark."""
    path = tmp_path_factory.mktemp("pictures")
    for i in range(12):
        (path / "ab"[i % 2]).mkdir(exist_ok=True)
        Image.new("RGB", (16, 16), (200 * (i % 2) + i,) * 3).save(path / "ab"[i % 2] / f"{i}.png")
    return path


@pytest.fixture
def arguments(folder, tmp_path, monkeypatch):
    """Flags of a small ablation; the probe takes two steps."""
    monkeypatch.setattr("linear_probe.STEPS", 2)
    return [*SMALL, "--data", str(folder), "--out", str(tmp_path / "out")]


def rows(out):
    return [json.loads(line) for line in (out / "ablation.jsonl").read_text().splitlines()]


def in_this_process(flags, out, bar, batch):
    """Stands in for train_arm: what a process of its own would do, and what it would say of a failure."""
    out.mkdir(exist_ok=True)
    status = train.main([*flags, "--out", str(out), "--eval_every", "0", "--resume"])
    return f"status {status}" if status else None


def test_an_arm_in_a_process_of_its_own(arguments, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["--arms", "whole", "--seeds", "1", *arguments]) == 0
    [row] = rows(out)
    assert row["arm"] == "whole" and {"knn_20", "knn_10"} & set(row) and row["tflop"] > 0 and 0 <= row["linear"] <= 1
    assert {"ablation.md", "ablation.png", "whole_0"} <= {path.name for path in out.iterdir()}
    assert "| whole | 1 |" in capsys.readouterr().out


def test_all_arms_are_measured_at_the_size_in_which_the_recipe_ends(arguments, monkeypatch):
    """Crops of 8² at first, 16² at the end."""
    sizes = []
    monkeypatch.setattr(ablate, "load_vit", lambda *_: None)
    monkeypatch.setattr(ablate, "measure_knn", lambda network, train, test, size: sizes.append(size) or {})
    monkeypatch.setattr(ablate, "draw_split", lambda network, images, size, picture: sizes.append(size) or {})
    recipe = get_recipe("shapes", data=arguments[arguments.index("--data") + 1], image_size=16, hires_image_size=16,
                        patch_size=4, global_size=8, local_size=4, hires_size=16)  # fmt: skip
    assert ablate.measure("vit.pt", recipe, "cpu", "pca.png") == {}
    assert sizes == [16, 16]


def test_a_failed_arm_is_one_line_and_the_rest_goes_on(arguments, tmp_path, monkeypatch, capsys):
    """Two seeds of two arms, one of which fails; when it no longer does, the same command trains what is missing."""
    trained, broken = [], ["dino"]

    def sometimes(flags, out, bar, batch):
        if out.name.split("_")[0] in broken:
            return "something is wrong"
        trained.append(out.name)
        return in_this_process(flags, out, bar, batch)

    monkeypatch.setattr(ablate, "train_arm", sometimes)
    command = ["--arms", "dino", "no-ema", "dino", "--seeds", "2", *arguments]
    assert main(command) == 1
    assert trained == ["no-ema_0", "no-ema_1"]
    last = capsys.readouterr().out.splitlines()[-1]
    assert "2 failed (dino, seed 0: something is wrong; dino, seed 1: something is wrong)" in last
    broken.clear()
    assert main(command) == 0
    assert trained == ["no-ema_0", "no-ema_1", "dino_0", "dino_1"]
    assert [(row["arm"], row["seed"]) for row in rows(tmp_path / "out")] == [("no-ema", 0), ("no-ema", 1), ("dino", 0),
                                                                            ("dino", 1)]  # fmt: skip


@pytest.mark.parametrize("lines", ["{", "[]", "5", '{"arm": "dino"}', '{"flags": []}'])
def test_a_file_of_another_kind_is_one_line(arguments, tmp_path, capsys, lines):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/ablation.jsonl").write_text(lines + "\n")
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "holds what ablate.py does not write" in error and error.count("\n") == 1


def test_wrong_flags_are_one_line(arguments, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/flags.json").write_text('["--steps", "9"]')
    for flags, words in ((["--seed", "3"], "--seed is what the runs differ in"),
                         (["--centering", "softmax"], "--centering is what the runs differ in"),
                         (["--resume"], "the same command goes on"), ([], "have other flags: --steps 9;"),
                         (["--data", "nowhere"], "nowhere: no such file or folder"),
                         (["--arm", "dino"], "did you mean --arms"),
                         (["--data", ""], "has no pictures"), (["--teacher", "?"], "has no teacher")):  # fmt: skip
        assert main([*arguments, *flags]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
