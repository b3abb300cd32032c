"""Extracted features on disk, so that all protocols and later runs share one extraction.

A file is named after everything that its features depend on: the embedder's tensors and settings,
what the transform does, and which images there are. Whatever changes, the name does, and a stale
file is never read.
"""

import hashlib
import logging
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from datasets.image_set import Images, ImageSet
from datasets.loading import Transform
from evaluation.extract import Features, extract
from utilities import checkpoint, distributed

log = logging.getLogger(__name__)

PLAIN = (bool, int, float, str, tuple)
LOOKED_AT = 16  # pictures whose pixels tell one set from another that is no set of files


def cached_features(
    embedder: nn.Module,
    images: Images,
    transform: Transform,
    *,
    cache: Path | None,
    embedder_digest: str | None = None,
    bs: int = 112,
    workers: int = 6,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
) -> Features:
    """As ``extract``; read from ``cache`` where it has been done before.

    A file that is damaged is replaced, with a warning; a folder that cannot be written costs a
    warning and the cache.

    Args:
        cache: folder of the files; None keeps nothing.
        embedder_digest: of ``digest_of_embedder``, when it is known already.
    """

    def fresh() -> Features:
        return extract(
            *(embedder, images, transform),
            bs=bs,
            workers=workers,
            device=device,
            precision=precision,
            shared=True,
        )

    if cache is None:
        return fresh()
    parts = (
        embedder_digest or digest_of_embedder(embedder),
        digest_of_transform(transform),
        digest_of_images(images),
        f"{precision} on {torch.device(device).type}",
    )
    name = re.sub(r"[^\w.-]+", "_", images.name)
    file = cache / f"{name}-{_digest([part.encode() for part in parts])}.pt"
    kept = None
    if file.exists():
        try:
            kept = _read(file)
        except (OSError, ValueError) as error:
            log.warning("features in %s are damaged (%s); extracting them again", file, error)
    missing = distributed.any_rank(kept is None)  # then all embed a share, those that have it too
    if kept is not None and not missing:
        return kept
    features = fresh()
    if not distributed.is_first():
        return features
    try:
        checkpoint.save(file, {**features._asdict(), "digest": _digest_of_tensors(features)})
    except OSError as error:
        log.warning("features cannot be kept: %s", error)
    return features


def _read(file: Path) -> Features:
    """The features in a file, checked to the last bit."""
    parts = checkpoint.load(file)
    digest = parts.pop("digest", None)
    if set(parts) != set(Features._fields):
        raise ValueError("it holds something else")
    features = Features(**parts)
    if _digest_of_tensors(features) != digest:
        raise ValueError("it differs from its checksum")
    return features


def digest_of_embedder(embedder: nn.Module) -> str:
    """Changes with any weight, buffer or setting of a module; not with device or mode."""
    settings = [
        f"{name} {type(module).__qualname__} {key}={value!r}"
        for name, module in embedder.named_modules()
        for key, value in sorted(vars(module).items())
        if isinstance(value, PLAIN) and key != "training" and not key.startswith("_")
    ]
    state = embedder.state_dict()
    texts = [*settings, *state]
    return _digest([*map(str.encode, texts), *map(_bytes, state.values())])


def digest_of_transform(transform: Transform) -> str:
    """Changes when the transform makes something else of two pictures, wide and high."""
    rng = np.random.default_rng(0)
    pictures = [
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        for size in ((97, 131), (211, 64))
    ]
    return _digest_of_tensors(transform(picture) for picture in pictures)


def digest_of_images(images: Images) -> str:
    """Changes with the name, the labels, and the files, or else some of the pictures, of a set."""
    labels = np.array([images.label(row) for row in range(len(images))], dtype=np.int64)
    parts = [images.name.encode(), labels.tobytes()]
    if isinstance(images, ImageSet):
        for path in images.paths:
            status = path.stat() if path.exists() else None
            stamp = f"{status.st_size} {status.st_mtime_ns}" if status else "missing"
            parts.append(f"{path} {stamp}".encode())
    else:
        for row in np.unique(np.linspace(0, len(images) - 1, LOOKED_AT).astype(int)):
            picture = images.read(int(row))
            parts += [str(picture.size).encode(), picture.tobytes()]
    return _digest(parts)


def _digest_of_tensors(tensors: Iterable[Tensor]) -> str:
    parts = [(f"{tuple(t.shape)} {t.dtype}".encode(), _bytes(t)) for t in tensors]
    return _digest([part for pair in parts for part in pair])


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return flat.numpy().data


def _digest(parts: Iterable[bytes | memoryview]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))  # so that parts cannot run into each other
        digest.update(part)
    return digest.hexdigest()
