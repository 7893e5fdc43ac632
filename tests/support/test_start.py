"""Starting from other weights: what is taken of a file, the heads' warm-up.  `pytest tests/support/test_start.py`"""

import shutil
from dataclasses import replace

import pytest
import torch
from conftest import TINY
from test_train import CPU, flags, rows, saved, small_run

import train
from recipes import get_recipe
from support.cli import parse_args
from support.files import UserError
from support.start import check_start, init_from, start_run
from support.weights import save_vit
from train import main
from vit import ViT, vit_pico

pytestmark = pytest.mark.usefixtures("no_pictures")
SIZES = TINY | {"global_size": 16, "local_size": 8, "hires_share": 0.0}


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """Weights of a vit_pico without heads, larger than those of a start, with two registers."""
    torch.manual_seed(3)
    network = vit_pico(patch_size=4, img_size=24, n_registers=2, layer_scale=0.5)
    path = tmp_path_factory.mktemp("released") / "vit.pth"
    save_vit(network, path)
    return path


def test_the_architecture_is_the_files(released):
    """Recipe: vit_nano without registers, patches of 8; positions of 6×6 patches become those of 4×4."""
    r = get_recipe("shapes", **SIZES | {"arch": "vit_nano", "patch_size": 8, "init": str(released)})
    found, state, words = init_from(r, {})
    assert (found.arch, found.patch_size, found.n_registers, found.ffn) == ("vit_pico", 4, 2, "mlp")
    assert words == f"weights of {released} with new heads, alone for the first 246 steps"  # of 2460
    run = start_run(found, CPU, state)
    for network in (run.student, run.teacher):
        own = network.backbone.state_dict()
        assert own["pos_embed"].shape == (1, 17, 96)
        file = torch.load(released, weights_only=True)
        assert all(torch.equal(own[name], x) for name, x in file.items() if name != "pos_embed")
    resized = ViT(96, 4, 2, 4, 24, 2)
    resized.load_state_dict(file)
    assert torch.equal(run.ema.backbone.pos_embed, resized.positions(4, 4))
    assert torch.equal(run.student.dino_head.prototypes, run.ema.dino_head.prototypes)


def test_stem_and_patches_are_the_files(tmp_path):
    """Whatever the recipe says.  Its sizes are checked against the file's patches: 28 and 14 are no multiples of 8."""
    for stem, patch_size, flag in ((True, 4, "--no-stem"), (False, 14, "--stem")):
        network = vit_pico(patch_size=patch_size, img_size=28, stem=stem, layer_scale=0.5)
        save_vit(network, tmp_path / "vit.pth")
        words = "--global_size 28 --local_size 28 --hires_share 0 --init".split()
        r = parse_args([flag, *words, str(tmp_path / "vit.pth")])[1]
        found, state, _ = init_from(r, {})
        assert (found.stem, found.patch_size) == (stem, patch_size) != (r.stem, r.patch_size)
        image = torch.ones(1, 3, 28, 28)
        assert torch.equal(start_run(found, CPU, state).student.backbone(image), network(image))


@pytest.mark.parametrize("changes, words", [
    ({"arch": "vit_tiny"}, "--arch vit_tiny, but .* has vit_pico"), ({"n_registers": 0}, "--n_registers 0, .* has 2"),
    ({"ffn": "swiglu"}, "--ffn swiglu, .* has mlp"), ({"local_size": 6}, "--local_size must be a multiple"),
    ({"head_warmup": 0.9, "hires_share": 0.2, "hires_size": 16}, "0.9 and --hires_share 0.2 add up to over 1"),
])  # fmt: skip
def test_a_flag_that_contradicts_the_file(released, changes, words):
    with pytest.raises(UserError, match=words):
        check_start(init_from(get_recipe("shapes", **SIZES | changes | {"init": str(released)}), changes)[0], CPU)


def test_a_network_that_has_no_name(tmp_path):
    save_vit(ViT(64, 2, 1, 4, 8), tmp_path / "vit.pt")
    with pytest.raises(UserError, match="64 wide and 2 deep with 1 heads; no --arch has this size"):
        init_from(get_recipe("shapes", **SIZES, init=str(tmp_path / "vit.pt")), {})


def test_heads_that_fit_are_taken_and_need_no_warm_up(tmp_path):
    """--tied_heads takes the heads of a tied run, and none of two that differ."""
    run = small_run(tmp_path, **SIZES)
    train.save_checkpoint(run)
    r = get_recipe("shapes", **SIZES, init=str(tmp_path / "checkpoint.pt"))
    found, state, words = init_from(replace(r, hires_share=1.0, hires_size=24), {})
    assert words.endswith("its heads") and train.phases(found)[0][2] == 0
    assert state["backbone.pos_embed"].shape == (1, 37, 96)  # 6×6, of high resolution
    assert torch.equal(state["ibot_head.prototypes"], run.ema.ibot_head.prototypes)
    for change in ({"n_prototypes": 8}, {"tied_heads": True}):
        _, state, words = init_from(replace(r, **change), {})
        assert "new heads, alone for the first 246" in words and not any("head" in name for name in state)
    train.save_checkpoint(small_run(tmp_path, **SIZES, tied_heads=True))
    assert init_from(replace(r, tied_heads=True), {})[2].endswith("its heads")


def test_phases_by_hand():
    """Of 100 steps the first 20 are the heads' at the recipe's rate, the last 30 at high resolution."""
    r = get_recipe("shapes", steps=100, init="x", head_warmup=0.2, hires_share=0.3, lr=1.0, init_lr=0.1, hires_lr=0.01,
                   batch=1024)  # fmt: skip
    assert train.phases(r) == [("heads", 0, 20, 1.0), ("low", 20, 70, 0.1), ("hires", 70, 100, 0.01)]
    at = [train.schedules_at(step, r) for step in range(100)]
    assert [v["frozen_backbone"] for v in at] == [True] * 20 + [False] * 80
    assert [v["hires"] for v in at] == [False] * 70 + [True] * 30
    assert [max(v["lr"] for v in part) for part in (at[:20], at[20:70], at[70:])] == [1.0, 0.1, 0.01]
    for first, last in ((at[0], at[19]), (at[20], at[69]), (at[70], at[99])):  # B.2: each phase has all schedules whole
        names = ("lr", "momentum", "weight_decay")
        assert [v[name] for v in (first, last) for name in names] == pytest.approx([0, 0.95, 0.04, 1e-6, 1, 0.2])
    assert at[0]["frozen_prototypes"] and not at[20]["frozen_prototypes"] and not at[70]["frozen_prototypes"]
    halves = train.phases(get_recipe("shapes", steps=7, init="x", head_warmup=0.5, hires_share=0.5))
    assert [(first, end) for _, first, end, _ in halves] == [(0, 3), (3, 3), (3, 7)]  # rounding takes no step twice
    assert train.phases(get_recipe("shapes", steps=100, hires_share=0.3))[0][2] == 0  # without --init
    high = get_recipe("shapes", steps=2, init="x", head_warmup=0.0, hires_share=1.0)
    assert [train.schedules_at(step, high)["hires"] for step in (0, 1)] == [True, True]


def start(folder, out, **changes):
    return flags(folder, out, **{"patch_size": 4, "hires_share": 0, "eval_every": 0, **changes})


@pytest.mark.parametrize("share, steps_alone", [(0.5, 4), (1, 8)])  # with 1 the file's grid of positions stays
def test_a_run_goes_on_without_the_file(folder, released, share, steps_alone, tmp_path, capsys, monkeypatch):
    """Stopped in the heads' warm-up, and the file gone: the same as an uninterrupted one."""
    file = shutil.copy(released, tmp_path / "released.pth")
    words = {"init": file, "head_warmup": share, "save_every": 2}
    assert main(start(folder, tmp_path / "whole", **words)) == 0
    first, *_ = capsys.readouterr().out.splitlines()
    assert f"weights of {file} with new heads, alone for the first {steps_alone} steps" in first
    steps = iter([train.train_step] * 3 + [None])
    with monkeypatch.context() as patch, pytest.raises(TypeError):  # None cannot be called
        patch.setattr(train, "train_step", lambda *arguments: next(steps)(*arguments))
        main(start(folder, tmp_path / "run", **words))
    file.unlink()
    assert main(["--out", str(tmp_path / "run"), "--resume", "--device", "cpu"]) == 0
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    one, other = (saved(tmp_path / name)["student"] for name in ("run", "whole"))
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_heads_for_a_teacher_and_distillation(folder, released, tmp_path, capsys):
    """Weights without heads are no teacher; the command in the error trains the heads alone, and then they are one."""
    command = start(folder, tmp_path / "run", teacher=released)
    assert main(command) == 2
    err = capsys.readouterr().err
    assert "has no heads; to train them, add" in err and err.count("\n") == 1
    added = err.split("them, add ")[1].split(" to this")[0].replace("runs/teacher", str(tmp_path / "teacher"))
    assert main(command + added.split()) == 0
    file, teacher = torch.load(released, weights_only=True), saved(tmp_path / "teacher")["teacher"]
    assert all(torch.equal(teacher[f"backbone.{name}"], x) for name, x in file.items())  # on the file's grid
    words = {"teacher": tmp_path / "teacher/checkpoint.pt", "arch": "vit_pico", "steps": 2}
    assert main(start(folder, tmp_path / "run", **words)) == 0
    assert "backbone.register_tokens" not in saved(tmp_path / "run")["teacher"]  # the student is another network
    assert main(start(folder, tmp_path / "other", **words | {"n_prototypes": 8})) == 2
    assert "the teacher was trained with --n_prototypes 16; use the same" in capsys.readouterr().err
    words["teacher"] = (tmp_path / "teacher").rename(tmp_path / "moved") / "checkpoint.pt"
    resumed = [*start(folder, tmp_path / "run", **words), "--resume"]
    assert main(resumed) == 0
    torn = saved(tmp_path / "moved")
    torn["teacher"]["backbone.norm.weight"] = torch.ones(3)
    torch.save(torn, words["teacher"])
    assert main(start(folder, tmp_path / "third", **words)) == 2
    assert "its tensors do not fit its recipe (Error(s) in loading" in capsys.readouterr().err
    torn["teacher"]["backbone.norm.weight"] = torch.full((96,), 2.0)
    torch.save(torn, words["teacher"])
    assert main(resumed) == 2 and "the run began with another --teacher" in capsys.readouterr().err
