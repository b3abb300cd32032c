"""Batches of a few images from each of some classes, the field's standard for metric learning."""

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np
from numpy.typing import NDArray

from .base import Sampler


@dataclass(eq=False, repr=False)
class ClassRandom(Sampler):
    """Draws bs / samples_per_class classes for each batch, and samples_per_class images of each.

    No class comes twice in a batch, and no image if its class is large enough; of a smaller class
    every image comes equally often, give or take one. The images of a class stand together. Batches
    are drawn independently, and every class is equally likely whatever its size.

    Args, besides those of Sampler:
        rows_by_class: rows of each class, C arrays that together hold N rows.
        class_replacement: draw classes, and images of a class, with replacement, as Roth et al.,
            ICML 2020, do: a class can come twice, and an image can be its own positive.

    Raises:
        ValueError: as Sampler; ``samples_per_class`` does not divide ``bs``; too few classes.
    """

    rows_by_class: Sequence[NDArray[np.int64]]
    bs: int
    samples_per_class: int
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    _: KW_ONLY
    class_replacement: bool = False

    def __post_init__(self) -> None:
        self.multiple = self.samples_per_class
        most = self.bs if self.class_replacement else len(self.rows_by_class)
        self.classes_per_batch = classes_per_batch(most, self.bs, self.samples_per_class)
        n_images = sum(len(rows) for rows in self.rows_by_class)
        super().__init__(n_images, self.bs, self.seed, self.rank, self.world_size)

    def batches(self) -> Iterator[list[tuple[int, ...]]]:
        for _ in range(len(self)):
            yield [(int(row),) for row in self.choose()]

    def choose(self) -> NDArray[np.int64]:
        """Return the rows of the next batch, (bs,), those of a class together."""
        return self.draw_batch()

    def draw_batch(self) -> NDArray[np.int64]:
        return np.concatenate([self.draw_images(int(label)) for label in self.draw_classes()])

    def draw_classes(self) -> NDArray[np.int64]:
        """Draw the classes of the next batch, (classes_per_batch,)."""
        return self.rng.choice(
            len(self.rows_by_class), self.classes_per_batch, replace=self.class_replacement
        )

    def draw_images(self, label: int) -> NDArray[np.int64]:
        """Draw rows of a class for the next batch, (samples_per_class,)."""
        rows = self.rows_by_class[label]
        if self.class_replacement:
            return self.rng.choice(rows, self.samples_per_class)
        rounds, rest = divmod(self.samples_per_class, len(rows))
        return np.concatenate([rows] * rounds + [self.rng.choice(rows, rest, replace=False)])


def classes_per_batch(n_classes: int, bs: int, samples_per_class: int) -> int:
    """Return how many classes a batch holds; raise ValueError, with what fits, if sizes do not."""
    if samples_per_class < 1:
        raise ValueError(f"samples_per_class must be 1 or more; got {samples_per_class}")
    if bs % samples_per_class or bs < samples_per_class:
        below = bs - bs % samples_per_class
        fits = [str(size) for size in (below, below + samples_per_class) if size > 0]
        raise ValueError(
            f"bs must be a multiple of samples_per_class = {samples_per_class}; got {bs}, use "
            f"{' or '.join(fits)}"
        )
    needed = bs // samples_per_class
    if needed > n_classes:
        fewer = next(
            n for n in range(samples_per_class, bs + 1) if not bs % n and bs // n <= n_classes
        )
        raise ValueError(
            f"bs must be at most {n_classes * samples_per_class} for {n_classes} training classes "
            f"and samples_per_class = {samples_per_class}; got {bs}, which needs {needed} classes "
            f"per batch, or samples_per_class {fewer}"
        )
    return needed
