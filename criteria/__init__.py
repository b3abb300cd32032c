"""Every objective: what the embeddings of a batch should look like."""

import argparse
from typing import Any

from utilities.registry import from_flags, lookup

from .angular import Angular
from .arcface import ArcFace
from .barlowtwins import BarlowTwins
from .base import Criterion, PairCriterion
from .byol import BYOL
from .circle import Circle
from .clip import CLIP
from .contrastive import Contrastive
from .cosface import CosFace
from .declip_nns import DeCLIPNNS
from .histogram import Histogram
from .language_distillation import LanguageDistillation
from .lgslip import LGSLIP
from .lifted import Lifted
from .margin import Margin
from .multisimilarity import MultiSimilarity
from .nnclr import NNCLR
from .npair import NPair
from .objective import Objective
from .oproxy import OProxy
from .proxynca import ProxyNCA
from .proxynca_pp import ProxyNCAPlusPlus
from .quadruplet import Quadruplet
from .s2sd import S2SD
from .simclr import SimCLR
from .simsiam import SimSiam
from .slip import SLIP
from .smooth_ap import SmoothAP
from .snr import SNR
from .softmax import Softmax
from .softtriplet import SoftTriplet
from .subcenter_arcface import SubcenterArcFace
from .supcon import SupCon
from .swav import SwAV
from .triplet import Triplet
from .vicreg import VICReg
from .xbm import CrossBatchMemory

__all__ = [
    "BYOL",
    "CLIP",
    "CRITERIA",
    "LGSLIP",
    "NNCLR",
    "S2SD",
    "SLIP",
    "SNR",
    "Angular",
    "ArcFace",
    "BarlowTwins",
    "Circle",
    "Contrastive",
    "CosFace",
    "Criterion",
    "CrossBatchMemory",
    "DeCLIPNNS",
    "Histogram",
    "LanguageDistillation",
    "Lifted",
    "Margin",
    "MultiSimilarity",
    "NPair",
    "OProxy",
    "Objective",
    "PairCriterion",
    "ProxyNCA",
    "ProxyNCAPlusPlus",
    "Quadruplet",
    "SimCLR",
    "SimSiam",
    "SmoothAP",
    "SoftTriplet",
    "Softmax",
    "SubcenterArcFace",
    "SupCon",
    "SwAV",
    "Triplet",
    "VICReg",
    "build",
    "build_distillation",
]

CRITERIA: dict[str, type[Criterion]] = {
    # all pairs of a batch
    "multisimilarity": MultiSimilarity,
    "supcon": SupCon,
    "circle": Circle,
    "npair": NPair,
    "angular": Angular,
    "lifted": Lifted,
    "histogram": Histogram,
    "smooth_ap": SmoothAP,
    # tuples that a miner chooses
    "margin": Margin,
    "triplet": Triplet,
    "contrastive": Contrastive,
    "quadruplet": Quadruplet,
    "snr": SNR,
    # images and class vectors
    "softmax": Softmax,
    "arcface": ArcFace,
    "cosface": CosFace,
    "subcenter_arcface": SubcenterArcFace,
    "oproxy": OProxy,
    "proxynca": ProxyNCA,
    "proxynca_pp": ProxyNCAPlusPlus,
    "softtriplet": SoftTriplet,
    # branches over other criteria
    "s2sd": S2SD,
    # views of one image, or of two that belong together
    "simclr": SimCLR,
    "nnclr": NNCLR,
    "swav": SwAV,
    "simsiam": SimSiam,
    "byol": BYOL,
    "barlowtwins": BarlowTwins,
    "vicreg": VICReg,
    # images and captions
    "clip": CLIP,
    "declip_nns": DeCLIPNNS,
    "slip": SLIP,
    "lgslip": LGSLIP,
}


def build(
    args: argparse.Namespace, *, embed_dim: int, feature_dim: int, **collaborators: Any
) -> Criterion:
    """The criterion of ``--loss`` with the flags ``--loss_<name>_*``, and its memory if asked.

    Args:
        embed_dim: D.
        feature_dim: F, of the pooled features that an objective may read beside the embeddings.
        collaborators: what some criteria need beside these, by name
            n_classes: number of training classes;
            miner: chooses the triplets of a criterion that works on triplets;
            embedder: what a momentum encoder is a copy of;
            n_steps: optimizer steps that are planned;
            tokenizer, encoder: make what reads captions, when it is called.

    Raises:
        ValueError: an unknown name, or hyperparameters or a memory that do not fit the criterion.
    """

    def make(name: str, embed_dim: int) -> Criterion:
        return from_flags(
            lookup(CRITERIA, name, "--loss"),
            args,
            f"loss_{name}_",
            embed_dim=embed_dim,
            feature_dim=feature_dim,
            make=make,
            **collaborators,
        )

    criterion = make(args.loss, embed_dim)
    if not args.xbm_size:
        return criterion
    if not isinstance(criterion, PairCriterion):
        raise ValueError(
            f"--xbm_size {args.xbm_size} keeps images to compare with, --loss {args.loss} compares "
            "images with none; leave the memory out"
        )
    return CrossBatchMemory(
        criterion, embed_dim, size=args.xbm_size, start=args.xbm_start, weight=args.xbm_weight
    )


def build_distillation(args: argparse.Namespace) -> LanguageDistillation:
    """L_match with ``--language_shift``, ``--language_temp`` and ``--language_distill_dir``."""
    return from_flags(LanguageDistillation, args, "language_")
