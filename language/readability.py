"""Finds names that a text encoder cannot read: it knows none of their words, or mistakes one name
for another.
"""

import warnings
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from language.text_encoder import TextEncoder

ALIKE = 0.9999  # cosine of names that are one to the encoder
MOST = 4096  # names that are examined; of more, evenly spaced ones
SHOWN = 5


class Reader(Protocol):
    """An encoder or a tokenizer."""

    name: str

    def unknown(self, texts: Sequence[str]) -> Tensor:
        """Return (N,), the share of each text's tokens that are unknown."""


class Readability(NamedTuple):
    """The names, or captions, of N that an encoder reads badly."""

    what: str  # "names" or "captions"
    n: int
    unread: list[str]  # of unknown tokens only
    partly: list[str]  # of some unknown tokens
    alike: list[list[str]]  # groups of different names with one embedding

    @property
    def unreadable(self) -> list[str]:
        """Those that are of no use; captions may be alike in groups, as long as these are small."""
        if self.what == "captions":
            return max([self.unread, *self.alike], key=len)
        return list(dict.fromkeys([*self.unread, *(name for some in self.alike for name in some)]))

    @property
    def too_many(self) -> bool:
        return 2 * len(self.unreadable) > self.n

    def __str__(self) -> str:
        """Return their number and names; empty if there are none."""
        same = [" = ".join(map(repr, some[:SHOWN])) for some in self.alike]
        found = [
            f"{says} ({', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''})"
            for says, names in (
                (f"knows no word of {len(self.unread)}", [*map(repr, self.unread)]),
                (f"knows a part of {len(self.partly)}", [*map(repr, self.partly)]),
                (f"cannot tell {sum(map(len, self.alike))} apart", same),
            )
            if names
        ]
        return " and ".join(found)


def examine(
    reader: Reader, names: Sequence[str], embeds: Tensor | None = None, what: str = "names"
) -> Readability:
    """Return the names (N,) that ``reader`` does not know or cannot tell apart.

    Args:
        embeds: (N, D) unit rows, the embeddings of the names, perhaps in a prompt.
    """
    rows = list({name: row for row, name in enumerate(names)}.values())  # equal ones once
    if len(rows) > MOST:
        rows = [rows[i] for i in np.linspace(0, len(rows) - 1, MOST).astype(int)]
    names = [names[row] for row in rows]
    shares = reader.unknown(names).tolist()
    alike: dict[int, list[str]] = {}
    if embeds is not None:
        embeds = embeds[rows]
        zero = (embeds == 0).all(dim=1).tolist()
        shares = [1 if z else share for z, share in zip(zero, shares, strict=True)]
        same = (embeds @ embeds.T > ALIKE) | torch.eye(len(rows), dtype=torch.bool)
        for name, first in zip(names, same.byte().argmax(dim=1).tolist(), strict=True):
            alike.setdefault(first, []).append(name)
    return Readability(
        what,
        len(names),
        [name for name, share in zip(names, shares, strict=True) if share == 1],
        [name for name, share in zip(names, shares, strict=True) if 0 < share < 1],
        [some for some in alike.values() if len({name.casefold() for name in some}) > 1],
    )


def check(
    reader: Reader, names: Sequence[str], embeds: Tensor | None = None, what: str = "names"
) -> None:
    """Warn of names that cannot be read; raise ValueError if these are more than half."""
    found = examine(reader, names, embeds, what)
    if found.too_many:
        raise ValueError(
            f"the text encoder {reader.name} cannot read {len(found.unreadable)} of {found.n} "
            f"{what}: it {found}; use another --language_model "
            + ("" if what == "captions" else "(--evaluation_language_model for scores), ")
            + f"or English {what}{'' if what == 'captions' else ' in classes.json'}"
        )
    if str(found):
        warnings.warn(f"of {found.n} {what}, the text encoder {reader.name} {found}", stacklevel=1)


def check_queries(reader: Reader, texts: Sequence[str], embeds: Tensor) -> None:
    """Raise ValueError if the encoder knows no word of one of N queries; warn of half-known ones.

    Args:
        embeds: (N, D) of the texts.
    """
    found = examine(reader, texts, embeds, "queries")
    if found.unread:
        raise ValueError(
            f"--words {', '.join(map(repr, found.unread))}: the text encoder {reader.name} knows "
            "none of these words; give others, or a map with another encoder"
        )
    if str(found):
        warnings.warn(f"of the queries, the text encoder {reader.name} {found}", stacklevel=1)


def check_captions(reader: Reader, captions: Sequence[str]) -> None:
    """``check`` some of N images' captions."""
    some = sample(captions)
    if not some:
        return
    embeds = reader.encode(some) if isinstance(reader, TextEncoder) else None
    check(reader, some, embeds, "captions")


def sample(captions: Sequence[str], most: int = 1000) -> list[str]:
    """Return the distinct captions of evenly spaced images, at most ``most``."""
    rows = np.linspace(0, len(captions) - 1, min(most, len(captions))).astype(int).tolist()
    return list(dict.fromkeys(line for row in rows for line in captions[row].split("\n")))
