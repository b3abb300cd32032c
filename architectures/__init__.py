"""Images to embeddings: any timm backbone by a name such as ``resnet50_frozen_normalize``."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from architectures.embedder import Embedder
from architectures.naming import ArchitectureName
from architectures.weights import Classifier, backbone, classifier

__all__ = [
    "ArchitectureName", "Classifier", "Embedder", "build", "build_classifier", "classifier",
    "create",
]  # fmt: skip


def create(
    name: str,
    embed_dim: int = 128,
    *,
    pretrained: bool = True,
    weights: Path | None = None,
    image_size: int | None = None,
) -> Embedder:
    """Return the embedder called ``<timm model>[_frozen][_normalize][_double]``.

    Args:
        pretrained: load ImageNet weights from a package or timm's hub.
        weights: load the backbone from this file instead.
        image_size: side of the square images; needed if parameters depend on it (ViT).

    Raises:
        ValueError: unknown name, weights that do not fit, or an impossible image size.
        FileNotFoundError: the weights cannot be found.
    """
    arch = ArchitectureName.parse(name)
    if weights is not None and not pretrained:
        raise ValueError(f"weights {weights} and pretrained=False exclude each other; drop one")
    body = backbone(arch.backbone, pretrained=pretrained, weights=weights, image_size=image_size)
    embedder = Embedder(
        body, embed_dim, frozen=arch.frozen, normalize=arch.normalize, double=arch.double
    )
    # CPUs and tensor cores convolve faster in this layout; values and shapes are the same.
    return embedder.to(memory_format=torch.channels_last)


def build(args: argparse.Namespace) -> Embedder:
    """Return the embedder that the flags describe; errors begin with --arch."""
    with _speaking_of(f"--arch {args.arch}"):
        return create(
            args.arch,
            args.embed_dim,
            pretrained=not args.not_pretrained,
            weights=Path(args.weights) if args.weights else None,
            image_size=args.image_size,
        )


def build_classifier(args: argparse.Namespace) -> Classifier:
    with _speaking_of(f"--language_pseudoclass_model {args.language_pseudoclass_model}"):
        return classifier(args.language_pseudoclass_model)


@contextmanager
def _speaking_of(flag: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{flag}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{flag}: {error}") from error
