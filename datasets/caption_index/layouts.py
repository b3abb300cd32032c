"""Recognises folders of image-caption pairs by a sample of their entries, and lists their parts."""

import codecs
import csv
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from datasets import folders
from datasets.image_files import is_image_name
from utilities.checksums import changes, digest
from utilities.files import refuse_special

MANIFESTS = (".parquet", ".csv", ".tsv")
PATH_COLUMNS = ("path", "image", "file_name", "image_path", "filepath", "filename", "file")
CAPTION_COLUMNS = ("caption", "text", "title")
LABEL_COLUMN = "label"
KNOWN_COLUMNS = frozenset((*PATH_COLUMNS, *CAPTION_COLUMNS, LABEL_COLUMN, "split"))
HEADER = 1 << 16  # bytes of a table that hold its header
LOOKED_AT = 100_000  # files, of which a change in place is seen; half a second
INDEX, SKIPPED = "index.arrow", "index_skipped.csv"


def is_caption_set(root: Path) -> bool:
    """Return whether ``root`` holds image-caption pairs, judged by a sample of its entries."""
    return layout(root) is not None


def layout(root: Path) -> str | None:
    """Return "shards", "pairs" or "manifests"; None if ``root`` holds none of them."""
    if not root.is_dir() or labelled_manifest(root):
        return None
    if any((root / "images" / name).is_dir() for name in islice(names(root / "images"), 64)):
        return None
    # In this order: img2dataset writes a table of its own beside each shard and each directory.
    found = list(islice(names(root), 4096))
    if any(name.endswith(".tar") for name in found):
        return "shards"
    if holds_pairs(root) or any(
        holds_pairs(root / name) for name in islice((n for n in found if "." not in n[-5:]), 16)
    ):
        return "pairs"
    if any(any(path_and_caption(root / name)) for name in found if is_manifest(name)):
        return "manifests"
    # Folders whose names look like files come last, since each costs a look at the disk.
    if any(holds_pairs(root / name) for name in islice(found, 64)):
        return "pairs"
    return None


def parts(root: Path, kind: str) -> tuple[dict[str, str], float]:
    """Return {part: stamp}, sorted by name, and the time of the last change in seconds.

    Of the first ``LOOKED_AT`` pair files each is looked at; a file after them that is overwritten
    leaves the time of its directory unchanged, and so is not seen.
    """
    stamps: dict[str, str] = {}
    latest = 0.0
    with os.scandir(root) as entries:
        for entry in entries:
            if not entry.name.startswith(".") and _is_part(entry, kind):
                status = entry.stat()
                # The time of any change of a directory also changes with its name and rights.
                stamps[entry.name] = str(status.st_mtime_ns) if kind == "pairs" else changes(status)
                latest = max(latest, status.st_mtime if kind == "pairs" else status.st_ctime)
    if kind == "pairs":
        own = {INDEX, SKIPPED, *stamps}
        if holds_pairs(root):
            # Its own time changes with the index written into it, so its names stand for it.
            stamps["."] = digest(sorted(name for name in names(root) if name not in own))
        left = LOOKED_AT
        for part in sorted(stamps):
            looked_at = [
                (file.name, file.stat())
                for file in islice(_files(root / part), left)
                if part != "." or file.name not in own
            ]
            left -= len(looked_at)
            latest = max([latest, *(status.st_ctime for _, status in looked_at)])
            found = (f"{name} {changes(status)}" for name, status in sorted(looked_at))
            stamps[part] += f" {digest(found)}"
    if kind == "manifests" and not stamps:
        file = next(root / name for name in sorted(names(root)) if is_manifest(name))
        raise ValueError(
            f"the manifest {file} has the columns {', '.join(columns(file))}; it needs one of "
            f"paths ({', '.join(PATH_COLUMNS)}) and one of captions ({', '.join(CAPTION_COLUMNS)})"
            f"; of labelled images it is called manifest.csv and has a column `{LABEL_COLUMN}`"
        )
    return dict(sorted(stamps.items())), latest


def _is_part(entry: "os.DirEntry[str]", kind: str) -> bool:
    if kind == "pairs":
        return entry.is_dir()
    if kind == "shards":
        return entry.name.endswith(".tar")
    return is_manifest(entry.name) and None not in path_and_caption(Path(entry.path))


def _files(folder: Path) -> Iterator["os.DirEntry[str]"]:
    with os.scandir(folder) as entries:
        yield from (entry for entry in entries if entry.is_file())


def names(folder: Path) -> Iterator[str]:
    """Yield the visible entries of a folder, unsorted; nothing if it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            yield from (entry.name for entry in entries if not entry.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return


def holds_pairs(folder: Path) -> bool:
    """Return whether one of the first images has a caption beside it."""
    images = filter(is_image_name, islice(names(folder), 2048))
    return any(
        (folder / f"{name.rpartition('.')[0]}{suffix}").is_file()
        for name in islice(images, 16)
        for suffix in (".json", ".txt")
    )


def is_manifest(name: str) -> bool:
    return name.endswith(MANIFESTS) and name != SKIPPED


def labelled_manifest(root: Path) -> Path | None:
    """Return ``<root>/manifest.csv``, .tsv or .parquet if it has a column of labels."""
    for file in (root / name for name in folders.MANIFESTS):
        there = file.exists() or file.is_symlink()  # a pipe or a broken link is refused by name
        if there and LABEL_COLUMN in map(plain_column, columns(file)):
            return file
    return None


def columns(file: Path) -> list[str]:
    """Return the column names of a manifest; raise ValueError if it cannot be read."""
    try:
        refuse_special(file)
        if file.suffix == ".parquet":
            return list(pyarrow.parquet.read_schema(file).names)
        encoding, delimiter = dialect(file)
        with file.open(encoding=encoding, errors="replace", newline="") as lines:
            return next(csv.reader(lines, delimiter=delimiter), [])
    except (pa.ArrowException, OSError, ValueError, csv.Error) as error:
        raise ValueError(f"the manifest {file} cannot be read: {error}") from error


def dialect(file: Path) -> tuple[str, str]:
    """Return the encoding of a table of text, by its first bytes, and its separator, by its header.

    Spreadsheets write UTF-16 with a mark, and semicolons where the comma is decimal. The separator
    is the one that gives most of the columns known here; in doubt that of the file's ending.
    """
    with file.open("rb") as lines:
        head = lines.read(HEADER)
    encoding = "utf-8-sig"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif b"\0" in head:
        raise ValueError("it must be in UTF-8, or in UTF-16 that begins with its mark")
    first = next(iter(head.decode(encoding, errors="replace").splitlines()), "")

    def known(separator: str) -> tuple[int, int]:
        cells = next(csv.reader([first], delimiter=separator), [])
        return len(KNOWN_COLUMNS.intersection(map(plain_column, cells))), len(cells)

    separators = "\t,;|" if file.suffix == ".tsv" else ",;\t|"
    return encoding, max(separators, key=known)


def plain_column(name: str) -> str:
    return name.strip().lower()


def path_and_caption(file: Path) -> tuple[str | None, str | None]:
    """Return the names of a manifest's two columns; None for one that it does not have."""
    try:
        by_name = {plain_column(column): column for column in reversed(columns(file))}
    except ValueError:
        return None, None
    path, caption = (
        next((by_name[name] for name in known if name in by_name), None)
        for known in (PATH_COLUMNS, CAPTION_COLUMNS)
    )
    return path, caption
