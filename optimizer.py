"""AdamW, with a learning rate and a weight decay for each parameter (Table 16, B.1; official train/train.py).

    θ ← θ − η_θ · ( m̂ / (√v̂ + ε) + λ_θ · θ )

    m ← 0.9 · m + 0.1 · g,    v ← 0.999 · v + 0.001 · g²,    m̂ = m / (1 − 0.9ⁱ),    v̂ = v / (1 − 0.999ⁱ)

    g     gradient of θ
    i     number of the update, from 1
    ε     1e-8
    m, v  moving averages of g and g², 0 at first; m̂ and v̂ correct for that start

    η_θ = η · layer_decay^(n + 1 − l)    times patch_embed_lr for the patch embedding
    λ_θ = λ                              0 for biases, norms and LayerScale

    η, λ  the scheduled learning rate and weight decay
    l     layer of θ: 0 for the patch embedding, positions and learned tokens, 1 to n for n blocks, n + 1 for all else
"""

import torch


def make_optimizer(groups):
    """One AdamW for the groups of parameter_groups."""
    return torch.optim.AdamW(groups, betas=(0.9, 0.999), fused=True)  # official ssl_default_config.yaml


def parameter_groups(student, r):
    """Parameters by η_θ / η ("lr_factor"), λ_θ / λ ("decay_factor"), and whether they are prototypes."""
    groups, n = {}, len(student.backbone.blocks)
    for name, p in student.named_parameters():
        layer = n + 1
        if name.startswith("backbone.blocks."):
            layer = int(name.split(".")[2]) + 1
        elif name.startswith("backbone.") and not name.startswith("backbone.norm."):
            layer = 0
        lr = r.layer_decay ** (n + 1 - layer) * (r.patch_embed_lr if ".patch_embed." in name else 1.0)
        decay = 0.0 if name.endswith(("bias", "gamma")) or ".norm" in name else 1.0
        groups.setdefault((lr, decay, name.endswith("prototypes")), []).append(p)
    return [{"params": params, "lr_factor": lr, "decay_factor": decay, "prototypes": prototypes}
            for (lr, decay, prototypes), params in groups.items()]  # fmt: skip


def set_rates(optimizer, values):
    """Set the learning rate and weight decay of every group from one step's scheduled values."""
    for group in optimizer.param_groups:
        frozen = group["prototypes"] and values["frozen_prototypes"]
        group["lr"] = 0.0 if frozen else values["lr"] * group["lr_factor"]
        group["weight_decay"] = values["weight_decay"] * group["decay_factor"]
