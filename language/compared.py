"""The words of classes as training compares them: what ``language.check`` chooses from."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from language import readability, words
from language.from_flags import Classified
from language.guide import LanguageGuide
from language.text_encoder import TextEncoder, embed_captions
from utilities.structures import Batch

PROMPTS = ("{}", words.PROMPT)


class Compare(NamedTuple):
    """Words of C items: their flags and their similarities."""

    words: str
    model: str
    prompt: str  # "" for those that take none
    option: str  # another flag, or ""
    texts: list[str]  # (C,) for the page
    sims: NDArray[np.floating]  # (C, C)


def words_of_classes(
    images: Classified, encoders: Mapping[str, TextEncoder]
) -> Iterator[tuple[str, list[Compare], readability.Readability]]:
    """Yield what is written about classes, the simplest first, and what its encoder reads of it.

    Nothing is compared if the encoder cannot read most of it, which training refuses.
    """
    for source, kind in words.WRITTEN.items():
        if len(words.by_name_alone(source, images)) == len(images.class_names):
            continue  # the same as the names
        items = words.of_classes(source, images)
        for model, encoder in encoders.items():
            for prompt in PROMPTS if kind.prompted else ("",):
                yield f"{source}, {model}", *compared_by(source, model, encoder, items, prompt)
    for model, encoder in encoders.items() if images.captions else ():
        some = readability.sample(images.captions)
        read = readability.examine(encoder, some, encoder.encode(some), "captions")
        embeds = embed_captions(encoder, images.captions).numpy()
        sums = np.zeros((len(images.class_names), embeds.shape[1]))
        np.add.at(sums, images.labels, embeds)
        means = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
        first = [
            images.captions[row].split("\n")[0]
            for row in np.unique(images.labels, return_index=True)[1]
        ]
        compared = Compare("captions", model, "", "", first, means @ means.T)
        yield f"captions, {model}", [] if read.too_many else [compared], read


def compared_by(
    source: str, model: str, encoder: TextEncoder, items: Sequence[Sequence[str]], prompt: str
) -> tuple[list[Compare], readability.Readability]:
    """Return the similarities of classes as training compares their words.

    Options are tried with the first prompt: ``centre`` removes what a prompt adds.
    """
    found = words.collect(items, "class")
    embeds = encoder.encode(words.with_prompt(found.texts, prompt or "{}"))
    read = readability.examine(encoder, found.texts, embeds)
    texts = ["; ".join(some) for some in items]
    every = torch.arange(len(items))
    batch = Batch((), every, every)
    options: dict[str, dict[str, Any]] = {"": {}}
    if prompt != PROMPTS[1]:
        options["--language_centre"] = {"centre": True}
        if max(map(len, items)) > 1:
            options["--language_several mean"] = {"several": "mean"}
    compared = [
        Compare(
            source, model, prompt, option, texts,
            LanguageGuide(embeds, found, **arguments).similarity(batch).numpy(),
        )
        for option, arguments in options.items()
        if not read.too_many
    ]  # fmt: skip
    return compared, read
