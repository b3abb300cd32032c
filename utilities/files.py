"""Files that are either whole or absent: everything is written beside its place, then renamed.

And files of the user: a pipe or a device among them is told from a regular file before it is
opened, since reading it may never end.
"""

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

FOLDER = "folder"
BROKEN = "broken link"
SPECIAL = {
    stat.S_IFDIR: FOLDER,
    stat.S_IFIFO: "named pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


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


def special_kind(path: Path) -> str:
    """Return what is at ``path`` if it is not a regular file, such as "named pipe"; else ""."""
    try:
        mode = stat.S_IFMT(path.stat().st_mode)
    except OSError:  # where nothing is there at all, opening the file says so
        return BROKEN if path.is_symlink() else ""
    return "" if mode == stat.S_IFREG else SPECIAL.get(mode, "special file")


def refuse_special(path: Path) -> None:
    """Raise OSError, which names it, if ``path`` is something else than a regular file."""
    if kind := special_kind(path):
        raise OSError(f"{path} is a {kind}; it must be a regular file")


def cache_folder() -> Path:
    """Return ``$XDG_CACHE_HOME`` or ``~/.cache``, then ``language_guided_similarity``."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "language_guided_similarity"
