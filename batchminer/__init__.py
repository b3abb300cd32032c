"""Which triplets of a batch a loss looks at."""

import argparse

from utilities.registry import from_flags, lookup
from utilities.seeding import derive

from .base import Miner
from .distance import Distance
from .random import Random
from .semihard import Semihard

__all__ = ["MINERS", "Distance", "Miner", "Random", "Semihard", "build"]

MINERS: dict[str, type[Miner]] = {
    "distance": Distance,
    "semihard": Semihard,
    "random": Random,
}


def build(args: argparse.Namespace) -> Miner:
    """The miner of ``--batch_mining`` with the flags ``--miner_<name>_*``."""
    miner = lookup(MINERS, args.batch_mining, "--batch_mining")
    prefix = f"miner_{args.batch_mining}_"
    return from_flags(miner, args, prefix, seed=derive(args.seed, "batchminer"))
