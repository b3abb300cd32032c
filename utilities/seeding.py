"""Seeds the global generators, once per run, and those that components own (``derive``)."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed the global generators of python, numpy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - libraries draw from the legacy global generator
    torch.manual_seed(seed)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Leave the global generators of python, numpy and torch (CPU) as they were before."""
    python, torch_state = random.getstate(), torch.get_rng_state()
    numpy = cast(tuple, np.random.get_state())  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(torch_state)


def derive(seed: int, *names: str | int) -> int:
    """A seed for the component called ``names``, in [0, 2**63), the same on every machine."""
    digest = hashlib.sha256(repr((seed, *names)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def cyclic_permutation(n: int, rng: np.random.Generator) -> torch.Tensor:
    """Return a random permutation of n > 1 items in one cycle, so that none keeps its place."""
    cycle = rng.permutation(n)
    permutation = np.empty(n, np.int64)
    permutation[cycle] = np.roll(cycle, -1)
    return torch.from_numpy(permutation)


def seed_worker(_worker: int) -> None:
    """``worker_init_fn`` of every DataLoader: numpy and python follow the worker's torch seed."""
    seed = torch.initial_seed() % 2**32
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)
