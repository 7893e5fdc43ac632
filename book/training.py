"""Things to move about training: which patches are masked, what prevents collapse, how features grow."""

import base64
import io
import json
from itertools import permutations, product
from pathlib import Path
from statistics import fmean
from unittest import mock

import torch
from einops import rearrange, repeat
from PIL import Image

import masking
from book.drawing import seeded
from book.moving import section
from pca_viz import fine_tokens, pca_rgb

ARMS = {  # of collapse.json: title, what one sees
    "whole": ("Nothing is changed", "The target of one image uses few prototypes, the batch uses most."),
    "plain": ("A plain softmax, no Sinkhorn-Knopp", "From step 40 on, every image gets the same prototype."),
    "centre": ("Softmax centering, no Sinkhorn-Knopp", "At times one prototype takes all; k-NN does not recover."),
    "copy": ("No moving average: the teacher is a copy", "No collapse in these runs, and about the same k-NN."),
    "warm": ("A warm teacher: temperature 0.07, not 0.01", "Flat targets after step 200.  Larger batches differ."),
}


def rectangles(made):
    """One call of `sample_masks` for eight views of 16×16 patches.  Four of them, chosen at random, are masked.  Their
    shares, from 10 to 50 %, are cut into four equal strata.  The middles of the strata are 15, 25, 35 and 45 %, so the
    counts are always 38, 64, 90 and 115 patches.  Of a rectangle across the edge, only the part inside counts.  In seed
    207, a random patch completes one mask.
    """
    batches = {seed: tries(seed) for seed in (*range(9), 207)}  # 207: a mask is still short after all rectangles
    view = batches[2]["counts"].index(38)  # in this one, the third rectangle is rejected
    words = [f"With seed 2 the views get {batches[2]['counts']} patches.  View {view + 1}:"]
    words += [step["words"] for step in batches[2]["steps"][view]]
    return section(rectangles, "Draw a mask", words, batches)


def tries(seed):
    """One call of `sample_masks`: {"counts": patches of each view, "steps": {masked view: its rectangles}}."""
    rounds, real, steps = [], masking.random_rectangles, {}

    def record(missing, *rest):
        rounds.append((missing, real(missing, *rest)))
        return rounds[-1][1]

    with mock.patch.object(masking, "random_rectangles", record):
        masks = masking.sample_masks(8, 16, 16, generator=seeded(seed))
    counts = masks.sum(1).tolist()
    for i, view in enumerate(map(counts.index, rounds[0][0].tolist())):  # at first all patches are missing
        blocks, steps[view] = torch.zeros(256, dtype=torch.bool), []
        for left, rectangle in ((missing[i].item(), drawn[i].flatten()) for missing, drawn in rounds if missing[i]):
            new = int((rectangle & ~blocks).sum())
            words = f"{len(steps[view]) + 1}. Patches: {int(rectangle.sum())}; new: {new}; missing: {left}."
            words += "  Rejected: too many are new." if new > left else "  Accepted." if new else "  Nothing changes."
            blocks |= rectangle & (new <= left)
            steps[view].append({"patches": rectangle.nonzero()[:, 0].tolist(), "accepted": new <= left, "words": words})
        rest = (masks[view] & ~blocks).nonzero()[:, 0].tolist()
        words = f"The mask is complete: {counts[view]} patches.  Random ones that fill the rest: {len(rest)}."
        steps[view].append({"patches": rest, "accepted": True, "words": words})
    return {"counts": counts, "steps": steps}


def collapse(made):
    """700 steps of the default recipe (teacher temperature 0.01) without its high-resolution phase, and four changes;
    three seeds each.  Two entropies, as shares of ln K, tell two kinds of collapse apart: one prototype (both near 0)
    and uniform (both near 1).  k-NN compares images of 32² pixels with 2,000 training images; it starts at 27 to 35 %.
    """
    recorded, words = json.loads(Path(__file__).with_name("collapse.json").read_text(encoding="utf-8")), []
    for arm, (title, seen) in ARMS.items():
        one, mean, knn = (fmean(run[name][-1][1] for run in recorded["runs"][arm]) for name in recorded["meter"])
        ends = f"entropy of one target {one:.2f}, of the mean target {mean:.2f}, k-NN {knn:.0%}."
        words.append(f"<b>{title}.</b>  {seen}  At the end, on average: {ends}")
    words.append(f"Recorded by <code>{recorded['command']}</code> at {recorded['commit']}.")
    return section(collapse, "Switch parts off", words, recorded["runs"])


@torch.inference_mode()
def colours(made):
    """Six images, and the colours of `pca_rgb` at eight steps of this book's training.  Each step has its own PCA.  The
    order and the sign of components are arbitrary, so we choose those that are nearest to the colours of the next step.
    """
    rgb, pictures, size = None, [], made.images.shape[-1]
    for step, vit in reversed(made.snapshots):
        later, (rgb, inside) = rgb, pca_rgb(fine_tokens(vit, made.images, size))  # (I, N, 3), (I, N)
        turned = [(rgb[..., order] - torch.tensor(ends)).abs() * inside[..., None]
                  for order in permutations(range(3)) for ends in product((0.0, 1.0), repeat=3)]  # fmt: skip
        rgb = rgb if later is None else min(turned, key=lambda other: (other - later).square().sum())
        half = vit.patch_size // 2  # fine_tokens has a token for each half of a patch
        cells = repeat((255 * rgb).byte(), "i (h w) c -> i c (h y) (w x)", h=size // half, y=half, x=half)
        pixels = rearrange([made.images, cells], "kind (row i) c h w -> (row kind h) (i w) c", i=3)
        Image.fromarray(pixels.numpy()).save(file := io.BytesIO(), "JPEG", quality=85)
        address = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
        words = f"Step {step}: {inside.float().mean():.0%} of the patches are foreground."
        pictures.insert(0, f'{words}<br><img width="400" style="max-width: 100%" alt="" src="{address}">')
    return section(colours, "Move through training", pictures, None)


WIDGETS = {"masking": rectangles, "centering": collapse, "pca_viz": colours}
