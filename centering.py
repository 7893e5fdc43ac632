"""Softmax centering of the teacher with a moving average (DINO, Caron et al. 2021, eq. 4).

§4 and Table 1 replace it by Sinkhorn-Knopp; it is kept as the ablation's other arm.

    p_t = softmax((z_t − c) / τ_t),        c ← m·c + (1 − m)·mean_b z_t

    z_t  logits  (B, K)   teacher scores
    c    centre  (K,)     moving average over batches (and ranks); a batch is centred by those before it
    τ_t  temp             teacher temperature: centering alone drifts to uniform, sharpening alone to one code
"""

import torch
from torch import nn

from distributed import sum_over_ranks, world_size


class SoftmaxCentering(nn.Module):
    """Keeps the centre c; forward(logits (B, K), temp) -> probabilities (B, K) float32, then moves c.

    >>> centering = SoftmaxCentering(2)
    >>> z = torch.tensor([[1.0, 3.0]]).log()
    >>> centering(z, temp=1.0)  # c = 0
    tensor([[0.2500, 0.7500]])
    >>> torch.allclose(centering.centre, 0.1 * z[0])
    True
    """

    def __init__(self, n_prototypes, momentum=0.9):  # 0.9: DINO
        super().__init__()
        self.momentum = momentum
        self.register_buffer("centre", torch.zeros(n_prototypes))

    @torch.no_grad()
    def forward(self, logits, temp):
        """Probabilities of (B, K) logits under the centre so far; the centre then moves towards their mean."""
        z = logits.float()  # (B, K)
        p_t = ((z - self.centre) / temp).softmax(dim=-1)  # (B, K)
        if len(z):  # empty only where no patch is masked, and then on every rank
            self.centre.lerp_(sum_over_ranks(z.mean(dim=0)) / world_size(), 1 - self.momentum)
        return p_t
