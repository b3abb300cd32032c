"""Every objective: what the embeddings of a batch should look like."""

import argparse

from batchminer import Miner
from utilities.registry import from_flags, lookup

from .base import Criterion
from .language_distillation import LanguageDistillation
from .margin import Margin
from .multisimilarity import MultiSimilarity
from .triplet import Triplet

__all__ = [
    "CRITERIA",
    "Criterion",
    "LanguageDistillation",
    "Margin",
    "MultiSimilarity",
    "Triplet",
    "build",
    "build_distillation",
]

CRITERIA: dict[str, type[Criterion]] = {
    "multisimilarity": MultiSimilarity,
    "margin": Margin,
    "triplet": Triplet,
}


def build(args: argparse.Namespace, *, n_classes: int, embed_dim: int, miner: Miner) -> Criterion:
    """The criterion of ``--loss`` with the flags ``--loss_<name>_*``.

    Args:
        n_classes: number of training classes.
        embed_dim: D.
        miner: chooses the triplets of a criterion that works on triplets.
    """
    criterion = lookup(CRITERIA, args.loss, "--loss")
    prefix = f"loss_{args.loss}_"
    return from_flags(
        criterion, args, prefix, n_classes=n_classes, embed_dim=embed_dim, miner=miner
    )


def build_distillation(args: argparse.Namespace) -> LanguageDistillation:
    """L_match with ``--language_shift``, ``--language_temp`` and ``--language_distill_dir``."""
    return from_flags(LanguageDistillation, args, "language_")
