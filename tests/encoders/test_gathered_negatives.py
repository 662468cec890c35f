"""Two processes that gather their keys have the loss and the gradients of one process with both batches."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

# The processes import this file anew, so it takes nothing heavy: the mixed targets come from the test's own process.
from llava_stf.encoders.objectives.contrast import contrast, gather, identity_targets, own_index

BATCH, WIDTH, PROCESSES = 5, 8, 2
TARGETS = ("own", "smoothed", "mix of three", "mix to mix of three")


def rows():
    torch.manual_seed(0)
    return torch.randn(PROCESSES * BATCH, WIDTH), torch.randn(PROCESSES * BATCH, WIDTH)


def mixed_targets(rank: int) -> dict[str, Tensor]:
    from llava_stf.encoders.objectives.patch_mixing import mix_targets, mix_to_mix_targets

    place = {"rank": rank, "processes": PROCESSES}
    return {
        "mix of three": mix_targets(BATCH, 3, 0.1, **place),
        "mix to mix of three": mix_to_mix_targets(BATCH, 3, **place),
    }


def work(rank: int, folder: Path, mixed: list[dict[str, Tensor]]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=PROCESSES)
    mine = slice(rank * BATCH, (rank + 1) * BATCH)
    queries, keys = (part[mine].clone() for part in rows())
    queries.requires_grad_()
    found = {"gathered": gather(keys)}
    targets = {"own": own_index(BATCH), "smoothed": identity_targets(BATCH, 0.1), **mixed[rank]}
    for name, target in targets.items():
        queries.grad = None
        loss = contrast(queries, keys, target, 0.2)
        loss.backward()
        found[name] = (target, loss.detach(), queries.grad)
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    mp.spawn(work, (folder, [mixed_targets(rank) for rank in range(PROCESSES)]), nprocs=PROCESSES)
    return [torch.load(folder / f"{rank}.pt") for rank in range(PROCESSES)]


def test_keys_come_in_the_order_of_ranks(found):
    assert all(torch.equal(part["gathered"], rows()[1]) for part in found)


@pytest.mark.parametrize("name", TARGETS)
def test_loss_and_gradient_are_those_of_one_process(found, name):
    queries, keys = rows()
    queries.requires_grad_()
    targets = torch.cat([part[name][0] for part in found])
    whole = contrast(queries, keys, targets, 0.2)
    whole.backward()
    torch.testing.assert_close(torch.stack([part[name][1] for part in found]).mean(), whole.detach())
    gradients = torch.cat([part[name][2] for part in found]) / PROCESSES
    torch.testing.assert_close(gradients, queries.grad)
    if targets.is_floating_point():  # each row's shares add up, and lie in the columns of its own process
        torch.testing.assert_close(targets.sum(1), torch.ones(len(targets)))
        own = torch.block_diag(*[torch.ones(BATCH, BATCH)] * PROCESSES).bool()
        assert (targets[own].view(-1, BATCH).amax(1) > targets.masked_fill(own, 0).amax(1)).all()
