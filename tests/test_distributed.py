"""The lines that know of other GPUs: no-ops in one process, and sums, means and flags in two.

    pytest tests/test_distributed.py
"""

import pytest
import torch
from conftest import in_ranks

import distributed


def parameters_with_gradients(rank):
    """Three parameters: gradients (r + 1)·(1, 2), none, and (r + 1)·10 as a transposed 3×2 matrix."""
    a, b, c = (torch.nn.Parameter(torch.zeros(shape)) for shape in [(2,), (5,), (3, 2)])
    a.grad = (rank + 1) * torch.tensor([1.0, 2.0])
    c.grad = (rank + 1) * torch.arange(6.0).view(2, 3).T * 10
    return [a, b, c]


# --------------------------------------------------------------------------------------------------------
# One process


def test_every_function_is_a_no_op_in_a_single_process(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert distributed.start("cpu") == torch.device("cpu")
    assert distributed.rank() == 0 and distributed.world_size() == 1
    x = torch.tensor([1.0, -2.0])
    assert distributed.sum_over_ranks(x) is x and distributed.max_over_ranks(x) is x
    assert x.tolist() == [1, -2]
    assert distributed.any_rank(True) is True and distributed.any_rank(0) is False
    parameters = parameters_with_gradients(0)
    distributed.average_gradients(iter(parameters))
    assert parameters[0].grad.tolist() == [1, 2] and parameters[1].grad is None
    distributed.stop()
    assert not torch.distributed.is_initialized()


# --------------------------------------------------------------------------------------------------------
# Two processes


def work(rank, folder):
    """One of two processes; saves what it saw."""
    device = distributed.start("cpu")
    parameters = parameters_with_gradients(rank)
    transposed = parameters[2].grad
    distributed.average_gradients(iter(parameters))
    seen = {
        "device": str(device),
        "rank": distributed.rank(),
        "world_size": distributed.world_size(),
        "sum": distributed.sum_over_ranks(torch.tensor([1.0, 10.0 * rank])),
        "max": distributed.max_over_ranks(torch.tensor([-1.0 - rank, 10.0 * rank])),
        "any": [distributed.any_rank(flag) for flag in (False, rank == 1, rank == 0, True)],
        "grads": [p.grad for p in parameters],
        "in place": parameters[2].grad is transposed,
        "gathered": distributed.gather(torch.tensor([rank, 10])),
        "decided": distributed.from_first_rank(lambda: {"by": rank}),
    }
    try:
        distributed.from_first_rank(lambda: {}["missing"])
    except KeyError as error:
        seen["error"] = str(error)
    distributed.wait()
    distributed.stop()
    seen["stopped"] = distributed.world_size() == 1
    torch.save(seen, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """What each of two processes saw."""
    folder = tmp_path_factory.mktemp("ranks")
    in_ranks(work, 2, folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_they_know_who_they_are(two_ranks):
    assert [seen["rank"] for seen in two_ranks] == [0, 1]
    assert all(seen["world_size"] == 2 and seen["device"] == "cpu" and seen["stopped"] for seen in two_ranks)


def test_sum_and_max_by_hand(two_ranks):
    """(1, 0) + (1, 10), and the larger of (−1, 0) and (−2, 10)."""
    for seen in two_ranks:
        assert seen["sum"].tolist() == [2, 10]
        assert seen["max"].tolist() == [-1, 10]


def test_any_rank(two_ranks):
    """Nobody, the second, the first, both."""
    assert all(seen["any"] == [False, True, True, True] for seen in two_ranks)


def test_gather_is_in_the_order_of_ranks(two_ranks):
    assert all(seen["gathered"].tolist() == [[0, 10], [1, 10]] for seen in two_ranks)


def test_the_first_rank_decides_for_all_and_its_errors_are_everybodys(two_ranks):
    assert all(seen["decided"] == {"by": 0} and seen["error"] == "'missing'" for seen in two_ranks)


def test_gradients_by_hand(two_ranks):
    """The mean of once and twice is one and a half; a parameter without a gradient keeps none."""
    a, b, c = parameters_with_gradients(0)
    for seen in two_ranks:
        assert torch.equal(seen["grads"][0], 1.5 * a.grad)
        assert seen["grads"][1] is None
        assert torch.equal(seen["grads"][2], 1.5 * c.grad)
        assert seen["in place"]
