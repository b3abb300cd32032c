"""The contract of every sampler: which images meet in a batch."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np


class Sampler(ABC):
    """One pass is one epoch of batches; a batch is a list of tuples of rows, one row per view.

    The order is drawn from the sampler's own generator, which moves on from epoch to epoch.
    ``state_dict`` between two passes and ``load_state_dict`` repeat the epochs that follow; within
    a pass the state is that of the batch drawn last, which may be ahead of the batch trained last.
    """

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)

    @abstractmethod
    def __iter__(self) -> Iterator[list[tuple[int, ...]]]:
        """The batches of one epoch."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of batches in an epoch."""

    def state_dict(self) -> dict[str, Any]:
        """The generator's state as strings and integers."""
        return {"rng": self.rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rng.bit_generator.state = state["rng"]


def check_batch_size(n_images: int, bs: int, multiple: int = 1) -> None:
    """Raise ValueError where not even one batch can be filled; ``bs`` is a multiple of another."""
    if bs > n_images:
        fits = n_images - n_images % multiple
        raise ValueError(
            f"--bs {bs} is more than the {n_images} training images; use --bs {fits} or less"
        )
