"""Batches whose classes come in groups of language neighbours."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .class_random import ClassRandom


class ClassRelated(ClassRandom):
    """Draws classes at random and fills the batch with those whose words are nearest to theirs.

    Random classes are rarely related, so that the words' similarities within a batch say little.
    Here a batch holds groups of ``related_classes``: a class drawn at random and its nearest by
    word similarity that the batch does not hold yet; the last group may be smaller.

    Args, besides those of ClassRandom:
        class_words: (C, D) text embeddings of the words of each class, of any norm.
        related_classes: classes per group, the one drawn included; 1 is ClassRandom.

    Raises:
        ValueError: as ClassRandom; no words, a wrong number of rows, or related_classes < 1.
    """

    def __init__(
        self,
        rows_by_class: Sequence[NDArray[np.int64]],
        bs: int,
        samples_per_class: int,
        class_words: Tensor | None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        *,
        related_classes: int = 4,
    ) -> None:
        super().__init__(rows_by_class, bs, samples_per_class, seed, rank, world_size)
        if class_words is None:
            raise ValueError(
                "class_related needs words for every class, but got none; choose a "
                "--language_model, or --data_sampler class_random"
            )
        if len(class_words) != len(rows_by_class):
            raise ValueError(
                f"class_words must have a row for each of the {len(rows_by_class)} training "
                f"classes; got {len(class_words)} rows"
            )
        if related_classes < 1:
            raise ValueError(f"related_classes must be 1 or more; got {related_classes}")
        words = class_words.detach().cpu().float().numpy()
        norms = np.linalg.norm(words, axis=1, keepdims=True)
        self.words = words / np.maximum(norms, np.finfo(words.dtype).tiny)  # (C, D) unit rows
        self.related_classes = related_classes

    def draw_classes(self) -> NDArray[np.int64]:
        n_classes, size = len(self.words), self.classes_per_batch
        n_groups = -(-size // self.related_classes)
        seeds = self.rng.choice(n_classes, n_groups, replace=False)
        sims = self.words[seeds] @ self.words.T  # (groups, C)
        taken = np.zeros(n_classes, dtype=bool)
        taken[seeds] = True
        left = size - n_groups  # places for neighbours
        groups = []
        for seed, row in zip(seeds, sims, strict=True):
            n = min(self.related_classes - 1, left)
            nearest = np.where(taken, -np.inf, row).argsort()[::-1][:n]
            taken[nearest] = True
            left -= n
            groups.append([seed, *nearest])
        return np.concatenate(groups)
