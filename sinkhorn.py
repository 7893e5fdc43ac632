"""Sinkhorn-Knopp centering of the teacher (§4, "Sinkhorn-Knopp centering"; Caron et al., SwAV, 2020).

The teacher's scores become the transport plan that is nearest to them and that uses all prototypes equally:

    Q* = argmax ⟨Q, Z/τ⟩ + H(Q)

    over all  Q ≥ 0  with  Qᵀ1_B = 1_K / K  and  Q 1_K = 1_B / B

Its answer is exp(Z/τ) with rows and columns rescaled.  From Q = exp(Z/τ), three times,

    Q_bk ← Q_bk / Σ_b Q_bk        each prototype gets the same mass, 1
    Q_bk ← Q_bk / Σ_k Q_bk        each sample's row sums to 1, so Q is B times the plan

after which the rows are exact, and each column is nearer to its B/K than before.

    Z  logits  (B, K)   teacher scores of B samples for K prototypes; Σ_b goes over those of all ranks.  Samples are the
                        [CLS] tokens of both global views together, or the masked patches
    τ  temp             teacher temperature
    Q  (B, K)           targets

The first time in logarithms, a softmax over samples and then one over prototypes, since exp(Z/τ) can be too large for
float32, or too small.  From then on neither happens: where all columns sum to 1 no row sums to more than K, so dividing
by the rows leaves each column a K-th of its mass at least.  The official code takes exp(Z/τ), which gives NaN from
scores of 4 at τ = 0.04 on, and no mass to a prototype that is 104 nats below another.
"""

import torch

from distributed import max_over_ranks, sum_over_ranks


@torch.no_grad()
def sinkhorn_knopp(logits, temp, n_iters=3):
    """Teacher logits (B, K), any float type -> targets Q (B, K) float32, rows sum to 1.

    temp: τ > 0.  n_iters: 3 in the paper (§4).  Prototype sums go over the samples of all ranks.

    >>> z = torch.tensor([[1.0, 2.0], [1.0, 1.0]]).log()  # exp(z) = [[1, 2], [1, 1]]
    >>> (sinkhorn_knopp(z, temp=1.0, n_iters=1) * 35).round()  # by columns: rows (1/2, 2/3), (1/2, 1/3)
    tensor([[15., 20.],
            [21., 14.]])
    """
    log_Q = logits.float() / temp  # (B, K)
    log_Q -= logsumexp_over_samples(log_Q)  # (K,)
    Q = log_Q.softmax(dim=1)
    for _ in range(n_iters - 1):
        Q /= sum_over_ranks(Q.sum(dim=0))  # (K,)
        Q /= Q.sum(dim=1, keepdim=True)  # (B, 1)
    return Q


def logsumexp_over_samples(x):
    """log Σ_b exp(x_bk) over the rows of all ranks: (B, K) -> (K,).  A rank may have no rows."""
    top = x.amax(dim=0) if len(x) else x.new_full(x.shape[1:], -torch.inf)  # (K,)
    top = max_over_ranks(top)
    return top + sum_over_ranks((x - top).exp_().sum(dim=0)).log()
