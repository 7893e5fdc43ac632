"""Projection head (§4, "Untying head weights"; DINO's head).  Each of the two losses has its own.

    y = MLP(x),    ŷ = y / ‖y‖,    ŵ_k = w_k / ‖w_k‖,    z_k = ⟨ŷ, ŵ_k⟩

    x  (..., in_dim)          [CLS] or patch tokens
    y  (..., bottleneck_dim)  bottleneck
    w  (K, bottleneck_dim)    prototypes
    z  (..., K)               logits: cosines in [−1, 1], which bf16 autocast rounds by up to 2⁻⁹

Our prototypes have length 1.  The official code trains a length for each; DINO v1 freezes it at 1 by default, but
trained it for its ViT-S.  The official Linear layers start with deviation 0.02 at any width, ours with 1/√width.
"""

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F


class Head(nn.Module):
    """An MLP of n_layers with GELU, then cosines with K prototypes: (..., in_dim) -> (..., K)."""

    def __init__(self, in_dim, n_prototypes, hidden_dim=2048, bottleneck_dim=256, n_layers=3):
        super().__init__()
        widths = [in_dim] + [hidden_dim] * (n_layers - 1) + [bottleneck_dim]
        layers = [layer for i, o in pairwise(widths) for layer in (nn.Linear(i, o), nn.GELU())]
        self.mlp = nn.Sequential(*layers[:-1])
        self.prototypes = nn.Parameter(torch.empty(n_prototypes, bottleneck_dim))
        for layer in layers[::2]:
            nn.init.trunc_normal_(layer.weight, std=layer.in_features**-0.5)
            nn.init.zeros_(layer.bias)
        nn.init.trunc_normal_(self.prototypes, std=0.02)  # AdamW turns short vectors faster

    def forward(self, x):
        y_hat = F.normalize(self.mlp(x).float(), dim=-1, eps=1e-6)
        w_hat = F.normalize(self.prototypes, dim=1)
        return F.linear(y_hat, w_hat)
