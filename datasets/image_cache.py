"""Images decoded and resized once, kept in one file that is mapped into memory.

The shorter side is resized as evaluation resizes it: evaluation reads the same values bit for bit,
and training crops from images of that size. All workers share what the system keeps in memory.

A store is an entry of the disk cache with ``pixels.bin``, the images one after the other, (h, w, 3)
uint8 each, and ``index.npz``, their shapes and checksums. It is rebuilt if it is damaged or if the
images have changed.
"""

import errno
import json
import logging
import shutil
import zlib
from collections.abc import Iterable
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datasets.caption_set import CaptionSet
from datasets.image_files import READING
from datasets.image_set import ImageSet
from datasets.loading import check_sockets
from datasets.reading import Decoded
from datasets.transforms import resized_to, shrink
from utilities import checksums
from utilities.disk_cache import Entry
from utilities.progress import bar

LOG = logging.getLogger(__name__)

PIXELS, INDEX, ABOUT = "pixels.bin", "index.npz", "about.json"
SAMPLE = 256  # images from which the size of a store is estimated
BATCH = 16  # images that a worker hands over at a time

S = TypeVar("S", ImageSet, CaptionSet)


def cached(images: S, shorter_side: int, workers: int) -> S:
    """Return the same set with images that are read from a store, which is built if need be.

    Reading an image that could not be read when the store was built raises the same OSError. Images
    with a side shorter than ``shorter_side`` pixels keep their size.

    Raises:
        OSError: the store does not fit on the disk, or no image can be read.
    """
    images = images.with_reader(None)
    where, state = _where_and_state(images)
    entry = Entry(
        "images",
        f"{images.name}-{shorter_side}",
        checksums.digest([str(shorter_side), where, str(READING)]),
        unhashed=(PIXELS,),  # verified image by image
    )
    with entry.locked():
        folder = entry.read()
        if folder and _about(folder)["state"] != state:
            LOG.warning("images have changed since %s was built; rebuilding it", folder)
            folder = None
        folder = folder or entry.write(partial(_fill, images, shorter_side, workers, state))
    return images.with_reader(Store(folder))


def _where_and_state(images: ImageSet | CaptionSet) -> tuple[str, str]:
    """Return digests of where the images are and of what is there."""
    if isinstance(images, CaptionSet):
        files = checksums.digest([images.fingerprint(), *images.stamps()])
        return str(images.root.resolve()), files
    paths = [path.absolute() for path in images.paths]
    return checksums.digest(map(str, paths)), checksums.digest(map(checksums.stamp, paths))


def _about(folder: Path) -> dict[str, Any]:
    return json.loads((folder / ABOUT).read_text(encoding="utf-8"))


class Store:
    """Reads the images of a store, or ``rows`` of it; a ``datasets.reading.Reader``.

    An image is compared with its checksum when this process first reads it. Workers receive only
    the path of a store and map the file themselves.
    """

    def __init__(self, folder: Path, rows: NDArray[np.int64] | None = None) -> None:
        self.folder = folder
        self.rows = rows
        self._faults: dict[str, str] = _about(folder)["faults"]  # by row
        with np.load(folder / INDEX) as index:
            self._shapes = index["shapes"]  # (n, 2) height and width; 0 if unreadable
            self._sums = index["sums"]  # (n,) uint32
        lengths = 3 * self._shapes.astype(np.int64).prod(axis=1)
        self._starts = np.concatenate([[0], lengths.cumsum()])
        self._verified = np.zeros(len(self._shapes), dtype=bool)

    def __len__(self) -> int:
        return len(self._shapes if self.rows is None else self.rows)

    def open(self, row: int) -> Decoded:
        """Return an image; raise OSError if it could not be read before or is damaged now."""
        place = row if self.rows is None else int(self.rows[row])
        if str(place) in self._faults:
            raise OSError(self._faults[str(place)])
        values: Any = self._pixels[self._starts[place] : self._starts[place + 1]]
        if not self._verified[place]:
            if zlib.adler32(values) != self._sums[place]:
                (self.folder / checksums.CONTENTS).unlink(missing_ok=True)
                raise OSError(
                    f"image {row} is damaged in the image cache {self.folder}; the next run with "
                    "--cache_images rebuilds it"
                )
            self._verified[place] = True
        height, width = self._shapes[place]
        return Decoded(torch.from_numpy(values.reshape(height, width, 3)))

    def take(self, rows: NDArray[np.int64]) -> "Store":
        other = Store.__new__(Store)
        other.__dict__ |= self.__dict__  # opened once
        other.rows = rows if self.rows is None else self.rows[rows]
        return other

    @cached_property
    def _pixels(self) -> NDArray[np.uint8]:
        if not self._starts[-1]:
            return np.empty(0, dtype=np.uint8)
        # "c" keeps writes in memory; with "r" torch would warn that it cannot prevent them.
        return np.asarray(np.memmap(self.folder / PIXELS, dtype=np.uint8, mode="c"))

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.folder, self.rows)


def _fill(images: S, shorter_side: int, workers: int, state: str, folder: Path) -> None:
    needed, free = _estimate(images, shorter_side), shutil.disk_usage(folder).free
    too_full = OSError(
        errno.ENOSPC,
        f"--cache_images: the images of {images.name} at {shorter_side} px need about "
        f"{_size(needed)} in {folder.parent}, where {_size(free)} are free; make room, set "
        "XDG_CACHE_HOME to a folder on a larger disk, or leave out the flag",
    )
    if needed > free:
        raise too_full
    check_sockets(workers)
    loaded: Iterable[list[tuple[Tensor | None, str]]] = DataLoader(
        _Shrunk(images, shorter_side),
        batch_size=BATCH,
        num_workers=min(workers, -(-len(images) // BATCH)),
        collate_fn=list,
    )
    shapes = np.zeros((len(images), 2), dtype=np.int32)
    sums = np.zeros(len(images), dtype=np.uint32)
    faults: dict[int, str] = {}
    title = f"{images.name}: cache images"
    try:
        with (folder / PIXELS).open("wb") as file:
            shown = bar(chain.from_iterable(loaded), desc=title, total=len(images), unit="image")
            for row, (values, fault) in enumerate(shown):
                if values is None:
                    faults[row] = fault
                    continue
                content = values.contiguous().numpy()
                shapes[row] = content.shape[:2]
                sums[row] = zlib.adler32(content)
                file.write(content.data)
        np.savez(folder / INDEX, shapes=shapes, sums=sums)
        about = {"state": state, "faults": faults}
        (folder / ABOUT).write_text(json.dumps(about), encoding="utf-8")
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise too_full from error
        raise
    if len(faults) == len(images):
        raise OSError(f"no image can be read: {next(iter(faults.values()), 'there are none')}")
    if faults:
        reasons = "; ".join(faults.values())
        LOG.warning("%d of %d images cannot be read: %s", len(faults), len(images), reasons)


class _Shrunk(Dataset):
    """Row → the image (h, w, 3) uint8 as the store holds it, or why it cannot be read."""

    def __init__(self, images: ImageSet | CaptionSet, shorter_side: int) -> None:
        self.images = images
        self.shorter_side = shorter_side

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[Tensor | None, str]:
        try:
            return shrink(self.images.open(row), self.shorter_side), ""
        except OSError as error:
            return None, str(error)


def _estimate(images: S, shorter_side: int) -> int:
    """Return about how many bytes the images take, estimated from some of them."""
    rows = np.unique(np.linspace(0, len(images) - 1, min(SAMPLE, len(images))).astype(int))
    sizes = []
    for row in rows.tolist():
        try:
            size = images.open(row).size
        except OSError:
            continue
        height, width = resized_to(size, min(shorter_side, *size))
        sizes.append(3 * height * width)
    return int(np.mean(sizes) * len(images)) if sizes else 0


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes > 1e8 else f"{n_bytes / 1e6:.2f} MB"
