"""Embeddings of millions of rows on disk, in parts that other tools read as well.

    <folder>/store.json                   what is embedded, by what
    <folder>/text_emb/text_emb_0000.npy   (rows of part 0, D) float16 unit rows
    <folder>/img_emb/img_emb_0000.npy     the same, of images
    <folder>/checksums/text_emb_0000      of that part, verified when it is opened

The parts lie as clip-retrieval writes them, so that where one machine ends, ``autofaiss build_index
--embeddings=<folder>/text_emb --metric_type=ip`` or ``clip-retrieval index --copy_metadata=False``
takes over, also on Spark. A row that cannot be embedded is zero.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from language import readability
from language.text_encoder import TextEncoder, embed_captions
from utilities.checksums import digest_of_file
from utilities.files import atomic_path
from utilities.progress import bar

LOG = logging.getLogger(__name__)

PART_ROWS = 1 << 15  # what an interruption loses: two minutes of MiniLM on two cores
POLL = 1.0  # seconds between two looks at what other processes have written
REMIND = 60.0  # seconds between two messages about waiting

Embed = Callable[[int, int], NDArray[Any]]  # first row, last + 1 -> (rows, D)


class EmbeddingStore:
    """N embeddings in a folder, indexed like an array: ``store[rows]`` is (B, D) float16.

    A part is whole or absent, so an interrupted pass resumes part by part. Any number of processes
    may fill one folder: part p is written by rank p mod world.
    """

    def __init__(
        self,
        folder: Path,
        n: int,
        *,
        kind: str = "text",  # or "img"
        about: Mapping[str, Any] | None = None,  # kept in store.json for the reader
        part_rows: int = PART_ROWS,
    ) -> None:
        self.folder = folder
        self.n = n
        self.part_rows = part_rows
        self.n_parts = -(-n // part_rows)
        self.prefix = f"{kind}_emb"
        self._digits = max(4, len(str(self.n_parts - 1)))  # names sort in the order of the rows
        self._open: dict[int, NDArray[np.float16]] = {}
        self._damaged: set[int] = set()  # parts that were warned of
        if not (file := folder / "store.json").is_file():
            lines = json.dumps({"kind": kind, "rows": n, "part_rows": part_rows, **(about or {})})
            with atomic_path(file) as temporary:
                temporary.write_text(lines + "\n", encoding="utf-8")

    # ---------------------------------------------------------------------------------- writing
    def path(self, part: int) -> Path:
        return self.folder / self.prefix / f"{self.prefix}_{part:0{self._digits}d}.npy"

    def _checksum(self, part: int) -> Path:
        return self.folder / "checksums" / self.path(part).stem

    def span(self, part: int) -> tuple[int, int]:
        """Return the first row of a part, and the last + 1."""
        return part * self.part_rows, min((part + 1) * self.part_rows, self.n)

    def missing(self, rank: int = 0, world: int = 1) -> list[int]:
        """Return a rank's parts that are not there; a damaged one is missing, with a warning."""
        return [part for part in range(rank, self.n_parts, world) if self._part(part) is None]

    def fill(self, embed: Embed, *, rank: int = 0, world: int = 1) -> None:
        """Embed the missing parts of this rank; a row without an embedding is zero."""
        missing = self.missing(rank, world)
        if there := len(range(rank, self.n_parts, world)) - len(missing):
            LOG.info("%s: %d parts are embedded already", self.folder, there)
        total = sum(stop - start for start, stop in map(self.span, missing))
        with bar(total=total, desc="embedding", unit="row") as shown:
            for part in missing:
                start, stop = self.span(part)
                rows = np.asarray(embed(start, stop), np.float32)
                if len(rows) != stop - start:
                    raise ValueError(f"{len(rows)} embeddings for rows {start} to {stop - 1}")
                if not np.isfinite(rows).all():
                    raise ValueError(f"an embedding of rows {start} to {stop - 1} is not finite")
                norms = np.linalg.norm(rows, axis=1, keepdims=True)
                norms[norms == 0] = 1
                with atomic_path(self.path(part)) as temporary:
                    with temporary.open("wb") as file:
                        np.save(file, (rows / norms).astype(np.float16))
                    with atomic_path(self._checksum(part)) as checksum:  # there before the part
                        checksum.write_text(digest_of_file(temporary))
                shown.update(stop - start)

    def fill_with_texts(
        self, texts: Sequence[str], encoder: TextEncoder, *, rank: int = 0, world: int = 1
    ) -> None:
        """``fill`` with the embeddings of N images' captions; a part reads equal ones once.

        Raises ValueError if the encoder cannot read most captions of the first part.
        """

        def embed(start: int, stop: int) -> NDArray[Any]:
            some = texts[start:stop]
            places = {text: place for place, text in enumerate(dict.fromkeys(some))}
            embeds = embed_captions(encoder, list(places))
            if start == 0:  # before the others take hours
                readability.check(encoder, list(places), embeds, "captions")
            rows = embeds.numpy()
            return rows[[places[text] for text in some]]

        self.fill(embed, rank=rank, world=world)

    def wait(self) -> None:
        """Wait until all parts are there, those of other processes too."""
        wait_for(lambda: len(self.missing()), f"parts of {self.folder}")

    # ---------------------------------------------------------------------------------- reading
    def _part(self, part: int) -> NDArray[np.float16] | None:
        """A memory map of a part; None where it is not there or damaged."""
        if part in self._open:
            return self._open[part]
        path, (start, stop) = self.path(part), self.span(part)
        if not path.is_file():
            return None
        try:
            if digest_of_file(path) != self._checksum(part).read_text():
                raise ValueError("it differs from its checksum")
            rows = np.load(path, mmap_mode="r")
            if rows.dtype != np.float16 or rows.ndim != 2 or len(rows) != stop - start:
                raise ValueError(f"{rows.dtype} of shape {rows.shape}")
        except (OSError, ValueError, EOFError) as error:  # also without its checksum
            if part not in self._damaged:
                LOG.warning("%s is damaged (%s); embedding its rows again", path, error)
            self._damaged.add(part)
            return None
        self._open[part] = rows
        return rows

    def _whole(self, part: int) -> NDArray[np.float16]:
        rows = self._part(part)
        if rows is None:
            raise FileNotFoundError(
                f"{self.path(part)} is missing: the store is not complete; run the same command "
                "again to complete it"
            )
        return rows

    @property
    def shape(self) -> tuple[int, int]:
        return self.n, self._whole(0).shape[1]

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> NDArray[np.float16]:
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(self.n))
        rows = np.where(rows < 0, rows + self.n, rows)
        result = np.empty((len(rows), self.shape[1]), np.float16)
        parts_of, places = np.divmod(rows, self.part_rows)
        for part in np.unique(parts_of).tolist():
            here = parts_of == part
            result[here] = self._whole(part)[places[here]]
        return result


def wait_for(left: Callable[[], int], what: str) -> None:
    """Wait until ``left()``, the number of files to come, is 0."""
    reminded = time.monotonic()
    while n := left():
        if time.monotonic() - reminded >= REMIND:
            LOG.info("waiting for other processes: %d %s to come", n, what)
            reminded = time.monotonic()
        time.sleep(POLL)
