"""The structure of student and teacher: a ViT, an image head and a patch head (§4, "Untying head weights").

    image logits = dino_head(ViT(x)[CLS])               (B, K)   B images x, K prototypes
    patch logits = ibot_head(ViT(x)[masked patches])    (M, K)   M masked patches of the batch
"""

from torch import nn

import vit
from head import Head


def build_network(r, img_size=None):
    """The nn.ModuleDict of a recipe: backbone, dino_head, ibot_head.

    img_size: image size in pixels of the stored positions (default: the last phase's global views).
    """
    backbone = getattr(vit, r.arch)(
        patch_size=r.patch_size, img_size=img_size or (r.hires_size if r.hires_share else r.global_size),
        n_registers=r.n_registers, ffn=r.ffn, stem=r.stem, layer_scale=r.layer_scale, checkpointing=r.checkpointing,
        drop_path=0.0 if r.teacher else r.drop_path)  # fmt: skip  §5: no stochastic depth in distillation
    heads = {
        "dino_head": Head(backbone.embed_dim, r.n_prototypes, r.head_hidden, r.dino_bottleneck),
        "ibot_head": Head(backbone.embed_dim, r.n_prototypes, r.head_hidden, r.ibot_bottleneck),
    }
    if r.tied_heads:
        heads["ibot_head"] = heads["dino_head"]
    return nn.ModuleDict({"backbone": backbone, **heads})
