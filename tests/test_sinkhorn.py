"""Sinkhorn-Knopp: matrices worked out by hand, the paper's six divisions, invariances, extremes, and two ranks."""

import math

import pytest
import torch
from conftest import in_ranks

import distributed
from sinkhorn import sinkhorn_knopp


def scores(B, K, seed=0):
    """Cosines (B, K) as a head gives them, spread over the whole of [−1, 1]."""
    return torch.rand(B, K, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def slow_sinkhorn_knopp(logits, temp, n_iters=3):
    """SwAV's algorithm in float64: the whole matrix divided over and over, prototypes before samples."""
    z = logits.double() / temp
    Q = (z - z.max()).exp().T  # (K, B)
    K, B = Q.shape
    Q = Q / Q.sum()
    for _ in range(n_iters):
        Q = Q / Q.sum(dim=1, keepdim=True) / K
        Q = Q / Q.sum(dim=0, keepdim=True) / B
    return (Q * B).T


def test_three_iterations_by_hand():
    """exp(Z) = [[1, 2], [1, 1]].

    Columns sum to 2 and 3; divided: [[1/2, 2/3], [1/2, 1/3]]; rows to one: [[3/7, 4/7], [3/5, 2/5]].
    Columns sum to 36/35 and 34/35; divided: [[5/12, 10/17], [7/12, 7/17]]; rows as 17 : 24 and 17 : 12.
    Columns sum to 17·70/1189 and 12·99/1189; divided: [[29/70, 58/99], [41/70, 41/99]]; rows as 99 : 140 and 99 : 70.
    """
    z = torch.tensor([[1.0, 2.0], [1.0, 1.0]]).log()
    once = torch.tensor([[3 / 7, 4 / 7], [3 / 5, 2 / 5]])
    twice = torch.tensor([[17 / 41, 24 / 41], [17 / 29, 12 / 29]])
    thrice = torch.tensor([[99 / 239, 140 / 239], [99 / 169, 70 / 169]])
    torch.testing.assert_close(sinkhorn_knopp(z, temp=1.0, n_iters=1), once)
    torch.testing.assert_close(sinkhorn_knopp(z, temp=1.0, n_iters=2), twice)
    torch.testing.assert_close(sinkhorn_knopp(z, temp=1.0), thrice)


def test_the_limit_by_hand():
    """Scaling rows and columns keeps q₁₁q₂₂/q₁₂q₂₁ = 1·1/(2·1) = 1/2. With all sums 1 it is p²/(1 − p)², p = √2 − 1."""
    z = torch.tensor([[1.0, 2.0], [1.0, 1.0]]).log()
    p = math.sqrt(2) - 1
    torch.testing.assert_close(sinkhorn_knopp(z, 1.0, n_iters=50), torch.tensor([[p, 1 - p], [1 - p, p]]))


def test_temperature_by_hand():
    """At τ = 1/2 exp(Z/τ) is [[1, 4], [1, 1]]: columns 2 and 5, so rows as 1/2 : 4/5 and 1/2 : 1/5."""
    z = torch.tensor([[1.0, 2.0], [1.0, 1.0]]).log()
    expected = torch.tensor([[5 / 13, 8 / 13], [5 / 7, 2 / 7]])
    torch.testing.assert_close(sinkhorn_knopp(z, temp=0.5, n_iters=1), expected)


def cold_prototypes(temp, span):
    """(64, 512), eight prototypes `span` nats below the others at that temperature."""
    z = 0.1 * scores(64, 512)
    z[:, :8] -= span * temp
    return z


def far_more_prototypes():
    """(2, 65 536).  If the factor B/K stayed in Q, two iterations would lose 10⁻⁹ here, and with 50 nats underflow."""
    z = -torch.ones(2, 65_536)
    z[0, 0], z[1, 1], z[1, 2] = 1.0, 1.0, 0.5
    return z


CASES = {  # logits, temperature
    "one sample": (scores(1, 4), 0.04),
    "more samples than prototypes": (scores(40, 7), 0.07),
    "more prototypes than samples": (scores(8, 100), 0.04),
    "warm": (scores(8, 100), 1.0),
    "all ±1": (scores(16, 50).sign(), 0.04),  # 50 nats, factors of 10²¹
    "some rows at −1": (torch.where(torch.arange(16)[:, None] < 4, -1 + 0.01 * scores(16, 50), scores(16, 50)), 0.04),
    "one hot": (2 * torch.eye(50)[:16] - 1, 0.04),
    "65,536 prototypes for 2 samples": (far_more_prototypes(), 0.04),
    "no cosines": (4 * torch.randn(64, 512, generator=torch.Generator().manual_seed(0)), 0.05),  # more than 600 nats
    **{f"prototypes {n} nats below": (cold_prototypes(0.04, n), 0.04) for n in (80, 110, 200)},  # exp(−110) is 0
}


@pytest.mark.parametrize("n_iters", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_is_the_papers_algorithm(case, n_iters):
    z, temp = CASES[case]
    ours, slow = sinkhorn_knopp(z, temp, n_iters), slow_sinkhorn_knopp(z, temp, n_iters)
    torch.testing.assert_close(ours.double(), slow, rtol=1e-3, atol=1e-6)
    assert (ours.sum(dim=1) - 1).abs().max() < 3e-5  # a product adds up 65,536 terms with this error


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [0.0, 1.0, 4.0, 1e4])
@pytest.mark.parametrize(("B", "K"), [(0, 5), (1, 5), (2, 65_536), (64, 5)])
def test_finite_in_every_type_and_inputs_unchanged(dtype, size, B, K):
    """The official code gives NaN from 3.55 on, since exp(3.55/0.04) is above float32's largest number."""
    z = (scores(B, K).sign() * size).to(dtype)
    kept = z.clone()
    Q = sinkhorn_knopp(z.requires_grad_(), 0.04)
    assert Q.shape == (B, K) and Q.dtype == torch.float32 and not Q.requires_grad and torch.equal(z, kept)
    assert Q.isfinite().all() and (Q >= 0).all() and torch.allclose(Q.sum(dim=1), torch.ones(B), atol=1e-4)


def shared_batches():
    """(the whole batch, its parts, temperature): uneven scores, far prototypes, and a rank without samples.

    In the first one the second rank's scores are higher: each rank's own largest score is not the largest of all.
    """
    uneven = 0.5 * scores(10, 12) + torch.tensor([0.0, 0.5]).repeat_interleave(torch.tensor([3, 7]))[:, None]
    return [(uneven, [3, 7], 0.04), (cold_prototypes(0.01, 150), [20, 44], 0.01), (scores(5, 6), [0, 5], 0.04)]


def run_rank(rank, folder):
    """One of two processes: its part of each batch, saved."""
    distributed.start(torch.device("cpu"))
    targets = [sinkhorn_knopp(z.split(sizes)[rank], temp) for z, sizes, temp in shared_batches()]
    torch.save(targets, folder / f"{rank}.pt")
    distributed.stop()


def test_two_ranks_give_the_rows_of_one_process(tmp_path):
    in_ranks(run_rank, 2, tmp_path)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for (z, _, temp), rows in zip(shared_batches(), map(torch.cat, zip(*parts)), strict=True):
        torch.testing.assert_close(rows, sinkhorn_knopp(z, temp), rtol=1e-4, atol=1e-6)
