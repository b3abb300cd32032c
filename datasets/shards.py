"""Reads files inside tar shards by their place, without unpacking."""

import os
import tarfile
import threading
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple


class Member(NamedTuple):
    """A file inside a shard."""

    name: str
    offset: int  # of its first byte in the shard
    size: int  # bytes


def read_members(shard: Path) -> tuple[list[Member], str]:
    """The whole files of an uncompressed tar in their order, and what is wrong with it.

    A shard that was cut keeps the files before the cut; the second value then says so, and is empty
    for a sound one. A file that is no tar at all gives no members.
    """
    members: list[Member] = []
    length = shard.stat().st_size
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                if member.isfile() and member.offset_data + member.size <= length:
                    members.append(Member(member.name, member.offset_data, member.size))
                tar.members = []  # type: ignore[attr-defined]  # it would keep every header
            end = tar.offset
    except (tarfile.TarError, OSError, ValueError) as error:
        return members, f"cut short or no tar: {error}"
    # tarfile stops in silence where no header can be read; a sound tar has a block of zeros there.
    with shard.open("rb") as file:
        file.seek(end)
        sound = file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
    return members, "" if sound else f"cut short or damaged at byte {end} of {length}"


class OpenShards:
    """Reads by path, offset and size; keeps the files that were used last open.

    Reads name their place instead of moving there, so that forked workers, which share the place,
    do not disturb each other. Goes to other processes without its files.
    """

    def __init__(self, most: int = 16) -> None:
        self.most = most
        self._files: OrderedDict[Path, int] = OrderedDict()  # descriptors, the last used last
        self._lock = threading.Lock()

    def read(self, path: Path, offset: int, size: int) -> bytes:
        """``size`` bytes; fewer where the file ends before.

        Raises:
            OSError: the file cannot be read.
        """
        with self._lock:  # another thread must not close the file in between
            if path not in self._files:
                self._files[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                if len(self._files) > self.most:
                    os.close(self._files.popitem(last=False)[1])
            self._files.move_to_end(path)
            return os.pread(self._files[path], size, offset)

    def close(self) -> None:
        with self._lock:
            while self._files:
                os.close(self._files.popitem()[1])

    def __del__(self) -> None:
        self.close()

    def __reduce__(self) -> tuple[type, tuple[int]]:
        return type(self), (self.most,)
