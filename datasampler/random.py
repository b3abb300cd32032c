"""Batches of images drawn regardless of their classes."""

from collections.abc import Iterator

from .base import Sampler


class Random(Sampler):
    """A shuffled epoch: each image at most once, and the N % bs images left over not at all.

    Args, Raises: see Sampler.
    """

    def batches(self) -> Iterator[list[tuple[int, ...]]]:
        order = self.rng.permutation(self.n_images)
        for batch in order[: len(self) * self.bs].reshape(-1, self.bs):
            yield [(int(row),) for row in batch]
