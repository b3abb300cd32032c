"""Exchange between ranks; the losses built on it are tested in tests/criteria/test_ranks.py.

This file is also the program of the processes: ``python test_distributed.py FOLDER``.
"""

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing import start_processes

from tests.launch import join, run
from utilities.distributed import data_parallel, gather, mean, rank, smallest, world_size

WORLD = 3


def gathered():
    """Return the results of ``gather`` and the gradient."""
    x = (torch.arange(6.0).reshape(3, 2) + 10 * rank()).double().requires_grad_()
    everyone = gather(x)
    weights = torch.arange(float(everyone.numel())).double().reshape(everyone.shape)
    ((rank() + 1) * weights * everyone).sum().backward()
    with torch.no_grad():
        quiet = gather(x)
    return {
        "everyone": everyone.detach(),
        "grad": x.grad,
        "labels": gather(torch.tensor([rank(), 7])),
        "strided": gather(torch.arange(6.0).reshape(2, 3).T + 10 * rank()),
        "half": gather(torch.tensor([rank() + 0.5], dtype=torch.bfloat16)),
        "quiet": quiet,
    }


class Branches(nn.Module):
    """Uses one of two weights at a time, and changes a buffer."""

    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.ones(2) + rank())
        self.second = nn.Parameter(torch.ones(2) + rank())
        self.register_buffer("memory", torch.zeros(2))

    def forward(self, x, use_first):
        self.memory = self.memory + rank()
        return (x * (self.first if use_first else self.second)).sum()


def averaged():
    """Return gradients and buffers of ``data_parallel``, after a step with each weight."""
    module = Branches()
    wrapped, told = data_parallel(module, torch.device("cpu")), {}
    told["first"] = module.first.detach().clone()
    for name in ("first", "second"):
        module.zero_grad()
        wrapped(torch.tensor([1.0, 2.0]) * (1 + rank()), name == "first").backward()
        told[f"grads with {name}"] = [p.grad for p in (module.first, module.second)]
    return told | {"memory": module.memory}


def work(own_rank, folder):
    join(own_rank, WORLD, Path(folder) / "meet")
    told = {
        "place": [rank(), world_size()],
        "gather": gathered(),
        "mean": mean(torch.tensor([own_rank, 1.0], dtype=torch.float64)),
        "of a NaN": mean(torch.tensor(torch.nan if own_rank == 1 else 1.0)),
        "smallest": smallest(7 - own_rank),
        "shared": averaged(),
    }
    torch.save(told, Path(folder) / f"{own_rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """The results of each process."""
    folder = tmp_path_factory.mktemp("processes")
    run(__file__, str(folder), timeout=180)
    return [torch.load(folder / f"{r}.pt", weights_only=True) for r in range(WORLD)]


def test_gather_concatenates_in_order_of_rank(ranks):
    first = torch.arange(6.0).reshape(3, 2)
    for r, told in enumerate(ranks):
        seen = told["gather"]
        assert told["place"] == [r, WORLD]
        assert seen["everyone"].tolist() == torch.cat([first, first + 10, first + 20]).tolist()
        assert torch.equal(seen["quiet"], seen["everyone"])
        assert seen["labels"].tolist() == [0, 7, 1, 7, 2, 7]
        assert seen["strided"].tolist() == [
            [0, 3], [1, 4], [2, 5], [10, 13], [11, 14], [12, 15], [20, 23], [21, 24], [22, 25]
        ]  # fmt: skip
        assert seen["half"].tolist() == [0.5, 1.5, 2.5]
        assert seen["half"].dtype == torch.bfloat16


def test_gather_sums_the_gradients_of_all_ranks(ranks):
    weights = torch.arange(18.0).reshape(9, 2)
    for r, told in enumerate(ranks):
        expected = (1 + 2 + 3) * weights[3 * r : 3 * r + 3]
        assert told["gather"]["grad"].tolist() == expected.tolist()


def test_all_ranks_hear_the_mean_and_the_smallest(ranks):
    for told in ranks:
        assert told["mean"].tolist() == [1, 1]
        assert told["mean"].dtype == torch.float64
        assert told["of a NaN"].isnan()
        assert told["smallest"] == 5


def test_shared_begins_alike_averages_what_is_used_and_leaves_buffers_alone(ranks):
    for r, told in enumerate(ranks):
        seen = told["shared"]
        assert seen["first"].tolist() == [1, 1]  # rank 0's
        used, unused = seen["grads with first"]
        assert used.tolist() == [2, 4]  # the mean of 1, 2 and 3 times [1, 2]
        assert unused is None
        unused, used = seen["grads with second"]
        assert used.tolist() == [2, 4]
        assert unused is None
        assert seen["memory"].tolist() == [2 * r, 2 * r]


def test_one_process_has_the_tensor_and_the_module_itself():
    tensor, module = torch.ones(3, 2, requires_grad=True), nn.Linear(2, 1)
    assert gather(tensor) is tensor
    assert mean(tensor) is tensor
    assert smallest(7) == 7
    assert data_parallel(module, torch.device("cpu")) is module
    assert (world_size(), rank()) == (1, 0)


if __name__ == "__main__":
    start_processes(work, (sys.argv[1],), nprocs=WORLD, start_method="fork")
