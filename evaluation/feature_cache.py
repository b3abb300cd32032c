"""Extracted features on disk, so that all protocols and later runs share one extraction.

An entry is named after all that its features depend on: embedder, transform and images.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from datasets.image_files import READING
from datasets.image_set import Images, ImageSet
from datasets.loading import Transform
from evaluation.extract import Features, embed_in_batches, extract
from utilities import distributed
from utilities.checksums import digest, stamp
from utilities.disk_cache import Entry, digest_of_tensors

PLAIN = (bool, int, float, str, tuple)
N_SAMPLED = 16  # images whose pixels identify a set that does not consist of files


def cached_features(
    embedder: nn.Module,
    images: Images,
    transform: Transform,
    *,
    cache: Path | None,
    backbone_digest: str | None = None,
    bs: int = 112,
    workers: int = 6,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
) -> Features:
    """Return the features of ``extract``, from the folder ``cache`` if they have been kept.

    Of an ``Embedder`` the pooled features are kept, which embedders with other embedding layers
    share: before training, runs with any seed. Their embeddings are computed as ``extract`` does.
    Processes that train together read them, or extract a share each if any of them cannot.

    Args:
        backbone_digest: ``digest_of_backbone(embedder)``, to compute it once for several sets.
    """
    entry = kept = None
    if cache is not None:
        fingerprint = digest(
            [
                backbone_digest or digest_of_backbone(embedder),
                digest_of_transform(transform),
                digest_of_images(images),
                f"{precision} on {torch.device(device).type}, {bs} at a time",
            ]
        )
        entry = Entry(cache.name, images.name, fingerprint, root=cache.parent)
        kept = entry.read_tensors()
        missing = distributed.any_rank(kept is None)
        if kept is not None and not missing:
            if _has_layer(embedder):
                kept["embeds"] = embed_in_batches(embedder, kept["features"], bs, device, precision)
            return Features(**{name: kept[name] for name in Features._fields})
    features = extract(
        *(embedder, images, transform),
        bs=bs, workers=workers, device=device, precision=precision, shared=True,
    )  # fmt: skip
    complete = len(features.rows) == len(images)  # what could not be read may be readable next time
    if entry is not None and complete and distributed.is_first():
        with entry.locked():
            if entry.read() is None:
                parts = features._asdict()
                if _has_layer(embedder):
                    del parts["embeds"]
                entry.keep_tensors(parts)
    return features


def digest_of_backbone(embedder: nn.Module) -> str:
    """Digest of all that decides the pooled features of an ``Embedder``; of others, of all."""
    if not _has_layer(embedder):
        return digest_of_embedder(embedder)
    parts = digest_of_embedder(embedder.backbone), str(embedder.pooling)  # type: ignore[arg-type]
    return digest(["without embeddings", *parts])  # which earlier versions expect in an entry


def _has_layer(embedder: nn.Module) -> bool:
    """Return whether embeddings follow from pooled features, by ``embed_features``."""
    return hasattr(embedder, "embed_features")


def digest_of_embedder(embedder: nn.Module) -> str:
    """Digest of the weights, buffers and settings of a module, whatever its device and mode."""
    settings = [
        f"{name} {type(module).__qualname__} {key}={value!r}"
        for name, module in embedder.named_modules()
        for key, value in sorted(vars(module).items())
        if isinstance(value, PLAIN) and key != "training" and not key.startswith("_")
    ]
    state = embedder.state_dict()
    return digest([*settings, *state, digest_of_tensors(state.values())])


def digest_of_embeddings(arch: str, preprocessing: tuple, embedder: nn.Module) -> str:
    """Digest of everything that decides the embedding of an image, wherever it is computed."""
    state = embedder.state_dict()
    return digest([arch, str(tuple(preprocessing)), *state, digest_of_tensors(state.values())])


def digest_of_transform(transform: Transform) -> str:
    """Digest of what the transform makes of two images, one wide and one high."""
    rng = np.random.default_rng(0)
    return digest_of_tensors(
        transform(Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)))
        for size in ((97, 131), (211, 64))
    )


def digest_of_images(images: Images) -> str:
    """Digest of a set's name and labels, and of its files or of a sample of its images."""
    labels = np.array([images.label(row) for row in range(len(images))], dtype=np.int64)
    parts: list[str | bytes] = [images.name, str(READING), labels.tobytes()]
    if isinstance(images, ImageSet):
        parts += map(stamp, images.paths)
    else:
        for row in np.unique(np.linspace(0, len(images) - 1, N_SAMPLED).astype(int)):
            image = images.read(int(row))
            parts += [str(image.size), image.tobytes()]
    return digest(parts)
