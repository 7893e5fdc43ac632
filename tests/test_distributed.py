"""The lines that know of other GPUs: sums and flags, and training in shards.  `pytest tests/test_distributed.py`"""

import os
import signal
from contextlib import nullcontext
from functools import partial
from unittest.mock import patch

import pytest
import torch
from conftest import TINY, in_ranks, shards_on_cpus
from torch.multiprocessing.spawn import ProcessException

import distributed
import train
import vit
from recipes import get_recipe
from support.checkpoint import read_checkpoint, restore, save_checkpoint
from support.log import mean_over_ranks
from support.start import start_run

pytestmark = pytest.mark.slow  # most start processes


def work(rank, folder):
    """One of two processes; saves what it saw."""
    distributed.start(torch.device("cpu"))
    seen = {
        "rank": distributed.rank(),
        "world_size": distributed.world_size(),
        "sum": distributed.sum_over_ranks(torch.tensor([1.0, 10.0 * rank])),
        "max": distributed.max_over_ranks(torch.tensor([-1.0 - rank, 10.0 * rank])),
        "gather": distributed.gather({"of": rank}),
        "shares": [distributed.in_shares(lambda rows: rows + 10, torch.arange(n)) for n in (1, 4, 5)],
    }
    distributed.stop()
    seen["stopped"] = distributed.world_size() == 1
    torch.save(seen, f"{folder}/{rank}.pt")


def test_what_two_ranks_see_by_hand(tmp_path):
    """Sum: (1, 0) + (1, 10).  Maximum: of (−1, 0) and (−2, 10).  Shares: of one row, of four, and of five, where the
    second rank has two of its own and the last one again."""
    in_ranks(work, 2, tmp_path)
    for rank in range(2):
        seen = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert seen["rank"] == rank and seen["world_size"] == 2 and seen["stopped"]
        assert seen["sum"].tolist() == [2, 10] and seen["max"].tolist() == [-1, 10]
        assert seen["gather"] == [{"of": 0}, {"of": 1}]
        assert [x.tolist() for x in seen["shares"]] == [list(range(10, 10 + n)) for n in (1, 4, 5)]


STEPS, BATCH, LOSSES = 8, 8, ("loss", "dino", "ibot")
SMALL = TINY | {"hires_share": 0.0, "steps": STEPS, "drop_path": 0.0, "batch": BATCH, "amp": "none",
                "koleo_weight": 0.0, "lr": 1e-2}  # fmt: skip


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


def go_on(rank, folder, last, changes):
    """From the checkpoint in the folder, or from the start; what was found is saved beside the new checkpoint.

    Several ranks go on after the checkpoint, and in the second step the last of them is killed.
    """
    blocks = patch.object(vit, "vit_pico", partial(vit.ViT, 96, 2, 2))  # two; each is two messages a pass
    with blocks, patch.object(torch, "compile", partial(torch.compile, backend="eager")):  # for --compile
        distributed.start(torch.device("cpu"))
        run = start_run(get_recipe("shapes", **SMALL | changes), torch.device("cpu"))
        run.out = folder
        if (folder / "checkpoint.pt").exists():
            restore(run, read_checkpoint(folder / "checkpoint.pt"))
        losses = some_steps(run, last)
        save_checkpoint(run)
        moments = [x for state in run.optimizer.state.values() for name, x in state.items() if name != "step"]
        with torch.no_grad():
            features = train.gather_vit(run)(torch.linspace(-2, 2, 4 * 3 * 64).view(4, 3, 8, 8))
    held = sum((x.to_local() if hasattr(x, "to_local") else x).nbytes for x in moments)
    if rank == 0:
        torch.save({"losses": losses, "moments": held, "features": features}, folder / "found.pt")
    if distributed.world_size() > 1:
        some_steps(run, last + 1)
        if rank == distributed.world_size() - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        some_steps(run, last + 2)


def learn(folder, *parts, **changes):
    """What was found by each part of a run, (number of ranks, last step); a part of several ranks ends killed."""
    found = []
    for seed, (world, last) in enumerate(parts):  # a resumed run overwrites what is drawn at the start
        words = folder, last, {"seed": seed, **changes}
        with pytest.raises(ProcessException) if world > 1 else nullcontext():
            in_ranks(go_on, world, *words) if world > 1 else go_on(0, *words)
        found.append(torch.load(folder / "found.pt", weights_only=True))
    return found


def check_losses(alone, *parts):
    """The same losses step by step; KoLeo is within a rank, so it is left out."""
    for a, b in zip(alone["losses"], [row for part in parts for row in part["losses"]], strict=True):
        assert [a[name] for name in LOSSES] == pytest.approx([b[name] for name in LOSSES], rel=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)


@shards_on_cpus
def test_any_number_of_ranks_learns_the_same(tmp_path_factory):
    """Alone; and some steps on two ranks, some more on four, the rest alone: equal losses, equal teachers.

    Each rank holds half of the moments on two ranks, a quarter on four; a little more, as the first dimension of [CLS]
    is odd.
    """
    [alone] = learn(tmp_path_factory.mktemp("alone"), (1, STEPS))
    parts = learn(tmp_path_factory.mktemp("ranks"), (2, STEPS // 2), (4, STEPS - 2), (1, STEPS))
    check_losses(alone, *parts)
    torch.testing.assert_close(alone["features"], parts[-1]["features"], rtol=1e-4, atol=1e-4)
    assert alone["losses"][0]["loss"] - alone["losses"][-1]["loss"] > 0.1  # it learns, so it could differ
    for part, ranks in zip(parts, (2, 4, 1)):
        assert 1 <= ranks * part["moments"] / alone["moments"] < 1.1


@shards_on_cpus
def test_tied_heads_are_one_head_in_shards_too_and_blocks_compile(tmp_path_factory):
    """It is sharded once, its gradients are clipped once, and two ranks with --compile learn what one does."""
    [alone], [shared] = (learn(tmp_path_factory.mktemp("tied"), (world, 3), tied_heads=True, compile=world > 1)
                         for world in (1, 2))  # fmt: skip
    check_losses(alone, shared)
