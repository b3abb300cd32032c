"""Text embeddings on disk: an SQLite file for each model, since texts are added one by one."""

import hashlib
import re
import sqlite3
import warnings
import zlib
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from language.text_encoder import TextEncoder

T = TypeVar("T")

CHUNK = 4096  # texts that are encoded between two writes: all that an interrupted run loses
LOCK_TIMEOUT = 60.0  # seconds to wait for another process
FORMAT = 2  # a checksum is of the key and the row, since SQLite may return another key's row
TABLE = "CREATE TABLE IF NOT EXISTS texts (key BLOB PRIMARY KEY, row BLOB, checksum INTEGER)"


class CachedEncoder(TextEncoder):
    """Asks ``encoder`` only for texts whose embedding is not in ``folder``.

    A damaged file is discarded with a warning and its texts are embedded again. A folder that
    cannot be written costs a warning and the cache, not the run.
    """

    def __init__(self, encoder: TextEncoder, folder: Path):
        self.encoder = encoder
        self.name = encoder.name
        self.fingerprint = encoder.fingerprint
        readable = re.sub(r"[^\w.-]+", "_", Path(encoder.name).name)
        digest = hashlib.sha256(f"{FORMAT} {encoder.fingerprint}".encode()).hexdigest()[:16]
        self.path = folder / f"{readable}-{digest}.sqlite"

    def encode(self, texts: Sequence[str]) -> Tensor:
        if not texts:
            return self.encoder.encode([])  # (0, D)
        return self._rows(texts, self.encoder.encode, "")

    def unknown(self, texts: Sequence[str]) -> Tensor:
        if not texts:
            return torch.zeros(0)
        return self._rows(texts, lambda some: self.encoder.unknown(some)[:, None], "unknown")[:, 0]

    def _rows(
        self, texts: Sequence[str], compute: Callable[[list[str]], Tensor], kind: str
    ) -> Tensor:
        """The rows of N texts, (N, D) float32, computed where the file has none of this kind."""
        keys = {text: _key(text, kind) for text in texts}  # each distinct text once
        rows = self._read(list(keys.values())) if self.path.exists() else {}  # float32 as bytes
        absent = [text for text, key in keys.items() if key not in rows]
        for start in range(0, len(absent), CHUNK):
            chunk = absent[start : start + CHUNK]
            values = compute(chunk).numpy()
            fresh = {keys[text]: row.tobytes() for text, row in zip(chunk, values, strict=True)}
            self._write(fresh)
            rows |= fresh
        flat = np.frombuffer(bytearray().join(rows[keys[text]] for text in texts), np.float32)
        return torch.from_numpy(flat).view(len(texts), -1)

    def _read(self, keys: list[bytes]) -> dict[bytes, bytes]:
        """The rows of those of ``keys`` that the file holds."""
        query = "SELECT row, checksum FROM texts WHERE key = ?"

        def select(database: sqlite3.Connection) -> dict[bytes, bytes]:
            found = {}
            for key in keys:
                for row, checksum in database.execute(query, (key,)):
                    if not isinstance(row, bytes) or zlib.crc32(key + row) != checksum:
                        raise sqlite3.DatabaseError("a row differs from its checksum")
                    found[key] = row
            if len({len(row) for row in found.values()}) > 1:
                raise sqlite3.DatabaseError("rows of different lengths")
            return found

        return self._on_file(select) or {}

    def _write(self, rows: dict[bytes, bytes]) -> None:
        values = [(key, row, zlib.crc32(key + row)) for key, row in rows.items()]
        insert = "INSERT OR REPLACE INTO texts VALUES (?, ?, ?)"
        self._on_file(lambda database: database.executemany(insert, values))

    def _on_file(self, work: Callable[[sqlite3.Connection], T]) -> T | None:
        """Run ``work`` on the open file; None if it cannot be opened or had to be discarded."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=LOCK_TIMEOUT)) as database, database:
                database.execute(TABLE)
                return work(database)
        except (OSError, sqlite3.OperationalError) as error:  # read-only, full disk, locked
            problem = f"cannot use {self.path} ({error}); embedding without it"
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # malformed, wrong checksum
            problem = f"{self.path} is damaged ({error}); discarded, its texts are embedded again"
            self.path.unlink(missing_ok=True)
            self.path.with_name(f"{self.path.name}-journal").unlink(missing_ok=True)
        warnings.warn(f"cache of text embeddings: {problem}", stacklevel=5)
        return None


def _key(text: str, kind: str) -> bytes:
    return hashlib.sha256(f"{kind}\0{text}".encode(errors="surrogatepass")).digest()
