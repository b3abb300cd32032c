"""Files that are either whole or absent: everything is written beside its place, then renamed.

And the one reader of JSON that others wrote.
"""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


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


def read_json(file: Path, kind: type[dict] | type[list] = dict) -> Any:
    """Return the content of a JSON file written by others: UTF-8, -16 or -32, with a BOM or not.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no regular file, not JSON, nested too deeply, names a key twice, or does
            not hold a ``kind``; the message names the file.
    """
    if file.exists() and not file.is_file():  # a named pipe, for one, would be waited for
        raise ValueError(f"{file} must be a regular file")
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
