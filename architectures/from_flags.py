"""The embedder that the flags of a run describe, or a name."""

import argparse
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from architectures import weights as pretrained_weights
from architectures.embedder import Embedder
from architectures.image_tower import ImageTower, has_text_tower, image_tower
from architectures.layout import lay_out
from architectures.naming import ArchitectureName
from architectures.weights import Classifier, backbone, classifier
from utilities import distributed
from utilities.structures import input_size

LOG = logging.getLogger(__name__)


def create(
    name: str,
    embed_dim: int = 128,
    *,
    pretrained: bool = True,
    weights: Path | None = None,
    image_size: int | None = None,
    zero_init_last: bool = True,
) -> Embedder:
    """Return the embedder called ``<timm model>[_frozen][_normalize][_double][_root]``.

    Args:
        pretrained: load ImageNet weights from a package or timm's hub.
        weights: load the backbone from this file instead.
        image_size: side of the square images that the embedder is to read, in pixels; None for
            that of the weights.
        zero_init_last: False starts at 1 what timm starts at 0: the scale of the last BatchNorm of
            a residual block.

    Raises:
        ValueError: unknown name, weights that do not fit, an impossible image size, or no BatchNorm
            that starts at 0.
        FileNotFoundError: the weights cannot be found.
    """
    arch = ArchitectureName.parse(name)
    if weights is not None and not pretrained:
        raise ValueError(f"weights {weights} and pretrained=False exclude each other; drop one")
    body = backbone(arch.backbone, pretrained=pretrained, weights=weights, image_size=image_size)
    if not zero_init_last:
        _start_at_one(body)
    embedder = Embedder(
        *(body, embed_dim),
        image_size=image_size,
        frozen=arch.frozen,
        normalize=arch.normalize,
        double=arch.double,
        root=arch.root,
    )
    lay_out(embedder)
    return embedder


def at_hand(name: str) -> bool:
    """Return whether the ImageNet weights of an architecture need no network."""
    return pretrained_weights.at_hand(ArchitectureName.parse(name).backbone)


def build(args: argparse.Namespace) -> Embedder:
    """Return the embedder that the flags describe, for training; errors begin with --arch."""
    with _speaking_of(f"--arch {args.arch}"):
        embedder = create(
            args.arch,
            args.embed_dim,
            pretrained=not args.not_pretrained,
            weights=Path(args.weights) if args.weights else None,
            image_size=input_size(args.image_size, args.augmentation),
            zero_init_last=not args.no_zero_init_last,
        )
        if args.grad_checkpointing:
            embedder.checkpoint_gradients()
    if args.embed_init != "random" and args.embed_dim > embedder.feature_dim:
        raise ValueError(
            f"--embed_init {args.embed_init}: --embed_dim must be at most the "
            f"{embedder.feature_dim:,} features of --arch {args.arch}; got {args.embed_dim}"
        )
    in_parts = 0 < args.forward_bs < args.bs // distributed.world_size()
    if in_parts and (norms := len(embedder.batch_norms)):
        raise ValueError(
            f"--forward_bs {args.forward_bs} embeds a batch in parts, but {norms} layers normalise "
            f"over the whole batch (BatchNorm); freeze them with --arch {args.arch}_frozen, choose "
            "a backbone without, or save memory by --grad_checkpointing"
        )
    return embedder


def initialise(args: argparse.Namespace, embedder: Embedder, embed: Callable[[], Any]) -> None:
    """Start the embedding layer as ``--embed_init`` says.

    Args:
        embed: returns the ``features`` and ``labels`` of the training images.
    """
    if args.embed_init != "random":
        found = embed()
        embedder.start_from(found.features, found.labels if args.embed_init == "whiten" else None)


def build_classifier(args: argparse.Namespace) -> Classifier:
    with _speaking_of(f"--language_pseudoclass_model {args.language_pseudoclass_model}"):
        return classifier(args.language_pseudoclass_model)


def build_image_tower(args: argparse.Namespace) -> ImageTower | None:
    """Return the image tower of CLIP or SigLIP that ``--arch`` names; None if it names another.

    None too, with a warning that says why, if its projection cannot be used.
    """
    if not has_text_tower(args.arch):
        return None
    try:
        if args.not_pretrained:
            raise ValueError("with --not_pretrained it has no trained projection")
        return image_tower(args.arch, Path(args.weights) if args.weights else None)
    except (LookupError, ValueError, OSError) as error:
        LOG.warning("zero_shot scores of --arch %s are left out: %s", args.arch, error)
        return None


def _start_at_one(backbone: nn.Module) -> None:
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d) and m.affine]
    zero = [norm for norm in norms if not norm.weight.any()]
    if not zero:
        raise ValueError("--no_zero_init_last has no effect, as no BatchNorm starts at 0; drop it")
    for norm in zero:
        nn.init.ones_(norm.weight)


@contextmanager
def _speaking_of(flag: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{flag}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{flag}: {error}") from error
