"""The loop: a step, resuming, stopping, collapse, distillation, what a run leaves.  `pytest tests/test_train.py`"""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import TINY, in_ranks, shards_on_cpus
from PIL import Image
from torch import nn

import train
from recipes import get_recipe
from support.checkpoint import read_checkpoint, restore, save_checkpoint
from support.files import UserError
from support.images import load_splits
from support.start import check_start, make_crop, start_run
from support.weights import load_vit
from train import main

CLOCK = ("seconds", "images_per_s", "peak_memory")  # of a row of metrics.jsonl: what may differ between equal runs
CPU = torch.device("cpu")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("whole", "no_pictures")]  # one run, the whole one, draws


def flags(folder, out, **changes):
    """The smallest run there is: 8 steps of 6 images, the last 2 at high resolution."""
    options = {
        "data": folder, "out": out, "device": "cpu", "image_size": 16, **TINY, "blur_sigma": (0.1, 0.5), "batch": 6,
        "steps": 8, "hires_share": 0.25, "hires_size": 16, "hires_image_size": 16, "log_every": 1, "save_every": 3,
        "drop_path": 0.2, "ibot_weight": 0.5, "centering": "softmax", **changes,
    }  # fmt: skip
    words = []
    for name, value in options.items():
        words += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    return words


def rows(out):
    """metrics.jsonl without the clock."""
    lines = (Path(out) / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in CLOCK} for line in lines]


def saved(out):
    """The checkpoint in a folder."""
    return torch.load(out / "checkpoint.pt", weights_only=True)


def small_run(out=None, **changes):
    """A Run that never saw data."""
    small = TINY | {"hires_size": 8, "batch": 4, "steps": 10} | changes
    return replace(start_run(get_recipe("shapes", **small), CPU), out=out)


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("whole")
    assert main(flags(folder, out)) == 0
    return out


def test_a_run_leaves_what_it_should(whole, capsys):
    """Its files; vit.pt is the teacher; --resume of a finished run repeats its result and changes no row."""
    names = {path.name for path in whole.iterdir()}
    assert names == {"checkpoint.pt", "vit.pt", "metrics.jsonl", "curves.png", "pca.png", "explore.html", ".lock"}
    assert all(min(Image.open(whole / picture).size) > 100 for picture in ("curves.png", "pca.png"))
    before = rows(whole)
    steps = [row for row in before if "loss" in row]
    assert [(row["step"], row["hires"]) for row in steps] == [(step, step > 6) for step in range(1, 9)]
    for row in steps:
        total = row["dino"] + 0.5 * row["ibot"] + 0.1 * row["koleo"]
        assert math.isclose(row["loss"], total, rel_tol=1e-5) and math.isfinite(total)
    vit, teacher = load_vit(whole / "vit.pt"), saved(whole)["teacher"]
    assert all(torch.equal(value, teacher[f"backbone.{key}"]) for key, value in vit.state_dict().items())
    assert main(["--out", str(whole), "--resume", "--device", "cpu"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert "k-NN" in last and last.endswith(f" s, {whole}")
    assert rows(whole) == before and 0 <= before[-1]["knn_20"] <= 1


def test_a_set_that_is_streamed_is_measured_on_a_sample(folder, tmp_path, monkeypatch, capsys):
    """Its broken files are named as they are met, and counted at the end; 8 of 37 training images vote, by k = 8."""
    shutil.copytree(folder, tmp_path / "set")
    (tmp_path / "set/dark/3.png").write_text("broken")
    monkeypatch.setattr("support.images.MEMORY_LIMIT", 40 * 3 * 8 * 8)  # of the sample, 8² in the first phase
    words = {"image_size": 32, "hires_share": 0, "steps": 14, "eval_every": 7, "eval_images": 8, "workers": 1}
    assert main(flags(tmp_path / "set", tmp_path / "run", **words)) == 0
    out, err = capsys.readouterr()
    assert "2 classes, 0 broken files skipped, streamed" in out
    assert err.count("skipped dark/3.png: ") == 1 and "step 7: k-NN" in err.replace("\r", "\n")
    last = out.splitlines()[-1]
    assert "(k = 8) on a sample of 8 images, 1 broken files skipped, " in last and "no labels" not in last
    assert [row["step"] for row in rows(tmp_path / "run") if "knn_8" in row] == [0, 7, 14]


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
    ours, theirs = saved(tmp_path), saved(whole)
    for part in ("student", "teacher", "centering"):
        assert all(torch.equal(value, theirs[part][key]) for key, value in ours[part].items())
    assert ours["centering"]["dino.centre"].abs().max() > 0


def test_ctrl_c_saves_and_stops(folder, whole, tmp_path, monkeypatch, capsys):
    step = train.train_step

    def interrupted(run, *rest):
        if run.step == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return step(run, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(train, "train_step", interrupted)
        assert main(flags(folder, tmp_path)) == 130
    assert saved(tmp_path)["step"] == 5
    assert "--resume" in capsys.readouterr().out
    assert main([*flags(folder, tmp_path), "--resume"]) == 0
    assert rows(tmp_path) == rows(whole)
    seconds = [json.loads(line)["seconds"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert seconds == sorted(seconds)  # the last row's are of both sessions


def test_a_signal_to_another_rank_saves_and_stops_too(folder, tmp_path, monkeypatch):
    """This rank got no signal; it saves with the others."""
    answers = iter([False, False, True])
    monkeypatch.setattr(train.distributed, "gather", lambda flag: [next(answers)])
    assert main(flags(folder, tmp_path, save_every=100)) == 130
    assert saved(tmp_path)["step"] == 3
    assert not (tmp_path / "vit.pt").exists()


def test_killed_in_an_evaluation_its_row_comes_back(folder, tmp_path, monkeypatch):
    """Killed in the k-NN of step 4, the run goes on from step 2 and has all rows in the end."""
    words = {"steps": 6, "eval_every": 2, "save_every": 2, "hires_share": 0}
    assert main(flags(folder, tmp_path / "whole", **words)) == 0
    answers = iter([train.measure_knn, train.measure_knn, None])
    with monkeypatch.context() as patch, pytest.raises(TypeError):  # None cannot be called
        patch.setattr(train, "measure_knn", lambda *images, **options: next(answers)(*images, **options))
        main(flags(folder, tmp_path / "run", **words))
    assert main([*flags(folder, tmp_path / "run", **words), "--resume"]) == 0
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    assert [row["step"] for row in rows(tmp_path / "run") if any("knn" in name for name in row)] == [0, 2, 4, 6]


def test_nan_stops_with_the_last_good_checkpoint(folder, tmp_path, monkeypatch):
    loss, factors = train.koleo_loss, iter([1] * 8 + [math.nan] * 8)  # two calls a step: from the fifth step on
    monkeypatch.setattr(train, "koleo_loss", lambda x: loss(x) * next(factors))
    with pytest.raises(SystemExit, match="not finite"):  # a text as the exit's code is printed, with status 1
        main(flags(folder, tmp_path, log_every=100))  # not seen by the log before the checkpoint of step 6
    good = saved(tmp_path)
    assert good["step"] == 3 and all(value.isfinite().all() for value in good["teacher"].values())


def random_step(run, step=1, images=None, **values):
    """One step on noise; the losses, targets and [CLS] tokens."""
    images = torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8) if images is None else images
    crop = make_crop(run.recipe, run.recipe.global_size)
    return train.train_step(run, images, crop, train.schedules_at(step, run.recipe) | values)


def watch(backbone, seen):
    """Append the arguments and results of the backbone's training_features to a list."""
    forward = backbone.training_features
    backbone.training_features = lambda *x: seen.append((x, forward(*x))) or seen[-1][1]


def test_a_step_updates_student_and_teacher():
    """Without local views: AdamW changes the student; the teacher becomes m · teacher + (1 − m) · student."""
    run = small_run(freeze_prototypes=0.5, n_local=0, drop_path=0.5)
    before = {k: v.clone() for k, v in run.ema.state_dict().items()}
    random_step(run, momentum=0.75)
    assert run.step == 1
    for key, student in run.student.state_dict().items():
        torch.testing.assert_close(run.ema.state_dict()[key], 0.75 * before[key] + 0.25 * student)
        frozen = key.endswith("prototypes")  # at the start
        assert torch.equal(student, before[key]) == frozen, key


def test_masks_and_crops_have_different_seeds(monkeypatch):
    seeds, manual_seed = [], torch.manual_seed
    monkeypatch.setattr(torch, "manual_seed", lambda seed: seeds.append(seed) or manual_seed(seed))
    run = small_run()
    images, crop = torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8), make_crop(run.recipe, 8)
    for _ in range(2):
        train.train_step(run, images, lambda images, seed: seeds.append(seed) or crop(images, seed),
                         train.schedules_at(1, run.recipe))  # fmt: skip
    assert len(set(seeds)) == len(seeds) == 5  # of the weights, and of two steps


def test_only_the_student_sees_masks_and_koleo_sees_each_global_view(monkeypatch):
    """The teacher sees whole global views; the student's are masked where both are compared.  KoLeo takes the
    student's [CLS] tokens of the first global view, then of the second, and of no local view."""
    run, teacher, student, given = small_run(drop_path=0.0), [], [], []
    watch(run.teacher.backbone, teacher)
    watch(run.student.backbone, student)
    koleo_loss = train.koleo_loss
    monkeypatch.setattr(train, "koleo_loss", lambda x: given.append(x) or koleo_loss(x))
    losses, *_ = random_step(run)
    [(([globals_, locals_], masks, at), (cls, _))], [(([whole], unmasked, places), _)] = student, teacher
    assert locals_.shape == (8, 3, 4, 4) and masks[1] is None
    assert masks[0] is not None and masks[0].shape == (8, 4) and masks[0].any(), "the student's global views need masks"
    assert torch.equal(at, masks[0].flatten().nonzero()[:, 0])
    assert unmasked == [None] and torch.equal(whole, globals_) and torch.equal(places, at)
    first, second = cls[:8].chunk(2)
    shapes = [tuple(x.shape) for x in given]
    assert shapes == [first.shape, second.shape], "koleo_loss gets the [CLS] tokens of one global view at a time"
    assert torch.equal(given[0], first) and torch.equal(given[1], second)
    torch.testing.assert_close(losses["koleo"], (koleo_loss(first) + koleo_loss(second)).detach())


@pytest.mark.parametrize("changes", [{"drop_path": 0.3}, {"checkpointing": True, "micro_batch": 3}])
def test_compiled_blocks_take_the_same_steps(changes, monkeypatch):
    """Heads alone, low and high resolution, by the backend "eager", which keeps the arithmetic.

    fullgraph=True raises at a graph break.  Blocks share their graphs, so two networks need at most two for each phase
    and size of batch.  Nothing is compiled after the first step of a phase, and not for evaluations.
    """
    made, losses = [], []  # graphs
    eager = partial(torch.compile, backend=lambda graph, _: made.append(graph) or graph.forward)
    monkeypatch.setattr(torch, "compile", eager)
    torch._dynamo.reset()
    for compiled in (False, True):
        changes |= {"init": "?", "head_warmup": 0.3, "hires_share": 0.3, "hires_size": 16}
        run, graphs, found = small_run(compile=compiled, amp="none", **changes), [], []
        torch.manual_seed(0)
        for step in range(10):
            values = train.schedules_at(step, run.recipe)
            crop = make_crop(run.recipe, values["global_size"])
            images = torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8)
            found.append(train.train_step(run, images, crop, values)[0]["loss"].item())
            graphs.append(len(made))
        losses.append(found)
    assert losses[0] == losses[1]
    first, steps = [graphs[0], graphs[3], graphs[7]], [3, 4, 3]
    assert graphs == [n for n, times in zip(first, steps) for _ in range(times)]
    assert first == [2, 3, 5] if "drop_path" in changes else first == [4, 6, 10]
    monkeypatch.setattr(train, "in_memory", lambda *_: None)
    monkeypatch.setattr(train, "measure_knn", lambda vit, *_: {"seen": vit(torch.zeros(7, 3, 16, 16)).shape[0]})
    assert train.evaluate_run(replace(run, step=0), run.ema.backbone, [None] * 2) == {"seen": 7}
    assert len(made) == graphs[-1]


def test_fp16_learns_as_float32_does_and_a_step_that_overflows_is_skipped(tmp_path):
    """Twenty steps on the same noise.  Then one gradient is infinite: no weight changes, and the scale halves.

    A resumed run has this scale.
    """
    losses = {}
    for amp in ("none", "fp16"):
        run = small_run(amp=amp, steps=30)
        run.scaler = torch.amp.GradScaler("cpu", init_scale=256, enabled=amp == "fp16")
        torch.manual_seed(0)
        images = torch.randint(256, (20, 4, 3, 16, 16), dtype=torch.uint8)
        losses[amp] = [random_step(run, images=batch, lr=1e-3)[0]["loss"].item() for batch in images]
    assert losses["fp16"] == pytest.approx(losses["none"], rel=0.02) and losses["fp16"] != losses["none"]
    assert losses["none"][-1] < 0.9 * losses["none"][0]
    weight = run.student.backbone.blocks[0].attn.qkv.weight
    before, hook = weight.detach().clone(), weight.register_hook(lambda gradient: gradient * torch.inf)
    assert not random_step(run)[0]["grad_norm"].isfinite()
    assert torch.equal(weight, before) and run.scaler.get_scale() == 128
    hook.remove()
    assert random_step(run)[0]["grad_norm"] < 1000 and not torch.equal(weight, before)  # 128 times smaller than scaled
    run.out = tmp_path
    save_checkpoint(run)
    again = small_run(tmp_path, amp="fp16", steps=30)
    restore(again, read_checkpoint(tmp_path / "checkpoint.pt"))
    assert again.scaler.state_dict() == run.scaler.state_dict() and again.scaler.get_scale() == 128


def test_distillation(folder, whole, tmp_path):
    """§5: the teacher stays as it is, the student sees no mask and drops no path; its EMA is the result."""
    teacher, before, seen = str(whole / "checkpoint.pt"), saved(whole)["teacher"], []
    run = start_run(train.parse_args(flags(folder, tmp_path, teacher=teacher))[1], CPU)
    assert run.teacher is not run.ema and run.student.backbone.drop_path == 0
    watch(run.student.backbone, seen)
    random_step(run)
    assert seen[0][0][1] == [None, None]
    assert all(torch.equal(run.teacher.state_dict()[key], before[key]) for key in before)


@pytest.mark.parametrize("size, shares", [(2, [0.5, 0.5]), (3, [0.75, 0.25])])
def test_a_step_in_pieces(size, shares, monkeypatch):
    """Four images in pieces of 2, and of 3 and 1: gradients and losses are the means of the pieces', by their size."""
    run, seen = small_run(drop_path=0.0, micro_batch=size, amp="none"), []
    weight, compute_losses = run.student.backbone.patch_embed.proj.weight, train.compute_losses

    def watched(run, views, values):
        losses, *rest = compute_losses(run, views, values)
        gradient = torch.autograd.grad(losses["loss"], weight, retain_graph=True)[0]
        seen.append((len(views[0]) / 8, losses, gradient))
        return losses, *rest

    monkeypatch.setattr(train, "compute_losses", watched)
    monkeypatch.setattr(train, "update_student", lambda *_: weight.grad)
    losses, *_ = random_step(run)
    assert [share for share, *_ in seen] == shares
    torch.testing.assert_close(losses["grad_norm"], sum(share * gradient for share, _, gradient in seen))
    assert not torch.equal(seen[0][2], seen[1][2])  # other crops, other masks
    for name in ("dino", "ibot", "koleo", "loss"):
        torch.testing.assert_close(losses[name], sum(share * part[name].detach() for share, part, _ in seen))


def test_teacher_is_a_moving_average():
    """m = 0.75, teacher 1, student 3: 0.75 · 1 + 0.25 · 3 = 1.5."""
    teacher, student = nn.Linear(2, 2), nn.Linear(2, 2)
    for network, value in ((teacher, 1.0), (student, 3.0)):
        for p in network.parameters():
            nn.init.constant_(p, value)
    train.update_teacher(student, teacher, 0.75)
    assert {x for p in teacher.parameters() for x in p.flatten().tolist()} == {1.5}


@pytest.mark.parametrize("tied, parts", [(False, 3), (True, 2)])
def test_gradients_are_clipped_part_by_part(tied, parts):
    """Every gradient 1: each part's norm is √n, clipped to 0.5; the returned norm is over all, √(Σ n).  A head that
    both losses share is one part."""
    run, norms = small_run(clip=0.5, tied_heads=tied), []
    for p in run.student.parameters():
        p.grad = torch.ones_like(p)
    run.optimizer.register_step_pre_hook(lambda *_: norms.extend(
        torch.stack([p.grad.norm() for p in part.parameters()]).norm().item() for part in run.student.children()
    ))  # fmt: skip
    total = train.update_student(run, train.schedules_at(0, run.recipe))
    assert norms == pytest.approx([0.5] * parts, rel=1e-4)
    assert total.item() == pytest.approx(math.sqrt(sum(p.numel() for p in run.student.parameters())), rel=1e-4)


@pytest.mark.parametrize("words, says", [
    ("--recipe vitl16_short", "needs your images; give a folder or an archive with --data"),
    ("--recipe vits14_distilled --data shapes", "needs a teacher; give the checkpoint.pt of a run with --teacher"),
    ("--out /dev/null/x", "/dev/null/x: Not a directory"),
    ("--batch 1000000000", "GiB, and cpu has"),
])  # fmt: skip
def test_bad_input_is_one_line_and_status_2(words, says, tmp_path, capsys):
    assert main(["--out", str(tmp_path / "out"), *words.split()]) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1


def test_several_processes(folder, tmp_path, monkeypatch, capsys):
    """What they refuse: a batch that does not divide, and what goes wrong on CPUs with an older PyTorch."""
    monkeypatch.setattr(train.distributed, "world_size", lambda: 2)
    for version, words, says in (("2.13.0", ["--batch", "5"], "--batch 5 does not divide among 2 processes"),
                                 ("2.6.0", ["--compile"], "--compile on a CPU needs PyTorch 2.7"),
                                 ("2.8.0", [], "need PyTorch 2.9")):  # fmt: skip
        monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion(version))
        assert main([*flags(folder, tmp_path), *words]) == 2
        assert says in capsys.readouterr().err


def test_fp16_is_refused_where_its_loss_scaler_fails():
    with pytest.raises(UserError, match="--amp fp16 does not work on mps"):
        check_start(get_recipe("shapes", amp="fp16"), torch.device("mps"))


def test_another_process_holds_the_folder(folder, tmp_path, capsys):
    script = ("import time; from pathlib import Path; from support.files import lock_folder\n"
              f"with lock_folder(Path({str(tmp_path)!r})): print(flush=True); time.sleep(60)")  # fmt: skip
    other = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=Path(train.__file__).parent)
    assert other.stdout.readline()
    assert main(flags(folder, tmp_path)) == 2
    assert f"another process writes into {tmp_path}" in capsys.readouterr().err
    other.kill()
    other.wait()
    assert main(flags(folder, tmp_path, steps=1, hires_share=0)) == 0  # free as soon as that process has ended


def test_what_a_resumed_run_may_change(folder, tmp_path, monkeypatch, capsys):
    """Its folder of images may move, also behind a link; their names and the flags that decide its result may not."""
    monkeypatch.chdir(tmp_path)
    assert main(flags(shutil.copytree(folder, "set"), "run", steps=1, hires_share=0)) == 0
    whole, new = rows("run"), Path("set").rename("new")
    Path("link").symlink_to(new)
    for copy, name in (("renamed", "dark/x.png"), ("moved", "light/x.png")):
        Path(shutil.copytree(new, copy), "dark/3.png").rename(Path(copy, name))
    for words, says in (("--data new --workers 1 --eval_every 2 --amp none --local_size 4", ""), ("--data link", ""),
                        ("", f"{tmp_path}/set: the images of this run are gone; if they moved, add --data NEW"),
                        ("--steps 2", "has --steps 1, not 2; leave --steps out"), ("--recipe vitl14", "has --recipe"),
                        *((f"--data {data}", "not hold") for data in ("renamed", "moved", "shapes"))):  # fmt: skip
        load_splits.cache_clear()  # as in a new process
        status, err = main(f"--resume --device cpu --out run {words}".split()), capsys.readouterr().err
        assert status == (2 if says else 0) and says in err and rows("run") == whole, words
        assert ("--init run/checkpoint.pt --out NEW" in err) == (says != "" and words != "")
    assert main(["--out", "run"]) == 2 and "already holds a run" in capsys.readouterr().err


def in_a_rank(rank, words, folder):
    with open(folder / f"printed-{rank}", "w") as file, redirect_stdout(file):
        assert main(words) == 0


@shards_on_cpus
def test_two_ranks_end_as_one_run(folder, tmp_path):
    """Two processes of half the batch each, in pieces of two: both end, one writes and speaks."""
    words = flags(folder, tmp_path / "run", steps=2, hires_share=0, micro_batch=2)
    in_ranks(in_a_rank, 2, words, tmp_path)
    assert [row["step"] for row in rows(tmp_path / "run")] == [0, 1, 2, 2]
    assert len((tmp_path / "printed-0").read_text().splitlines()) == 3 and not (tmp_path / "printed-1").read_text()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_cuda(folder, tmp_path):
    assert main(flags(folder, tmp_path, device="cuda")) == 0
    assert all(math.isfinite(row["loss"]) for row in rows(tmp_path) if "loss" in row)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_cuda_step_never_waits():
    """No operation of a step asks the device for a value."""
    run = start_run(get_recipe("shapes", batch=8), torch.device("cuda"))
    crop = train.MultiCrop(run.recipe.global_size, run.recipe.local_size, 2, blur_sigma=(0.1, 0.5))
    images = torch.randint(256, (8, 3, 64, 64), dtype=torch.uint8, device="cuda")
    train.train_step(run, images, crop, train.schedules_at(0, run.recipe))  # warm up
    torch.cuda.set_sync_debug_mode("error")
    try:
        train.train_step(run, images, crop, train.schedules_at(1, run.recipe))
    finally:
        torch.cuda.set_sync_debug_mode("default")
