"""Files that are either whole or absent: everything is written beside its place, then renamed.

And files of the user: one that is a pipe or a device is refused before it is opened, since reading
it may never end; JSON has one reader.
"""

import atexit
import errno
import fcntl
import json
import logging
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any

LOG = logging.getLogger(__name__)

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
    temporary = _beside(path)
    try:
        temporary.touch(exist_ok=False)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror or error} while writing", str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; on success it replaces ``path``, else it goes.

    An OSError that names no file, as of a full disk, names ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    temporary.mkdir()
    retired = temporary.with_name(f"{temporary.name}.old")
    try:
        yield temporary
        if path.exists():
            path.rename(retired)  # deleted in place, a crash would leave half of it under its name
        temporary.rename(path)
        shutil.rmtree(retired, ignore_errors=True)
    except OSError as error:
        if not (reason := _reason(error)):
            raise
        raise OSError(error.errno or errno.ENOSPC, f"{reason} while writing", str(path)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _beside(path: Path) -> Path:
    """Return a new name beside ``path``; unlike ``tempfile``'s, such files follow the umask."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def _reason(error: OSError) -> str:
    """Return why a file could not be written if the error does not name the file, else ""."""
    if error.errno is None:  # numpy: 4096 requested and 0 written
        return os.strerror(errno.ENOSPC) if str(error).endswith(" written") else ""
    reason = os.strerror(error.errno)
    return reason if error.strerror == reason and not error.filename else ""


def take_lock(path: Path, held: str) -> IO[str]:
    """Lock a file until it is closed here and in child processes; OSError(held) if it is locked.

    A file system without locks is a warning, and nothing is locked.
    """
    lock = path.open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:  # of some file systems, if it is locked
        lock.close()
        raise OSError(held) from error
    except OSError as error:
        LOG.warning(
            "%s cannot be locked (%s): nothing keeps a second process out of this folder",
            *(path, error.strerror),
        )
    return lock


def special_kind(path: Path) -> str:
    """Return what is at ``path`` if it is not a regular file, such as "named pipe"; else ""."""
    try:
        mode = stat.S_IFMT(path.stat().st_mode)
    except OSError:  # where nothing is there at all, opening the file says so
        return BROKEN if path.is_symlink() else ""
    return "" if mode == stat.S_IFREG else SPECIAL.get(mode, "special file")


def file_id(path: Path) -> tuple[int, int] | None:
    """Return what all names of a file or folder share, links followed; None if it is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def refuse_special(path: Path) -> None:
    """Raise OSError, which names it, if ``path`` is something else than a regular file."""
    if kind := special_kind(path):
        raise OSError(f"{path} is a {kind}; it must be a regular file")


def cache_folder() -> Path:
    """Return ``$XDG_CACHE_HOME`` or ``~/.cache``, then ``language_guided_similarity``.

    Without a home it is in a temporary folder, which lasts as long as the process.
    """
    root = os.environ.get("XDG_CACHE_HOME")
    try:
        parent = Path(root) if root else Path.home() / ".cache"
    except RuntimeError:  # HOME is unset, and the system does not know the user
        parent = _temporary_cache()
    return parent / "language_guided_similarity"


@cache
def _temporary_cache() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="cache_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    LOG.warning(
        "there is no home folder, so nothing is kept in a cache; set XDG_CACHE_HOME to a folder "
        "that can be written"
    )
    return folder


def read_json(file: Path, kind: type[dict] | type[list] = dict) -> Any:
    """Return the content of a JSON file written by others: UTF-8, -16 or -32, with a BOM or not.

    Raises:
        OSError: the file cannot be read, or is not a regular file.
        ValueError: it is not JSON, nested too deeply, names a key twice, or does not hold a
            ``kind``; the message names the file.
    """
    refuse_special(file)
    data = file.read_bytes()
    try:
        text = data.decode(json.detect_encoding(data))
        content = json.loads(text, object_pairs_hook=distinct_keys)
        if "\\ud" in text.lower():  # half of a character, written as an escape, cannot be printed
            json.dumps(content, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError(f"{file} is nested too deeply to be read") from error
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(content, kind):
        expected = "a list" if kind is list else "an object"
        raise ValueError(f"{file} must hold {expected}; got {json_name(content)}")
    return content


def distinct_keys(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """Return a dict; raise ValueError if a key appears twice, of which json keeps the last."""
    content: dict[Any, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"the key {key!r} appears twice")
        content[key] = value
    return content


def json_name(value: Any) -> str:
    """Return what JSON calls a value's type, for messages."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else "true or false"
    kinds = {dict: "an object", list: "a list", str: "a text", int: "a number", float: "a number"}
    return kinds.get(type(value), type(value).__name__)
