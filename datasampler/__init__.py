"""Which images meet in a batch."""

import argparse
import inspect

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from datasets.caption_set import CaptionSet
from datasets.image_set import ImageSet
from utilities import distributed
from utilities.registry import from_flags, lookup
from utilities.seeding import derive

from .base import Sampler
from .batchmatch import DistHistBatchmatch, FIDBatchmatch
from .class_random import ClassRandom
from .class_related import ClassRelated
from .coreset import D2Coreset, GreedyCoreset
from .pairs import AugmentedPairs, LanguagePairs, RandomPairs
from .random import Random

__all__ = [
    "SAMPLERS",
    "AugmentedPairs",
    "ClassRandom",
    "ClassRelated",
    "D2Coreset",
    "DistHistBatchmatch",
    "FIDBatchmatch",
    "GreedyCoreset",
    "LanguagePairs",
    "Random",
    "RandomPairs",
    "Sampler",
    "build",
]

SAMPLERS: dict[str, type[Sampler]] = {
    "class_random": ClassRandom,
    "class_related": ClassRelated,
    "greedy_coreset": GreedyCoreset,
    "d2_coreset": D2Coreset,
    "disthist_batchmatch": DistHistBatchmatch,
    "fid_batchmatch": FIDBatchmatch,
    "random": Random,
    "augmented_pairs": AugmentedPairs,
    "language_pairs": LanguagePairs,
    "random_pairs": RandomPairs,
}


def build(
    args: argparse.Namespace,
    train: ImageSet | CaptionSet,
    *,
    n_views: int = 1,
    class_words: Tensor | None = None,
    partners: NDArray[np.int64] | None = None,
    similarities: NDArray[np.floating] | None = None,
) -> Sampler:
    """The sampler of ``--data_sampler``, with ``--bs``, ``--samples_per_class`` and ``--data_*``.

    Under torch.distributed each process gets its share of the same batches.

    Args:
        train: the images to draw from.
        n_views: rows in a tuple, for a sampler of pairs.
        class_words: (C, D) text embeddings of the class names, for a sampler that reads them.
        partners, similarities: (N, k), which images each may be paired with.

    Raises:
        ValueError: the sampler needs classes and the images have none.
    """
    sampler = lookup(SAMPLERS, args.data_sampler, "--data_sampler")
    rows_by_class = train.rows_by_class if isinstance(train, ImageSet) else None
    if rows_by_class is None and "rows_by_class" in inspect.signature(sampler).parameters:
        raise ValueError(
            f"--data_sampler {args.data_sampler} draws by class, --dataset {args.dataset} has "
            "captions instead; use language_pairs or augmented_pairs"
        )
    return from_flags(
        sampler,
        args,
        "data_",
        rows_by_class=rows_by_class,
        n_images=len(train),
        bs=args.bs,
        samples_per_class=args.samples_per_class,
        n_views=n_views,
        class_words=class_words,
        partners=partners,
        similarities=similarities,
        seed=derive(args.seed, "datasampler"),
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )
