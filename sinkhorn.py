"""Sinkhorn-Knopp centering of the teacher (§4, "Sinkhorn-Knopp centering"; Caron et al., SwAV, 2020).

The targets follow the teacher's scores, but share the batch equally among all prototypes:

    Q* = argmax_Q  Σ_bk Q_bk Z_bk − τ Σ_bk Q_bk log Q_bk        over Q ≥ 0 with  Σ_k Q_bk = 1  and  Σ_b Q_bk = B/K

The solution is exp(Z/τ) with rows and columns rescaled.  Start from Q = exp(Z/τ) and repeat three times:

    Q_bk ← Q_bk / Σ_b Q_bk        every column sums to 1; the factor B/K cancels in the next line
    Q_bk ← Q_bk / Σ_k Q_bk        every row sums to 1, but columns no longer; at τ = 0.01 they end far from equal

    Z  logits  (B, K)   teacher scores for K prototypes of B rows: the [CLS] tokens of both global views together,
                        or the masked patches.  A rank (GPU) passes its own rows; Σ_b is over all ranks
    τ  temp             teacher temperature (dino_loss.py)
    Q  (B, K)           targets

Iteration 1 works in logarithms, because exp(Z/τ) can overflow or underflow float32.  Later ones are safe: after columns
sum to 1, a row sums to at most K, so its division leaves each column at least 1/K.  They find a factor for each row and
each column, Q ← diag(u)·Q·diag(v), which saves memory traffic.  The official code can give NaN (docs/official.md).
"""

import torch

from distributed import max_over_ranks, sum_over_ranks


@torch.no_grad()
def sinkhorn_knopp(logits, temp, n_iters=3):
    """Teacher logits (B, K), temperature > 0 -> targets (B, K) float32, rows sum to 1.  Paper: 3 iterations.

    >>> z = torch.tensor([[1.0, 2.0], [1.0, 1.0]]).log()  # exp(z) = [[1, 2], [1, 1]]
    >>> (sinkhorn_knopp(z, temp=1.0, n_iters=1) * 35).round()  # by columns: rows (1/2, 2/3), (1/2, 1/3)
    tensor([[15., 20.],
            [21., 14.]])
    """
    log_Q = logits.float() / temp  # (B, K)
    log_Q -= logsumexp_over_samples(log_Q)  # (K,)
    Q = log_Q.softmax(dim=1)  # exp; rows sum to 1
    u, v = Q.new_ones(len(Q)), 1.0  # (B,), (K,)
    with torch.autocast(Q.device.type, enabled=False):  # products in float32
        for _ in range(n_iters - 1):
            v = 1 / sum_over_ranks(u @ Q)  # then columns sum to 1
            u = 1 / (Q @ v)  # then rows sum to 1
    return Q.mul_(u[:, None]).mul_(v)


def logsumexp_over_samples(x):
    """log Σ_b exp(x_bk) over the rows of all ranks: (B, K) -> (K,).  There may be no rows."""
    highest = max_over_ranks(x.amax(dim=0) if len(x) else x.new_full(x.shape[1:], -torch.inf))  # (K,)
    return highest + sum_over_ranks((x - highest).exp_().sum(dim=0)).log()
