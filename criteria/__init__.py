"""Every objective: what the embeddings of a batch should look like."""

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from utilities.registry import Component, exporter, from_flags, lookup

if TYPE_CHECKING:
    from torch import Tensor

    from .base import Criterion
    from .language_distillation import LanguageDistillation
    from .language_proxies import LanguageProxies


def _row(file: str, name: str, needs: str = "") -> Component:
    return Component(f"criteria.{file}", name, frozenset(needs.split()))


# Needs: "pairs" is a PairCriterion, which can be compared with a memory; "views" come of one image
# or of a pair of images.
CRITERIA = {
    # all pairs of a batch
    "multisimilarity": _row("multisimilarity", "MultiSimilarity", "labels pairs"),
    "supcon": _row("supcon", "SupCon", "labels pairs"),
    "circle": _row("circle", "Circle", "labels pairs"),
    "npair": _row("npair", "NPair", "labels pairs"),
    "angular": _row("angular", "Angular", "labels pairs"),
    "lifted": _row("lifted", "Lifted", "labels pairs"),
    "histogram": _row("histogram", "Histogram", "labels pairs"),
    "smooth_ap": _row("smooth_ap", "SmoothAP", "labels pairs"),
    # tuples that a miner chooses
    "margin": _row("margin", "Margin", "labels pairs miner"),
    "triplet": _row("triplet", "Triplet", "labels pairs miner"),
    "contrastive": _row("contrastive", "Contrastive", "labels pairs miner"),
    "quadruplet": _row("quadruplet", "Quadruplet", "labels pairs miner"),
    "snr": _row("snr", "SNR", "labels pairs miner"),
    # images and class vectors
    "softmax": _row("softmax", "Softmax", "labels"),
    "arcface": _row("arcface", "ArcFace", "labels"),
    "cosface": _row("cosface", "CosFace", "labels"),
    "subcenter_arcface": _row("arcface", "SubcenterArcFace", "labels"),
    "oproxy": _row("proxy_anchor", "ProxyAnchor", "labels"),
    "proxynca": _row("proxynca", "ProxyNCA", "labels"),
    "proxynca_pp": _row("proxynca", "ProxyNCAPlusPlus", "labels"),
    "softtriplet": _row("softtriplet", "SoftTriplet", "labels"),
    # branches over other criteria
    "s2sd": _row("s2sd", "S2SD", "labels"),
    # views of one image, or of two that belong together
    "simclr": _row("simclr", "SimCLR", "views"),
    "nnclr": _row("nnclr", "NNCLR", "views"),
    "swav": _row("swav", "SwAV", "views"),
    "simsiam": _row("simsiam", "SimSiam", "views"),
    "byol": _row("byol", "BYOL", "views"),
    "barlowtwins": _row("barlowtwins", "BarlowTwins", "views"),
    "vicreg": _row("vicreg", "VICReg", "views"),
    # images and captions
    "clip": _row("clip", "CLIP", "captions"),
    "declip_nns": _row("declip_nns", "DeCLIPNNS", "captions"),
    "slip": _row("slip", "SLIP", "views captions"),
    "lgslip": _row("slip", "LGSLIP", "views captions"),
}
__getattr__ = exporter(
    __name__,
    CRITERIA
    | {
        "criterion": _row("base", "Criterion"),
        "pair_criterion": _row("base", "PairCriterion"),
        "memory": _row("xbm", "CrossBatchMemory"),
        "distillation": _row("language_distillation", "LanguageDistillation"),
        "proxies": _row("language_proxies", "LanguageProxies"),
        "objective": _row("objective", "Objective"),
    },
)


def build(
    args: argparse.Namespace, *, embed_dim: int, feature_dim: int, **collaborators: Any
) -> "Criterion":
    """Build the criterion of ``--loss`` from ``--loss_<name>_*``, and its memory if requested.

    Args:
        embed_dim: D.
        feature_dim: F, of the pooled features.
        collaborators: what some criteria need besides: n_classes, miner, embedder (copied by a
            momentum encoder), n_steps (planned optimizer steps), forward_bs (rows per pass of an
            encoder of its own), and tokenizer and encoder, which make what reads captions.

    Raises:
        ValueError: an unknown name, or hyperparameters or a memory that do not fit the criterion.
    """

    def make(name: str, embed_dim: int) -> "Criterion":
        return from_flags(
            lookup(CRITERIA, name, "--loss").load(),
            args,
            f"loss_{name}_",
            embed_dim=embed_dim,
            feature_dim=feature_dim,
            map_dim=getattr(collaborators.get("embedder"), "map_dim", None),
            make=make,
            **collaborators,
        )

    criterion = make(args.loss, embed_dim)
    if not args.xbm_size:
        return criterion
    if "pairs" not in CRITERIA[args.loss].needs:
        raise ValueError(
            f"--xbm_size {args.xbm_size} keeps images to compare with, but --loss {args.loss} does "
            "not compare images with images; leave out the memory"
        )
    from .xbm import CrossBatchMemory

    return from_flags(CrossBatchMemory, args, "xbm_", criterion=criterion, embed_dim=embed_dim)


def load_text_side(
    args: argparse.Namespace, trained: Any, readers: Mapping[str, Any]
) -> "Criterion | None":
    """Return the trained objective of ``--loss`` if it reads captions, for its two sides.

    Args:
        trained: as ``architectures.load`` returns it; None too if it holds no such objective.
        readers: tokenizer and encoder, as for ``build``.

    Raises:
        ValueError: a flag of the objective is not that of its training.
    """
    needs = lookup(CRITERIA, trained.flags.get("loss", args.loss), "--loss").needs
    if trained.criterion is None or "captions" not in needs:
        return None
    for flag, value in trained.flags.items():
        read = flag == "language_model" or flag.startswith("loss")
        if read and getattr(args, flag, value) != value:
            raise ValueError(
                f"--{flag} must be {value}, as the text side of {trained.file} was trained; got "
                f"{getattr(args, flag)}; leave --{flag} out"
            )
    sizes = {f"{of}_dim": getattr(trained.embedder, f"{of}_dim") for of in ("embed", "feature")}
    criterion = build(args, **sizes, **readers)
    criterion.load_state_dict(trained.criterion)
    return criterion.eval()


def build_distillation(args: argparse.Namespace) -> "LanguageDistillation":
    """Build L_match from ``--language_shift``, ``--language_temp``, ``--language_distill_dir``."""
    from .language_distillation import LanguageDistillation

    return from_flags(LanguageDistillation, args, "language_")


def build_proxies(
    args: argparse.Namespace, class_words: "Tensor | None", n_classes: int, dim: int
) -> "LanguageProxies | None":
    """Build L_proxy from ``--language_proxy_*``; None at ``--language_proxy_w 0``.

    Args:
        class_words: (C, D_text) unit rows, or None if the guidance has no words of classes.
        dim: of what it classifies, the embeddings or the features.

    Raises:
        ValueError: there are no words of classes.
    """
    if not args.language_proxy_w:
        return None
    from .language_proxies import LanguageProxies

    if args.language_proxy_vectors == "free" or args.language_control == "uniform":
        class_words = None
    elif class_words is None:
        raise ValueError(
            f"--language_proxy_w {args.language_proxy_w:g} reads class vectors from the words of "
            f"classes, but --language_words {args.language_words} are words of images; use "
            "classnames, or --language_proxy_vectors free"
        )
    sizes = {"n_classes": n_classes, "embed_dim": dim, "class_words": class_words}
    return from_flags(LanguageProxies, args, "language_proxy_", **sizes)
