"""The words of classes and images: names, tags, descriptions, ImageNet pseudolabels, captions, or a
JSON file.

Every item (a class or an image) has one or several words, best first.
"""

import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from language import SOURCES
from utilities.files import read_json
from utilities.registry import closest_first

PROMPT = "a photo of a {}"


@dataclass(frozen=True)
class Words:
    """The words of all items, each distinct text once."""

    texts: tuple[str, ...]  # (U,) distinct, without a prompt
    index: Tensor  # (n_items, K) int64 into texts, ranks in columns
    level: str  # "class": items are classes; "row": items are rows of the ImageSet
    counts: Tensor | None = None  # (n_items,) texts of an item, which repeat after; None: K of each

    def means(self, embeds: Tensor) -> Tensor:
        """Return (n_items, D) unit rows, the mean embedding of each item's texts.

        Args:
            embeds: (U, D), of ``texts``. Items whose texts are all zero stay zero.
        """
        n_items, k = self.index.shape
        counts = torch.full((n_items,), k) if self.counts is None else self.counts
        sums = torch.zeros(n_items, embeds.shape[1])
        for rank in range(k):  # one at a time: all are K times the rows of N images
            sums += embeds[self.index[:, rank]] * (rank < counts)[:, None]
        return F.normalize(sums, dim=1)


class Named(Protocol):
    """C classes and what is written about them; an ``ImageSet``."""

    @property
    def name(self) -> str: ...
    @property
    def class_names(self) -> Sequence[str]: ...  # (C,)
    @property
    def class_descriptions(self) -> Sequence[Sequence[str]]: ...  # (C,), or () if there are none
    @property
    def class_tags(self) -> Sequence[Sequence[str]]: ...  # (C,), or () if there are none


class Written(NamedTuple):
    """A source of texts that are written about each class."""

    texts: Callable[[str, Sequence[str]], list[str]]  # of a name and what the class has of `key`
    key: str = ""  # of classes.json, beside the name
    prompted: bool = True  # each text is put into --language_prompt; sentences are not


WRITTEN = {
    "classnames": Written(lambda name, _: [name]),
    # One text: on emoji it predicts looks better than the mean of its parts (docs/guidance.md).
    "names+tags": Written(lambda name, tags: [", ".join([name, *_without(name, tags)])], "tags"),
    "descriptions": Written(lambda name, sentences: [*sentences], "description", prompted=False),
    "names+descriptions": Written(
        lambda name, sentences: [f"{name}: {sentence}" for sentence in sentences],
        "description",
        prompted=False,
    ),
}


def of_classes(source: str, images: Named) -> list[list[str]]:
    """Return the texts of each class, best first, without a prompt: C lists, none of them empty.

    A class without tags or descriptions has its name.

    Args:
        source: a key of ``WRITTEN``, or the path of a JSON file (``from_json``).

    Raises:
        ValueError: no class has any, or the file lacks classes.
        FileNotFoundError: there is no such file.
    """
    if source not in WRITTEN:
        return from_json(Path(source).expanduser(), images.class_names)
    kind = WRITTEN[source]
    about = _about(kind.key, images)
    if kind.key and not any(about):
        raise ValueError(
            f'--language_words {source} reads the "{kind.key}" of classes, and {images.name} has '
            f'none; write {{"kit fox": {{"{kind.key}": ["...", "..."]}}}} and so on into its '
            "classes.json, or use classnames"
        )
    return [
        kind.texts(name, texts) or [name]
        for name, texts in zip(images.class_names, about, strict=True)
    ]


def is_prompted(source: str) -> bool:
    """Return whether the texts of a source go into ``--language_prompt``; sentences do not."""
    return source != "captions" and (source not in WRITTEN or WRITTEN[source].prompted)


def is_described(source: str) -> bool:
    """Return whether a source reads more of ``classes.json`` than names."""
    return source in WRITTEN and bool(WRITTEN[source].key)


def by_name_alone(source: str, images: Named) -> list[str]:
    """Return the names of the classes that lack what ``source`` reads beside the name."""
    key = WRITTEN[source].key if source in WRITTEN else ""
    names_and_texts = zip(images.class_names, _about(key, images), strict=True)
    return [name for name, texts in names_and_texts if key and not texts]


def _about(key: str, images: Named) -> Sequence[Sequence[str]]:
    found = {"description": images.class_descriptions, "tags": images.class_tags}.get(key)
    return found or [()] * len(images.class_names)


def _without(name: str, tags: Sequence[str]) -> list[str]:
    return [tag for tag in tags if tag.casefold() != name.casefold()]


def collect(items: Sequence[Sequence[str]], level: str) -> Words:
    """Number the distinct texts of the items in order of first appearance.

    K is the length of the longest item; shorter ones are repeated from their start.
    """
    number: dict[str, int] = {}
    numbers = [[number.setdefault(text, len(number)) for text in texts] for texts in items]
    longest = max(map(len, numbers), default=0)
    index = [[item[rank % len(item)] for rank in range(longest)] for item in numbers]
    counts = torch.tensor([len(item) for item in numbers], dtype=torch.int64)
    return Words(tuple(number), torch.tensor(index, dtype=torch.int64), level, counts)


def from_json(path: Path, class_names: Sequence[str]) -> list[list[str]]:
    """Read a JSON object that maps each class name to a word or a list of words, best first.

    Other classes of the file are ignored, so that one file can serve all splits.
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
    items: list[list[str]] = []
    for name in class_names:
        words = [table[name]] if isinstance(table[name], str) else table[name]
        good = isinstance(words, list) and all(isinstance(w, str) and w.strip() for w in words)
        if not good or not words:
            raise ValueError(
                f"{flag}: {name!r} has {reprlib.repr(table[name])}; expected a word or a list of "
                "words"
            )
        items.append(words)
    return items


def with_prompt(words: Sequence[str], prompt: str) -> list[str]:
    """Return the prompt with each word in the place of its ``{}``."""
    if "{}" not in prompt:
        raise ValueError(
            f'--language_prompt "{prompt}" has no {{}} for the word; use for example "{PROMPT}"'
        )
    return [prompt.replace("{}", word) for word in words]
