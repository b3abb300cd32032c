"""Finds suspicious images and captions, for ``datasets.check``."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from datasets.reading import orientation
from utilities.files import file_id
from utilities.progress import in_threads

LONG = 60  # words: about the 77 tokens that CLIP reads of a text
OFTEN, SHARE = 10, 0.01  # images, and their share, from which a shared caption is boilerplate
SAMPLES, SHOWN = 3, 80  # captions shown, characters of each


class Header(NamedTuple):
    """The orientation and size of an image, known before it is decoded."""

    orientation: int  # of EXIF, 1 to 8
    width: int  # as stored
    height: int

    @property
    def ratio(self) -> float:
        """Longer side / shorter side."""
        return max(self.width, self.height) / min(self.width, self.height)


def headers(
    file_of: Callable[[int], Path | BinaryIO], rows: Sequence[int], title: str
) -> list[Header]:
    """Read the headers of readable images, with a progress bar called ``title``."""

    def header(row: int) -> Header:
        try:
            with Image.open(file_of(row)) as image:
                return Header(orientation(image), *image.size)
        except Exception:  # changed since it was found readable
            return Header(1, 1, 1)

    return in_threads(header, rows, title)


def same_files(paths: Iterable[Path], others: Iterable[Path]) -> dict[Path, Path]:
    """Return the paths that are the same file as one of the others, under whatever name."""
    known = {file_id(other) or other: other for other in others}
    return {path: known[file] for path in paths if (file := file_id(path) or path) in known}


def caption_oddities(captions: Sequence[str]) -> tuple[int, list[tuple[str, list[str]]]]:
    """Return the number of distinct captions, and what is odd about some, each with samples.

    Empty ones are refused where they are read.
    """
    n = len(captions)
    hashes = np.empty(n, dtype=np.int64)
    long: list[tuple[int, int, str]] = []  # number of words, row; the longest few
    n_long = 0
    for row, caption in enumerate(captions):
        hashes[row] = hash(caption)
        if caption.count(" ") < LONG:  # words are separated by single spaces
            continue
        longest = max(caption.split("\n"), key=lambda line: line.count(" "))
        if (words := longest.count(" ") + 1) > LONG:
            n_long += 1
            long = sorted([*long, (-words, row, longest)])[:SAMPLES]
    distinct, first, counts = np.unique(hashes, return_index=True, return_counts=True)
    often = np.flatnonzero(counts >= max(OFTEN, SHARE * n))
    often = often[np.argsort(-counts[often], kind="stable")]

    found = []
    if n_long:
        samples = [f"{-words} words: {_shown(caption)}" for words, _, caption in long]
        title = f"{n_long:,} of {n:,} captions have over {LONG} words; text encoders cut them"
        found.append((f"{title} (CLIP's after 77 tokens)", samples))
    if len(often):
        places = often[:SAMPLES].tolist()
        samples = [f"{counts[at]:,} images: {_shown(captions[int(first[at])])}" for at in places]
        title = (
            f"{len(often):,} texts are the caption of many images each "
            f"({counts[often].sum():,} of {n:,}), so they tell none of them apart"
        )
        found.append((title, samples))
    return len(distinct), found


def _shown(caption: str) -> str:
    text = " ".join(caption.split())
    return repr(text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…")
