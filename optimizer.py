"""The optimizers, and what each parameter's rate and weight decay are (Table 16, B.1; official train/train.py).

    AdamW   θ ← θ − η_θ · ( m̂ / (√v̂ + ε) + λ_θ · θ )
    Muon    W ← W − η_W · ( 0.2 · √max(rows, columns) · U Vᵀ + λ_W · W ),      U Σ Vᵀ = 0.05 · G + 0.95 · M

    η_θ = η · layer_decay^(n + 1 − layer) · (patch_embed_lr in the patch embedding),         λ_θ = λ, or 0

η, λ  the schedules' learning rate and weight decay at a step
G, M  the gradient of W, and its moving average, M ← 0.95 · M + 0.05 · G (Nesterov's momentum)
layer of θ: 0 for the patch embedding and all tokens, 1 to n for the blocks, n + 1 for the norm after them; the heads'
      rate is η

λ_θ is 0 for biases, norms and LayerScale.  The paper has AdamW alone; Muon, for the matrices of the blocks, is ours
(Jordan et al. 2024; the factor before U Vᵀ, which makes a step as long as AdamW's, Liu et al. 2025).  PyTorch's Muon
finds U Vᵀ by five Newton-Schulz iterations, which leave most singular values between 0.65 and 1.25.
"""

import torch


def make_optimizers(groups):
    """[AdamW for all groups but those marked "muon", Muon for these where there are any]."""
    muon, adamw = ([g for g in groups if g["muon"] is marked] for marked in (True, False))
    optimizers = [torch.optim.AdamW(adamw, betas=(0.9, 0.999), fused=True)]  # official ssl_default_config.yaml
    if muon:
        optimizers.append(torch.optim.Muon(muon, momentum=0.95, adjust_lr_fn="match_rms_adamw"))
    return optimizers


def parameter_groups(student, r):
    """Student of a recipe -> groups for make_optimizers: of each the parameters, η_θ / η, λ_θ / λ, whether they are
    prototypes, which start frozen, and whether Muon trains them."""
    groups = {}
    for name, p in student.named_parameters():
        decay = 0.0 if name.endswith(("bias", "gamma")) or ".norm" in name else 1.0
        muon = r.optimizer == "muon" and ".blocks." in name and p.ndim == 2
        key = (rate_of(name, len(student.backbone.blocks), r), decay, name.endswith("prototypes"), muon)
        groups.setdefault(key, []).append(p)
    return [
        {"params": params, "lr_factor": rate, "decay_factor": decay, "prototypes": prototypes, "muon": muon}
        for (rate, decay, prototypes, muon), params in groups.items()
    ]


def rate_of(name, n, r):
    """η_θ / η of the parameter of that name, in a ViT of n blocks."""
    if not name.startswith("backbone."):
        return 1.0
    block, last = name.startswith("backbone.blocks."), name.startswith("backbone.norm.")
    layer = int(name.split(".")[2]) + 1 if block else n + 1 if last else 0
    return r.layer_decay ** (n + 1 - layer) * (r.patch_embed_lr if ".patch_embed." in name else 1.0)


def set_rates(optimizers, values):
    """Give all groups what the schedules say at a step (train.schedules_at)."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            frozen = group["prototypes"] and values["frozen_prototypes"]
            group["lr"] = 0.0 if frozen else values["lr"] * group["lr_factor"]
            group["weight_decay"] = values["weight_decay"] * group["decay_factor"]
