"""Keeps a closed or full console from ending a program, and measures text in columns."""

import codecs
import io
import os
import sys
from pathlib import Path
from typing import Any
from unicodedata import category, east_asian_width

SIGNS = {
    "±": "+-", "×": "x", "…": "...", "–": "-", "—": "-", "−": "-", "≥": ">=", "≤": "<=",
    "→": "->", "·": "-", "✓": "+", "²": "^2",
}  # fmt: skip
HANDLER = "readable"


def readable(error: UnicodeError) -> tuple[str, int]:
    """Encode as ``SIGNS``, or as Python writes it: 花 as \\u82b1. A handler of ``codecs``."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    signs = (SIGNS.get(c) or c.encode("ascii", "backslashreplace").decode() for c in text)
    return "".join(signs), error.end


class _Lasting(io.FileIO):
    """A descriptor whose writes never fail: what cannot be written is dropped."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def outlast() -> None:
    """Make printing never fail: after ``| head -1``, ``2>&-``, a closed terminal, on a full disk.

    Characters that the encoding lacks are written as ``readable`` does. Streams that are not the
    interpreter's own, such as those of a test or a notebook, stay.
    """
    for name in ("stdin", "stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed: the next file to be opened would be written to as the console
            null = open(os.devnull, "r" if name == "stdin" else "w")  # noqa: PTH123, SIM115
            os.set_inheritable(null.fileno(), True)
            setattr(sys, name, null)
        elif name != "stdin" and stream is getattr(sys, f"__{name}__"):
            strict = stream.errors in ("strict", "backslashreplace")
            raw = _Lasting(stream.fileno(), "w", closefd=False)
            lasting = io.TextIOWrapper(
                io.BufferedWriter(raw),
                encoding=stream.encoding,
                errors=HANDLER if strict else stream.errors,
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            )
            setattr(sys, name, lasting)


def printable(path: Path | str) -> str:
    """Return a path as text for any console: bytes that are not UTF-8 become ``?``."""
    return str(path).encode(errors="replace").decode()


def padded(text: str, width: int, *, right: bool = False) -> str:
    """Return the text with spaces around it up to ``width`` columns of a console."""
    spaces = " " * (width - columns(text))
    return spaces + text if right else text + spaces


def columns(text: str) -> int:
    """Return how many columns of a console a text takes: 花 takes two, an accent on it none."""
    marks = ("Mn", "Me", "Cf")  # which are drawn over the character before them
    wide = sum(east_asian_width(character) in "WF" for character in text)
    return wide + sum(category(character) not in marks for character in text)


codecs.register_error(HANDLER, readable)
