"""Passes over the training images that can be left after any batch and gone on with there."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, cast

from torch.utils.data import DataLoader

from datasets.loading import SeededBatches
from utilities.structures import Batch


class Resumable(Protocol):
    """What is asked of a sampler."""

    def __iter__(self) -> Iterator[list[tuple[int, ...]]]:
        """The batches of a pass, which begins when the first is drawn."""

    def state_dict(self) -> dict[str, Any]:
        """What the passes that follow depend on."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Draw the passes again that would have followed ``state_dict``."""

    def observed(self) -> dict[str, Any]:
        """What it has learned from batches since the pass began; plays no part in that pass."""

    def load_observed(self, state: dict[str, Any]) -> None:
        """Know what ``observed`` told."""


class Passes:
    """One pass over a loader for each epoch.

    Batches are drawn from a sampler ahead of training, by how many workers there are, so its state
    says nothing about where training is. What is kept is the sampler's state at the beginning of
    the pass and the number of batches done since. To go on, the pass is drawn again without
    loading the images of batches that are done.

    Args:
        loader: of ``datasets.loader``, over a sampler.

    Attributes:
        epoch: of the pass that was begun last, from 1; 0 before.
        done: its batches that were handed out.
    """

    def __init__(self, loader: "DataLoader[Batch]") -> None:
        self.loader = loader
        self._seeded = cast(SeededBatches, loader.batch_sampler)
        self.sampler = cast(Resumable, self._seeded.batches)
        self.epoch = 0
        self.done = 0
        self._start: dict[str, Any] = {}  # the sampler's state as the pass began
        self._observed: dict[str, Any] | None = None

    def __len__(self) -> int:
        """Batches in a pass."""
        return len(self._seeded)

    def of(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch, or what is left of it where it was interrupted."""
        if epoch != self.epoch:
            self.epoch, self.done = epoch, 0
            self._start = copy.deepcopy(self.sampler.state_dict())
        elif self.done == len(self):
            return
        self._seeded.epoch, self._seeded.skip = epoch - 1, self.done
        for batch in self.loader:
            if self._observed is not None:  # the pass has begun, by what was known as it did
                self.sampler.load_observed(self._observed)
                self._observed = None
            self.done += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "done": self.done,
            "start": self._start,
            "observed": self.sampler.observed(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the batch that was handed out last before ``state_dict``."""
        self.epoch, self.done = state["epoch"], state["done"]
        self._start = state["start"]
        if not self.epoch:
            return
        self.sampler.load_state_dict(copy.deepcopy(self._start))
        if self.done < len(self):
            self._observed = state["observed"]
        else:  # the next thing is another pass
            for _ in self.sampler:
                pass
            self.sampler.load_observed(state["observed"])
