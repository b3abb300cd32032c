"""Loads the tuples of rows that a sampler yields, as batches of tensors.

A sampler says which rows meet, as tuples: ``(i,)`` one view of image i, ``(i, i)`` two views of it,
``(i, j)`` one view each of i and j. What a view looks like depends on the seed, the epoch and its
place in the epoch, and on nothing else: with any number of workers the data are the same.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import NamedTuple, cast

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datasets.image_set import Images
from utilities.seeding import derive, seed_worker
from utilities.structures import Batch

log = logging.getLogger(__name__)

Transform = Callable[[Image.Image], Tensor]


class Item(NamedTuple):
    """One entry of a batch: which images, and the seed of their augmentation."""

    rows: tuple[int, ...]
    seed: int


class Sample(NamedTuple):
    """One entry of a batch, loaded."""

    views: tuple[Tensor, ...]  # each (3, H, W)
    label: int
    row: int
    caption: str | None


class SeededBatches:
    """The sampler's batches with a seed for each entry.

    ``epoch`` counts the passes begun; set it to continue an interrupted run.
    """

    def __init__(self, batches: Iterable[list[tuple[int, ...]]], seed: int) -> None:
        self.batches = batches
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(cast(Sized, self.batches))

    def __iter__(self) -> Iterator[list[Item]]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        for number, batch in enumerate(self.batches):
            yield [
                Item(rows, derive(self.seed, "augmentation", epoch, number, place))
                for place, rows in enumerate(batch)
            ]


class Views(Dataset):
    """``Item`` → ``Sample``; None, with a warning, when an image cannot be read any more."""

    def __init__(self, image_set: Images, transforms: Sequence[Transform]) -> None:
        self.image_set = image_set
        self.transforms = tuple(transforms)

    def __getitem__(self, item: Item) -> Sample | None:
        rows, seed = item
        try:
            images = [self.image_set.read(row) for row in rows]
        except OSError as error:
            log.warning("%s; left out of its batch", error)
            return None
        # Only the CPU's generator, and put back after: without workers this is the training
        # process, whose draws must not depend on how many images it has loaded.
        state = torch.get_rng_state()
        torch.default_generator.manual_seed(seed)
        try:
            views = tuple(
                transform(image) for transform, image in zip(self.transforms, images, strict=True)
            )
        finally:
            torch.set_rng_state(state)
        return Sample(
            views, self.image_set.label(rows[0]), rows[0], self.image_set.caption(rows[0])
        )


def collate(samples: Sequence[Sample | None]) -> Batch:
    """The samples that could be loaded, as one batch.

    Raises:
        OSError: none could.
    """
    loaded = [sample for sample in samples if sample is not None]
    if not loaded:
        raise OSError(
            f"none of the {len(samples)} images of a batch can be read any more; see the warnings "
            "above for their paths, and whether the disk is still there"
        )
    return Batch(
        views=tuple(
            torch.stack(view) for view in zip(*(sample.views for sample in loaded), strict=True)
        ),
        labels=torch.tensor([sample.label for sample in loaded]),
        rows=torch.tensor([int(sample.row) for sample in loaded]),
        captions=tuple(sample.caption for sample in loaded if sample.caption is not None),
    )


def loader(
    image_set: Images,
    transforms: Sequence[Transform],
    batches: Iterable[list[tuple[int, ...]]],
    *,
    workers: int,
    seed: int,
) -> "DataLoader[Batch]":
    """Batches of ``image_set``, one pass over ``batches`` for each pass over the loader.

    Args:
        transforms: one for each view; ``transforms[v]`` makes view v from row v of each tuple.
        batches: a sampler; asked anew for each pass.
        workers: processes that load; 0 loads in this one.
        seed: of the augmentation.

    Returns:
        A loader of ``Batch``: views (B, 3, H, W) float32 each, labels and rows (B,) int64, captions
        (B,) when the images have them. To continue a run at epoch n, set
        ``loader.batch_sampler.epoch = n``.
    """
    return DataLoader(
        Views(image_set, transforms),
        batch_sampler=SeededBatches(batches, seed),
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        worker_init_fn=seed_worker,
        generator=torch.Generator().manual_seed(derive(seed, "loader")),
    )
