"""Batches of images drawn without a look at their classes."""

from collections.abc import Iterator

from .base import Sampler, check_batch_size


class Random(Sampler):
    """A shuffled epoch: each image at most once, and the N % bs images left over not at all.

    Args:
        n_images: N, size of the training set.
        bs: images per batch.

    Raises:
        ValueError: ``bs`` is more than N.
    """

    def __init__(self, n_images: int, bs: int, seed: int = 0) -> None:
        super().__init__(seed)
        check_batch_size(n_images, bs)
        self.n_images = n_images
        self.bs = bs

    def __len__(self) -> int:
        return self.n_images // self.bs

    def __iter__(self) -> Iterator[list[tuple[int, ...]]]:
        order = self.rng.permutation(self.n_images)
        for batch in order[: len(self) * self.bs].reshape(-1, self.bs):
            yield [(int(row),) for row in batch]
