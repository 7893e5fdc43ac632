"""Sinkhorn-Knopp centering of the teacher (§4, "Sinkhorn-Knopp centering"; Caron et al., SwAV, 2020).

The teacher's scores become the transport plan that is nearest to them and that uses all prototypes equally:

    Q* = argmax ⟨Q, Z/τ⟩ + H(Q)   over   Q ≥ 0,   Qᵀ1_B = 1_K / K,   Q 1_K = 1_B / B

Its answer is a rescaling of rows and columns, found by turns.  With E = softmax(Z/τ), row by row,

    Q = diag(a) E diag(r),        r_k ← 1 / Σ_b a_b E_bk        each prototype gets the same mass
                                  a_b ← 1 / Σ_k E_bk r_k        each sample's row sums to 1 (B times the plan's)

where a_b starts as Σ_k exp(Z_bk/τ), the sum that softmax divided by: diag(a) E = exp(Z/τ).  After three rounds the rows
are exact and the columns nearly so.

    Z  logits  (B, K)   teacher scores of B samples for K prototypes; Σ_b goes over those of all ranks
    τ  temp             teacher temperature
    a  (B,), r  (K,)    the two scaling vectors; a common factor of either cancels
    Q  (B, K)           targets

The official code passes over the whole matrix 14 times to divide or multiply it, and gives NaN from logits of 4 at
τ = 0.04 on, since exp overflows.  Here an iteration only reads it, in two matrix-vector products.
"""

import torch
from torch.nn import functional as F

from distributed import max_over_ranks, sum_over_ranks

FLOOR = 1e-30  # ours: least mass of a prototype, as a share of the largest; with less (70 nats down) 1/mass overflows


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
        log_a = logits.amax(dim=1).float() / temp - E.amax(dim=1).log()  # (B,)  log Σ_k exp(Z_bk/τ), by the largest
        top = F.pad(log_a, (0, 1), value=-torch.inf).max()  # also of no rows, where no patch is masked
        a = (log_a - max_over_ranks(top)).exp()  # (B,)  at most 1
        for _ in range(n_iters):
            mass = sum_over_ranks(a @ E)  # (K,)
            r = 1 / (mass / mass.max()).clamp(min=FLOOR)  # (K,)  at least 1, so that a stays at most 1
            a = 1 / (E @ r)  # (B,)
        Q = E.mul_(r).mul_(a[:, None])  # (B, K)
        return Q
