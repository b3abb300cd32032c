"""Files that are either whole or absent: everything is written beside its place, then renamed."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def atomic_path(path: Path, *, parents: bool = True) -> Iterator[Path]:
    """Yield a temporary path that takes ``path``'s name on success; an OSError names ``path``.

    Without ``parents`` its folder must exist: a run's is gone with the disk that it was on.
    """
    if parents:
        path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # mkstemp gives 0600; results are for reading
        temporary.replace(path)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror or error} while writing", str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; on success it replaces ``path``, else it goes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    retired = temporary.with_name(f"{temporary.name}.old")
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        if path.exists():
            path.rename(retired)  # deleted in place, a crash would leave half of it under its name
        temporary.rename(path)
        shutil.rmtree(retired, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    """Return the user's umask, which can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def take_lock(path: Path, held: str) -> IO[str]:
    """Lock a file until it is closed here and in child processes; OSError(held) if it is locked."""
    lock = path.open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise OSError(held) from error
    return lock


def cache_folder() -> Path:
    """Return ``$XDG_CACHE_HOME`` or ``~/.cache``, then ``language_guided_similarity``."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "language_guided_similarity"
