"""The lines that know of other GPUs: no-ops in one process, sums and flags in two, and training in shards.

    pytest tests/test_distributed.py
"""

import os
import signal
from contextlib import nullcontext
from functools import partial
from unittest.mock import patch

import pytest
import torch
from conftest import in_ranks, shards_on_cpus
from torch.multiprocessing.spawn import ProcessException

import distributed
import train
import vit
from recipes import get_recipe
from support.checkpoint import read_checkpoint, restore, save_checkpoint
from support.log import mean_over_ranks
from support.start import start_run

# ---------------------------------------------------------------------------- One process


def test_every_function_is_a_no_op_in_a_single_process(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert distributed.start("cpu") == torch.device("cpu")
    assert distributed.rank() == 0 and distributed.world_size() == 1
    x = torch.tensor([1.0, -2.0])
    assert distributed.sum_over_ranks(x) is x and distributed.max_over_ranks(x) is x
    assert x.tolist() == [1, -2]
    assert distributed.any_rank(True) is True and distributed.any_rank(0) is False
    network = torch.nn.ModuleDict({"backbone": torch.nn.Linear(2, 2)})
    assert distributed.shard(network) is network and distributed.unsharded(network, None) is network
    assert distributed.full_tensor(x) is x and distributed.local_shards(network)[0] is network.backbone.weight
    assert distributed.in_shares(lambda rows: 2 * rows, x).tolist() == [2, -4]
    distributed.stop()
    assert not torch.distributed.is_initialized()


# ---------------------------------------------------------------------------- Two processes


def work(rank, folder):
    """One of two processes; saves what it saw."""
    device = distributed.start("cpu")
    seen = {
        "device": str(device),
        "rank": distributed.rank(),
        "world_size": distributed.world_size(),
        "sum": distributed.sum_over_ranks(torch.tensor([1.0, 10.0 * rank])),
        "max": distributed.max_over_ranks(torch.tensor([-1.0 - rank, 10.0 * rank])),
        "any": [distributed.any_rank(flag) for flag in (False, rank == 1, rank == 0, True)],
        "gathered": distributed.gather(torch.tensor([rank, 10])),
        "shares": [distributed.in_shares(lambda rows: rows + 10, torch.arange(n)) for n in (1, 4, 5)],
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


def test_what_two_ranks_see_by_hand(two_ranks):
    """Sum: (1, 0) + (1, 10).  Maximum: of (−1, 0) and (−2, 10).  Any: nobody, the second, the first, both.  Shares: of
    one row, of four, and of five, where the second rank has two of its own and the last one again."""
    assert [seen["rank"] for seen in two_ranks] == [0, 1]
    for seen in two_ranks:
        assert seen["world_size"] == 2 and seen["device"] == "cpu" and seen["stopped"]
        assert seen["sum"].tolist() == [2, 10] and seen["max"].tolist() == [-1, 10]
        assert seen["any"] == [False, True, True, True]
        assert seen["gathered"].tolist() == [[0, 10], [1, 10]]
        assert seen["decided"] == {"by": 0} and seen["error"] == "'missing'"
        assert [x.tolist() for x in seen["shares"]] == [list(range(10, 10 + n)) for n in (1, 4, 5)]


# ---------------------------------------------------------------------------- Training on any number of processes

STEPS, BATCH, LOSSES = 8, 8, ("loss", "dino", "ibot")
SMALL = {"patch_size": 4, "n_prototypes": 16, "head_hidden": 16, "dino_bottleneck": 8, "ibot_bottleneck": 8,
         "global_size": 8, "local_size": 4, "n_local": 2, "hires_share": 0.0, "steps": STEPS, "drop_path": 0.0,
         "batch": BATCH, "amp": False, "koleo_weight": 0.0, "lr": 1e-2}  # fmt: skip


def shorten_vit():
    """In this process vit_pico has two blocks; each block is two messages a pass."""
    vit.vit_pico = partial(vit.ViT, 96, 2, 2)


def some_steps(run, last):
    """Steps up to `last`, each on the rank's share of the same crops and masks, however many ranks there are."""
    rank, world, losses = distributed.rank(), distributed.world_size(), []

    def mine(x):
        return x.unflatten(0, (-1, BATCH)).chunk(world, dim=1)[rank].flatten(0, 1)

    def crop(images, seed):
        torch.manual_seed(run.step)
        return mine(torch.randn(2 * BATCH, 3, 8, 8)), mine(torch.randn(2 * BATCH, 3, 4, 4))

    masks = torch.arange(2 * BATCH)[:, None] % 2 > torch.arange(4) % 2  # each odd image, two patches of four
    while run.step < last:
        with patch.object(train, "sample_masks", lambda *_: mine(masks)):
            images, values = torch.zeros(BATCH // world, 3, 8, 8), train.schedules_at(5, run.recipe)
            found, *_ = train.train_step(run, images, crop, values)
        losses.append(mean_over_ranks(found))
    return losses


def go_on(rank, folder, last, seed=0):
    """From the checkpoint in the folder, or from the start; what was found is saved beside the new checkpoint.

    Four ranks are two nodes of two: a mesh of shards within a node and replicas between them.  Several ranks go on
    after the checkpoint, and in the second step the last of them is killed.
    """
    if os.environ.get("WORLD_SIZE") == "4":
        os.environ["LOCAL_WORLD_SIZE"] = "2"
    shorten_vit()
    run = start_run(get_recipe("shapes", **SMALL, seed=seed), distributed.start("cpu"))
    if (folder / "checkpoint.pt").exists():
        restore(run, read_checkpoint(folder / "checkpoint.pt"))
    losses = some_steps(run, last)
    save_checkpoint(run, folder)
    moments = [x for state in run.optimizer.state.values() for name, x in state.items() if name != "step"]
    with torch.no_grad():
        features = train.gather_vit(run)(torch.linspace(-2, 2, 4 * 3 * 64).view(4, 3, 8, 8))
    held = sum((x.to_local() if hasattr(x, "to_local") else x).nbytes for x in moments)
    found = {"losses": losses, "moments": held, "features": features}
    if rank == 0:
        torch.save(found, folder / "found.pt")
    if distributed.world_size() > 1:
        some_steps(run, last + 1)
        if rank == distributed.world_size() - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        some_steps(run, last + 2)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What was found alone, and by some steps on two ranks, which are killed, some more on four, and the rest alone."""
    found = []
    with patch.object(vit, "vit_pico", vit.vit_pico):  # put back afterwards
        for parts in ([(1, STEPS)], [(2, STEPS // 2), (4, STEPS - 2), (1, STEPS)]):
            folder = tmp_path_factory.mktemp("ranks")
            for seed, (world, last) in enumerate(parts):  # what is drawn at the start is overwritten
                with pytest.raises(ProcessException) if world > 1 else nullcontext():
                    in_ranks(go_on, world, folder, last, seed) if world > 1 else go_on(0, folder, last, seed)
                found.append(torch.load(folder / "found.pt", weights_only=True))
    return found


@shards_on_cpus
def test_as_many_ranks_as_one_likes_learn_the_same(found):
    """The loss of each step, and the teacher at the end; KoLeo is within a rank, so it is left out."""
    alone, *parts = found
    for a, b in zip(alone["losses"], [row for part in parts for row in part["losses"]], strict=True):
        assert [a[name] for name in LOSSES] == pytest.approx([b[name] for name in LOSSES], rel=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)
    torch.testing.assert_close(alone["features"], parts[-1]["features"], rtol=1e-4, atol=1e-4)
    assert alone["losses"][0]["loss"] - alone["losses"][-1]["loss"] > 0.1  # it learns, so it could differ


@shards_on_cpus
def test_each_rank_has_its_share_of_the_moments(found):
    """Half on two ranks and on two nodes of two; a little more where a first dimension is odd, as that of [CLS]."""
    whole, of_two, of_four, _ = (part["moments"] for part in found)
    assert 1 / 2 <= of_two / whole < 1.1 / 2 and of_two == of_four


def tied_steps(rank, folder):
    """Three steps with one head for both losses."""
    shorten_vit()
    run = start_run(get_recipe("shapes", **SMALL, tied_heads=True), distributed.start("cpu"))
    losses = some_steps(run, 3)
    assert run.student.dino_head is run.student.ibot_head
    if rank == 0:
        torch.save(losses, folder / f"{distributed.world_size()}.pt")


@shards_on_cpus
def test_tied_heads_are_one_head_in_shards_too(tmp_path):
    """It is sharded once, its gradients are clipped once, and two ranks learn what one does."""
    with patch.object(vit, "vit_pico", vit.vit_pico):
        tied_steps(0, tmp_path)
    in_ranks(tied_steps, 2, tmp_path)
    alone, shared = (torch.load(tmp_path / f"{world}.pt", weights_only=True) for world in (1, 2))
    for a, b in zip(alone, shared, strict=True):
        assert [a[name] for name in LOSSES] == pytest.approx([b[name] for name in LOSSES], rel=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)
