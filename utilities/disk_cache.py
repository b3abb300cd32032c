"""The one disk cache: results computed once and verified whenever they are read.

An entry is a folder, named after a fingerprint of everything that its content depends on. It is
complete or absent. One process computes it while others wait, and the global random generators are
restored. A damaged entry counts as absent. If the cache is not writable, an entry lasts only as
long as the process.
"""

import atexit
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import torch
from torch import Tensor

from utilities import checkpoint
from utilities.checksums import digest, seal, stamp, verify
from utilities.files import atomic_folder, cache_folder
from utilities.progress import in_threads
from utilities.seeding import undisturbed

LOG = logging.getLogger(__name__)

TENSORS = "tensors.pt"


@dataclass(frozen=True)
class Entry:
    """A cached result: a folder that is verified whenever it is read."""

    kind: str  # subfolder of the cache, such as "features"
    name: str  # readable part of the folder's name, such as the dataset's
    fingerprint: str  # of everything that the content depends on, see ``digest``
    unhashed: tuple[str, ...] = ()  # files whose content the reader verifies itself
    root: Path | None = None  # cache folder; default ``cache_folder()``

    @property
    def folder(self) -> Path:
        """The place of the entry, whether it is there or not."""
        readable = "".join(c if c.isalnum() or c in "._-" else "_" for c in self.name)
        mark = digest([self.fingerprint])[:16]
        return (self.root or cache_folder()) / self.kind / f"{readable}-{mark}"

    def read(self) -> Path | None:
        """Return the folder if the entry is there and sound, else None; warns if it is damaged."""
        if not self.folder.is_dir():
            return None
        try:
            verify(self.folder)
        except (OSError, ValueError) as error:
            LOG.warning("%s in the cache is damaged (%s); computing it again", self.folder, error)
            return None
        return self.folder

    def write(self, fill: Callable[[Path], None]) -> Path:
        """Compute the entry with ``fill(folder)``; return its folder.

        That is a temporary one if the cache is not writable.
        """
        folder = self.folder
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder.parent).close()
        except OSError as error:
            self._warn_of_folder(error)
            temporary = Path(tempfile.mkdtemp(prefix=f"{self.kind}_"))
            atexit.register(shutil.rmtree, temporary, ignore_errors=True)
            folder = temporary / self.folder.name
        for left in folder.parent.glob(f".{folder.name}.*"):  # left by a killed process
            shutil.rmtree(left, ignore_errors=True)
        with atomic_folder(folder) as fresh, undisturbed():
            fill(fresh)
            seal(fresh, self.unhashed)
        return folder

    def get(self, fill: Callable[[Path], None]) -> Path:
        """Return the entry's folder, computed if it is not in the cache."""
        with self.locked():
            return self.read() or self.write(fill)

    def read_tensors(self) -> dict[str, Any] | None:
        """Return what ``keep_tensors`` kept; None if it is absent or damaged."""
        folder = self.read()
        try:
            return checkpoint.load(folder / TENSORS) if folder else None
        except OSError:  # replaced by another process since it was verified
            return None

    def keep_tensors(self, tensors: Mapping[str, Any]) -> None:
        """Keep a dict of tensors and plain values; warn if the disk is full or not writable."""
        try:
            with atomic_folder(self.folder) as fresh:
                checkpoint.save(fresh / TENSORS, tensors)
                seal(fresh)
        except OSError as error:
            self._warn_of_folder(error)

    def tensors(self, compute: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Return a dict of tensors and plain values, computed if it is not in the cache."""
        with self.locked():
            kept = self.read_tensors()
            if kept is None:
                with undisturbed():
                    kept = dict(compute())
                self.keep_tensors(kept)
        return kept

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from computing the entry; without effect in an unwritable folder."""
        lock = filelock.FileLock(self.folder.with_name(f"{self.folder.name}.lock"))
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(blocking=False)
            except filelock.Timeout:
                LOG.info("another process computes %s; waiting for it", self.folder)
                lock.acquire()
        except OSError as error:  # unwritable: each process computes its own
            LOG.debug("no lock for %s: %s", self.folder, error)
        try:
            yield
        finally:
            lock.release()  # without effect if it was not acquired

    def _warn_of_folder(self, error: OSError) -> None:
        LOG.warning(
            "cache folder %s cannot be written (%s); continuing without keeping %s. "
            "Set XDG_CACHE_HOME to a folder that can be written",
            *(self.folder.parent, error.strerror or error, self.name),
        )


def of_files(
    kind: str,
    root: Path,
    paths: Iterable[Path],
    compute: Callable[[Path], str],
    title: str,
    *,
    version: int = 0,
) -> dict[Path, str]:
    """Return a text about each file, computed once for as long as the file's ``stamp`` stays.

    Args:
        root: folder of the dataset; each has an entry.
        version: of what ``compute`` returns.
    """
    stamps = {path: stamp(path) for path in paths}
    entry = Entry(kind, root.name, digest([str(root.resolve()), str(version)]))
    with entry.locked():
        kept = entry.read_tensors()  # one string: a long dict would be slow to load
        texts: dict[str, str] = json.loads(kept["texts"]) if kept else {}  # by stamp
        new = [path for path, mark in stamps.items() if mark not in texts]
        if new:
            computed = in_threads(compute, new, f"{root.name}: {title}", leave=True)
            texts |= {stamps[path]: text for path, text in zip(new, computed, strict=True)}
            entry.keep_tensors({"texts": json.dumps(texts)})
    return {path: texts[mark] for path, mark in stamps.items()}


def digest_of_tensors(tensors: Iterable[Tensor]) -> str:
    """Digest of the shapes, types and values of tensors."""
    parts: list[str | memoryview] = []
    for tensor in tensors:
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        parts += [f"{tuple(tensor.shape)} {tensor.dtype}", flat.numpy().data]
    return digest(parts)
