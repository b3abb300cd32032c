"""Loads the tuples of rows that a sampler yields, as batches of tensors.

Tuples say which rows meet: ``(i,)`` one view of image i, ``(i, i)`` two views of it, ``(i, j)`` one
view each of i and j. What a view looks like depends only on the seed, the epoch and its place in
the epoch: with any number of workers or processes the data are the same.
"""

import copy
import logging
import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from multiprocessing.util import get_temp_dir
from typing import Any, NamedTuple, cast

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from datasets.colour import Crop
from datasets.image_set import Images, open_row
from datasets.reading import Pixels, as_image
from datasets.transforms import CropTransform
from utilities.captions import draw
from utilities.interrupt import SIGNALS
from utilities.seeding import derive, seed_worker
from utilities.structures import Batch

LONGEST_TEMP = 107 - len("/listener-abcdefgh")  # bytes; multiprocessing names sockets so

log = logging.getLogger(__name__)

Transform = Callable[[Image.Image], Tensor]
ViewTransform = Callable[[Image.Image], Tensor | Crop]  # CropTransform: of no more than it needs


class Item(NamedTuple):
    rows: tuple[int, ...]
    seed: int  # of the augmentation
    caption_seed: int = 0  # of the epoch


class Sample(NamedTuple):
    views: tuple[Tensor | Crop, ...]  # each (3, H, W)
    label: int
    row: int
    caption: str | None


class SeededBatches:
    """The sampler's batches with a seed for each entry, by its place in the whole batch.

    To continue an interrupted run, set ``epoch``, the passes begun, and ``skip``: the next pass
    draws its first ``skip`` batches and leaves them out. Ranks share each batch equally, in order.
    """

    def __init__(self, batches: Iterable[list[tuple[int, ...]]], seed: int, rank: int = 0) -> None:
        self.batches = batches
        self.seed = seed
        self.rank = rank
        self.epoch = 0
        self.skip = 0

    def __len__(self) -> int:
        return len(cast(Sized, self.batches))

    def __iter__(self) -> Iterator[list[Item]]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        skip, self.skip = self.skip, 0
        captions = derive(self.seed, "captions", epoch)
        for number, batch in enumerate(self.batches):
            if number < skip:
                continue
            yield [
                Item(rows, derive(self.seed, "augmentation", epoch, number, place), captions)
                for place, rows in enumerate(batch, self.rank * len(batch))
            ]


def preview(batches: "DataLoader[Batch]", most: int) -> tuple[Batch, list[tuple[int, ...]]]:
    """Return at most ``most`` tuples of the next pass as training will see them, and their rows.

    They are loaded here and still come. Those that cannot be read are left out; if all are, it
    raises OSError. ``batches`` is of ``loader``, over a sampler with ``state_dict``.
    """
    seeded = cast(SeededBatches, batches.batch_sampler)
    sampler = cast(Any, seeded.batches)
    epoch, state = seeded.epoch, copy.deepcopy(sampler.state_dict())
    items = next(iter(seeded))[:most]
    seeded.epoch = epoch
    sampler.load_state_dict(state)
    views = cast(Views, batches.dataset)
    samples = [views[item] for item in items]
    rows = [item.rows for item, sample in zip(items, samples, strict=True) if sample is not None]
    return collate(samples), rows


class Views(Dataset):
    """``Item`` → ``Sample``; None, with a warning, when an image cannot be read any more.

    An image is decoded once for all its views, no further than the most demanding of them needs.
    """

    def __init__(self, image_set: Images, transforms: Sequence[ViewTransform]) -> None:
        self.image_set = image_set
        self.transforms: tuple[CropTransform[Any], ...] = tuple(
            transform if isinstance(transform, CropTransform) else OfImage(transform)
            for transform in transforms
        )

    def __getitem__(self, item: Item) -> Sample | None:
        rows, seed, caption_seed = item
        # Only the CPU's generator, and put back after: without workers this is the training
        # process, whose draws must not depend on how many images it has loaded.
        state = torch.get_rng_state()
        torch.default_generator.manual_seed(seed)
        try:
            views = self._views(rows)
        except OSError as error:
            log.warning("%s; left out of its batch", error)
            return None
        finally:
            torch.set_rng_state(state)
        caption = self.image_set.caption(rows[0])
        if caption is not None:  # one of several, another in each epoch
            caption = draw(caption, caption_seed, int(rows[0]))
        return Sample(views, self.image_set.label(rows[0]), rows[0], caption)

    def _views(self, rows: tuple[int, ...]) -> tuple[Tensor | Crop, ...]:
        opened = {row: open_row(self.image_set, row) for row in set(rows)}
        each = list(zip(self.transforms, rows, strict=True))
        drawn = [transform.draw(opened[row].size) for transform, row in each]
        most: dict[int, int] = {}
        for (transform, row), part in zip(each, drawn, strict=True):
            most[row] = min(transform.max_reduction(part), most.get(row, 8))
        read = {row: opened[row].pixels(by) for row, by in most.items()}
        return tuple(
            transform.crop(read[row], part)
            for (transform, row), part in zip(each, drawn, strict=True)
        )


class OfImage(CropTransform[None]):
    """Wraps any function of a whole image as a transform."""

    def __init__(self, function: ViewTransform) -> None:
        self.function = function

    def draw(self, size: tuple[int, int]) -> None:
        return None

    def max_reduction(self, drawn: None) -> int:
        return 1

    def crop(self, pixels: Pixels, drawn: None) -> Tensor | Crop:
        return self.function(as_image(pixels.values))


def collate(samples: Sequence[Sample | None]) -> Batch:
    """Return the samples that could be loaded as one batch; raise OSError if none could."""
    loaded = [sample for sample in samples if sample is not None]
    if not loaded:
        raise OSError(
            f"none of the {len(samples)} images of a batch can be read any more; see the warnings "
            "above for their paths, and whether their disk is still there; then go on with --resume"
        )
    views, colours = zip(
        *(_stack(view) for view in zip(*(sample.views for sample in loaded), strict=True)),
        strict=True,
    )
    return Batch(
        views=views,
        labels=torch.tensor([sample.label for sample in loaded]),
        rows=torch.tensor([int(sample.row) for sample in loaded]),
        captions=tuple(sample.caption for sample in loaded if sample.caption is not None),
        colours=colours if any(colour is not None for colour in colours) else (),
    )


def _stack(view: Sequence[Tensor | Crop]) -> tuple[Tensor, Tensor | None]:
    """Return (B, 3, H, W), and what is left to do to the colours."""
    crops = [image for image in view if isinstance(image, Crop)]
    if not crops:
        return _in_channels_last([image for image in view if isinstance(image, Tensor)]), None
    pixels, colours = zip(*crops, strict=True)
    return _in_channels_last(pixels), torch.stack(colours)


def _in_channels_last(images: Sequence[Tensor]) -> Tensor:
    """Stack without transposing; torch's collate does so in shared memory in a worker."""
    return default_collate([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)


def loader(
    image_set: Images,
    transforms: Sequence[ViewTransform],
    batches: Iterable[list[tuple[int, ...]]],
    *,
    workers: int,
    seed: int,
    rank: int = 0,
    pin_memory: bool = False,
) -> "DataLoader[Batch]":
    """Load ``Batch``es of ``image_set``, one pass over ``batches`` for each pass over the loader.

    Views are uint8 in channels_last, for ``datasets.finish``, unless a transform returns something
    else. To continue a run at epoch n, set ``loader.batch_sampler.epoch = n``.

    Args:
        transforms: one for each view; ``transforms[v]`` makes view v from row v of each tuple.
        batches: a sampler; iterated anew for each pass.
        workers: processes that load; 0 loads in this one.
        rank: this process, where several share each batch of ``batches`` equally.
    """
    check_sockets(workers)
    return DataLoader(
        Views(image_set, transforms),
        batch_sampler=SeededBatches(batches, seed, rank),
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        worker_init_fn=_start_worker,
        generator=torch.Generator().manual_seed(derive(seed, "loader")),
    )


def check_sockets(workers: int) -> None:
    """Raise OSError where loading processes would wait forever: a socket's path has a limit."""
    if workers and len(os.fsencode(get_temp_dir())) > LONGEST_TEMP:
        raise OSError(
            f"the path of the temporary folder {tempfile.gettempdir()} is too long for the sockets "
            "of loading processes; set TMPDIR to a shorter one, or use --kernels 0"
        )


def _start_worker(worker: int) -> None:
    """Leave signals that end a run to the training process, which may want pending batches.

    A terminal's Ctrl-C is sent to all processes, and so are the signals of job schedulers.
    """
    seed_worker(worker)
    for number in set(SIGNALS) - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # waits for the thread
        threading.Thread(target=_end_when_told, daemon=True).start()


def _end_when_told() -> None:
    """End this loading process at a SIGTERM of the one that started it, and at no other's."""
    parent = multiprocessing.parent_process()
    while parent and signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent.pid:
        pass
    os._exit(0)
