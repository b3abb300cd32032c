"""Images with a caption each, and no labels; memory-mapped, whatever their number."""

import copy
import hashlib
import io
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datasets.caption_index import BATCH, OpenShards, build, open_index
from datasets.folders import listed
from datasets.image_files import READING
from datasets.reading import LazyImage, Reader, as_image, open_image
from utilities.checksums import stamp

Scope = Literal["subreddit", "year", "subreddit_year"]
SCOPES: tuple[Scope, ...] = ("subreddit", "year", "subreddit_year")

# The first part that can be a year of Reddit (since 2005) is the year: a subreddit may hold
# underscores, and an id digits.
_DIRECTORY = re.compile(r"(?P<subreddit>.+?)_(?P<year>20(?:0[5-9]|[1-9]\d))(?:_[^_]+)?")


def open_caption_set(root: Path) -> "CaptionSet":
    """Return the image-caption pairs of a folder; raises as ``caption_index.build``."""
    return CaptionSet(root, build(root))


class CaptionSet:
    """N pairs of image and caption, without classes: the label of an image is its row.

    Nothing of size N is held: rows are looked up in the memory-mapped index. Sent to a worker as
    two paths. Raises OSError or ValueError if ``index``, by ``caption_index.build``, is unreadable.
    """

    reading = READING

    def __init__(self, root: Path, index: Path) -> None:
        self.root = root
        self.index = index
        self.name = root.name
        self._identity = _identity(index)
        reader, head = open_index(index)
        self._layout, self._parts = head.layout, tuple(head.parts)
        self._batches = [reader.get_batch(n) for n in range(reader.num_record_batches)]
        self._starts = np.cumsum([0, *(len(batch) for batch in self._batches)]).tolist()
        self._shards = OpenShards()
        self.reader: Reader | None = None  # reads the images instead of their files

    def __len__(self) -> int:
        return self._starts[-1]

    def __repr__(self) -> str:
        return f"CaptionSet({self.name!r}, {len(self)} pairs)"

    def read(self, row: int) -> Image.Image:
        """Return the image in RGB; raise OSError, which names it, if it cannot be read."""
        return as_image(self.open(row).pixels().values)

    def open(self, row: int) -> LazyImage:
        """Open the image, to be decoded later; raises as ``read``."""
        return open_image(self.file(row)) if self.reader is None else self.reader.open(row)

    def with_reader(self, reader: Reader | None) -> "CaptionSet":
        """Return the same set with images that ``reader`` reads; None reads their files."""
        other = copy.copy(self)
        other.reader = reader
        return other

    def file(self, row: int) -> "Path | _Member":
        """Return where an image is, or its content if it is inside a shard."""
        values = self._row(row, ("key", "part", "offset", "size"))
        if values["offset"] < 0:
            return self.root / values["key"]
        shard = self.root / self._parts[values["part"]]
        content = self._shards.read(shard, values["offset"], values["size"])
        return _Member(content, self.root / values["key"])

    def label(self, row: int) -> int:
        return row

    def caption(self, row: int) -> str:
        """Return its caption; several are lines of one text."""
        return self._row(row, ("caption",))["caption"]

    def key(self, row: int) -> str:
        """Return its path below the root, `shard.tar/member`, or its path in a manifest."""
        return self._row(row, ("key",))["key"]

    @property
    def captions(self) -> "Captions":
        return Captions(self)

    def scopes(self, kind: Scope) -> NDArray[np.int64]:
        """Return a code for each image, (N,) from 0; images with the same code may be partners.

        Read from directory names as in RedCaps, ``<subreddit>_<year>`` or
        ``<subreddit>_<year>_<id>``; in shards, from the shard's name or a directory inside it.
        Raises ValueError if they have other names.
        """
        if kind not in SCOPES:
            raise ValueError(f"scope must be one of {', '.join(SCOPES)}; got {kind!r}")
        names, numbers = self._directories()
        found = {name: _DIRECTORY.fullmatch(name) for name in names}
        others = [name for name, match in found.items() if not match]
        if others:
            raise ValueError(
                f"{self.name}: the scope {kind!r} is read from directory names <subreddit>_<year> "
                f"or <subreddit>_<year>_<id>, and {len(others)} of {len(names)} are not of that "
                f"form: {listed(others, most=3)}; use no scope, or rename them"
            )
        parts = kind.split("_")
        values = [tuple(match[part] for part in parts) for match in found.values() if match]
        codes = {value: code for code, value in enumerate(sorted(set(values)))}
        return np.array([codes[value] for value in values], dtype=np.int64)[numbers]

    def fingerprint(self, *, sizes: bool = False) -> str:
        """Return 16 hexadecimal digits that change with any key, caption or their order.

        With ``sizes`` they also change with the size of any image file.
        """
        columns = [(hashlib.blake2b(), hashlib.blake2b()) for _ in ("key", "caption")]
        for batch in self._batches:
            for name, (text, lengths) in zip(("key", "caption"), columns, strict=True):
                _, offsets, data = batch.column(name).buffers()
                ends = np.frombuffer(offsets, np.int32)[: len(batch) + 1]
                lengths.update(np.diff(ends).tobytes())
                text.update(memoryview(data)[int(ends[0]) : int(ends[-1])])
            if sizes:
                columns[0][1].update(batch.column("size").to_numpy().tobytes())
        both = b"".join(part.digest() for column in columns for part in column)
        return hashlib.blake2b(both, digest_size=8).hexdigest()

    def stamps(self) -> Iterator[str]:
        """Yield the ``stamp`` of each file that holds images, as it is now and not in the index."""
        if self._layout == "shards":
            yield from (stamp(self.root / shard) for shard in self._parts)
            return
        for batch in self._batches:
            yield from (stamp(self.root / key) for key in batch.column("key").to_pylist())

    def _row(self, row: int, columns: Sequence[str]) -> dict[str, Any]:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {self.name}, which has {len(self)}")
        number = bisect_right(self._starts, row) - 1
        batch, place = self._batches[number], row - self._starts[number]
        return {column: batch.column(column)[place].as_py() for column in columns}

    def _directories(self) -> tuple[list[str], NDArray[np.int64]]:
        """Return the directories that hold images, and the number of each image's, (N,)."""
        if self._layout == "pairs":
            of_rows = np.concatenate([batch.column("part").to_numpy() for batch in self._batches])
            used, numbers = np.unique(of_rows, return_inverse=True)
            return [self._parts[part] for part in used], numbers
        place: dict[str, int] = {}
        numbers = np.empty(len(self), dtype=np.int64)
        for start, batch in zip(self._starts, self._batches, strict=False):
            for row, key in enumerate(batch.column("key").to_pylist(), start):
                directory = key.rpartition("/")[0].rpartition("/")[2].removesuffix(".tar")
                numbers[row] = place.setdefault(directory, len(place))
        return list(place), numbers

    def __getstate__(self) -> dict[str, Any]:
        names = {"root": self.root, "index": self.index, "identity": self._identity}
        return {**names, "reader": self.reader}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if _identity(state["index"]) != state["identity"]:
            raise RuntimeError(
                f"{state['index']} was rewritten while in use, so rows may have moved; start again"
            )
        self.__init__(state["root"], state["index"])  # type: ignore[misc]
        self.reader = state["reader"]


class Captions(Sequence[str]):
    """The captions of a set by row, read on demand; iteration reads many at a time."""

    def __init__(self, caption_set: CaptionSet) -> None:
        self._set = caption_set

    def __len__(self) -> int:
        return len(self._set)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if not isinstance(place, slice):
            return self._set.caption(int(place) + (len(self) if place < 0 else 0))
        rows = range(len(self))[place]
        if rows.step != 1:
            return [self._set.caption(row) for row in rows]
        return [*chain.from_iterable(self._chunks(rows.start, rows.stop))]

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(self._chunks(0, len(self)))

    def _chunks(self, start: int, stop: int, size: int = BATCH // 8) -> Iterator[list[str]]:
        for first, batch in zip(self._set._starts, self._set._batches, strict=False):
            low, high = max(start - first, 0), min(stop - first, len(batch))
            for place in range(low, high, size):
                column = batch.column("caption")
                yield column.slice(place, min(size, high - place)).to_pylist()


class _Member(io.BytesIO):
    """The bytes of an image inside a shard; prints as the path that errors show."""

    def __init__(self, content: bytes, path: Path) -> None:
        super().__init__(content)
        self._path = path

    def __str__(self) -> str:
        return str(self._path)


def _identity(index: Path) -> tuple[int, int]:
    status = index.stat()
    return status.st_size, status.st_mtime_ns
