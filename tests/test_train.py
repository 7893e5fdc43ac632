"""The loop: a step, resuming, stopping, collapse, distillation, what a run leaves.  `pytest tests/test_train.py`"""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import in_ranks, needs_muon, shards_on_cpus
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import pca_viz
import train
from recipes import get_recipe
from support import log as record
from support.weights import load_vit
from train import main

CLOCK = ("seconds", "images_per_s", "peak_memory")  # of a row of metrics.jsonl: what may differ between equal runs
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Forty pictures of 16×16 noise, light ones and dark ones."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for kind, base in (("dark", 0), ("light", 128)):
        (root / kind).mkdir()
        for i in range(20):
            Image.fromarray(rng.integers(base, base + 128, (16, 16, 3), dtype=np.uint8)).save(root / kind / f"{i}.png")
    return root


def flags(folder, out, **changes):
    """The smallest run there is: 8 steps of 6 images, the last 2 at high resolution."""
    options = {
        "data": folder, "out": out, "device": "cpu", "image_size": 16, "global_size": 8, "local_size": 4, "n_local": 2,
        "patch_size": 4, "n_prototypes": 16, "head_hidden": 16, "dino_bottleneck": 8, "ibot_bottleneck": 8,
        "blur_sigma": (0.1, 0.5), "batch": 6, "steps": 8, "hires_share": 0.25, "hires_size": 16,
        "hires_image_size": 16, "log_every": 1, "save_every": 3, "drop_path": 0.2, "ibot_weight": 0.5, **changes,
    }  # fmt: skip
    words = []
    for name, value in options.items():
        words += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    return words


def rows(out):
    """metrics.jsonl without the clock."""
    lines = (Path(out) / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in CLOCK} for line in lines]


def small_run(**changes):
    """A Run that never saw data."""
    small = {"patch_size": 4, "n_prototypes": 16, "head_hidden": 16, "dino_bottleneck": 8, "ibot_bottleneck": 8}
    sizes = {"global_size": 8, "local_size": 4, "hires_size": 8, "n_local": 2, "batch": 4, "steps": 10}
    return train.start_run(get_recipe("shapes", **{**small, **sizes, **changes}), CPU)


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("whole")
    assert main(flags(folder, out)) == 0
    return out


@pytest.fixture(autouse=True)
def no_pictures(whole, monkeypatch):
    """One run draws them; in the others they would take half of the time."""
    for place in (train, record):
        monkeypatch.setattr(place, "draw_curves", lambda *_: None)
    monkeypatch.setattr(pca_viz, "draw_pca", lambda *_: None)


# ---------------------------------------------------------------------------- a run from end to end


def test_a_run_leaves_what_it_should(whole, capsys):
    names = {path.name for path in whole.iterdir()}
    assert names == {"checkpoint.pt", "vit.pt", "metrics.jsonl", "curves.png", "pca.png"}
    for picture in ("curves.png", "pca.png"):
        assert min(Image.open(whole / picture).size) > 100
    steps = [row for row in rows(whole) if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, 9))
    assert [row["hires"] for row in steps] == [False] * 6 + [True] * 2
    for row in steps:
        total = row["dino"] + 0.5 * row["ibot"] + 0.1 * row["koleo"]
        assert math.isclose(row["loss"], total, rel_tol=1e-5) and math.isfinite(total)
    assert 0 <= rows(whole)[-1]["knn_20"] <= 1


def test_vit_pt_is_the_teacher(whole):
    vit = load_vit(whole / "vit.pt")
    teacher = torch.load(whole / "checkpoint.pt", weights_only=True)["teacher"]
    assert all(torch.equal(value, teacher[f"backbone.{key}"]) for key, value in vit.state_dict().items())
    assert torch.equal(load_vit(whole / "checkpoint.pt").norm.weight, vit.norm.weight)


def test_last_line_and_finished_run(whole, capsys):
    """--resume of a finished run says its result once more and changes no row but the last."""
    before = rows(whole)
    arguments = ["--out", str(whole), "--resume", "--device", "cpu"]
    assert main(arguments) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert "k-NN" in last and last.endswith(f" s, {whole}")
    assert rows(whole) == before


def test_the_arithmetic_of_a_run(whole):
    """Eight steps of which the last two are at high resolution: the same FLOPs for each step of a phase."""
    run = small_run(hires_share=0.2, hires_size=16, hires_image_size=16, image_size=16)
    counts, known = [], {}
    for step in (0, 1, 9, 9):
        images = torch.zeros(4, 3, 16, 16, dtype=torch.uint8)
        arguments = run, images, train.make_crop(run.recipe, step), train.schedules_at(step, run.recipe)
        before = run.training_flops
        with FlopCounterMode(display=False) as counter:
            train.counted_step(*arguments, known)
        counts.append(counter.get_total_flops())
        assert run.training_flops - before == counts[-1]
    assert 0 < 2 * counts[0] < counts[2]  # 4 patches a view, then 16
    assert counts[0] == counts[1] and counts[2] == counts[3]
    so_far = [row["training_flops"] for row in rows(whole) if "loss" in row]
    low, high = so_far[0], so_far[-1] - so_far[-2]
    assert so_far == [low * step for step in range(1, 7)] + [6 * low + high, 6 * low + 2 * high]
    last = rows(whole)[-1]
    assert last["training_flops"] == so_far[-1] and last["evaluation_flops"] > 0


def test_the_arithmetic_of_several_processes(monkeypatch):
    """A (2, 3) matrix times a (3, 5) one is 2·2·3·5 = 60 FLOPs; three processes do as many each."""
    monkeypatch.setattr(train, "train_step", lambda *_: torch.ones(2, 3) @ torch.ones(3, 5))
    monkeypatch.setattr(train.distributed, "world_size", lambda: 3)
    run = SimpleNamespace(training_flops=1000)
    train.counted_step(run, None, None, {"hires": False, "frozen_backbone": False}, {})
    assert run.training_flops == 1180


def test_a_batch_that_does_not_divide_among_the_processes(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train.distributed, "world_size", lambda: 4)
    assert main(flags(folder, tmp_path / "run")) == 2
    assert "--batch 6 does not divide among 4 processes" in capsys.readouterr().err


@needs_muon
def test_muon_wants_one_process(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train.distributed, "world_size", lambda: 2)
    assert main(flags(folder, tmp_path / "run", optimizer="muon")) == 2
    assert "--optimizer muon takes matrices whole" in capsys.readouterr().err


def test_a_set_that_is_streamed_is_measured_on_a_sample(folder, tmp_path, monkeypatch, capsys):
    """Its broken files are named as they are met, and counted at the end; 8 of 37 training images vote, by k = 8."""
    shutil.copytree(folder, tmp_path / "set")
    (tmp_path / "set/dark/3.png").write_text("broken")
    monkeypatch.setattr("support.data.MEMORY_LIMIT", 40 * 3 * 8 * 8)  # of the sample, 8² in the first phase
    words = {"image_size": 32, "hires_share": 0, "steps": 14, "eval_every": 7, "eval_images": 8, "workers": 1}
    assert main(flags(tmp_path / "set", tmp_path / "run", **words)) == 0
    out, err = capsys.readouterr()
    assert "2 classes, 0 broken files skipped, read as they are needed" in out
    assert err.count("skipped dark/3.png: ") == 1 and "step 7: k-NN" in err.replace("\r", "\n")
    last = out.splitlines()[-1]
    assert "(k = 8) by a sample of 8 images, 1 broken files skipped, " in last and "no labels" not in last
    assert [row["step"] for row in rows(tmp_path / "run") if "knn_8" in row] == [7, 14]


def test_programs_start_where_memory_is_not_counted(tmp_path):
    """As on Windows, which has no module `resource`."""
    script = "import sys; sys.modules['resource'] = None; import bench, train, torch; from support import record; "
    script += "here = torch.device('cpu'); print(record.peak_memory(here), bench.most_memory(here))"
    place = Path(train.__file__).parent
    done = subprocess.run([sys.executable, "-c", script], cwd=place, capture_output=True, text=True)
    assert done.stdout == "None nan\n", done.stderr


# ---------------------------------------------------------------------------- stopping and going on


def test_resumed_equals_uninterrupted(folder, whole, tmp_path, monkeypatch):
    """A run that dies within a step, again and again, and is resumed, ends with the same rows and weights to the bit.

    Checkpoints are written after steps 3 and 6: it dies before the first, as soon as it is there, and later.
    """
    step = train.train_step

    def dies(run, *rest):
        if run.step == fails_at:
            raise ZeroDivisionError
        return step(run, *rest)

    for fails_at in (1, 2, 3, 5, 7):
        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
            patch.setattr(train, "train_step", dies)
            main([*flags(folder, tmp_path), *(["--resume"] if fails_at > 1 else [])])
        with open(tmp_path / "metrics.jsonl", "a") as file:
            file.write('{"step": 1, "lo')  # half a line, as a kill leaves it
    assert main([*flags(folder, tmp_path), "--resume"]) == 0
    assert rows(tmp_path) == rows(whole)
    ours, theirs = (torch.load(out / "checkpoint.pt", weights_only=True) for out in (tmp_path, whole))
    for part in ("student", "teacher"):
        assert all(torch.equal(value, theirs[part][key]) for key, value in ours[part].items())


def test_ctrl_c_saves_and_stops(folder, whole, tmp_path, monkeypatch, capsys):
    step = train.train_step

    def interrupted(run, *rest):
        if run.step == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return step(run, *rest)

    usual = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(train, "train_step", interrupted)
        assert main(flags(folder, tmp_path)) == 130
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 5
    assert "--resume" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is usual
    assert main([*flags(folder, tmp_path), "--resume"]) == 0
    assert rows(tmp_path) == rows(whole)
    seconds = [json.loads(line)["seconds"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert seconds == sorted(seconds)  # the last row's are of both sessions


def test_a_signal_to_another_rank_saves_and_stops_too(folder, tmp_path, monkeypatch):
    """This rank has heard nothing; it saves with the others, and says that the run was stopped."""
    answers = iter([False, False, True])
    monkeypatch.setattr(train.distributed, "any_rank", lambda flag: next(answers))
    assert main(flags(folder, tmp_path, save_every=100)) == 130
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 3
    assert not (tmp_path / "vit.pt").exists()


@pytest.mark.parametrize("recipe", ["vitl16_short", "vitl14", "vitg14", "vits14_distilled"])
def test_a_recipe_without_pictures_asks_for_them(recipe, tmp_path, capsys):
    """ImageNet and LVD-142M are no names that anything here knows."""
    assert main(["--recipe", recipe, "--out", str(tmp_path)]) == 2
    assert f"--recipe {recipe} has no pictures: --data says where yours are" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", ["vits14_distilled", "vitb14_distilled", "vitl14_distilled"])
def test_a_recipe_without_a_teacher_asks_for_one(recipe, folder, tmp_path, capsys):
    assert main(["--recipe", recipe, "--data", str(folder), "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f"--recipe {recipe} has no teacher: --teacher says whom to distil" in error and error.count("\n") == 1
    assert not any(path.is_file() for path in tmp_path.iterdir())


@pytest.fixture(scope="module")
def evaluated(folder, tmp_path_factory):
    """An uninterrupted run of six steps with a k-NN every other one."""
    out = tmp_path_factory.mktemp("evaluated")
    with pytest.MonkeyPatch.context() as patch:
        for place in (train, record):
            patch.setattr(place, "draw_curves", lambda *_: None)
        patch.setattr(pca_viz, "draw_pca", lambda *_: None)
        assert main(flags(folder, out, steps=6, eval_every=2, save_every=2, hires_share=0)) == 0
    return out


def test_killed_in_an_evaluation_its_row_comes_back(folder, evaluated, tmp_path, monkeypatch):
    """The checkpoint of step 4 is there when its k-NN begins; killed in it, the run has all rows in the end."""
    words = {"steps": 6, "eval_every": 2, "save_every": 2, "hires_share": 0}
    measure_knn, seen = train.measure_knn, []

    def dies(*arguments, **options):
        seen.append(1)
        if len(seen) == 2:
            raise ZeroDivisionError
        return measure_knn(*arguments, **options)

    monkeypatch.setattr(train, "measure_knn", dies)
    with pytest.raises(ZeroDivisionError):
        main(flags(folder, tmp_path / "run", **words))
    assert main([*flags(folder, tmp_path / "run", **words), "--resume"]) == 0
    assert rows(tmp_path / "run") == rows(evaluated)
    assert [row["step"] for row in rows(evaluated) if "evaluation_flops" in row] == [2, 4, 6]


def test_ctrl_c_in_an_evaluation_saves(folder, evaluated, tmp_path, monkeypatch, capsys):
    """Step 2's k-NN is cut into; there is no checkpoint yet, and --resume finds one all the same."""
    measure_knn = train.measure_knn

    def interrupted(*arguments, **options):
        os.kill(os.getpid(), signal.SIGINT)
        return measure_knn(*arguments, **options)

    words = {"steps": 6, "eval_every": 2, "save_every": 100, "hires_share": 0}
    with monkeypatch.context() as patch:
        patch.setattr(train, "measure_knn", interrupted)
        assert main(flags(folder, tmp_path / "run", **words)) == 130
    assert "--resume goes on from" in capsys.readouterr().out
    assert main([*flags(folder, tmp_path / "run", **words), "--resume"]) == 0
    assert rows(tmp_path / "run") == rows(evaluated)


def test_a_folder_is_one_runs_alone(folder, tmp_path, capsys):
    """While another process trains in it; it is free as soon as that one has gone, however it went."""
    script = f"""if True:
        import sys, time, pathlib
        sys.path.insert(0, {str(Path(train.__file__).parent)!r})
        from support.flags import lock_folder
        with lock_folder(pathlib.Path({str(tmp_path)!r})):
            print("held", flush=True)
            time.sleep(60)
    """
    other = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"held\n"
    assert main(flags(folder, tmp_path)) == 2
    assert f"another process trains in {tmp_path}" in capsys.readouterr().err
    other.kill()
    other.wait()
    assert main(flags(folder, tmp_path, steps=1, hires_share=0)) == 0 and not (tmp_path / ".lock").exists()


def test_another_recipe_beside_resume_is_refused(whole, capsys):
    assert main(["--recipe", "vitl14", "--out", str(whole), "--resume"]) == 2
    assert "has --recipe shapes, not vitl14" in capsys.readouterr().err
    assert main(["--recipe", "shapes", "--out", str(whole), "--resume", "--device", "cpu"]) == 0


def test_a_checkpoint_of_an_older_version_goes_on_with_defaults(folder, tmp_path, capsys):
    assert main(flags(folder, tmp_path, steps=2, hires_share=0)) == 0
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    del saved["recipe"]["workers"], saved["recipe"]["name"]
    torch.save(saved, tmp_path / "checkpoint.pt")
    assert main(["--out", str(tmp_path), "--resume", "--device", "cpu"]) == 0
    assert "is of an older version, and has the defaults of name, workers" in capsys.readouterr().out


def test_a_folder_where_a_file_shall_be(folder, tmp_path, capsys):
    for name in train.FILES:
        (tmp_path / name / name).mkdir(parents=True)
        assert main(flags(folder, tmp_path / name)) == 2
        assert f"{tmp_path / name / name} is a folder, where a file shall be" in capsys.readouterr().err
    (tmp_path / "run/.checkpoint.pt.tmp").mkdir(parents=True)
    assert main(flags(folder, tmp_path / "run", steps=1, hires_share=0)) == 2
    assert "run/.checkpoint.pt.tmp: Is a directory" in capsys.readouterr().err.splitlines()[-1]


def test_a_folder_that_is_taken_away(folder, tmp_path, monkeypatch, capsys):
    """One line; there is nothing left to keep."""
    train_step = train.train_step
    monkeypatch.setattr(train, "train_step", lambda *a: (shutil.rmtree(tmp_path / "run", True), train_step(*a))[1])
    assert main(flags(folder, tmp_path / "run")) == 2
    assert "metrics.jsonl: No such file" in capsys.readouterr().err.splitlines()[-1]


def test_nan_stops_with_the_last_good_checkpoint(folder, tmp_path, monkeypatch, capsys):
    loss = train.koleo_loss
    calls = []

    def sick(x):
        calls.append(x)
        return loss(x) * (math.nan if len(calls) > 8 else 1)  # two calls a step: from the fifth step on

    monkeypatch.setattr(train, "koleo_loss", sick)
    with pytest.raises(SystemExit) as stop:
        main(flags(folder, tmp_path))
    assert stop.value.code == 1
    assert "NaN" in capsys.readouterr().err
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved["step"] == 3 and all(value.isfinite().all() for value in saved["teacher"].values())


# ---------------------------------------------------------------------------- the step


def test_step_moves_student_and_teacher_as_it_says():
    """One step: AdamW changes the student, and the teacher becomes m · teacher + (1 − m) · student."""
    run = small_run(momentum=0.75, freeze_prototypes=0.5)
    before = {k: v.clone() for k, v in run.ema.state_dict().items()}
    values = {**train.schedules_at(1, run.recipe), "momentum": 0.75}
    crop = train.MultiCrop(8, 4, 2, blur_sigma=(0.1, 0.5))
    images = torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8)
    train.train_step(run, images, crop, values)
    assert run.step == 1
    for key, student in run.student.state_dict().items():
        torch.testing.assert_close(run.ema.state_dict()[key], 0.75 * before[key] + 0.25 * student)
        frozen = key.endswith("prototypes")  # at the start
        assert torch.equal(student, before[key]) == frozen, key


def test_a_step_without_local_views():
    run = small_run(n_local=0, drop_path=0.5)
    images = torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8)
    losses, _, _ = train.train_step(run, images, train.MultiCrop(8, 4, 0, blur_sigma=(0.1, 0.5)),
                                    train.schedules_at(1, run.recipe))  # fmt: skip
    assert all(loss.isfinite() for loss in losses.values())


def test_a_step_in_pieces(monkeypatch):
    """Four images in pieces of 2, and of 3 and 1: gradients and losses are the means of the pieces', by their size."""
    images = torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8)
    for size in (2, 3):
        run, seen, found = small_run(drop_path=0.0, micro_batch=size, clip=1e9, amp=False), [], []
        compute_losses = train.compute_losses

        def watched(run, views, values, seen=seen, compute_losses=compute_losses):
            losses, *rest = compute_losses(run, views, values)
            gradient = torch.autograd.grad(losses["loss"], weight_of(run), retain_graph=True)
            seen.append((len(views[0]) / 8, losses, gradient))
            return losses, *rest

        def weight_of(run):
            return run.student.backbone.patch_embed.proj.weight

        monkeypatch.setattr(train, "compute_losses", watched)
        monkeypatch.setattr(train, "update_student", lambda run, values, found=found: found.append(weight_of(run).grad))
        losses, *_ = train.train_step(run, images, train.MultiCrop(8, 4, 2, blur_sigma=(0.1, 0.5)),
                                      train.schedules_at(1, run.recipe))  # fmt: skip
        monkeypatch.undo()
        assert [share for share, *_ in seen] == ([0.5, 0.5] if size == 2 else [0.75, 0.25])
        torch.testing.assert_close(found[0], sum(share * gradient for share, _, [gradient] in seen))
        assert not torch.equal(seen[0][2][0], seen[1][2][0])  # other crops, other masks
        for name in ("dino", "ibot", "koleo", "loss"):
            torch.testing.assert_close(losses[name], sum(share * part[name].detach() for share, part, _ in seen))


def test_masks_and_crops_have_seeds_of_their_own(monkeypatch):
    seeds, manual_seed = [], torch.manual_seed
    monkeypatch.setattr(torch, "manual_seed", lambda seed: seeds.append(seed) or manual_seed(seed))
    run, crop = small_run(), train.MultiCrop(8, 4, 2, blur_sigma=(0.1, 0.5))
    images = torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8)
    for _ in range(2):
        train.train_step(run, images, lambda images, seed: seeds.append(seed) or crop(images, seed),
                         train.schedules_at(1, run.recipe))  # fmt: skip
    assert len(set(seeds)) == len(seeds) == 5  # of the weights, and of two steps


def test_koleo_spreads_each_global_view_by_itself(monkeypatch):
    """It sees the student's [CLS] tokens of the first global view, then of the second, and not of local ones."""
    seen, given = [], []
    run = small_run(drop_path=0.0)
    koleo_loss, training_features = train.koleo_loss, run.student.backbone.training_features
    monkeypatch.setattr(train, "koleo_loss", lambda x: seen.append(x) or koleo_loss(x))
    run.student.backbone.training_features = lambda *x: given.append(training_features(*x)) or given[-1]
    images = torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8)
    crop = train.MultiCrop(8, 4, 2, blur_sigma=(0.1, 0.5))
    losses, *_ = train.train_step(run, images, crop, train.schedules_at(1, run.recipe))
    first, second = given[0][0][:8].chunk(2)
    assert [x.shape for x in seen] == [(4, 96)] * 2 and torch.equal(seen[0], first) and torch.equal(seen[1], second)
    torch.testing.assert_close(losses["koleo"], (koleo_loss(first) + koleo_loss(second)).detach())


def test_the_student_alone_sees_masks():
    """The teacher sees whole global views; the student's are masked where both are compared."""
    run, seen = small_run(), {}
    for name in ("teacher", "student"):
        backbone = getattr(run, name).backbone
        backbone.training_features = lambda *x, name=name, forward=backbone.training_features: (
            seen.update({name: x}), forward(*x))[1]  # fmt: skip
    images = torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8)
    train.train_step(run, images, train.MultiCrop(8, 4, 2, blur_sigma=(0.1, 0.5)), train.schedules_at(1, run.recipe))
    (globals_, locals_), masks, at = seen["student"]
    assert locals_.shape == (8, 3, 4, 4) and masks[0].shape == (8, 4) and masks[0].any() and masks[1] is None
    assert torch.equal(at, masks[0].flatten().nonzero()[:, 0])
    [theirs], unmasked, places = seen["teacher"]
    assert unmasked == [None] and torch.equal(theirs, globals_) and torch.equal(places, at)


def test_compile_is_asked_for_what_a_step_calls(monkeypatch):
    compiled, called = [], []

    def compile(f, fullgraph, dynamic):
        assert fullgraph and not dynamic
        compiled.append(f)
        return lambda *x: called.append(f) or f(*x)

    monkeypatch.setattr(torch, "compile", compile)
    run = small_run(compile=True)
    images = torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8)
    train.train_step(run, images, train.MultiCrop(8, 4, 2, blur_sigma=(0.1, 0.5)), train.schedules_at(1, run.recipe))
    assert called == compiled[::-1] and len(compiled) == 2  # the teacher first


def test_flops_of_a_compiled_run_are_those_of_a_plain_one(monkeypatch):
    """PyTorch's counter cannot look into compiled functions, and fullgraph=True raises where there is one."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    images, flops = torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8), []
    for compiled in (False, True):
        run = small_run(compile=compiled)
        crop, values = train.MultiCrop(8, 4, 2, blur_sigma=(0.1, 0.5)), train.schedules_at(1, run.recipe)
        counts = {}
        for _ in range(2):  # counted, and not
            losses, *_ = train.counted_step(run, images, crop, values, counts)
        assert losses["loss"].isfinite()
        flops.append(run.training_flops)
    assert flops[0] == flops[1] > 0


def test_the_norm_of_one_head_counts_once():
    """Tied heads: √(‖backbone‖² + ‖head‖²), before clipping."""
    run = small_run(tied_heads=True, clip=1e9)
    for p in run.student.parameters():
        p.grad = torch.ones_like(p)
    n = sum(p.numel() for p in run.student.parameters())  # each once
    assert train.update_student(run, train.schedules_at(1, run.recipe)).item() == pytest.approx(n**0.5, rel=1e-5)


def test_untied_heads():
    student = small_run().student
    assert student.dino_head.prototypes is not student.ibot_head.prototypes
    assert not torch.equal(student.dino_head.prototypes, student.ibot_head.prototypes)


@needs_muon
def test_muon_goes_on_from_a_checkpoint_to_the_bit(folder, tmp_path, monkeypatch):
    """Also out of the time in which the backbone is frozen, and has no momentum yet."""
    main(flags(folder, tmp_path / "init", steps=1))
    words = {"optimizer": "muon", "init": tmp_path / "init/vit.pt", "head_warmup": 0.4, "save_every": 1}
    main(flags(folder, tmp_path / "whole", **words))
    step, ends = train.train_step, [5, 2]

    def dies(run, *rest):
        if ends and run.step == ends[-1]:
            ends.pop()
            raise ZeroDivisionError
        return step(run, *rest)

    monkeypatch.setattr(train, "train_step", dies)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            main([*flags(folder, tmp_path / "run", **words), "--resume"])
    main([*flags(folder, tmp_path / "run", **words), "--resume"])
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


def test_gradients_are_clipped_part_by_part():
    """Every gradient 1: each part's norm is √n, clipped to 0.5; the returned norm is over all, √(Σ n)."""
    run = small_run(clip=0.5, lr=1e-9)
    for p in run.student.parameters():
        p.grad = torch.ones_like(p)
    norms = {}
    run.optimizers[0].register_step_pre_hook(
        lambda *_: norms.update({k: torch.stack([p.grad.norm() for p in m.parameters()]).norm().item()
                                 for k, m in run.student.items()})
    )  # fmt: skip
    total = train.update_student(run, train.schedules_at(0, run.recipe))
    assert norms == pytest.approx({"backbone": 0.5, "dino_head": 0.5, "ibot_head": 0.5}, rel=1e-4)
    assert total.item() == pytest.approx(math.sqrt(sum(p.numel() for p in run.student.parameters())), rel=1e-4)


def test_teacher_is_a_moving_average():
    """m = 0.75, teacher 1, student 3: 0.75 · 1 + 0.25 · 3 = 1.5."""
    teacher, student = nn.Linear(2, 2), nn.Linear(2, 2)
    for network, value in ((teacher, 1.0), (student, 3.0)):
        for p in network.parameters():
            nn.init.constant_(p, value)
    train.update_teacher(student, teacher, 0.75)
    assert all((p == 1.5).all() for p in teacher.parameters())


def test_softmax_centering_moves_its_centres(folder, tmp_path):
    assert main(flags(folder, tmp_path, centering="softmax", steps=2, hires_share=0)) == 0
    centres = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["centering"]
    assert centres.keys() == {"dino.centre", "ibot.centre"}
    assert all(centre.abs().max() > 0 for centre in centres.values())


def test_distillation(folder, whole, tmp_path, monkeypatch):
    """§5: the teacher stays as it is, the student sees no mask and drops no path, its EMA is kept."""
    seen = []
    build = train.build_network

    def watched(*arguments):
        network = build(*arguments)
        forward = network.backbone.training_features
        network.backbone.training_features = lambda x, masks, at: (seen.append(masks), forward(x, masks, at))[1]
        return network

    teacher = str(whole / "checkpoint.pt")
    before = torch.load(teacher, weights_only=True)["teacher"]
    with monkeypatch.context() as patch:
        patch.setattr(train, "build_network", watched)
        run = train.start_run(train.parse_args(flags(folder, tmp_path, teacher=teacher))[1], CPU)
    assert run.teacher is not run.ema and run.student.backbone.drop_path == 0
    assert main(flags(folder, tmp_path, teacher=teacher, steps=2, hires_share=0)) == 0
    after = torch.load(teacher, weights_only=True)["teacher"]
    assert all(torch.equal(before[key], after[key]) for key in before)
    images = torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8)
    train.train_step(run, images, train.MultiCrop(8, 4, 2, blur_sigma=(0.1, 0.5)), train.schedules_at(0, run.recipe))
    assert seen[-2:] == [[None], [None, None]]  # teacher, student
    assert all(torch.equal(run.teacher.state_dict()[key], before[key]) for key in before)


# ---------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "words, says",
    [
        (["--batch", "0"], "--batch must lie in 1 to 1e+09; got 0"),
        (["--data", "no/such/folder"], "no/such/folder"),
        (["--device", "cuda:99"], "cuda:99"),
        (["--teacher", "no/such/file"], "no/such/file"),
        (["--teacher", __file__], "not a weights file"),
    ],
)
def test_bad_input_is_one_line_and_status_2(words, says, tmp_path, capsys):
    assert main(["--out", str(tmp_path / "out"), *words]) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1


def test_a_run_is_not_overwritten_and_not_mixed_up(whole, folder, capsys):
    before = (whole / "checkpoint.pt").read_bytes()
    assert main(flags(folder, whole)) == 2
    assert main([*flags(folder, whole, batch=4), "--resume"]) == 2
    assert "--batch 6" in capsys.readouterr().err
    assert (whole / "checkpoint.pt").read_bytes() == before


def test_unwritable_folder(capsys):
    assert main(["--out", "/dev/null/x"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_broken_images_are_named(folder, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(folder, data)
    (data / "dark" / "broken.jpg").write_bytes(b"no picture")
    assert main(flags(data, tmp_path / "out", steps=1, hires_share=0)) == 0
    assert "broken.jpg" in capsys.readouterr().err


def test_broken_images_without_classes_are_named_once(folder, tmp_path, capsys):
    """Without classes the test images are some of the training images, and so are the broken ones among them."""
    data = tmp_path / "data"
    shutil.copytree(folder / "dark", data)
    for i in range(20):
        (data / f"broken{i}.jpg").write_bytes(b"no picture")
    assert main(flags(data, tmp_path / "out", steps=1, hires_share=0)) == 0
    printed = capsys.readouterr()
    assert all(printed.err.count(f"broken{i}.jpg") == 1 for i in range(20))
    assert "20 broken files skipped" in printed.out


def test_help_explains_each_field(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "LayerScale at the start" in capsys.readouterr().out


def test_sizes_of_the_phases():
    """Of ten steps the last two are at high resolution; when all are done, the last phase counts, or the only one."""
    r = get_recipe("shapes", steps=10, hires_share=0.2, hires_image_size=96)
    assert [train.sizes_at(step, r) for step in (0, 7, 8, 10)] == [(64, 32), (64, 32), (96, 64), (96, 64)]
    assert train.sizes_at(10, get_recipe("shapes", steps=10, hires_share=0.0, hires_image_size=96)) == (64, 32)
    assert [train.make_crop(r, step).kinds[0][0] for step in (7, 8)] == [32, 64]


# ---------------------------------------------------------------------------- other devices and ranks


def in_a_rank(rank, words, folder):
    with open(folder / f"printed-{rank}", "w") as file, redirect_stdout(file):
        assert main(words) == 0


@shards_on_cpus
def test_two_ranks_end_as_one_run(folder, tmp_path):
    """Two processes of half the batch each, in pieces of two: both end, one writes and speaks."""
    words = flags(folder, tmp_path / "run", steps=2, hires_share=0, micro_batch=2)
    in_ranks(in_a_rank, 2, words, tmp_path)
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 2, 2]
    assert len((tmp_path / "printed-0").read_text().splitlines()) == 3 and not (tmp_path / "printed-1").read_text()


def test_several_ranks_do_not_compile_nor_run_on_the_cpus_of_an_older_pytorch(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train.distributed, "world_size", lambda: 2)
    assert main([*flags(folder, tmp_path), "--compile"]) == 2
    assert "one of the two" in capsys.readouterr().err
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.8.0"))
    assert main(flags(folder, tmp_path)) == 2
    assert "need PyTorch 2.9" in capsys.readouterr().err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_cuda(folder, tmp_path):
    assert main(flags(folder, tmp_path, device="cuda")) == 0
    assert all(math.isfinite(row["loss"]) for row in rows(tmp_path) if "loss" in row)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_cuda_step_never_waits():
    """No operation of a step asks the device for a value."""
    run = train.start_run(get_recipe("shapes", batch=8), torch.device("cuda"))
    crop = train.MultiCrop(run.recipe.global_size, run.recipe.local_size, 2, blur_sigma=(0.1, 0.5))
    images = torch.randint(256, (8, 3, 64, 64), dtype=torch.uint8, device="cuda")
    train.train_step(run, images, crop, train.schedules_at(0, run.recipe))  # warm up
    torch.cuda.set_sync_debug_mode("error")
    try:
        train.train_step(run, images, crop, train.schedules_at(1, run.recipe))
    finally:
        torch.cuda.set_sync_debug_mode("default")
