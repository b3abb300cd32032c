"""Standard streams that outlast the terminal, pipe or file they lead to."""

import io
import os
import sys
from typing import Any


class _Lasting(io.FileIO):
    """A descriptor whose writes never fail: what cannot be written is dropped."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def outlast() -> None:
    """Let printing never fail: after ``| head -1``, ``2>&-``, a closed terminal, on a full disk.

    Characters that the console does not have are escaped. Streams that are not the interpreter's
    own, such as those of a test or a notebook, stay.
    """
    for name in ("stdin", "stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed: the next file to be opened would be written to as the console
            null = open(os.devnull, "r" if name == "stdin" else "w")  # noqa: PTH123, SIM115
            os.set_inheritable(null.fileno(), True)
            setattr(sys, name, null)
        elif name != "stdin" and stream is getattr(sys, f"__{name}__"):
            raw = _Lasting(stream.fileno(), "w", closefd=False)
            lasting = io.TextIOWrapper(
                io.BufferedWriter(raw),
                encoding=stream.encoding,
                errors="backslashreplace" if stream.errors == "strict" else stream.errors,
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            )
            setattr(sys, name, lasting)
