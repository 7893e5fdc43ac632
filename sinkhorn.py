"""Sinkhorn-Knopp centering of the teacher (§4, "Sinkhorn-Knopp centering"; Caron et al., SwAV, 2020).

The teacher's scores become the transport plan that is nearest to them and that uses all prototypes equally:

    Q* = argmax ⟨Q, Z/τ⟩ + H(Q)   over   Q ≥ 0,   Qᵀ1_B = 1_K / K,   Q 1_K = 1_B / B

Sinkhorn's answer is a rescaling of columns and rows, Q = diag(a) exp(Z/τ) diag(r), found by turns:

    r_k ← 1 / Σ_b a_b exp(Z_bk/τ)          each prototype gets the same mass
    a_b ← 1 / Σ_k exp(Z_bk/τ) r_k          each sample's row sums to 1

    Z  logits  (B, K)   teacher scores of B samples (on all ranks together) for K prototypes
    τ  temp             teacher temperature
    a  (B,), r  (K,)    the two scaling vectors
    Q  (B, K)           targets

The official code divides the whole matrix six times, once by its sum (which cancels), and gives NaN from logits
of 4 at τ = 0.04 on, since exp overflows.  Here the matrix is written once and the iterations are two matrix-vector
products each.  It is softmax(Z/τ): exp(Z/τ) with each row divided by its sum, which the first a gives back.
"""

import torch
from torch.nn import functional as F

from distributed import max_over_ranks, sum_over_ranks

FLOOR = 1e-30  # of a prototype's mass by the largest, ours: one that float32 cannot see (70 nats down) stays finite


@torch.no_grad()
def sinkhorn_knopp(logits, temp, n_iters=3):
    """Teacher logits (B, K), any float type -> targets Q (B, K) float32, rows sum to 1.

    temp: τ > 0.  n_iters: 3 in the paper (§4).  Prototype sums go over the samples of all ranks.

    >>> z = torch.tensor([[1.0, 2.0], [1.0, 1.0]]).log()  # exp(z) = [[1, 2], [1, 1]]
    >>> (sinkhorn_knopp(z, temp=1.0, n_iters=1) * 35).round()  # r ∝ (1/2, 1/3): rows (1/2, 2/3), (1/2, 1/3)
    tensor([[15., 20.],
            [21., 14.]])
    """
    with torch.autocast(logits.device.type, enabled=False):  # it would make the products bf16
        E = (logits.float() / temp).softmax(dim=1)  # (B, K)
        log_sum = logits.amax(dim=1).float() / temp - E.amax(dim=1).log()  # (B,)  log Σ_k exp(Z_bk/τ)
        top = F.pad(log_sum, (0, 1), value=-torch.inf).max()  # also of no rows, where no patch is masked
        a = (log_sum - max_over_ranks(top)).exp()  # (B,)  the largest is 1
        for _ in range(n_iters):
            mass = sum_over_ranks(a @ E)  # (K,)
            r = 1 / (mass / mass.max()).clamp(min=FLOOR)  # (K,)  r >= 1 and a <= 1: else a grows by B/K each time
            a = 1 / (E @ r)  # (B,)
        return E.mul_(r).mul_(a[:, None])  # (B, K)
