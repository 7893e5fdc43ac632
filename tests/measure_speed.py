"""The README's table of what each idea gains: a training step with the idea and without it, by turns.

    python tests/measure_speed.py [ROUNDS]

Each is timed in a process of its own, on crops made before, with bench.py's clock.
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
import bench  # noqa: E402
import dino_loss  # noqa: E402
import ibot_loss  # noqa: E402
import vit  # noqa: E402

FLAGS = {
    "ViT-S/14, batch 8": "--arch vit_small --batch 8 --n_prototypes 65536 --drop_path 0.3",
    "ViT 192/12/3, patch 4, batch 32": "--arch vit_tiny --batch 32 --n_prototypes 4096 --drop_path 0.1 --patch_size 4 "
                                       "--image_size 64 --global_size 32 --local_size 16 --head_hidden 1024",
}  # fmt: skip
COMMON = "--recipe vitl14 --ffn mlp --dino_bottleneck 256 --hires_share 0 --no-checkpointing"

# ---------------------------------------------------------------------------- the step without an idea


def pages_go_back():
    bench.keep_pages = lambda: None


def fused_attention():
    vit.PLAIN_ATTENTION = 0


def everything_computed():
    """Stochastic depth that computes all samples and drops some of them afterwards."""

    def add_branch(x, branch, shapes, rate):
        if rate == 0:
            return x + branch(x, shapes)
        keep = torch.cat([(torch.rand(b, 1, device=x.device) >= rate).expand(b, n).reshape(-1, 1) for b, n in shapes])
        return x + branch(x, shapes) * keep / (1 - rate)

    vit.draw_subsets, vit.add_branch = (lambda shapes, rate, count, device: [rate] * count), add_branch


def one_pass_a_resolution():
    packed = vit.ViT.training_features

    def training_features(self, x, masks, at):
        parts = [packed(self, [images], [mask], at if i == 0 else at[:0])
                 for i, (images, mask) in enumerate(zip(x, masks, strict=True))]  # fmt: skip
        return torch.cat([cls for cls, _ in parts]), parts[0][1]

    vit.ViT.training_features = training_features


def last_mlp_of_all():
    def training_features(self, x, masks, at):
        out = self.forward_features(x, masks)
        return torch.cat([y["x_norm_clstoken"] for y in out]), out[0]["x_norm_patchtokens"].flatten(0, 1)[at]

    vit.ViT.training_features = training_features


def plain_cross_entropy():
    """The cross-entropy by autograd."""

    def cross_entropy(logits, targets, temp):
        return -(targets * (logits.float() / temp).log_softmax(dim=1)).sum(dim=1)

    dino_loss.cross_entropy = ibot_loss.cross_entropy = cross_entropy


WITHOUT = {f.__name__: f for f in (pages_go_back, fused_attention, everything_computed, one_pass_a_resolution,
                                   last_mlp_of_all, plain_cross_entropy)}  # fmt: skip

# ---------------------------------------------------------------------------- by turns


def measure(idea, flags):
    """Seconds a step and GiB of a process of its own, without the idea of that name."""
    command = [sys.executable, __file__, "--without", idea, *COMMON.split(), *flags.split()]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def measure_here(idea, flags):
    """The same, in this process."""
    WITHOUT.get(idea, lambda: None)()
    bench.keep_pages()
    device = torch.device("cpu")
    _, _, step, made = bench.make_step(bench.parse_args(flags)[1], device)
    seconds, _ = bench.spread(bench.seconds_of(lambda: step(made), device, 5))
    return seconds, bench.peak_memory(device) / 2**30


def main(rounds=3):
    for size, flags in FLAGS.items():
        print(size)
        results = {idea: [] for idea in ("nothing", *WITHOUT)}
        for _ in range(rounds):
            for idea, measured in results.items():
                measured.append(measure(idea, flags))
        for idea, measured in results.items():
            ratios = [other[0] / ours[0] for other, ours in zip(measured, results["nothing"])]
            seconds, memory = map(statistics.median, zip(*measured))
            print(f"  without {idea:22} {seconds:.3f} s, {memory:.2f} GiB, {statistics.median(ratios):.2f} times "
                  f"as long ({min(ratios):.2f} to {max(ratios):.2f})", flush=True)  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] == ["--without"]:
        print(json.dumps(measure_here(sys.argv[2], sys.argv[3:])))
    else:
        main(*map(int, sys.argv[1:]))
