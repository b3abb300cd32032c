"""Lists the images in a folder: the one place that decides which files are images.

A file is an image if Pillow has a decoder for its ending, in upper or lower case.
"""

import logging
import os
import stat
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image

LOG = logging.getLogger(__name__)

UNDECODABLE = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF"}  # Pillow opens them but has no decoder

HIDDEN = "hidden"
OTHER = "not an image"
FOLDER = "folder"
CLOSED = "folder that cannot be read"
LOOP = "loop of links"
BROKEN = "broken link"
SPECIAL = {
    stat.S_IFDIR: FOLDER,
    stat.S_IFIFO: "named pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


class Listing(NamedTuple):
    """The images in a folder, and a count of what else is there."""

    paths: list[Path]  # sorted by their parts
    skipped: Counter[str]  # by kind: HIDDEN, OTHER, BROKEN, "named pipe", ...

    def problems(self) -> str:
        """Describe what was skipped and should not be there, such as "broken link (2)"; or ""."""
        return ", ".join(
            f"{kind} ({count:,})"
            for kind, count in self.skipped.most_common()
            if kind not in (HIDDEN, OTHER, FOLDER)
        )


@lru_cache
def endings() -> frozenset[str]:
    """Return the endings of image files in lower case, such as ".jpg"."""
    formats = Image.registered_extensions()
    decodable = Image.OPEN.keys() - UNDECODABLE
    return frozenset(ending for ending, kind in formats.items() if kind in decodable)


def is_image_name(name: str) -> bool:
    """Return whether a file of this name, or a member of a tar file, is taken for an image."""
    stem, dot, ending = name.rpartition("/")[2].rpartition(".")
    return bool(stem) and not stem.startswith(".") and dot + ending.lower() in endings()


def special_kind(path: Path) -> str:
    """Return what is at ``path`` if it is not a regular file, such as "named pipe"; else ""."""
    try:
        mode = stat.S_IFMT(path.stat().st_mode)
    except OSError:  # where nothing is there at all, opening the file says so
        return BROKEN if path.is_symlink() else ""
    return "" if mode == stat.S_IFREG else SPECIAL.get(mode, "special file")


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
    pending = [(folder, frozenset[tuple[int, int]]())]  # with the identities of those above
    while pending:
        here, above = pending.pop()
        try:
            status = here.stat()
            identity = status.st_dev, status.st_ino
            if identity in above:
                skipped[LOOP] += 1
                continue
            with os.scandir(here) as entries:
                for entry in entries:
                    path = here / entry.name
                    kind = _kind(entry)
                    if not kind:
                        paths.append(path)
                    elif kind != FOLDER or not recursive:
                        skipped[kind] += 1
                    elif path != apart_from:
                        pending.append((path, above | {identity}))
        except OSError as error:
            if here == folder:
                raise
            skipped[CLOSED] += 1
            LOG.warning("skipped the folder %s: %s", here, error.strerror or error)
    return Listing(sorted(paths, key=lambda path: path.parts), skipped)


def _kind(entry: "os.DirEntry[str]") -> str:
    """Return the kind under which an entry is counted, empty for an image."""
    if entry.name.startswith("."):
        return HIDDEN
    try:
        if entry.is_dir():
            return FOLDER
        if not is_image_name(entry.name):
            return OTHER
        return "" if entry.is_file() else special_kind(Path(entry.path))
    except OSError:  # such as a link to itself
        return BROKEN
