"""Two processes against one, in float64.

This file is the program of the processes, too: ``python test_distributed.py RANK FOLDER``.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from criteria.barlowtwins import BarlowTwins
from criteria.byol import BYOL
from criteria.nnclr import NNCLR
from criteria.simclr import SimCLR
from criteria.simsiam import SimSiam
from criteria.swav import SwAV
from criteria.vicreg import VICReg
from utilities.distributed import gather, rank, world_size
from utilities.structures import Batch, Embedding

ROOT = Path(__file__).parents[2]
WORLD, BS, STEPS = 2, 6, 4
SMALL = {"hidden_dim": 6, "proj_dim": 4}
CRITERIA = {
    "simclr": lambda embedder: SimCLR(5, **SMALL),
    "simsiam": lambda embedder: SimSiam(5, pred_dim=3, **SMALL),
    "nnclr": lambda embedder: NNCLR(5, pred_dim=3, queue_size=9, **SMALL),
    "swav": lambda embedder: SwAV(
        5, n_prototypes=3, freeze_steps=1, queue_size=9, queue_start=1, **SMALL
    ),
    "byol": lambda embedder: BYOL(5, embedder, STEPS, momentum=0.5, **SMALL),
    "barlowtwins": lambda embedder: BarlowTwins(5, **SMALL),
    "barlowtwins of few dimensions": lambda embedder: BarlowTwins(5, hidden_dim=6, proj_dim=8),
    "vicreg": lambda embedder: VICReg(5, **SMALL),
    "vicreg of few dimensions": lambda embedder: VICReg(5, hidden_dim=6, proj_dim=8),
}


class Toy(nn.Module):
    """Images (B, 3, 2, 2) to features (B, 5)."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Tanh())

    def forward(self, images):
        features = self.net(images)
        return Embedding(features, features, features[:, :, None, None])


def share(tensor):
    """This process's rows."""
    return tensor.chunk(world_size())[rank()]


def mean_over_ranks(tensor):
    """As DistributedDataParallel averages gradients."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor / world_size()


def train(make):
    """A few steps of gradient descent: each one's loss, gradients and state, alike on all ranks.

    The BatchNorm layers of the heads normalise by their stored statistics, as the batch's would be
    those of a share: SyncBatchNorm is for GPUs only.
    """
    torch.manual_seed(0)
    embedder = Toy()
    criterion = make(embedder).double()
    embedder.double()
    for module in criterion.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.eval()
    trained = [*embedder.parameters(), *(p for p in criterion.parameters() if p.requires_grad)]
    frozen = getattr(criterion, "prototypes", None)  # in the first step
    generator = torch.Generator().manual_seed(1)
    told = []
    for i in range(STEPS):
        images = torch.randn(2, BS, 3, 2, 2, generator=generator, dtype=torch.float64)
        rows = share(torch.arange(BS))
        batch = Batch(tuple(share(view) for view in images), rows, rows)
        loss = criterion.compute([embedder(view) for view in batch.views], batch)
        moved = trained if i else [p for p in trained if p is not frozen]
        grads = [mean_over_ranks(grad) for grad in torch.autograd.grad(loss, moved)]
        told += [mean_over_ranks(loss.detach().clone()), *grads]
        with torch.no_grad():
            for parameter, grad in zip(moved, grads, strict=True):
                parameter -= 0.1 * grad
        criterion.after_step(embedder)
        state = criterion.state_dict().values()
        told += [value.clone() for value in state if isinstance(value, torch.Tensor)]
    return told


def gathered():
    """What ``gather`` makes of a tensor of each rank, and its gradient."""
    x = (torch.arange(6.0).reshape(3, 2) + 10 * rank()).double().requires_grad_()
    everyone = gather(x)
    weights = torch.arange(float(everyone.numel())).double().reshape(everyone.shape)
    ((rank() + 1) * weights * everyone).sum().backward()
    labels = gather(torch.tensor([rank(), 7]))
    strided = gather(torch.arange(6.0).reshape(2, 3).T + 10 * rank())
    with torch.no_grad():
        quiet = gather(x)
    return {
        "world_size": world_size(),
        "rank": rank(),
        "everyone": everyone.detach(),
        "grad": x.grad,
        "labels": labels,
        "strided": strided,
        "quiet": quiet,
    }


def work(own_rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=own_rank, world_size=WORLD
    )
    told = {name: train(make) for name, make in CRITERIA.items()} | {"gather": gathered()}
    torch.save(told, Path(folder) / f"{own_rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of the two processes told."""
    folder = tmp_path_factory.mktemp("processes")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(r), str(folder)], env=env, stderr=subprocess.PIPE
        )
        for r in range(WORLD)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors.decode()
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / f"{r}.pt", weights_only=True) for r in range(WORLD)]


@pytest.mark.parametrize("name", CRITERIA)
def test_losses_gradients_and_states_are_those_of_one_process(ranks, name):
    expected = train(CRITERIA[name])
    for told in ranks:
        assert len(told[name]) == len(expected)
        for got, wanted in zip(told[name], expected, strict=True):
            assert got.shape == wanted.shape
            assert torch.allclose(got, wanted, rtol=1e-10, atol=1e-10)


def test_gather_concatenates_in_order_of_rank(ranks):
    first = torch.arange(6.0).reshape(3, 2)
    for r, told in enumerate(ranks):
        seen = told["gather"]
        assert (seen["world_size"], seen["rank"]) == (WORLD, r)
        assert seen["everyone"].tolist() == torch.cat([first, first + 10]).tolist()
        assert torch.equal(seen["quiet"], seen["everyone"])
        assert seen["labels"].tolist() == [0, 7, 1, 7]
        assert seen["strided"].tolist() == [
            [0, 3], [1, 4], [2, 5], [10, 13], [11, 14], [12, 15]
        ]  # fmt: skip


def test_gather_sums_the_gradients_of_all_ranks(ranks):
    weights = torch.arange(12.0).reshape(6, 2)
    for r, told in enumerate(ranks):
        expected = (1 + 2) * weights[3 * r : 3 * r + 3]
        assert told["gather"]["grad"].tolist() == expected.tolist()


def test_one_process_has_the_tensor_itself():
    tensor = torch.ones(3, 2, requires_grad=True)
    assert gather(tensor) is tensor
    assert (world_size(), rank()) == (1, 0)


if __name__ == "__main__":
    work(int(sys.argv[1]), sys.argv[2])
