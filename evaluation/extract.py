"""Embeds an image set once, for whatever is computed from it afterwards."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from datasets.colour import finish
from datasets.image_set import Images
from datasets.loading import Transform, loader
from datasets.transforms import CenterCrop
from utilities import distributed
from utilities.device import PendingCopy, autocast
from utilities.distributed import rank, world_size
from utilities.progress import bar
from utilities.structures import Batch


class Features(NamedTuple):
    """M embedded images in the order of their set, without the unreadable ones, on the CPU."""

    embeds: Tensor  # (M, D) float32
    features: Tensor  # (M, F) float32, pooled, before the embedding layer
    rows: Tensor  # (M,) int64, row in the image set
    labels: Tensor  # (M,) int64


def extract(
    embedder: nn.Module,
    image_set: Images,
    transform: Transform,
    *,
    bs: int = 112,
    workers: int = 6,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    shared: bool = False,
) -> Features:
    """Embed all images of a set, in order, in evaluation mode; the embedder's mode is restored.

    Args:
        embedder: images (B, 3, H, W) -> ``Embedding``, already on ``device``.
        transform: without randomness. The workers do only the part of ``datasets.eval_transform``
            that works on bytes, and decode no more than it needs.
        bs: images at a time; changes results by rounding only.
        workers: loading processes; 0 loads in this one.
        precision: of the computation, of ``utilities.device.DTYPES``; results are float32.
        shared: processes that train together embed a share of the batches each, and all get the
            whole; each of them must call this.

    Raises:
        ValueError: the set has no images.
        OSError: no image of a batch can be read any more.
    """
    batches = _batches(image_set, bs)
    if shared:
        batches = batches[rank() :: world_size()]
    parts = [
        Features(embeds, features, rows, labels)
        for (embeds, features), rows, labels in _outputs(
            lambda images: embedder(images)[:2],
            *(embedder, image_set, transform, batches, workers, device, precision),
        )
    ]
    if shared:
        parts = [part for share in distributed.gather_objects(parts) for part in share]
        parts.sort(key=lambda part: int(part.rows[0]))
    return Features(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


@torch.no_grad()
def embed_in_batches(
    embedder: nn.Module, features: Tensor, bs: int, device: torch.device | str, precision: str
) -> Tensor:
    """Return (M, D) embeddings of (M, F) pooled features on the CPU, as ``extract`` gives them."""
    device = torch.device(device)
    embeds = []
    for part in features.split(bs):  # the same batches, so that they are rounded alike
        with autocast(device, precision):
            found: Tensor = embedder.embed_features(part.to(device))  # type: ignore[operator]
        embeds.append(found.float().cpu())
    return torch.cat(embeds)


def extract_readable(
    embedder: nn.Module,
    image_set: Images,
    transform: Transform,
    *,
    bs: int = 112,
    workers: int = 6,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
) -> Iterator[tuple[Tensor, Tensor]]:
    """Embed a set as ``extract`` does, but batch by batch, and however many images are unreadable.

    Yields:
        (B,) int64 rows and (B, D) float32 embeddings of a batch on the CPU, rows ascending.
    """
    for (embeds,), rows, _ in _outputs(
        lambda images: embedder(images)[:1],
        *(embedder, image_set, transform, _batches(image_set, bs), workers, device, precision),
        skip_unreadable=True,
    ):
        yield rows, embeds


def predict(
    classifier: nn.Module,
    image_set: Images,
    transform: Transform,
    *,
    bs: int = 112,
    workers: int = 6,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return the (N, K) float32 logits of a classifier on the CPU; arguments as ``extract``.

    The row of an image that can no longer be read is zero, so that all classes are equally likely.
    """
    logits = torch.zeros(0)
    for (output,), rows, _ in _outputs(
        lambda images: (classifier(images),),
        *(classifier, image_set, transform, _batches(image_set, bs), workers, device, "fp32"),
    ):
        if not len(logits):
            logits = torch.zeros(len(image_set), output.shape[1])
        logits[rows] = output
    return logits


def _batches(image_set: Images, bs: int) -> list[list[tuple[int, ...]]]:
    """Return all rows in order, ``bs`` at a time."""
    n = len(image_set)
    if not n:
        raise ValueError(f"{image_set.name} has no images to embed")
    return [[(row,) for row in range(start, min(start + bs, n))] for start in range(0, n, bs)]


@torch.no_grad()
def _outputs(
    read: Callable[[Tensor], Sequence[Tensor]],
    model: nn.Module,
    image_set: Images,
    transform: Transform,
    batches: list[list[tuple[int, ...]]],
    workers: int,
    device: torch.device | str,
    precision: str,
    skip_unreadable: bool = False,
) -> Iterator[tuple[list[Tensor], Tensor, Tensor]]:
    """Yield the float32 outputs of ``read`` for each batch, with its rows and labels, on the CPU.

    A batch leaves the device while the device works on the next one.
    """
    device = torch.device(device)
    # A loading process pays off only if there is something to load meanwhile.
    workers = 0 if len(batches) < 2 else min(workers, len(batches))

    was_training = model.training
    model.eval()
    under_way: deque[tuple[PendingCopy, Tensor, Tensor]] = deque()
    try:
        with bar(
            total=sum(map(len, batches)), desc=f"embedding {image_set.name}", unit="img"
        ) as shown:
            pinned = device.type != "cpu"
            loaded: Iterable[Batch] = loader(
                image_set, (transform,), batches, workers=workers, seed=0, pin_memory=pinned
            )
            for batch in _readable(loaded) if skip_unreadable else loaded:
                rows, labels = batch.rows.clone(), batch.labels.clone()  # out of shared memory
                batch = batch.to(device)
                if isinstance(transform, CenterCrop):
                    batch = finish(batch, transform.mean, transform.std)
                with autocast(device, precision):
                    outputs = read(batch.views[0])
                copies = PendingCopy(*(output.float() for output in outputs))
                under_way.append((copies, rows, labels))
                if len(under_way) > 1:
                    yield _arrived(*under_way.popleft())
                shown.update(len(rows))
            yield from (_arrived(*batch) for batch in under_way)
    finally:
        model.train(was_training)


def _readable(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yield the batches of which an image can be read; the loader names the images that cannot."""
    loaded = iter(batches)
    while True:
        with contextlib.suppress(OSError):
            yield from loaded
            return


def _arrived(
    copies: PendingCopy, rows: Tensor, labels: Tensor
) -> tuple[list[Tensor], Tensor, Tensor]:
    return [copy.clone() if copy.is_pinned() else copy for copy in copies.wait()], rows, labels
