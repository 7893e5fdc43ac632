"""Softmax centering of the teacher (DINO, Caron et al. 2021, eq. 4).  The paper replaces it by Sinkhorn-Knopp (§4).

    p_t = softmax((z_t − c) / τ_t),        c ← m·c + (1 − m)·mean_b z_t

    z_t  logits  (B, K)   teacher scores of B rows, as in sinkhorn.py
    c    centre  (K,)     moving average over earlier batches and all ranks; m is its momentum
    τ_t  temp             teacher temperature (dino_loss.py)

Sharpening by τ_t alone ends with one prototype for all images, centering alone with flat targets.  In DINO, together
they prevent both.
"""

import torch
from torch import nn

from distributed import sum_over_ranks, world_size


class SoftmaxCentering(nn.Module):
    """Holds the centre c (K,), which starts at 0."""

    def __init__(self, n_prototypes, momentum=0.9):  # 0.9: DINO
        super().__init__()
        self.momentum = momentum
        self.register_buffer("centre", torch.zeros(n_prototypes))

    @torch.no_grad()
    def forward(self, logits, temp):
        """Logits (B, K) -> probabilities (B, K) float32, from the centre so far.  Then update the centre."""
        z = logits.float()  # (B, K)
        p_t = ((z - self.centre) / temp).softmax(dim=-1)  # (B, K)
        if len(z):  # empty only if no patch is masked, and then on every rank
            self.centre.lerp_(sum_over_ranks(z.mean(dim=0)) / world_size(), 1 - self.momentum)
        return p_t
