"""One network of the pair: a ViT with an image head and a patch head (§4; untied heads: §4, "Untying head weights").

    image logits = dino_head(ViT(x)[CLS]),        patch logits = ibot_head(ViT(x)[masked patches])

The student and the teacher are two of these.
"""

from torch import nn

import vit
from head import Head


def build_network(r, img_size=None):
    """The ViT and its two untied heads (§4), for a recipe; img_size: that of its positions, if not the run's."""
    backbone = getattr(vit, r.arch)(
        patch_size=r.patch_size,
        img_size=img_size or (r.hires_size if r.hires_share else r.global_size),
        n_registers=r.n_registers,
        ffn=r.ffn,
        drop_path=0.0 if r.teacher else r.drop_path,  # §5: no stochastic depth in distillation
        layer_scale=r.layer_scale,
        checkpointing=r.checkpointing,
        stem=r.stem,
    )
    heads = {
        "dino_head": Head(backbone.embed_dim, r.n_prototypes, r.head_hidden, r.dino_bottleneck),
        "ibot_head": Head(backbone.embed_dim, r.n_prototypes, r.head_hidden, r.ibot_bottleneck),
    }
    if r.tied_heads:
        heads["ibot_head"] = heads["dino_head"]
    return nn.ModuleDict({"backbone": backbone, **heads})
