"""Embeddings of millions of rows on disk, in parts that other tools read as well.

    <folder>/store.json                   what is embedded, by what
    <folder>/text_emb/text_emb_0000.npy   (rows of part 0, D) float16 unit rows
    <folder>/img_emb/img_emb_0000.npy     the same, of images

The parts lie as clip-retrieval writes them: their names sort in the order of the rows, and nothing
else in their folder ends in ``.npy``. So where one machine ends, ``autofaiss build_index
--embeddings=<folder>/text_emb --metric_type=ip`` or ``clip-retrieval index --copy_metadata=False``
goes on from here, also on Spark. An embedding that does not exist is a zero row.

A part is whole or absent, and what is there is not embedded again, so an interrupted pass goes on
where it was. Any number of processes may fill one folder: part p is written by rank p mod world.
"""

import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from language.nearest import hash_bytes
from language.text_encoder import TextEncoder
from utilities.files import atomic_path

LOG = logging.getLogger(__name__)

KINDS = ("text", "img")
FORMAT = 1  # of store.json; raised whenever an older reader would misunderstand a newer one
PART_ROWS = 1 << 15  # what an interruption loses: two minutes of MiniLM on two cores
READ_TEXTS = 1 << 16  # captions read at a time
POLL = 1.0  # seconds between two looks at what other processes have written
REMIND = 60.0  # seconds between two words about waiting

Embed = Callable[[int, int], NDArray[Any]]  # first row, last + 1 -> (rows, D)


class EmbeddingStore:
    """N embeddings in a folder. As an array, it gives rows: ``store[rows]`` is (B, D) float16.

    Args:
        folder: made if it is not there.
        n: N.
        encoder: fingerprint of what embeds.
        content: digest of what is embedded, such as ``caption_digest``.
        kind: "text" or "img".
        part_rows: rows of each part but the last.

    Raises:
        ValueError: the folder holds another store; says what differs.
    """

    def __init__(
        self,
        folder: Path,
        n: int,
        *,
        encoder: str,
        content: str,
        kind: str = "text",
        part_rows: int = PART_ROWS,
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"an embedding store of kind {kind}; known: {', '.join(KINDS)}")
        if n < 1:
            raise ValueError(f"{folder}: there is nothing to embed")
        self.folder = folder
        self.n = n
        self.part_rows = part_rows
        self.n_parts = -(-n // part_rows)
        self.prefix = f"{kind}_emb"
        self._digits = max(4, len(str(self.n_parts - 1)))  # names sort in the order of the rows
        self._open: dict[int, NDArray[np.float16]] = {}
        about = {
            "format": FORMAT, "kind": kind, "rows": n, "part_rows": part_rows, "encoder": encoder,
            "content": content,
        }  # fmt: skip
        self._claim(about)

    def _claim(self, about: dict[str, Any]) -> None:
        file = self.folder / "store.json"
        if not file.is_file():
            with atomic_path(file) as temporary:
                temporary.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
            return
        try:
            there = json.loads(file.read_text(encoding="utf-8"))
            differ = [name for name in about if there.get(name) != about[name]]
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{file} cannot be read ({error}); delete {self.folder}") from error
        if differ:
            raise ValueError(
                f"{self.folder} holds other embeddings: "
                + ", ".join(f"{name} {there.get(name)} (now {about[name]})" for name in differ)
                + "; give another folder, or delete this one"
            )

    # ---------------------------------------------------------------------------------- writing
    def path(self, part: int) -> Path:
        return self.folder / self.prefix / f"{self.prefix}_{part:0{self._digits}d}.npy"

    def span(self, part: int) -> tuple[int, int]:
        """First row of a part, and last + 1."""
        return part * self.part_rows, min((part + 1) * self.part_rows, self.n)

    def missing(self) -> list[int]:
        """The parts that are not there. One that is damaged counts as missing, with a warning."""
        return [part for part in range(self.n_parts) if self._part(part) is None]

    def fill(self, embed: Embed, *, rank: int = 0, world: int = 1) -> None:
        """Embed the missing parts of this rank.

        Args:
            embed: gives the rows (B, D) from one row up to another; zero where there is none.

        Raises:
            ValueError: it gives another number of rows, or a value that is not finite.
        """
        own = range(rank, self.n_parts, world)
        missing = [part for part in self.missing() if part in own]
        if len(missing) < len(own):
            LOG.info(
                "%s: %d of %d parts are embedded already",
                *(self.folder, len(own) - len(missing), len(own)),
            )
        total = sum(stop - start for start, stop in map(self.span, missing))
        with tqdm(total=total, desc="embedding", unit="row", leave=False) as bar:
            for part in missing:
                start, stop = self.span(part)
                rows = np.asarray(embed(start, stop), np.float32)
                if len(rows) != stop - start:
                    raise ValueError(f"{len(rows)} embeddings for rows {start} to {stop - 1}")
                if not np.isfinite(rows).all():
                    raise ValueError(f"an embedding of rows {start} to {stop - 1} is not finite")
                norms = np.linalg.norm(rows, axis=1, keepdims=True)
                norms[norms == 0] = 1
                rows = rows / norms
                with atomic_path(self.path(part)) as temporary, temporary.open("wb") as file:
                    np.save(file, rows.astype(np.float16))
                bar.update(stop - start)

    def fill_with_texts(
        self, texts: Sequence[str], encoder: TextEncoder, *, rank: int = 0, world: int = 1
    ) -> None:
        """``fill`` with the embeddings of N texts; within a part each distinct one is read once."""

        def embed(start: int, stop: int) -> NDArray[Any]:
            some = texts[start:stop]
            places = {text: place for place, text in enumerate(dict.fromkeys(some))}
            rows = encoder.encode(list(places)).numpy()
            return rows[[places[text] for text in some]]

        self.fill(embed, rank=rank, world=world)

    def wait(self) -> None:
        """Until all parts are there, those of other processes too."""
        wait_for(lambda: len(self.missing()), f"parts of {self.folder}")

    # ---------------------------------------------------------------------------------- reading
    def _part(self, part: int) -> NDArray[np.float16] | None:
        """A memory map of a part; None where it is not there or damaged."""
        if part not in self._open:
            path, (start, stop) = self.path(part), self.span(part)
            if not path.is_file():
                return None
            try:
                rows = np.load(path, mmap_mode="r")
                if rows.dtype != np.float16 or rows.ndim != 2 or len(rows) != stop - start:
                    raise ValueError(f"{rows.dtype} of shape {rows.shape}")
            except (ValueError, EOFError) as error:  # cut short, or not numpy's
                LOG.warning("%s is damaged (%s); embedding its rows again", path, error)
                return None
            self._open[part] = rows
        return self._open[part]

    def _whole(self, part: int) -> NDArray[np.float16]:
        rows = self._part(part)
        if rows is None:
            raise FileNotFoundError(
                f"{self.path(part)} is not there yet: the store is not complete; run the same "
                "command again to go on"
            )
        return rows

    def __len__(self) -> int:
        return self.n

    @property
    def shape(self) -> tuple[int, int]:
        return self.n, self._whole(0).shape[1]

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> NDArray[np.float16]:
        if isinstance(rows, slice):
            start, stop, step = rows.indices(self.n)
            if step != 1:
                return self[np.arange(start, stop, step)]
            parts = range(start // self.part_rows, -(-stop // self.part_rows))
            pieces = [
                self._whole(part)[max(start - self.span(part)[0], 0) : stop - self.span(part)[0]]
                for part in parts
            ]
            return np.concatenate([self._whole(0)[:0], *pieces])
        rows = np.asarray(rows, np.int64)
        rows = np.where(rows < 0, rows + self.n, rows)
        result = np.empty((len(rows), self.shape[1]), np.float16)
        parts_of, places = np.divmod(rows, self.part_rows)
        for part in np.unique(parts_of).tolist():
            here = parts_of == part
            result[here] = self._whole(part)[places[here]]
        return result


def hash_texts(texts: Sequence[str]) -> NDArray[np.uint64]:
    """(N, 2) 128 bits for each text, the same for the same text."""
    parts = []
    for start in range(0, len(texts), READ_TEXTS):
        some = texts[start : start + READ_TEXTS]
        parts.append(hash_bytes(text.encode("utf-8", "surrogatepass") for text in some))
    return np.concatenate([np.zeros((0, 2), np.uint64), *parts])


def caption_digest(hashes: NDArray[np.uint64]) -> str:
    """One digest, in hex, of all texts in their order, from ``hash_texts``."""
    return bytes(hash_bytes([hashes.astype("<u8").tobytes()]).astype("<u8").tobytes()).hex()


def wait_for(left: Callable[[], int], what: str) -> None:
    """Wait until ``left()``, the number of files to come, is 0."""
    said = time.monotonic()
    while n := left():
        if time.monotonic() - said >= REMIND:
            LOG.info("waiting for other processes: %d %s to come", n, what)
            said = time.monotonic()
        time.sleep(POLL)
