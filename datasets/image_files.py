"""Lists the images in a folder: the one place that decides which files are images.

A file is an image if Pillow has a decoder for its ending, in upper or lower case, by itself or
through a plug-in that is installed. Other files are counted by their ending.
"""

import logging
import os
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from utilities.files import BROKEN, FOLDER, special_kind

LOG = logging.getLogger(__name__)

# Part of every fingerprint of what is computed from pixels. Raise it when ``datasets.reading``
# reads the same file as other pixels.
READING = 2

UNDECODABLE = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF"}  # Pillow opens them but has no decoder
PLUGINS = ("pillow_heif", "pi_heif", "pillow_avif")  # that add formats to Pillow
# Endings of images that need a plug-in or have no decoder: files that one misses when skipped.
PICTURES = {
    ".heic", ".heics", ".heif", ".heifs", ".hif", ".avif", ".jxl", ".jp2", ".jxr", ".wdp", ".webp",
    ".svg", ".svgz", ".exr", ".hdr", ".psb", ".xcf", ".ai",
    ".arw", ".cr2", ".cr3", ".dng", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".srw",
}  # fmt: skip

HIDDEN = "hidden"
CLOSED = "folder that cannot be read"
LOOP = "loop of links"
NO_ENDING = "without an ending"


class Listing(NamedTuple):
    """The images in a folder, and what else is there."""

    paths: list[Path]  # sorted by their parts
    skipped: Counter[str]  # by kind: HIDDEN, BROKEN, "named pipe", ..., or ending: ".txt"
    first: dict[str, Path]  # one of each kind

    def problems(self) -> str:
        """Describe what was skipped, such as ".heic (3), broken link (2)"; or ""."""
        kinds = sorted(
            (-count, kind) for kind, count in self.skipped.items() if kind not in (HIDDEN, FOLDER)
        )
        more = [f"and {len(kinds) - 10} more kinds"] if len(kinds) > 10 else []
        return ", ".join([*(f"{kind} ({-count:,})" for count, kind in kinds[:10]), *more])

    def warn(self, folder: Path | str) -> None:
        """Log what was skipped in ``folder``, if anything."""
        if problems := self.problems():
            LOG.warning("skipped in %s: %s", folder, problems)


def is_harmless(kind: str) -> bool:
    """Return whether a kind of skipped files is expected among images, such as ".txt"."""
    return kind in (HIDDEN, FOLDER, NO_ENDING) or (kind.startswith(".") and kind not in PICTURES)


def add_plugins() -> None:
    """Let the installed plug-ins of Pillow open their formats, such as HEIC."""
    for name in filter(find_spec, PLUGINS):
        try:  # importing some is enough
            getattr(import_module(name), "register_heif_opener", lambda: None)()
        except Exception as error:  # a broken plug-in costs its formats, not the run
            LOG.warning("the plug-in %s of Pillow does not work: %s", name, error)


add_plugins()  # wherever images are listed or read, in loading processes too


@lru_cache
def endings() -> frozenset[str]:
    """Return the endings of image files in lower case, such as ".jpg"."""
    formats = Image.registered_extensions()
    decodable = Image.OPEN.keys() - UNDECODABLE | {"MPO"}  # which the decoder of JPEG opens
    return frozenset(ending for ending, kind in formats.items() if kind in decodable)


def is_image_name(name: str) -> bool:
    """Return whether a file of this name, or a member of a tar file, is taken for an image."""
    stem, dot, ending = name.rpartition("/")[2].rpartition(".")
    return bool(stem) and not stem.startswith(".") and dot + ending.lower() in endings()


def ending(name: str) -> str:
    """Return the ending of a file that is not an image, in lower case, to count it under."""
    stem, dot, last = name.rpartition(".")
    return dot + last.lower() if stem and last.isalnum() and len(last) < 10 else NO_ENDING


def refuse_unreadable_names(paths: Iterable[Path]) -> None:
    """Raise ValueError, which names them, if names are not in UTF-8: no log or report holds them.

    Files keep such names from systems with another character set, or from an old archive.
    """
    names = dict.fromkeys(
        name
        for path in paths
        if not _is_utf8(str(path))
        for name in path.parts
        if not _is_utf8(name)
    )
    if names:
        shown = ", ".join(repr(os.fsencode(name)) for name in list(names)[:10])
        raise ValueError(
            f"{len(names):,} names of files or folders are not in UTF-8: {shown}"
            f"{', ...' if len(names) > 10 else ''}; rename them, for instance with "
            "`convmv -r -f latin1 -t utf8 --notest FOLDER`"
        )


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # it holds bytes that could not be decoded
        return False
    return True


def image_files(folder: Path, *, recursive: bool = True, apart_from: Path | None = None) -> Listing:
    """List the images in a folder; links are followed, but not to a folder above itself.

    Args:
        recursive: list the folders in it, too; otherwise they are counted as skipped.
        apart_from: a folder to leave out, such as an index that is kept among the images.

    Raises:
        OSError: ``folder`` cannot be listed. A folder inside it is skipped with a warning.
    """
    paths: list[Path] = []
    skipped: Counter[str] = Counter()
    first: dict[str, Path] = {}

    def skip(kind: str, path: Path) -> None:
        skipped[kind] += 1
        first.setdefault(kind, path)

    pending = [(folder, frozenset[tuple[int, int]]())]  # with the identities of those above
    while pending:
        here, above = pending.pop()
        try:
            status = here.stat()
            identity = status.st_dev, status.st_ino
            if identity in above:
                skip(LOOP, here)
                continue
            with os.scandir(here) as entries:
                for entry in entries:
                    path = here / entry.name
                    kind = _kind(entry)
                    if not kind:
                        paths.append(path)
                    elif kind != FOLDER or not recursive:
                        skip(kind, path)
                    elif path != apart_from:
                        pending.append((path, above | {identity}))
        except OSError as error:
            if here == folder:
                raise
            skip(CLOSED, here)
            LOG.warning("skipped the folder %s: %s", here, error.strerror or error)
    return Listing(sorted(paths, key=lambda path: path.parts), skipped, first)


def _kind(entry: "os.DirEntry[str]") -> str:
    """Return the kind under which an entry is counted, empty for an image."""
    if entry.name.startswith("."):
        return HIDDEN
    try:
        if entry.is_dir():
            return FOLDER
        if not is_image_name(entry.name):
            return ending(entry.name)
        return "" if entry.is_file() else special_kind(Path(entry.path))
    except OSError:  # such as a link to itself
        return BROKEN
