"""The contract of every sampler, which decides which images meet in a batch; the simplest one."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor


class Sampler(ABC):
    """One pass is one epoch of batches; a batch is a list of tuples of rows, one row per view.

    A subclass writes ``batches``. If several processes train together, each holds the same sampler
    with the same seed, draws the same batches and takes its own equal, contiguous share of each.

    The order is drawn from the sampler's own generator, which moves on from epoch to epoch.
    ``state_dict`` between two passes and ``load_state_dict`` repeat the epochs that follow; within
    a pass it may be ahead of training, so a run is resumed from the beginning of the pass
    (``datasets.training_batches``). The state is the same on every rank.

    Args:
        bs: images per batch, of all processes together.

    Raises:
        ValueError: ``bs`` is more than ``n_images``, or cannot be shared equally.
    """

    multiple = 1  # ``bs`` is a multiple of it, and so are the sizes that an error suggests

    def __init__(
        self, n_images: int, bs: int, seed: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        check_batch_size(n_images, bs, self.multiple, world_size)
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be from 0 to {world_size - 1}; got {rank}")
        self.n_images = n_images
        self.bs = bs
        self.rank = rank
        self.world_size = world_size
        self.rng = np.random.default_rng(seed)

    @abstractmethod
    def batches(self) -> Iterator[list[tuple[int, ...]]]:
        """Yield the ``len(self)`` batches of an epoch, ``bs`` tuples each, as on every rank."""

    def __iter__(self) -> Iterator[list[tuple[int, ...]]]:
        share = self.bs // self.world_size
        start = self.rank * share
        for batch in self.batches():
            yield batch[start : start + share]

    def __len__(self) -> int:
        return self.n_images // self.bs

    def due(self, epoch: int) -> bool:
        """Return whether ``refresh`` must be called before ``epoch``, counted from 1."""
        return False

    def refresh(self, embeds: Tensor, rows: Tensor | None = None) -> None:  # noqa: B027
        """Take the embeddings of all training images, if the sampler uses them."""

    def observe(self, rows: Tensor, embeds: Tensor) -> None:  # noqa: B027
        """Take the embeddings of a batch after its step, if the sampler uses them."""

    def observed(self) -> dict[str, Any]:
        """Return what was learned from batches and does not affect the current pass."""
        return {}

    def load_observed(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Load what ``observed`` returned, after the pass has begun."""

    def state_dict(self) -> dict[str, Any]:
        return {"rng": self.rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rng.bit_generator.state = state["rng"]


class Random(Sampler):
    """A shuffled epoch: each image at most once, and the N % bs images left over not at all."""

    def batches(self) -> Iterator[list[tuple[int, ...]]]:
        order = self.rng.permutation(self.n_images)
        for batch in order[: len(self) * self.bs].reshape(-1, self.bs):
            yield [(int(row),) for row in batch]


def check_batch_size(n_images: int, bs: int, multiple: int = 1, world_size: int = 1) -> None:
    """Raise ValueError if no batch can be filled, or not shared equally by the processes."""
    step = math.lcm(multiple, world_size)
    largest = n_images - n_images % step
    if bs > n_images:
        raise ValueError(f"bs must be at most {largest} for {n_images} training images; got {bs}")
    if bs % world_size:
        below = bs - bs % step
        fits = [str(size) for size in (below, below + step) if 0 < size <= largest]
        remedy = f"use {' or '.join(fits)}" if fits else "use fewer processes"
        raise ValueError(f"bs must be a multiple of the {world_size} processes; got {bs}, {remedy}")
