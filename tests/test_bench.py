"""The clock around a training step: arithmetic counted on paper, parts that add up, and the program.

    pytest tests/test_bench.py
"""

import itertools
import json
import re
from collections import Counter

import pytest
import torch
from conftest import numbered

import bench
import train
import vit
from bench import bench_part, bench_step, count_memory, main, measure_parts, spread
from masking import sample_masks
from recipes import get_recipe
from support.files import UserError
from support.scaling import keep_blocks

TINY = dict(arch="vit_nano", patch_size=8, image_size=16, global_size=16, local_size=8, n_local=1, n_prototypes=16,
            head_hidden=32, dino_bottleneck=8, ibot_bottleneck=8, batch=4, hires_share=0.0, amp=False)  # fmt: skip
FLAGS = [f"--{k}={v}" for k, v in TINY.items() if k != "amp"] + ["--amp", "none", "--device", "cpu", "--steps", "1"]
CPU = torch.device("cpu")


def test_spread_by_hand():
    """Median 2 of 1, 2, 4; from 1 to 4 are 3, 150 % of it."""
    assert spread([4, 1, 2]) == (2, 1.5)


def test_flops_by_hand():
    """Two global crops of 4 patches and one local of 1, D = 192, 6 blocks, batch 4: multiplications and additions.

    Tokens: teacher 2·4·5 = 40, student 40 + 4·2 = 48.  A block's linear layers: 12·D² a token, twice for both.
    Attention: q·k and p·v, 2·D·n each a token, n = 5 or 2, twice.  Patches: 3·8·8·D, twice.
    The last MLP, 8·D² a token, sees the [CLS] tokens, 8 or 12, and M masked patches.
    """
    D, depth, batch = 192, 6, 4
    r = get_recipe("shapes", **TINY)
    M = int(sample_masks(2 * batch, 2, 2, r.mask_ratio, r.mask_probability).sum())
    assert 0 < M < 16
    counted = bench_step(r, 1, CPU)["flops"]
    for name, crops in {"teacher": [(8, 5)], "forward": [(8, 5), (4, 2)]}.items():
        tokens = sum(b * n for b, n in crops)
        attention = sum(b * n * n for b, n in crops)
        patches = sum(b * (n - 1) for b, n in crops)
        seen = sum(b for b, _ in crops) + M
        linear = depth * 12 * D * D * tokens - 8 * D * D * (tokens - seen)
        heads = seen * (D * 32 + 32 * 32 + 32 * 8 + 8 * 16)
        expected = 2 * (linear + depth * 2 * D * attention + 3 * 64 * D * patches + heads) / batch
        assert counted[name] == expected
    assert counted["backward"] == pytest.approx(2 * counted["forward"], rel=0.05)  # but for the pixels' gradient


def test_parts_add_up():
    """A clock that ticks at each reading: a part costs 1 tick."""
    class Run:
        teacher = student = None

    ticks = iter(range(1000))
    names = []

    class Owner:
        @staticmethod
        def first():
            return 7

        @staticmethod
        def second():
            return 8

    def parts_of(run):
        return [(Owner, "first", "one"), (Owner, "second", "two")]

    old, bench.parts_of = bench.parts_of, parts_of
    try:
        spent = measure_parts(lambda crop: names.append((crop(), Owner.first(), Owner.second())), lambda: 3, Run,
                              lambda: next(ticks))  # fmt: skip
    finally:
        bench.parts_of = old
    assert names == [(3, 7, 8)]  # results come through
    assert spent == {"augmentation": 1, "one": 1, "two": 1, "rest": 4}  # 7 ticks from the first to the last
    assert Owner.first() == 7 and next(ticks) == 8  # the clock is gone


@pytest.mark.parametrize("tied, heads", [(False, 2), (True, 1)])
def test_a_tied_head_is_counted_once(tied, heads):
    """Were it patched twice, each of its calls would cost two parts as much as it took."""
    run = train.start_run(get_recipe("shapes", tied_heads=tied), CPU)
    parts = [part for *_, part in bench.parts_of(run)]
    assert parts.count("student heads") == parts.count("teacher heads") == heads


def test_the_program(capsys):
    assert main([*FLAGS, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["images_per_s"] > 0 and 0 < result["share_of_peak"] < 1 and result["bf16"] is False
    assert 0 < result["peak_memory_crops_made_before"] <= result["peak_memory"]
    parts = {"student ViT", "teacher ViT", "backward", "augmentation", "masks", "optimizer", "EMA", "DINO loss",
             "iBOT loss", "KoLeo", "centering", "student heads", "teacher heads", "rest"}  # fmt: skip
    assert set(result["parts"]) == parts and min(result["parts"].values()) > 0
    assert main(FLAGS) == 0
    text = capsys.readouterr().out
    assert re.match(r"vit_nano, batch 4, K 16, on cpu, \d+ threads? \(.*\)\nimages/s", text) and "student ViT" in text


def test_crops_made_before_are_those_of_a_piece():
    """Of 5 images in pieces of 2: two pieces of 2 and one of 1, two global views each."""
    *_, made = bench.make_step(get_recipe("shapes", **{**TINY, "batch": 5, "micro_batch": 2}), CPU)
    for n in (2, 1):
        assert len(made(torch.zeros(n, 3, 8, 8), 0)[0]) == 2 * n


def test_no_amp_is_float32(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(bench, "bench_step", lambda r, *_: seen.append(r.amp) or {})
    for words in (["--no-amp"], ["--amp", "none"], ["--amp", "bf16"], []):
        assert main(["--json", "--device", "cpu", *words]) == 0
    assert seen == [False, False, True, True]


def test_the_largest_batch_of_pieces_is_one_line():
    with pytest.raises(UserError, match="with --micro_batch any batch takes as much"):
        bench.largest_batch(get_recipe("shapes", micro_batch=2), torch.device("cuda"))


@pytest.mark.parametrize("part", ["augment", "sinkhorn", "losses", "attention"])
def test_one_part(part, capsys):
    result = bench_part(part, get_recipe("shapes", **TINY), 1, CPU)
    assert result["part"] == part and result["seconds"] > 0
    assert main([*FLAGS, "--part", part]) == 0
    assert capsys.readouterr().out.startswith(f"{part}, seconds ")


def test_memory_of_a_part_counts_from_before_anything_was_made(monkeypatch):
    """The copy that times are held against is a matrix too, and a peak never falls."""
    seen = []
    monkeypatch.setattr(bench, "most_memory", lambda device: seen.append("memory") or 0)
    monkeypatch.setattr(bench, "seconds_of", lambda *_: seen.append("calls") or [1.0])
    bench_part("sinkhorn", get_recipe("shapes", **TINY), 1, CPU)
    assert seen == ["memory", "calls", "calls", "memory"]


def test_the_loader_alone(tmp_path):
    r = get_recipe("shapes", **TINY, data=str(numbered(tmp_path, 8)))
    result = bench_part("loader", r, 1, CPU)
    assert result["images_per_s"] * result["seconds"] == pytest.approx(r.batch)


@pytest.mark.parametrize("flags, words", [
    (["--steps", "0"], "'0' is not a whole number of at least 1"),
    (["--device", "cuda:99"], "there is no device"),
    (["--colour", "red"], "unknown argument --colour"),
    (["--parts", "augment"], "did you mean --part"),
    (["--part", "hat"], "invalid choice"),
    (["--teacher", "nofile.pt"], "cannot read nofile.pt"),
    (["--init", "nofile.pt"], "--init is for train.py"),
])  # fmt: skip
def test_bad_input_is_one_line(flags, words, capsys):
    assert main([*FLAGS, *flags]) == 2
    err = capsys.readouterr().err
    assert err.startswith("bench.py: error: ") and words in err and err.count("\n") == 1


# ---------------------------------------------------------------------------- memory


def allocated_at_the_peak(r):
    """Bytes that PyTorch's allocator had given out at the peak of two real steps, by its profiler."""
    run, images = train.start_run(r, CPU), torch.zeros(r.batch, 3, 8, 8, dtype=torch.uint8)
    weights = sum(p.nbytes for network in (run.student, run.ema) for p in network.parameters())

    def crop(images, seed):
        sizes = ((2 * len(images), r.global_size), (r.n_local * len(images), r.local_size))
        return tuple(torch.zeros(n, 3, size, size) for n, size in sizes)

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        for _ in range(2):
            train.train_step(run, images, crop, train.schedules_at(0, r))
    changes = []
    events = list(profile.profiler.kineto_results.experimental_event_tree())
    while events:
        event = events.pop()
        events += event.children
        if hasattr(event.extra_fields, "alloc_size"):
            changes.append((event.start_time_ns, event.extra_fields.alloc_size))
    sizes = [size for _, size in sorted(changes)]
    return weights + max(itertools.accumulate(sizes))


@pytest.mark.parametrize("recipe, changes", [
    ("shapes", {"micro_batch": 4}), ("cifar10", {} if hasattr(torch.optim, "Muon") else {"optimizer": "adamw"}),
    ("vitl16_short", {"arch": "vit_pico", "checkpointing": True, "ffn": "swiglu", "global_size": 64, "local_size": 32}),
])  # fmt: skip
def test_memory_on_paper_is_what_the_allocator_gives(recipe, changes, monkeypatch):
    """Networks of one block."""
    r = get_recipe(recipe, **{"hires_share": 0.0, "batch": 8, "n_prototypes": 8192, "amp": False, **changes})
    monkeypatch.setattr(vit, r.arch, getattr(vit, r.arch))  # put back afterwards
    keep_blocks(r.arch, 1)
    assert sum(count_memory(r, "cpu").values()) == pytest.approx(allocated_at_the_peak(r), rel=0.05)


def test_memory_is_a_flag(monkeypatch, capsys):
    monkeypatch.setattr(bench, "count_memory", lambda r, device_type: Counter({device_type: r.batch * 2**30}))
    assert main(["--memory", "cpu", *FLAGS]) == 0
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()] == ["GiB", "4.00"]
