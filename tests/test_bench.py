"""The clock, the arithmetic and the memory of a training step.  `pytest tests/test_bench.py`"""

import itertools
import json
import sys
import time
from functools import partial

import pytest
import torch

import bench
import train
import vit
from masking import sample_masks
from recipes import get_recipe
from support.device import flop_counter
from support.start import start_run

TINY = dict(arch="vit_nano", patch_size=8, image_size=16, global_size=16, local_size=8, n_local=1, n_prototypes=16,
            head_hidden=32, dino_bottleneck=8, ibot_bottleneck=8, batch=4, hires_share=0.0, amp="none")  # fmt: skip
FLAGS = [f"--{name}={value}" for name, value in TINY.items()] + ["--device", "cpu", "--steps", "1"]
CPU = torch.device("cpu")


def test_a_call_is_timed_until_the_device_is_done(monkeypatch):
    """A device that works for 3 s after each call of 1 s: two calls take 1 + 3 + 3 s, since the second one overlaps."""
    clock = {"host": 0.0, "device": 5.0}  # at first it works for 5 s on something else

    def synchronize(device):
        clock["host"] = max(clock.values())

    def call():
        clock["host"] += 1.0
        clock["device"] = max(clock.values()) + 3.0

    monkeypatch.setattr(bench.time, "perf_counter", lambda: clock["host"])
    monkeypatch.setattr(torch.accelerator, "synchronize", synchronize)
    assert bench.time_calls(call, torch.device("cuda"), 2) == (1.0, 3.5)


def test_numbers_by_hand(monkeypatch):
    """Two global crops of 4 patches and one local of 1, D = 192, 6 blocks, batch 4: multiplications and additions.

    Tokens: teacher 2·4·5 = 40, student 40 + 4·2 = 48.  A block's linear layers: 12·D² a token, twice for both.
    Attention: q·k and p·v, 2·D·n each a token, n = 5 or 2, twice.  Patches: 3·8·8·D, twice.
    Heads see the [CLS] tokens, 8 or 12, and M masked patches.
    The backward pass has twice the student's forward one, but pixels need no gradient.  KoLeo is left out.
    Were the CPU a GPU whose data sheet says 121 TFLOP/s in bf16: in float32 there is no MFU.
    """
    monkeypatch.setattr(bench, "DATA_SHEET", {"cpu": 121})
    D, depth, batch = 192, 6, 4
    r = get_recipe("shapes", **TINY)
    M = int(sample_masks(2 * batch, 2, 2, r.mask_ratio, r.mask_probability).sum())
    assert 0 < M < 16
    flops = 0
    for passes, crops in ((1, [(8, 5)]), (3, [(8, 5), (4, 2)])):  # teacher, student
        tokens = sum(b * n for b, n in crops)
        attention = sum(b * n * n for b, n in crops)
        patches = sum(b * (n - 1) for b, n in crops)
        flops += passes * 2 * depth * (12 * D * D * tokens + 2 * D * attention)
        flops += min(passes, 2) * 2 * 3 * 64 * D * patches
        flops += passes * 2 * (sum(b for b, _ in crops) + M) * (D * 32 + 32 * 32 + 32 * 8 + 8 * 16)
    found = bench.bench_step(r, 1, CPU)
    assert found["gflop_per_image"] == pytest.approx(flops / batch / 1e9, rel=0.002)
    assert found["tflop_per_s"] == pytest.approx(found["gflop_per_image"] * batch / found["step_ms"])
    assert 0 < found["mfu_measured"] < 1 and found["mfu_data_sheet"] is None and found["dtype"] == "torch.float32"
    assert bench.count_step(r, "cpu")[2] == pytest.approx(flops, rel=0.002)
    found = bench.bench_step(get_recipe("shapes", **{**TINY, "amp": "bf16"}), 1, CPU)
    assert found["mfu_data_sheet"] == pytest.approx(found["tflop_per_s"] / 121) and found["dtype"] == "torch.bfloat16"
    again = bench.bench_step(get_recipe("shapes", **{**TINY, "checkpointing": True}), 1, CPU)
    assert again["gflop_per_image"] == pytest.approx(flops / batch / 1e9, rel=0.002)
    assert again["hfu_measured"] > 1.1 * again["mfu_measured"] and "hfu_measured" not in found


def test_long_attention_on_a_cpu_counts():
    """Of 577 tokens: q·k and p·v are 2·2·577²·64 FLOPs, and five such products are in the backward pass."""
    q = torch.randn(1, 1, 577, 64, requires_grad=True)
    with flop_counter() as counter:
        vit.attend(q, q, q).sum().backward()
    assert counter.get_total_flops() == (2 + 5) * 2 * 577**2 * 64


def test_a_peer_is_timed_by_turns():
    """A peer that sleeps for 20 ms on crops made before."""
    seen = []

    def peer(r, views):
        return lambda: (seen.append([tuple(x.shape) for x in views]), time.sleep(0.02))

    found = bench.bench_step(get_recipe("shapes", **TINY), 2, CPU, peer)
    assert len(seen) == bench.WARMUP + 2 * bench.ROUNDS and seen[0] == [(8, 3, 16, 16), (4, 3, 8, 8)]
    assert sorted(found["ours_over_peer"])[1] == pytest.approx(20 / found["step_ms"], rel=0.6)  # of three rounds


def allocated_at_the_peak(r):
    """Bytes of weights, and bytes given out at the peak of two real steps by PyTorch's profiler, weights included."""
    run, images = start_run(r, CPU), torch.zeros(r.batch, 3, 8, 8, dtype=torch.uint8)
    weights = sum(p.nbytes for network in (run.student, run.ema) for p in network.parameters())

    def crop(images, seed):
        sizes = ((2 * len(images), r.global_size), (r.n_local * len(images), r.local_size))
        return tuple(torch.zeros(n, 3, size, size) for n, size in sizes)

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        for _ in range(2):
            train.train_step(run, images, crop, train.schedules_at(0, r))
    changes, events = [], list(profile.profiler.kineto_results.experimental_event_tree())
    while events:
        event = events.pop()
        events += event.children
        if hasattr(event.extra_fields, "alloc_size"):
            changes.append((event.start_time_ns, event.extra_fields.alloc_size))
    return weights, weights + max(itertools.accumulate(size for _, size in sorted(changes)))


@pytest.mark.parametrize("recipe, changes", [
    ("shapes", {"micro_batch": 4, "tied_heads": True}), ("cifar10", {}),
    ("vitl16_short", {"arch": "vit_pico", "checkpointing": True, "ffn": "swiglu", "global_size": 64, "local_size": 32}),
])  # fmt: skip
def test_counted_memory_is_what_the_allocator_gives(recipe, changes, monkeypatch):
    """Networks of one block.  Weights of student and teacher, and two moments of the student: twice the weights."""
    r = get_recipe(recipe, **{"hires_share": 0.0, "batch": 8, "n_prototypes": 8192, "amp": "none", **changes})
    monkeypatch.setattr(vit, r.arch, partial(vit.ViT, *getattr(vit, r.arch).args[:1], 1, 2))
    (state, peak, _), (weights, allocated) = bench.count_step(r, "cpu"), allocated_at_the_peak(r)
    assert state == pytest.approx(2 * weights, rel=0.01) and peak == pytest.approx(allocated, rel=0.05)


def test_the_program(capsys, monkeypatch):
    assert bench.main([*FLAGS, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["arch"] == "vit_nano" and result["host_ms"] > 0 and result["peak_gib"] > 0
    assert bench.main(FLAGS) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:9]] == list(result)[:9] and lines[1].split() == ["batch", "4"]
    assert bench.main([*FLAGS, "--memory", "cuda", "--compile", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["device"] == "cuda" and 0 < result["state_gib"] < result["peak_gib"]
    assert bench.main([*FLAGS, "--init", "nofile.pt"]) == 2 and "instead of --init" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "lightly.loss", None)
    assert bench.main([*FLAGS, "--peer", "lightly"]) == 2 and "pip install lightly timm" in capsys.readouterr().err
