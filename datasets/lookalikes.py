"""Finds images that look alike, such as a test image that is in train under another name.

A hash holds, for each of the 8 x 8 lowest frequencies of a 32 x 32 grey thumbnail, whether it is
above their median; scaling, recompression and small changes of brightness flip few bits (Zauner,
Implementation and Benchmarking of Perceptual Image Hash Functions, 2010). Hashes of different
images can agree if there is little to see, so those that are close are compared again, by the pixel
in which coloured thumbnails of 16 x 16 differ most.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn

from datasets.reading import as_image, open_image
from utilities.progress import in_threads

SIDE, LOWEST, SMALL = 32, 8, 16  # of the grey thumbnail, its frequencies, the coloured thumbnail
SAME = 24  # of 255 levels: thumbnails of the same image differ by no more in any channel
BLOCK_BYTES = 64 << 20  # of distances at a time
MOST_COMPARED = 512  # candidates whose pixels are compared, those with the closest hashes first


class Appearances(NamedTuple):
    hashes: NDArray[np.uint64]  # (N,), of images
    thumbnails: NDArray[np.uint8]  # (N, 16 * 16 * 3)


class Match(NamedTuple):
    """An image, and the one among others that looks most like it."""

    row: int
    other: int
    distance: int  # of the hashes, in bits, 0 to 64
    difference: int  # of the thumbnails where they differ most, in levels of 255

    @property
    def same(self) -> bool:
        """True if the images are the same, and not just similar in outline."""
        return self.difference <= SAME


def appearances(paths: Sequence[Path], title: str) -> Appearances:
    """Return how image files look, with a progress bar called ``title``."""
    found = in_threads(_appearance, paths, title)
    return Appearances(
        np.array([bits for bits, _ in found], dtype=np.uint64),
        np.array([small for _, small in found], dtype=np.uint8).reshape(len(found), SMALL**2 * 3),
    )


def _appearance(path: Path) -> tuple[int, NDArray[np.uint8]]:
    image = open_image(path)
    pixels = image.pixels(max(1, min(image.size) // (2 * SIDE)))
    shrunk = as_image(pixels.values).resize((SIDE, SIDE), Image.Resampling.BOX)
    small = shrunk.resize((SMALL, SMALL), Image.Resampling.BOX)
    return bits_of(np.asarray(shrunk.convert("L"))), np.asarray(small).ravel()


def bits_of(grey: NDArray[np.uint8]) -> int:
    """Return the hash of a thumbnail (32, 32), the lowest frequency in the highest bit."""
    low = dctn(grey.astype(np.float64), norm="ortho")[:LOWEST, :LOWEST].ravel()
    low = low.round(3)  # 0 if flat
    return int("".join("1" if above else "0" for above in low > np.median(low[1:])), 2)


def most_similar(
    images: Appearances, others: Appearances, near: int, block_bytes: int = BLOCK_BYTES
) -> list[Match]:
    """Return the most similar of the others for each image that has any within ``near`` bits.

    Most similar is the one whose thumbnail differs least, among the 512 with the closest hashes.
    ``block_bytes`` limits the memory for distances.
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
