"""The batches of a run's epochs; a run can be interrupted after any of them and resumed there."""

import copy
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, cast

from torch.utils.data import DataLoader

from datasets.loading import SeededBatches
from utilities.structures import Batch


class Batches:
    """One pass over a loader for each epoch.

    Workers draw batches ahead of training, so what is saved is the sampler's state at the beginning
    of the epoch and the number of batches done since. To resume, the epoch is drawn again without
    loading the images of batches that are done.

    Attributes:
        epoch: the one that was begun last, from 1; 0 before.
        done: its batches that were handed out.
    """

    def __init__(self, loader: "DataLoader[Batch]") -> None:
        self.loader = loader
        self._seeded = cast(SeededBatches, loader.batch_sampler)
        self.sampler = cast(Any, self._seeded.batches)  # with the state of datasampler.Sampler
        self.epoch = 0
        self.done = 0
        self._start: dict[str, Any] = {}  # the sampler's state as the epoch began
        self._observed: dict[str, Any] | None = None

    def __len__(self) -> int:
        return len(self._seeded)

    def left(self, epoch: int) -> int:
        """Return the number of batches that ``of`` will yield."""
        return max(0, len(self) - self.done) if epoch == self.epoch else len(self)

    def of(self, epoch: int, most: int | None = None) -> Iterator[Batch]:
        """Yield ``most`` batches of an epoch, or what is left of it if it was interrupted."""
        return itertools.islice(self._of(epoch), most)

    def _of(self, epoch: int) -> Iterator[Batch]:
        if epoch != self.epoch:
            self.epoch, self.done = epoch, 0
            self._start = copy.deepcopy(self.sampler.state_dict())
        elif self.done >= len(self):  # more, if images were removed since
            return
        self._seeded.epoch, self._seeded.skip = epoch - 1, self.done
        for batch in self.loader:
            if self._observed is not None:  # known only once the epoch has begun
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
        """Continue after the batch that was handed out last before ``state_dict``."""
        self.epoch, self.done = state["epoch"], state["done"]
        self._start = state["start"]
        if not self.epoch:
            return
        self.sampler.load_state_dict(copy.deepcopy(self._start))
        if self.done < len(self):
            self._observed = state["observed"]
        else:  # another epoch comes next
            for _ in self.sampler:
                pass
            self.sampler.load_observed(state["observed"])
