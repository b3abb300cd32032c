"""Prints what the encoding of a console lacks in signs that it has, instead of failing."""

import codecs
from typing import TextIO
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


def never_fail(*streams: TextIO | None) -> None:
    """Let streams print any text; those that are closed or of another kind stay as they are."""
    for stream in streams:
        if getattr(stream, "errors", None) in ("strict", "backslashreplace"):
            stream.reconfigure(errors=HANDLER)  # type: ignore[union-attr]


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
