"""Checksums of files and values, which tell whether they are what they were.

Without torch, so that a command that only compares them answers at once.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path

CONTENTS = "entry.json"


def seal(folder: Path, unhashed: Iterable[str] = ()) -> None:
    """Write ``entry.json``: sizes and checksums of the files, only sizes of ``unhashed`` ones."""
    contents = {
        str(file.relative_to(folder)): (
            file.stat().st_size,
            "" if file.name in unhashed else digest_of_file(file),
        )
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    (folder / CONTENTS).write_text(json.dumps(contents, indent=1) + "\n", encoding="utf-8")


def verify(folder: Path) -> None:
    """Raise OSError or ValueError if the files of a sealed folder are not as they were."""
    try:
        contents = json.loads((folder / CONTENTS).read_text(encoding="utf-8"))
        sealed = [(name, size, checksum) for name, (size, checksum) in contents.items()]
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{CONTENTS} is damaged: {error}") from error
    for name, size, checksum in sealed:
        file = folder / name
        if file.stat().st_size != size:
            raise ValueError(f"{name} has {file.stat().st_size} bytes instead of {size}")
        if checksum and digest_of_file(file) != checksum:
            raise ValueError(f"{name} does not match its checksum")


def digest(parts: Iterable[str | bytes | memoryview]) -> str:
    """Return 32 hexadecimal digits that change with any of the parts or their boundaries."""
    hashed = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        size = data.nbytes if isinstance(data, memoryview) else len(data)
        hashed.update(size.to_bytes(8, "little"))
        hashed.update(data)
    return hashed.hexdigest()


def digest_of_file(path: Path) -> str:
    """Return 32 hexadecimal digits that change with the content of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, partial(hashlib.blake2b, digest_size=16)).hexdigest()


def stamp(path: Path) -> str:
    """Return path, size and times of change: for files that are too large to be hashed."""
    path = path.absolute()
    try:
        status = path.stat()
    except OSError:
        return f"{path} missing"
    return f"{path} {changes(status)}"


def changes(status: os.stat_result) -> str:
    """Return the size of a file, the time it was written, and that of any change.

    Copies and archives may keep the first time, as may whoever overwrites a file, but not the last.
    """
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
