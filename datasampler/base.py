"""The contract of every sampler: which images meet in a batch."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor


class Sampler(ABC):
    """One pass is one epoch of batches; a batch is a list of tuples of rows, one row per view.

    A subclass writes ``batches``. Where several processes train together, each holds the same
    sampler with the same seed, draws the same batches of ``bs`` and takes its own equal share of
    each: a contiguous slice, so that the images of a class, which stand together, stay together.
    The shares of a batch in order of rank are what one process would train on, and every process
    has as many batches, so that none waits for another.

    The order is drawn from the sampler's own generator, which moves on from epoch to epoch.
    ``state_dict`` between two passes and ``load_state_dict`` repeat the epochs that follow; within
    a pass the state is that of the batch drawn last, which may be ahead of the batch trained last,
    so that a run within a pass is gone on with from the pass's beginning (``datasets.passes``).
    The state is the same on every rank.

    Args:
        n_images: N, images to draw from.
        bs: images per batch, of all processes together.
        rank: which of the processes this is, in [0, world_size).
        world_size: number of processes.
        multiple: ``bs`` is a multiple of it; the sizes that an error suggests are so too.

    Raises:
        ValueError: ``bs`` is more than N, or cannot be shared equally.
    """

    def __init__(
        self,
        n_images: int,
        bs: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        *,
        multiple: int = 1,
    ) -> None:
        check_batch_size(n_images, bs, multiple, world_size)
        if not 0 <= rank < world_size:
            raise ValueError(
                f"rank {rank} is none of {world_size} processes; count from 0 to {world_size - 1}"
            )
        self.n_images = n_images
        self.bs = bs
        self.rank = rank
        self.world_size = world_size
        self.rng = np.random.default_rng(seed)

    @abstractmethod
    def batches(self) -> Iterator[list[tuple[int, ...]]]:
        """The ``len(self)`` batches of one epoch, ``bs`` tuples each, the same on every rank."""

    def __iter__(self) -> Iterator[list[tuple[int, ...]]]:
        share = self.bs // self.world_size
        start = self.rank * share
        for batch in self.batches():
            yield batch[start : start + share]

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        return self.n_images // self.bs

    def due(self, epoch: int) -> bool:
        """Whether ``refresh`` must be called before ``epoch``, counted from 1."""
        return False

    def refresh(self, embeds: Tensor, rows: Tensor | None = None) -> None:  # noqa: B027
        """Take the embeddings of all training images, where the sampler looks at them."""

    def observe(self, rows: Tensor, embeds: Tensor) -> None:  # noqa: B027
        """Take the embeddings of a batch after its step, where the sampler looks at them."""

    def observed(self) -> dict[str, Any]:
        """What was learned from batches and plays no part in the pass that is under way."""
        return {}

    def load_observed(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Know what ``observed`` told, after the pass has begun."""

    def state_dict(self) -> dict[str, Any]:
        """The generator's state as strings and integers."""
        return {"rng": self.rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rng.bit_generator.state = state["rng"]


def check_batch_size(n_images: int, bs: int, multiple: int = 1, world_size: int = 1) -> None:
    """Raise ValueError where not even one batch can be filled, or not be shared by the processes.

    Args:
        multiple: ``bs`` is a multiple of it, and so are the sizes suggested.
    """
    step = math.lcm(multiple, world_size)
    largest = n_images - n_images % step
    if bs > n_images:
        raise ValueError(
            f"--bs {bs} is more than the {n_images} training images; use --bs {largest} or less"
        )
    if bs % world_size:
        below = bs - bs % step
        fits = [str(size) for size in (below, below + step) if 0 < size <= largest]
        remedy = f"use --bs {' or '.join(fits)}" if fits else "use fewer processes"
        raise ValueError(f"--bs {bs} does not divide among {world_size} processes; {remedy}")
