"""Images decoded and resized once, kept side by side in one file that is mapped into memory.

Decoding is most of the work of loading a photograph and comes out the same every time. A store
holds the pixels as they are after it, with the shorter side as evaluation resizes it: evaluation
reads the same values to the bit, training cuts its random parts out of images of that size. The
system keeps in memory what is used, shared by all workers.

A store is a folder with ``pixels.bin``, the images one after the other, (h, w, 3) uint8 each, and
``index.npz``, where each begins and a checksum of it. It is written whole or not at all, and built
anew when it is damaged or the images have changed.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from datasets.caption_set import CaptionSet
from datasets.image_set import ImageSet
from datasets.locking import alone
from datasets.reading import Decoded
from datasets.transforms import MiddleCrop, resized_to, shrink
from utilities.files import atomic_folder, cache_folder

log = logging.getLogger(__name__)

FORMAT = 1  # raised whenever the pixels or their order change
SAMPLE = 256  # images by which the size of a store is estimated
BATCH = 16  # images that a worker hands over at a time

S = TypeVar("S", ImageSet, CaptionSet)


def cached(images: S, shorter_side: int, workers: int) -> S:
    """The same set, its images read from a store, which is built where there is none.

    The store lies in ``cache_folder() / "images"``, one for each list of images and size. Where
    several processes ask for it, one builds and the others wait.

    Args:
        shorter_side: of the images in the store, pixels; smaller ones are not enlarged.
        workers: processes that decode; 0 decodes in this one.

    Returns:
        a set of the same class. An image that could not be read when the store was built raises the
        same OSError when it is asked for.

    Raises:
        OSError: the store does not fit on the disk, its folder cannot be written, or no image can
            be read.
    """
    images = images.with_store(None)
    root = cache_folder() / "images"
    place = "\n".join((str(shorter_side), *_places(images)))
    digest = hashlib.blake2b(place.encode(), digest_size=8).hexdigest()
    folder = root / f"{images.name}-{shorter_side}-{digest}"
    stamp = _stamp(images)
    try:
        with alone(root / f"{folder.name}.lock", f"the image cache of {images.name}"):
            store = _sound_store(folder, len(images), stamp)
            if store is None:
                for left in root.glob(f".{folder.name}.*"):  # of a process that was killed
                    shutil.rmtree(left, ignore_errors=True)
                _build(images, shorter_side, workers, folder, stamp)
                store = Store(folder)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise OSError(
            error.errno,
            f"--cache_images: {root} cannot be written; let XDG_CACHE_HOME name a folder that can",
        ) from error
    return images.with_store(store)


class Store:
    """N images of at most one size, as ``cached`` leaves them.

    Each is compared with its checksum when this process first reads it. Goes to a worker by its
    name; the file is mapped there.

    Args:
        folder: of the store.
        rows: (N,) which of its images; None: all, in their order.

    Raises:
        OSError, ValueError: the store is not there, or damaged.
    """

    def __init__(self, folder: Path, rows: NDArray[np.int64] | None = None) -> None:
        self.folder = folder
        self.rows = rows
        try:
            with np.load(folder / "index.npz", allow_pickle=False) as index:  # checks its sums
                self._about = json.loads(bytes(index["about"]))
                self._shapes = index["shapes"]  # (n, 2) height and width; 0 of an unreadable one
                self._sums = index["sums"]  # (n,) uint32
        except (zipfile.BadZipFile, KeyError, EOFError, zlib.error, UnicodeDecodeError) as error:
            raise ValueError(f"{folder / 'index.npz'} is damaged: {error}") from error
        lengths = 3 * self._shapes.astype(np.int64).prod(axis=1)
        self._starts = np.concatenate([[0], lengths.cumsum()])
        status = (folder / "pixels.bin").stat()
        if status.st_size != self._starts[-1]:
            raise ValueError(
                f"{folder / 'pixels.bin'} has {status.st_size} bytes instead of {self._starts[-1]}"
            )
        self._identity = status.st_mtime_ns, status.st_ino
        self._seen = np.zeros(len(self._shapes), dtype=bool)

    def __len__(self) -> int:
        return len(self._shapes if self.rows is None else self.rows)

    @property
    def stamp(self) -> str:
        """Of the images' files when it was built."""
        return self._about["stamp"]

    @property
    def changed(self) -> bool:
        """Whether the pixels were written to since it was built."""
        return self._about["mtime_ns"] != self._identity[0]

    def picture(self, row: int) -> Decoded:
        """An image.

        Raises:
            OSError: it could not be read when the store was built, or the store is damaged.
        """
        place = row if self.rows is None else int(self.rows[row])
        fault = self._about["faults"].get(str(place))
        if fault is not None:
            raise OSError(fault)
        values: Any = self._pixels[self._starts[place] : self._starts[place + 1]]
        if not self._seen[place]:
            if zlib.adler32(values) != self._sums[place]:
                # The next run is to find out, even where only this process reads wrongly.
                (self.folder / "index.npz").unlink(missing_ok=True)
                raise OSError(
                    f"image {row} is damaged in the image cache {self.folder}, which the next run "
                    "with --cache_images builds anew"
                )
            self._seen[place] = True
        height, width = self._shapes[place]
        return Decoded(torch.from_numpy(values.reshape(height, width, 3)))

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> "Store":
        """Some of its images, in another order."""
        rows = np.asarray(rows, dtype=np.int64)
        other = Store.__new__(Store)
        other.__dict__ |= self.__dict__  # opened once
        other.rows = rows if self.rows is None else self.rows[rows]
        return other

    @cached_property
    def _pixels(self) -> NDArray[np.uint8]:
        if not self._starts[-1]:
            return np.empty(0, dtype=np.uint8)
        # "c" keeps writes in memory; "r" would make torch warn that it cannot keep them out.
        return np.asarray(np.memmap(self.folder / "pixels.bin", dtype=np.uint8, mode="c"))

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self.folder, self.rows, self._identity)


def _reopened(folder: Path, rows: NDArray[np.int64] | None, identity: tuple[int, int]) -> Store:
    """The store in another process."""
    store = Store(folder, rows)
    if store._identity != identity:
        raise RuntimeError(
            f"{folder} was built anew while it was in use, so images may have moved; start again"
        )
    return store


# ---------------------------------------------------------------------------------------- building


def _sound_store(folder: Path, n: int, stamp: str) -> Store | None:
    """The store in ``folder``; None, with a warning, where it is damaged or out of date."""
    if not folder.exists():
        return None
    try:
        store = Store(folder)
    except (OSError, ValueError) as error:
        log.warning("the image cache in %s is damaged (%s); building it anew", folder, error)
        return None
    if store.stamp != stamp or len(store) != n:
        log.warning("images have changed since %s was built; building it anew", folder)
        return None
    if store.changed:
        log.warning("the image cache in %s was written to; building it anew", folder)
        return None
    return store


def _build(images: S, shorter_side: int, workers: int, folder: Path, stamp: str) -> None:
    needed = _estimate(images, shorter_side)
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    too_full = (
        f"--cache_images: the images of {images.name} at {shorter_side} px need about "
        f"{_size(needed)} in {folder.parent}, where {_size(free)} are free; make room, let "
        "XDG_CACHE_HOME name a folder on a larger disk, or leave the flag out"
    )
    if needed > free:
        raise OSError(errno.ENOSPC, too_full)
    loaded: Iterable[list[tuple[Tensor | None, str]]] = DataLoader(
        _Shrunk(images, shorter_side),
        batch_size=BATCH,
        num_workers=min(workers, -(-len(images) // BATCH)),
        collate_fn=list,
    )
    try:
        with atomic_folder(folder) as temporary:
            _write(temporary, loaded, len(images), f"{images.name}: cache images", stamp)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OSError(errno.ENOSPC, too_full) from error
        raise


def _write(
    folder: Path,
    loaded: Iterable[list[tuple[Tensor | None, str]]],
    n: int,
    title: str,
    stamp: str,
) -> None:
    """Write the images of ``loaded`` in their order, and the index after them."""
    shapes = np.zeros((n, 2), dtype=np.int32)
    sums = np.zeros(n, dtype=np.uint32)
    faults: dict[str, str] = {}
    with (folder / "pixels.bin").open("wb") as file:
        bar = tqdm(chain.from_iterable(loaded), desc=title, total=n, unit="image")
        for row, (values, fault) in enumerate(bar):
            if values is None:
                faults[str(row)] = fault
                continue
            content = values.contiguous().numpy()
            shapes[row] = content.shape[:2]
            sums[row] = zlib.adler32(content)
            file.write(content.data)
        file.flush()
        os.fsync(file.fileno())
        mtime = os.fstat(file.fileno()).st_mtime_ns
    if len(faults) == n:
        raise OSError(f"no image can be read: {next(iter(faults.values()), 'there is none')}")
    if faults:
        log.warning(
            "%d of %d images cannot be read: %s", len(faults), n, "; ".join(faults.values())
        )
    about = json.dumps({"stamp": stamp, "mtime_ns": mtime, "faults": faults}).encode()
    np.savez(
        folder / "index.npz",
        about=np.frombuffer(about, dtype=np.uint8),
        shapes=shapes,
        sums=sums,
    )


class _Shrunk(Dataset):
    """Row → the image (h, w, 3) uint8 as the store is to hold it, or why it cannot be read."""

    def __init__(self, images: ImageSet | CaptionSet, shorter_side: int) -> None:
        self.images = images
        self.resizing = MiddleCrop(shorter_side, shorter_side, (0, 0, 0), (1, 1, 1))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[Tensor | None, str]:
        try:
            opened = self.images.picture(row)
            pixels = opened.pixels(self.resizing.most(opened.size))
        except OSError as error:
            return None, str(error)
        return shrink(pixels, opened.size, self.resizing.shorter_side), ""


def _estimate(images: S, shorter_side: int) -> int:
    """About how many bytes the images take, by some of them."""
    rows = np.unique(np.linspace(0, len(images) - 1, min(SAMPLE, len(images))).astype(int))
    sizes = []
    for row in rows.tolist():
        try:
            size = images.picture(row).size
        except OSError:
            continue
        height, width = (
            (size[1], size[0]) if min(size) <= shorter_side else resized_to(size, shorter_side)
        )
        sizes.append(3 * height * width)
    return int(np.mean(sizes) * len(images)) if sizes else 0


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes > 1e8 else f"{n_bytes / 1e6:.2f} MB"


# ------------------------------------------------------------------------- which images, and when


def _places(images: ImageSet | CaptionSet) -> Iterable[str]:
    """Where the images are, in their order; a store is named after it."""
    if isinstance(images, CaptionSet):
        return [str(images.root.resolve())]
    return map(str, images.paths)


def _stamp(images: ImageSet | CaptionSet) -> str:
    """Changes when an image does; of captioned images, when one comes, goes or moves."""
    digest = hashlib.blake2b(str(FORMAT).encode(), digest_size=16)
    if isinstance(images, CaptionSet):
        digest.update(images.fingerprint().encode())
        return digest.hexdigest()
    for path in images.paths:
        try:
            status = path.stat()
            digest.update(f"{status.st_size} {status.st_mtime_ns}\n".encode())
        except OSError:
            digest.update(b"missing\n")
    return digest.hexdigest()
