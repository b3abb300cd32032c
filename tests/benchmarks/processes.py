"""Compare a training step of W processes, each with its share of the batch, with that of one.

    python -m tests.benchmarks.processes OUT.json W --device cuda --bs 32

They are joined as those of main.py: by NCCL between GPUs, by gloo between CPUs. OUT.json gets the
relative differences of the loss and of the averaged gradient. The other flags are those of main.py.
A single process joins a group of its own, so that one GPU is enough to try NCCL.
"""

import contextlib
import copy
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing import start_processes

import datasets
from architectures import Embedder
from tests.benchmarks.step import build_objective, noise, parse
from utilities import device as devices
from utilities import distributed
from utilities.structures import Batch


def work(rank: int, out: Path, n_ranks: int, port: int, words: list[str]) -> None:
    """Run one of the processes."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(n_ranks)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    args = parse(words)
    device = devices.choose(args.device)
    torch.manual_seed(0)
    objective = build_objective(args, device)
    alone = copy.deepcopy(objective)
    embedder = objective.embedder
    assert isinstance(embedder, Embedder)
    batch = datasets.finish(noise(args, device).to(device), embedder.mean, embedder.std)
    wanted = alone(batch).loss
    wanted.backward()
    with joined(n_ranks, device):
        # A single process takes the code path of several, too.
        with mock.patch.object(distributed, "world_size", lambda: max(n_ranks, 2)):
            together = distributed.data_parallel(objective, device)
        loss = together(share_of(batch, rank, n_ranks)).loss
        loss.backward()
        off = abs(float(loss.detach() / wanted.detach()) - 1)
        found = {"loss": off, "gradient": distance(objective, alone)}
    if rank == 0:
        out.write_text(json.dumps(found))


@contextlib.contextmanager
def joined(n_ranks: int, device: torch.device) -> Iterator[None]:
    """Join the processes, or start a group of one."""
    if n_ranks > 1:
        with distributed.process_group():
            yield
        return
    backends = {"cpu": "gloo", device.type: dist.get_default_backend_for_device(device)}
    dist.init_process_group(",".join(map(":".join, backends.items())))
    try:
        yield
    finally:
        dist.destroy_process_group()


def share_of(batch: Batch, rank: int, n_ranks: int) -> Batch:
    """Return a process's images; its places in the batch are as ``datasets.loader`` gives them."""
    own = slice(*(len(batch.labels) * r // n_ranks for r in (rank, rank + 1)))
    views = tuple(view[own] for view in batch.views)
    return batch._replace(views=views, labels=batch.labels[own], rows=batch.rows[own])


def distance(got: nn.Module, wanted: nn.Module) -> float:
    """Return how far apart two models' gradients are, as a share of their length."""
    mine, theirs = flat_gradient(got), flat_gradient(wanted)
    return float((mine - theirs).norm() / theirs.norm())


def flat_gradient(model: nn.Module) -> Tensor:
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return torch.cat(gradients)


def main(words: list[str]) -> None:
    out, n_ranks = Path(words[0]), int(words[1])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = (out, n_ranks, port, words[2:])
    if n_ranks == 1:
        work(0, *given)
    else:
        start_processes(work, given, nprocs=n_ranks, start_method="fork")


if __name__ == "__main__":
    # cuDNN may choose another algorithm for a smaller batch, which would change the numbers.
    torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = True, False
    main(sys.argv[1:])
