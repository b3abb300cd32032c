"""Samplers decide which images meet in a batch."""

import argparse
import math
from collections.abc import Container
from typing import TYPE_CHECKING

from utilities.registry import Component, exporter, from_flags, lookup, needing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from datasampler.base import Sampler
    from datasets.caption_set import CaptionSet
    from datasets.image_set import ImageSet

# What a sampler needs: "classes" to draw by, a store of "embeddings", the "words" of the classes,
# two views to make "pairs" of, the caption "partners" of the images.
CLASSES = frozenset({"classes"})
STORE = CLASSES | {"embeddings"}
PAIRS = frozenset({"pairs"})

SAMPLERS = {
    "class_random": Component("datasampler.class_random", "ClassRandom", CLASSES),
    "class_related": Component("datasampler.class_related", "ClassRelated", CLASSES | {"words"}),
    "d2_coreset": Component("datasampler.coreset", "D2Coreset", STORE),
    "disthist_batchmatch": Component("datasampler.batchmatch", "DistHistBatchmatch", STORE),
    "fid_batchmatch": Component("datasampler.batchmatch", "FIDBatchmatch", STORE),
    "greedy_coreset": Component("datasampler.coreset", "GreedyCoreset", STORE),
    "augmented_pairs": Component("datasampler.pairs", "AugmentedPairs", PAIRS),
    "language_pairs": Component("datasampler.pairs", "LanguagePairs", PAIRS | {"partners"}),
    "random_pairs": Component("datasampler.pairs", "RandomPairs", PAIRS),
    "random": Component("datasampler.base", "Random"),
}

__getattr__ = exporter(__name__, SAMPLERS)


def fit_bs(
    args: argparse.Namespace, train: "ImageSet | CaptionSet", filled: Container[str]
) -> dict[str, str]:
    """Lower a default ``--bs`` to the largest batch that the training images fill.

    Args:
        filled: flags that were not typed.

    Returns:
        a line for the summary, by its label; none if ``--bs`` was typed, fits, or cannot fit.
    """
    from utilities import distributed

    needs, usual = lookup(SAMPLERS, args.data_sampler, "--data_sampler").needs, args.bs
    classes = getattr(train, "rows_by_class", ()) if "classes" in needs else ()
    most, of = len(train), f"{len(train):,} training images"
    full = len(classes) * args.samples_per_class  # a batch of all classes
    if full and full < most and not args.data_class_replacement:
        most, of = full, f"{len(classes):,} training classes"
    if "embeddings" in needs:
        most = min(most, args.data_batchmatch_bigbs)
    step = math.lcm(args.samples_per_class if classes else 1, distributed.world_size())
    fits = min(usual, most) // step * step
    if "bs" not in filled or fits in (0, usual):
        return {}
    args.bs = fits
    return {"batch size": f"{fits}, the largest that fits {of} (default: {usual})"}


def build(
    args: argparse.Namespace,
    train: "ImageSet | CaptionSet",
    *,
    n_views: int = 1,
    class_words: "Tensor | None" = None,
    partners: "NDArray[np.int64] | None" = None,
    similarities: "NDArray[np.floating] | None" = None,
) -> "Sampler":
    """Return the sampler of ``--data_sampler``, built from its flags.

    Args:
        n_views: rows in a tuple, for a sampler of pairs.
        class_words: (C, D) text embeddings of the class names, for a sampler that needs them.
        partners, similarities: (N, k), which images each may be paired with.

    Raises:
        ValueError: the sampler needs classes and the images have none; or as the sampler, with the
            flag in front.
    """
    from utilities import distributed
    from utilities.seeding import derive

    component = lookup(SAMPLERS, args.data_sampler, "--data_sampler")
    rows_by_class = getattr(train, "rows_by_class", None)
    if "classes" in component.needs and rows_by_class is None:
        raise ValueError(
            f"--data_sampler {args.data_sampler} draws by class, --dataset {args.dataset} has "
            f"captions instead; use one of {', '.join(needing(SAMPLERS, 'pairs'))}"
        )
    try:
        return from_flags(
            component.load(),
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
    except ValueError as error:
        if str(error).startswith(("bs ", "samples_per_class ")):
            raise ValueError(f"--{error}") from error
        raise
