"""Stores the captions of an image as one text, one caption per line: most images have one.

So a set of N images has N texts in memory, on disk and in fingerprints, whatever the number of
captions.
"""

import re
from typing import Any

from utilities.files import json_name
from utilities.seeding import derive

_PRINTED = re.compile(r"""\s*\[\s*(['"]).*\1\s*\]\s*""", re.DOTALL)  # of Python or pandas


def join(value: object, name: str) -> str:
    """Return a caption or a list of captions as lines of single spaces; blank ones are left out.

    Raises ValueError, with ``name``, for anything else.
    """
    texts: list[Any] = value if isinstance(value, list) else [value]
    if wrong := [text for text in texts if not isinstance(text, str)]:
        place = " in a list" if texts is value else ""
        raise ValueError(
            f"{name} must be a text or a list of texts; got {json_name(wrong[0])}{place}"
        )
    if printed := [text for text in texts if _PRINTED.fullmatch(text)]:
        raise ValueError(
            f"{name} must be a text or a list of texts; got a list that was printed as text, "
            f"{printed[0]:.40}; write a list, or a line for each text"
        )
    # Without null characters and halves of characters, which cannot be stored or embedded.
    plain = (text.encode("utf-8", "replace").decode().replace("\0", " ") for text in texts)
    return "\n".join(line for text in plain if (line := " ".join(text.split())))


def draw(captions: str, *seed: int) -> str:
    """Return one of the captions, always the same for a seed."""
    lines = captions.split("\n")
    return lines[derive(*seed) % len(lines)] if len(lines) > 1 else captions
