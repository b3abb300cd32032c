"""Chooses the triplets of a batch that a loss looks at."""

import argparse
from typing import TYPE_CHECKING

from utilities.registry import Component, exporter, from_flags, lookup

if TYPE_CHECKING:
    from .base import Miner


def _row(file: str, name: str, needs: str = "") -> Component:
    return Component(f"batchminer.{file}", name, frozenset(needs.split()))


# A miner with "feedback" learns from validation images (``Miner.adapt``).
MINERS = {
    "distance": _row("distance", "Distance"),
    "semihard": _row("semihard", "Semihard"),
    "softhard": _row("hard", "Softhard"),
    "hard": _row("hard", "Hard"),
    "multisimilarity": _row("multisimilarity", "MultiSimilarity"),
    "rho_distance": _row("rho_distance", "RhoDistance"),
    "parametric": _row("parametric", "Parametric", "feedback"),
    "npair": _row("npair", "NPair"),
    "lifted": _row("lifted", "Lifted"),
    "random": _row("random", "Random"),
    "intra_random": _row("random", "IntraRandom"),
    "random_distance": _row("distance", "RandomDistance"),
}
__getattr__ = exporter(__name__, MINERS | {"base": _row("base", "Miner")})


def build(args: argparse.Namespace) -> "Miner":
    """Build the miner of ``--batch_mining`` from the flags ``--miner_<name>_*``."""
    from utilities.seeding import derive

    miner = lookup(MINERS, args.batch_mining, "--batch_mining").load()
    prefix = f"miner_{args.batch_mining}_"
    return from_flags(miner, args, prefix, seed=derive(args.seed, "batchminer"))
