"""Which triplets of a batch a loss looks at."""

import argparse

from utilities.registry import from_flags, lookup
from utilities.seeding import derive

from .base import Miner
from .distance import Distance
from .hard import Hard
from .intra_random import IntraRandom
from .lifted import Lifted
from .multisimilarity import MultiSimilarity
from .npair import NPair
from .parametric import Parametric
from .random import Random
from .random_distance import RandomDistance
from .rho_distance import RhoDistance
from .semihard import Semihard
from .softhard import Softhard

__all__ = [
    "MINERS",
    "Distance",
    "Hard",
    "IntraRandom",
    "Lifted",
    "Miner",
    "MultiSimilarity",
    "NPair",
    "Parametric",
    "Random",
    "RandomDistance",
    "RhoDistance",
    "Semihard",
    "Softhard",
    "build",
]

MINERS: dict[str, type[Miner]] = {
    "distance": Distance,
    "semihard": Semihard,
    "softhard": Softhard,
    "hard": Hard,
    "multisimilarity": MultiSimilarity,
    "rho_distance": RhoDistance,
    "parametric": Parametric,
    "npair": NPair,
    "lifted": Lifted,
    "random": Random,
    "intra_random": IntraRandom,
    "random_distance": RandomDistance,
}


def build(args: argparse.Namespace) -> Miner:
    """The miner of ``--batch_mining`` with the flags ``--miner_<name>_*``."""
    miner = lookup(MINERS, args.batch_mining, "--batch_mining")
    prefix = f"miner_{args.batch_mining}_"
    return from_flags(miner, args, prefix, seed=derive(args.seed, "batchminer"))
