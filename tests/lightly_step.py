"""A DINOv2 step from the parts of the package `lightly`, put together as in its own example, for `bench.py --peer`.

Its losses center by a moving average, since lightly has no Sinkhorn-Knopp.  Its stochastic depth computes the samples
that it drops, and its gradients are not clipped.
"""

import torch
from lightly.loss import DINOLoss, IBOTPatchLoss, KoLeoLoss
from lightly.models.modules import DINOv2ProjectionHead, MaskedVisionTransformerTIMM
from lightly.models.utils import update_drop_path_rate, update_momentum
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import vit
from masking import sample_masks
from support.device import autocast


def make_network(r):
    """lightly's ViT with two heads, of a recipe's sizes."""
    dim, depth, n_heads = getattr(vit, r.arch).args
    network = VisionTransformer(r.global_size, r.patch_size, embed_dim=dim, depth=depth, num_heads=n_heads,
                                num_classes=0, dynamic_img_size=True, init_values=r.layer_scale)  # fmt: skip
    backbone = MaskedVisionTransformerTIMM(network, antialias=False, pos_embed_initialization="skip")
    heads = {name: DINOv2ProjectionHead(dim, r.head_hidden, bottleneck, r.n_prototypes)
             for name, bottleneck in (("dino", r.dino_bottleneck), ("ibot", r.ibot_bottleneck))}  # fmt: skip
    return nn.ModuleDict({"backbone": backbone, **heads})


def lightly_step(r, views):
    """A function that takes one step on (globals, locals)."""
    (globals_, locals_), V, device = views, 2 + r.n_local, views[0].device
    student, teacher = (make_network(r).to(device) for _ in range(2))
    teacher.requires_grad_(False).eval()
    update_drop_path_rate(student.backbone.vit, drop_path_rate=r.drop_path, mode="uniform")
    dino_loss, ibot_loss, koleo_loss = (DINOLoss(r.n_prototypes).to(device), IBOTPatchLoss(r.n_prototypes).to(device),
                                        KoLeoLoss())  # fmt: skip
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, fused=True)
    side = r.global_size // r.patch_size
    masks = sample_masks(len(globals_), side, side, r.mask_ratio, r.mask_probability).to(device)
    masked = torch.cat([masks.new_zeros(len(masks), 1), masks], 1)  # with [CLS]

    def step():
        with autocast(device, r.amp):
            with torch.no_grad():
                features = teacher.backbone.encode(globals_)
                cls_t, patches_t = teacher.dino(features[:, 0]), teacher.ibot(features[masked])
            features, local = student.backbone.encode(globals_, mask=masked), student.backbone.encode(locals_)
            cls_s = torch.cat([student.dino(features[:, 0]), student.dino(local[:, 0])])
            loss = dino_loss(cls_t.chunk(2), cls_s.chunk(V), teacher_temp=0.05)
            loss += ibot_loss(patches_t, student.ibot(features[masked]), mask=masks.unflatten(1, (side, side)),
                              teacher_temp=0.05)  # fmt: skip
            loss += 0.1 * sum(map(koleo_loss, features[:, 0].chunk(2)))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        update_momentum(student, teacher, m=0.99)

    return step
