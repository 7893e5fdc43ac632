"""Train the network of `cifar10` with the parts of the package `lightly`, up to a number of FLOPs, and print k-NN.

    OMP_NUM_THREADS=1 python -m docs.experiments.peers DATA TFLOP SEEDS [dino] [dinov2]     ... cifar10 57 0,1

dino: loss, head, crops and optimizer of lightly's CIFAR-10 benchmark, made for a ResNet-18.  dinov2: of its DINOv2
example, with the sizes of crops and heads of `cifar10`, and the colours of that benchmark.  Losses are in float32, as
ours.  k-NN is measured at the crops' size.
"""

import copy
import sys
from functools import partial

import torch
from lightly.loss import DINOLoss, IBOTPatchLoss, KoLeoLoss
from lightly.models.modules.heads import DINOProjectionHead, DINOv2ProjectionHead, ProjectionHead
from lightly.models.utils import random_block_mask, update_momentum
from lightly.transforms import DINOTransform
from lightly.utils.scheduler import cosine_schedule, linear_warmup_schedule
from PIL import Image
from torch import nn

from evaluate import frozen_features, knn_accuracies
from network import build_network
from recipes import get_recipe
from support.device import autocast, flop_counter
from support.images import batches
from support.start import load_splits_of

CROPS = partial(DINOTransform, cj_strength=0.5, gaussian_blur=(0, 0, 0))  # of the benchmark


class Dino:
    """lightly's docs/source/getting_started/benchmarks/cifar10_benchmark.py, DINOModel."""

    batch, size, crops = 128, 32, CROPS(global_crop_size=32, n_local_views=0)

    def __init__(self, backbone, r):
        self.student = nn.ModuleList([backbone, self.make_head(backbone.embed_dim)])
        self.teacher = nn.ModuleList([copy.deepcopy(backbone), self.make_head(backbone.embed_dim)])
        self.loss = DINOLoss(output_dim=2048)
        self.optimizer = torch.optim.SGD(self.student.parameters(), lr=6e-2, momentum=0.9, weight_decay=5e-4)

    def make_head(self, dim):
        """The head with two layers, "for cifar10"."""
        head = DINOProjectionHead(dim, 2048, 256, 2048, batch_norm=True)
        head.layers = ProjectionHead([(dim, 2048, nn.BatchNorm1d(2048), nn.GELU()), (2048, 256, None, None)]).layers
        return head

    def step(self, views, done):
        """One step; done: the share of the run so far, of 200 epochs."""
        update_momentum(self.student, self.teacher, m=0.99)
        self.optimizer.param_groups[0]["lr"] = cosine_schedule(int(1e4 * done), 10**4, 6e-2, 0)
        with autocast(torch.device("cpu")):
            with torch.no_grad():
                targets = [self.teacher[1](self.teacher[0](view)).float() for view in views]
            outputs = [self.student[1](self.student[0](view)).float() for view in views]
        self.loss(targets, outputs, epoch=int(200 * done)).backward()


class Dinov2:
    """lightly's examples/pytorch/dinov2.py: one head, no warm-up or decay of the rate."""

    batch, size, crops = 64, 24, CROPS(global_crop_size=24, local_crop_size=12, n_local_views=4,
                                       global_crop_scale=(0.32, 1), local_crop_scale=(0.05, 0.32))  # fmt: skip

    def __init__(self, backbone, r):
        make_head = partial(DINOv2ProjectionHead, backbone.embed_dim, r.head_hidden, r.dino_bottleneck, r.n_prototypes)
        self.student, self.teacher = (nn.ModuleList([copy.deepcopy(backbone), make_head()]) for _ in range(2))
        self.teacher.eval()
        self.student[0].drop_path = 0.1
        self.dino, self.ibot, self.koleo = DINOLoss(r.n_prototypes), IBOTPatchLoss(r.n_prototypes), KoLeoLoss()
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=0.001)

    def step(self, views, done):
        """One step; done: the share of the run so far, of 50 epochs."""
        update_momentum(self.student, self.teacher, m=cosine_schedule(int(1e4 * done), 10**4, 0.992, 1))
        globals_, locals_, n = torch.cat(views[:2]), torch.cat(views[2:]), self.size // 4  # patches of 4²
        block_mask = random_block_mask((len(globals_), n, n), min_num_masks_per_block=1)  # 4 are too many of 6×6
        masks = block_mask.flatten(1)
        at, temp = masks.flatten().nonzero()[:, 0], linear_warmup_schedule(int(1e4 * done), 6000, 0.04, 0.07)
        with autocast(torch.device("cpu")):
            with torch.no_grad():
                targets = [self.teacher[1](x) for x in self.teacher[0].training_features([globals_], [None], at)]
            cls, patches = self.student[0].training_features([globals_, locals_], [masks, None], at)
            outputs = [self.student[1](x) for x in (cls, patches)]
        (t_cls, t_patches), (z_cls, z_patches) = ([x.float() for x in some] for some in (targets, outputs))
        loss = self.dino(t_cls.chunk(2), z_cls.chunk(len(views)), teacher_temp=temp)
        loss += self.ibot(t_patches, z_patches, mask=block_mask, teacher_temp=temp)
        loss += 0.1 * sum(map(self.koleo, cls[: len(globals_)].float().chunk(2)))
        loss.backward()
        self.optimizer.param_groups[0]["weight_decay"] = cosine_schedule(int(1e4 * done), 10**4, 0.04, 0.4)


def main(data, tflop, seeds, *peers):
    """Train each peer with each seed, and print a line for each; returns the exit status."""
    r = get_recipe("cifar10", data=data, hires_share=0)
    splits = load_splits_of(r, 32)
    for seed, kind in ((int(seed), kind) for seed in seeds.split(",") for kind in (Dino, Dinov2)):
        if peers and kind.__name__.lower() not in peers:
            continue
        torch.manual_seed(seed)
        peer = kind(build_network(r, kind.size).backbone.train(), r)
        peer.teacher.requires_grad_(False)
        stream, step, steps = batches(splits[0], kind.batch, seed), 0, None
        while steps is None or step < steps:
            pictures = map(Image.fromarray, next(stream).permute(0, 2, 3, 1).numpy())
            views = [torch.stack(view) for view in zip(*map(kind.crops, pictures), strict=True)]
            with flop_counter() as counter:
                peer.step(views, step / (steps or 1))
            steps = steps or round(float(tflop) * 1e12 / counter.get_total_flops())
            peer.optimizer.step()
            peer.optimizer.zero_grad()
            step += 1
        x = [frozen_features(peer.teacher[0], images.pixels, kind.size) for images in splits]
        knn = knn_accuracies(x[0], splits[0].labels, x[1], splits[1].labels)
        scores = f"{100 * knn[20]:.1f}, {100 * knn[200]:.1f} %; {steps} steps"
        print(f"{tflop} TFLOP, seed {seed}, {kind.__name__}: {scores}", flush=True)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
