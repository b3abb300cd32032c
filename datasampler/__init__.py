"""Which images meet in a batch."""

import argparse

from torch import Tensor, distributed

from datasets.image_set import ImageSet
from utilities.registry import from_flags, lookup
from utilities.seeding import derive

from .base import Sampler
from .batchmatch import DistHistBatchmatch, FIDBatchmatch
from .class_random import ClassRandom
from .class_related import ClassRelated
from .coreset import D2Coreset, GreedyCoreset
from .random import Random

__all__ = [
    "SAMPLERS",
    "ClassRandom",
    "ClassRelated",
    "D2Coreset",
    "DistHistBatchmatch",
    "FIDBatchmatch",
    "GreedyCoreset",
    "Random",
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
}


def build(args: argparse.Namespace, train: ImageSet, class_words: Tensor | None = None) -> Sampler:
    """The sampler of ``--data_sampler``, with ``--bs``, ``--samples_per_class`` and ``--data_*``.

    Under torch.distributed each process gets its share of the same batches.

    Args:
        train: the images to draw from.
        class_words: (C, D) text embeddings of the class names, for a sampler that reads them.
    """
    several = distributed.is_available() and distributed.is_initialized()
    sampler = lookup(SAMPLERS, args.data_sampler, "--data_sampler")
    return from_flags(
        sampler,
        args,
        "data_",
        rows_by_class=train.rows_by_class,
        n_images=len(train),
        bs=args.bs,
        samples_per_class=args.samples_per_class,
        class_words=class_words,
        seed=derive(args.seed, "datasampler"),
        rank=distributed.get_rank() if several else 0,
        world_size=distributed.get_world_size() if several else 1,
    )
