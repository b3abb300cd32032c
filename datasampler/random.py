"""Batches of images drawn without a look at their classes."""

from collections.abc import Iterator

from .base import Sampler


class Random(Sampler):
    """A shuffled epoch: each image at most once, and the N % bs images left over not at all.

    Args:
        n_images: N, size of the training set.
        bs: images per batch.
        rank, world_size: this process and how many there are; each takes its share of a batch.

    Raises:
        ValueError: ``bs`` is more than N, or cannot be shared equally.
    """

    def __init__(
        self, n_images: int, bs: int, seed: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        super().__init__(n_images, bs, seed, rank, world_size)

    def batches(self) -> Iterator[list[tuple[int, ...]]]:
        order = self.rng.permutation(self.n_images)
        for batch in order[: len(self) * self.bs].reshape(-1, self.bs):
            yield [(int(row),) for row in batch]
