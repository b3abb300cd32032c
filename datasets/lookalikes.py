"""Finds pictures that look alike, such as a test image that was trained on under another name.

Each image becomes a hash of 64 bits: a grey thumbnail of 32 x 32, of its discrete cosine transform
the 8 x 8 lowest frequencies, of each whether it is above their median. Scaling, recompression and
small changes of brightness turn over few bits. After Zauner, Implementation and Benchmarking of
Perceptual Image Hash Functions, 2010.

Hashes of two different pictures can agree where there is little to see, such as a small thing on
white, and the hands of a clock turn over few bits. So a pair that is near by its hashes is measured
a second time, by the pixel of a coloured thumbnail of 16 x 16 that is farthest apart.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from datasets.reading import as_image, open_image

SIDE, LOWEST, SMALL = 32, 8, 16  # of the thumbnail, of its frequencies, of the second thumbnail
SAME = 24  # of 255 levels: thumbnails show one picture where no channel differs by more
BLOCK_BYTES = 64 << 20  # of distances at a time
MOST_COMPARED = 512  # images near one image whose pixels are compared, nearest hash first

_WAVES = np.cos(np.pi * np.outer(np.arange(LOWEST), 2 * np.arange(SIDE) + 1) / (2 * SIDE))
_WAVES *= np.sqrt(np.where(np.arange(LOWEST) == 0, 1, 2) / SIDE)[:, None]  # (8, 32), orthonormal


class Looks(NamedTuple):
    """What N images look like."""

    hashes: NDArray[np.uint64]  # (N,)
    thumbnails: NDArray[np.uint8]  # (N, 16 * 16 * 3)


class Match(NamedTuple):
    """An image and the one among others that it looks most like."""

    row: int
    other: int
    distance: int  # of the hashes, in bits, 0 to 64
    difference: int  # of the thumbnails, in levels of 255 where they differ most

    @property
    def same(self) -> bool:
        """Whether it is one picture, and not only alike in its outlines."""
        return self.difference <= SAME


def looks(paths: Sequence[Path], title: str) -> Looks:
    """Of image files, each decoded as far as is needed; in threads, with a bar called ``title``.

    Raises:
        OSError: an image cannot be read.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        bar = tqdm(pool.map(_look, paths), desc=title, total=len(paths), unit="image", leave=False)
        found = list(bar)
    return Looks(
        np.array([bits for bits, _ in found], dtype=np.uint64),
        np.array([small for _, small in found], dtype=np.uint8).reshape(len(found), SMALL**2 * 3),
    )


def _look(path: Path) -> tuple[int, NDArray[np.uint8]]:
    picture = open_image(path)
    pixels = picture.pixels(max(1, min(picture.size) // (2 * SIDE)))
    shrunk = as_image(pixels.values).resize((SIDE, SIDE), Image.Resampling.BOX)
    small = shrunk.resize((SMALL, SMALL), Image.Resampling.BOX)
    return bits_of(np.asarray(shrunk.convert("L"))), np.asarray(small).ravel()


def bits_of(grey: NDArray[np.uint8]) -> int:
    """The hash of a thumbnail (32, 32), below 2^64. The lowest frequency is its highest bit."""
    low = (_WAVES @ grey.astype(np.float64) @ _WAVES.T).ravel().round(3)  # (64,); 0 where flat
    return int("".join("1" if above else "0" for above in low > np.median(low[1:])), 2)


def alike(images: Looks, others: Looks, near: int, block_bytes: int = BLOCK_BYTES) -> list[Match]:
    """For each image that has any: of the others at most ``near`` bits away the most alike.

    All distances are computed, exactly. Most alike is the one whose thumbnail differs least, of
    the 512 with the nearest hashes.

    Args:
        near: in bits, 0 to 64.
        block_bytes: what the distances may take at a time, though at least a row is computed.
    """
    found = []
    n_rows = max(1, block_bytes // (9 * max(1, len(others.hashes))))  # a word and a count each
    for start in range(0, len(images.hashes), n_rows):
        block = images.hashes[start : start + n_rows, None]
        distances = np.bitwise_count(block ^ others.hashes)  # (B, M) uint8
        for place in np.flatnonzero((distances <= near).any(axis=1)):
            row, line = start + int(place), distances[place]
            columns = np.flatnonzero(line <= near)
            columns = columns[np.argsort(line[columns], kind="stable")[:MOST_COMPARED]]
            apart = others.thumbnails[columns].astype(np.int16) - images.thumbnails[row]
            differences = np.abs(apart).max(axis=1)
            best = int(differences.argmin())
            other = int(columns[best])
            found.append(Match(row, other, int(line[other]), int(differences[best])))
    return found
