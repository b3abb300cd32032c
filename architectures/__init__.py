"""Images to embeddings: any timm backbone by a name such as ``resnet50_frozen_normalize``."""

import argparse
from pathlib import Path

import torch

from architectures.embedder import Embedder
from architectures.naming import ArchitectureName
from architectures.weights import Classifier, backbone, classifier

__all__ = ["ArchitectureName", "Classifier", "Embedder", "build", "classifier", "create"]


def create(
    name: str,
    embed_dim: int = 128,
    *,
    pretrained: bool = True,
    weights: Path | None = None,
    image_size: int | None = None,
) -> Embedder:
    """The embedder called ``name``, with ImageNet weights unless told otherwise.

    Args:
        name: ``<timm model>[_frozen][_normalize][_double]``.
        embed_dim: D.
        pretrained: load ImageNet weights from a package or timm's hub.
        weights: load the backbone from this file instead.
        image_size: side of the square images; needed where the parameters depend on it (ViT).

    Raises:
        ValueError: an unknown name, weights that do not fit, an image size that cannot be.
        FileNotFoundError: the weights cannot be had; lists the ways out.
    """
    arch = ArchitectureName.parse(name)
    if weights is not None and not pretrained:
        raise ValueError(f"--weights {weights} and --not_pretrained exclude each other; drop one")
    body = backbone(arch.backbone, pretrained=pretrained, weights=weights, image_size=image_size)
    embedder = Embedder(
        body, embed_dim, frozen=arch.frozen, normalize=arch.normalize, double=arch.double
    )
    # CPUs and tensor cores convolve faster in this layout; values and shapes are the same.
    return embedder.to(memory_format=torch.channels_last)


def build(args: argparse.Namespace) -> Embedder:
    """The embedder that the flags describe."""
    return create(
        args.arch,
        args.embed_dim,
        pretrained=not args.not_pretrained,
        weights=Path(args.weights) if args.weights else None,
        image_size=args.image_size,
    )
