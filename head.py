"""Projection head (§4 "Untying head weights"; DINO's head).

    y = MLP(x),    ŷ = y / ‖y‖,    z_k = ⟨ŷ, ŵ_k⟩,    ŵ_k = w_k / ‖w_k‖

    x  (..., in_dim)          [CLS] or patch tokens
    y  (..., bottleneck_dim)  the bottleneck
    w  (K, bottleneck_dim)    prototypes, normalised when used
    z  (..., K)               logits: cosines, in [−1, 1]; under autocast in bf16, so to ±2⁻⁹ near 1

The two losses have a head each.  The official code keeps a trained (and decayed) length for each prototype;
DINO v1 froze it at 1, and so do we: a length is a per-prototype temperature that centering has to fight.
It starts the MLP with deviation 0.02 at any width; ours is 1/√width, without which a narrow head gives all images
nearly the same logits, and a short run stays at the uniform loss ln K.
"""

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F


class Head(nn.Module):
    """An MLP of n_layers with GELU, a unit bottleneck, and K unit prototypes: (..., in_dim) -> (..., K)."""

    def __init__(self, in_dim, n_prototypes, hidden_dim=2048, bottleneck_dim=256, n_layers=3):
        super().__init__()
        widths = [in_dim] + [hidden_dim] * (n_layers - 1) + [bottleneck_dim]
        layers = [m for i, o in pairwise(widths) for m in (nn.Linear(i, o), nn.GELU())]
        self.mlp = nn.Sequential(*layers[:-1])
        self.prototypes = nn.Parameter(torch.empty(n_prototypes, bottleneck_dim))
        for layer in layers[::2]:
            nn.init.trunc_normal_(layer.weight, std=layer.in_features**-0.5)
            nn.init.zeros_(layer.bias)
        nn.init.trunc_normal_(self.prototypes, std=0.02)  # w loses the length, but a short one turns faster

    def forward(self, x):
        """Logits (..., K): the cosine of each row's bottleneck and each prototype."""
        y_hat = F.normalize(self.mlp(x).float(), dim=-1, eps=1e-6)  # (..., bottleneck_dim)
        w_hat = F.normalize(self.prototypes, dim=1)  # (K, bottleneck_dim)
        return F.linear(y_hat, w_hat)  # z (..., K)
