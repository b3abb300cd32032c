"""The words of classes and images: class names, ImageNet pseudolabels, captions, or a JSON file.

Every item (a class or an image) has K words, best first; words of the same rank are compared.
"""

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from language import SOURCES
from utilities.files import read_json
from utilities.registry import closest_first

PROMPT = "a photo of a {}"


@dataclass(frozen=True)
class Words:
    """The words of all items, each distinct text once."""

    texts: tuple[str, ...]  # (U,) distinct, as the encoder reads them
    index: Tensor  # (n_items, K) int64 into texts, ranks in columns
    level: str  # "class": items are classes; "row": items are rows of the ImageSet


def collect(items: Sequence[Sequence[str]], level: str, *, prompt: str = "{}") -> Words:
    """Number the distinct texts of ``items`` (n_items, K) in order of first appearance."""
    number: dict[str, int] = {}
    index = [
        [number.setdefault(text, len(number)) for text in with_prompt(words, prompt)]
        for words in items
    ]
    return Words(tuple(number), torch.tensor(index, dtype=torch.int64), level)


def from_json(path: Path, class_names: Sequence[str], *, prompt: str = PROMPT) -> Words:
    """Read a JSON object that maps each class name to a word or a list of words, best first.

    K is the length of the longest list; shorter ones are repeated from their start. Other classes
    of the file are ignored, so that one file can serve all splits.
    """
    flag = f"--language_words {path}"
    if not path.is_file():
        raise FileNotFoundError(f"{flag}: no such file; use one of {SOURCES} or a JSON file")
    try:
        table = read_json(path)
    except ValueError as error:
        raise ValueError(
            f'--language_words {error}; expected an object such as {{"kit fox": ["fox", "animal"]}}'
        ) from error

    missing = [name for name in class_names if name not in table]
    if missing:
        shown = ", ".join(
            f"{name!r} (closest: {closest_first(name, table)[0]!r})" if table else repr(name)
            for name in missing[:5]
        )
        raise ValueError(
            f"{flag} lacks {len(missing)} of {len(class_names)} classes: {shown}"
            + (", ..." if len(missing) > 5 else "")
        )
    items = []
    for name in class_names:
        words = [table[name]] if isinstance(table[name], str) else table[name]
        good = isinstance(words, list) and all(isinstance(w, str) and w.strip() for w in words)
        if not good or not words:
            raise ValueError(
                f"{flag}: {name!r} has {reprlib.repr(table[name])}; expected a word or a list of "
                "words"
            )
        items.append(words)
    longest = max(len(words) for words in items)
    padded = [[words[rank % len(words)] for rank in range(longest)] for words in items]
    return collect(padded, "class", prompt=prompt)


def with_prompt(words: Sequence[str], prompt: str) -> list[str]:
    """Return the prompt with each word in the place of its ``{}``."""
    if "{}" not in prompt:
        raise ValueError(
            f'--language_prompt "{prompt}" has no {{}} for the word; use for example "{PROMPT}"'
        )
    return [prompt.replace("{}", word) for word in words]
