"""How flat the targets of a batch are before the first step, at two teacher temperatures (docs/results.md).

    python -m docs.experiments.temperature [DATA]    default: cifar10

Prints the entropies of 32 images' targets, as shares of ln K, for seeds 0 and 1.
"""

import math
import sys

import torch

from recipes import get_recipe
from sinkhorn import sinkhorn_knopp
from support.start import load_splits_of, make_crop, start_run

for seed in (0, 1):
    r = get_recipe("cifar10", data=(sys.argv[1:] or ["cifar10"])[0], seed=seed)
    run, images = start_run(r, torch.device("cpu")), load_splits_of(r, r.image_size)[0].pixels[::1000][:32]
    globals_, _ = make_crop(r, r.global_size)(images, seed)
    with torch.no_grad():
        z = run.teacher.dino_head(run.teacher.backbone(globals_))  # (64, K), cosines
    print(f"seed {seed}: deviation of a prototype's cosines over the batch {z.std(0).mean():.3f}")
    for temp in (0.04, 0.01):
        for name, p in (("softmax", (z / temp).softmax(1)), ("Sinkhorn-Knopp", sinkhorn_knopp(z, temp))):
            entropy = -torch.special.xlogy(p, p).sum(1).mean() / math.log(r.n_prototypes)
            print(f"seed {seed}, teacher temperature {temp}, {name}: {entropy:.2f} of ln K")
