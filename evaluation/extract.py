"""Embeds an image set once, for whatever is computed from it afterwards."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from datasets.image_set import Images
from datasets.loading import Transform, loader
from utilities.precision import half_precision


class Features(NamedTuple):
    """M embedded images in the order of the image set, on the CPU.

    M = N, the images of the set, unless some could not be read.
    """

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
    autocast: bool = False,
) -> Features:
    """Embed all images of a set, in order, in evaluation mode; the embedder's mode is put back.

    Args:
        embedder: images (B, 3, H, W) -> ``Embedding``, on ``device`` already.
        transform: image -> (3, H, W) float32, without chance.
        bs: images at a time; it changes no result but for rounding.
        workers: processes that load; 0 loads in this one.
        autocast: compute in half precision (float16, on a CPU bfloat16); results are float32.

    Raises:
        ValueError: the set has no images.
        OSError: no image of a batch can be read any more.
    """
    parts = [
        Features(embedding.embeds.float().cpu(), embedding.features.float().cpu(), *which)
        for embedding, *which in _outputs(
            embedder, image_set, transform, bs, workers, torch.device(device), autocast
        )
    ]
    return Features(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def predict(
    classifier: nn.Module,
    image_set: Images,
    transform: Transform,
    *,
    bs: int = 112,
    workers: int = 6,
    device: torch.device | str = "cpu",
) -> Tensor:
    """(N, K) float32 logits of a classifier on the CPU; arguments as ``extract``.

    A row whose image can no longer be read is zero: it looks like every class alike.
    """
    logits = torch.zeros(0)
    for output, rows, _ in _outputs(
        classifier, image_set, transform, bs, workers, torch.device(device), False
    ):
        if not len(logits):
            logits = torch.zeros(len(image_set), output.shape[1])
        logits[rows] = output.float().cpu()
    return logits


@torch.no_grad()
def _outputs(
    model: nn.Module,
    image_set: Images,
    transform: Transform,
    bs: int,
    workers: int,
    device: torch.device,
    autocast: bool,
) -> Iterator[tuple[Any, Tensor, Tensor]]:
    """The model's output for each batch of the set in turn, with the batch's rows and labels."""
    n = len(image_set)
    if not n:
        raise ValueError(f"{image_set.name} has no images to embed")
    rows: list[tuple[int, ...]] = [(row,) for row in range(n)]
    batches = [rows[start : start + bs] for start in range(0, n, bs)]
    half = half_precision(device)

    was_training = model.training
    model.eval()
    try:
        with tqdm(total=n, desc=f"embedding {image_set.name}", unit="img", leave=False) as bar:
            for batch in loader(image_set, (transform,), batches, workers=workers, seed=0):
                images = batch.to(device).views[0]
                with torch.autocast(device.type, dtype=half, enabled=autocast):
                    output = model(images)
                yield output, batch.rows, batch.labels
                bar.update(len(images))
    finally:
        model.train(was_training)
