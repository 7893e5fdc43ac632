"""Sinkhorn-Knopp: matrices worked out by hand, the paper's six divisions, invariances, extremes, and two ranks.

    pytest tests/test_sinkhorn.py
"""

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


# --------------------------------------------------------------------------------------------------------
# The equation


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
    torch.testing.assert_close(sinkhorn_knopp(z, temp=1.0, n_iters=3), thrice)


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


@pytest.mark.parametrize(("B", "K"), [(1, 4), (2, 2), (8, 100), (40, 7), (2, 3000)])
@pytest.mark.parametrize("temp", [0.04, 0.07, 1.0])
@pytest.mark.parametrize("n_iters", [1, 3])
def test_is_the_papers_algorithm(B, K, temp, n_iters):
    z = scores(B, K)
    ours, slow = sinkhorn_knopp(z, temp, n_iters), slow_sinkhorn_knopp(z, temp, n_iters)
    torch.testing.assert_close(ours.double(), slow, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["corners", "low rows", "one hot"])
def test_is_the_papers_algorithm_at_the_ends_of_the_cosines(kind):
    """±1 at τ = 0.04 spans 50 nats, factors of 10²¹, which float32 must carry."""
    z = scores(16, 50)
    z = {
        "corners": z.sign(),
        "low rows": torch.where(torch.arange(16)[:, None] < 4, -1 + 0.01 * z, z),
        "one hot": 2 * torch.eye(50)[:16] - 1,
    }[kind]
    torch.testing.assert_close(sinkhorn_knopp(z, 0.04).double(), slow_sinkhorn_knopp(z, 0.04), rtol=1e-3, atol=1e-6)


def test_is_the_papers_algorithm_with_far_more_prototypes_than_samples():
    """Each iteration brings the matrix's sum from K to B; were the factor B/K left in the scalings, then here two
    iterations would lose 10⁻⁹, and with 50 nats float32 would run out."""
    z = -torch.ones(2, 65_536)
    z[0, 0], z[1, 1], z[1, 2] = 1.0, 1.0, 0.5
    torch.testing.assert_close(sinkhorn_knopp(z, 0.04).double(), slow_sinkhorn_knopp(z, 0.04), rtol=1e-3, atol=0)


# --------------------------------------------------------------------------------------------------------
# Properties


def test_rows_sum_to_one_and_columns_come_to_share_the_samples():
    z = scores(24, 6)
    assert (sinkhorn_knopp(z, 0.1).sum(dim=1) - 1).abs().max() < 1e-6
    Q = sinkhorn_knopp(z, 0.1, n_iters=300)
    assert (Q.sum(dim=1) - 1).abs().max() < 1e-6
    assert (Q.sum(dim=0) - 24 / 6).abs().max() < 1e-4


def test_without_it_one_prototype_takes_all():
    """A score that favours prototype 1 in every sample: softmax gives it all the mass, three iterations a K-th."""
    z = 0.1 * scores(32, 8)
    z[:, 0] += 0.9
    assert (z / 0.04).softmax(dim=1).mean(dim=0)[0] > 0.99
    assert sinkhorn_knopp(z, 0.04).mean(dim=0)[0] < 1.5 / 8


def test_a_constant_added_to_all_to_a_prototype_or_to_a_sample_changes_nothing():
    """Constants per row or column are what the scaling removes; it starts with columns, so a row's matters to
    three iterations, but not to the limit."""
    z = scores(8, 12)
    expected = sinkhorn_knopp(z, 0.1)
    torch.testing.assert_close(sinkhorn_knopp(z + 3, 0.1), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sinkhorn_knopp(z + scores(1, 12, seed=1), 0.1), expected, rtol=1e-4, atol=1e-5)
    by_row = z + scores(8, 1, seed=1)
    assert (sinkhorn_knopp(by_row, 0.1) - expected).abs().max() > 0.01
    limit = sinkhorn_knopp(z, 0.1, n_iters=500)
    torch.testing.assert_close(sinkhorn_knopp(by_row, 0.1, n_iters=500), limit, rtol=1e-3, atol=1e-4)


def test_order_of_samples_and_prototypes_does_not_matter():
    z = scores(8, 12)
    expected = sinkhorn_knopp(z, 0.07)
    torch.testing.assert_close(sinkhorn_knopp(z.flip(0), 0.07).flip(0), expected)
    torch.testing.assert_close(sinkhorn_knopp(z.flip(1), 0.07).flip(1), expected)


# --------------------------------------------------------------------------------------------------------
# Extremes


def cold_prototypes(temp, span):
    """(64, 512), eight prototypes `span` nats below the rest at that temperature: their sample is as good as any."""
    z = 0.1 * scores(64, 512)
    z[:, :8] -= span * temp
    return z


@pytest.mark.parametrize("temp", [0.005, 0.01, 0.04, 0.07, 0.1])
@pytest.mark.parametrize("span", [10, 80, 110, 200])
def test_far_prototypes_get_their_share(temp, span):
    """64/512 = 0.125 of a sample each; exp(−80) is below float32's usual range beside others, exp(−110) below all."""
    z = cold_prototypes(temp, span)
    Q, exact = sinkhorn_knopp(z, temp).double(), slow_sinkhorn_knopp(z, temp)
    assert exact[:, :8].sum(dim=0).mean() > 0.12
    torch.testing.assert_close(Q, exact, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("temp", [0.05, 0.07])
def test_scores_that_are_no_cosines(temp):
    """A normal distribution of deviation 4, as of a head without unit lengths: ±16, at τ = 0.05 more than 600 nats."""
    z = 4 * torch.randn(64, 512, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sinkhorn_knopp(z, temp).double(), slow_sinkhorn_knopp(z, temp), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [0.0, 1.0, 4.0, 1e4])
@pytest.mark.parametrize(("B", "K"), [(1, 5), (2, 65_536), (64, 5)])
def test_finite_in_every_type_and_inputs_unchanged(dtype, size, B, K):
    """The official code gives NaN from 4 on, exp(4/0.04) being above float32's largest number."""
    z = (scores(B, K).sign() * size).to(dtype)
    kept = z.clone()
    Q = sinkhorn_knopp(z.requires_grad_(), 0.04)
    assert Q.dtype == torch.float32 and not Q.requires_grad and torch.equal(z, kept)
    assert Q.isfinite().all() and (Q >= 0).all()
    assert (Q.sum(dim=1) - 1).abs().max() < 1e-4


def test_one_sample_towering_over_the_others():
    """Its exponential is all that float32 sees at first; the others must still get their row of 1."""
    z = scores(4, 6)
    z[0] += 1e4
    Q = sinkhorn_knopp(z, 0.04)
    assert Q.isfinite().all() and (Q.sum(dim=1) - 1).abs().max() < 1e-5


def test_identical_samples_share_evenly():
    """B equal rows: every column is divided by its own value, and nothing is left to tell prototypes apart."""
    Q = sinkhorn_knopp(scores(1, 5).expand(7, 5), 0.04)
    torch.testing.assert_close(Q, torch.full((7, 5), 1 / 5))


def test_no_samples():
    """A batch without a masked patch has no patch targets."""
    assert sinkhorn_knopp(torch.zeros(0, 5), 0.04).shape == (0, 5)


def test_autocast_around_it_changes_nothing():
    z = scores(16, 30)
    with torch.autocast("cpu", torch.bfloat16):
        Q = sinkhorn_knopp(z, 0.04)
    assert torch.equal(Q, sinkhorn_knopp(z, 0.04))


# --------------------------------------------------------------------------------------------------------
# Two ranks


def work(rank, folder):
    """One of two processes: its part of each batch, in unequal shares or none at all, saved."""
    distributed.start("cpu")
    targets = [sinkhorn_knopp(z.split(sizes)[rank], temp) for z, sizes, temp in shared_batches()]
    torch.save(targets, folder / f"{rank}.pt")
    distributed.stop()


def shared_batches():
    """(the whole batch, its parts, temperature): uneven scores, far prototypes, and a rank without samples."""
    return [(uneven_batch(), [3, 7], 0.04), (cold_prototypes(0.01, 150), [20, 44], 0.01), (scores(5, 6), [0, 5], 0.04)]


def uneven_batch():
    """(10, 12), the second rank's scores higher: each rank's own largest score is not the largest of all."""
    return 0.5 * scores(10, 12) + torch.tensor([0.0, 0.5]).repeat_interleave(torch.tensor([3, 7]))[:, None]


def test_two_ranks_give_the_rows_of_one_process(tmp_path):
    in_ranks(work, 2, tmp_path)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for (z, _, temp), rows in zip(shared_batches(), map(torch.cat, zip(*parts)), strict=True):
        torch.testing.assert_close(rows, sinkhorn_knopp(z, temp), rtol=1e-4, atol=1e-6)
    alone = torch.cat([sinkhorn_knopp(part, 0.04) for part in uneven_batch().split([3, 7])])
    assert (alone - torch.cat([part[0] for part in parts])).abs().max() > 0.01  # what ranks that do not talk would give
