"""Language: where words come from, what reads them, and how they guide a batch."""

import argparse
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from language import encoders, pseudolabels, words
from language.encoders import ENCODERS
from language.guide import CONTROLS, LanguageGuide
from language.text_encoder import TextEncoder
from language.tokenizer import Tokenizer
from language.words import SOURCES, Words
from utilities.files import cache_folder
from utilities.registry import closest_first
from utilities.seeding import derive

__all__ = [
    "CONTROLS",
    "ENCODERS",
    "SOURCES",
    "LanguageGuide",
    "TextEncoder",
    "Tokenizer",
    "Words",
    "build_encoder",
    "build_guide",
    "class_word_embeds",
]


def build_encoder(name: str, device: torch.device) -> TextEncoder:
    """The text encoder called ``name``, as ``--language_model`` takes it; cached on disk."""
    return encoders.build(name, device, cache_folder() / "text")


def build_guide(
    args: argparse.Namespace,
    *,
    class_names: Sequence[str],
    labels: NDArray[np.int64],
    captions: Sequence[str],
    imagenet_logits: Callable[[], Tensor] | None,
    device: torch.device,
) -> LanguageGuide:
    """The guide that the language flags ask for.

    Args:
        class_names: (C,) clean names of the training classes.
        labels: (N,) training class of each image.
        captions: (N,), or empty if the dataset has none.
        imagenet_logits: gives the (N, 1000) logits of the training images; called for pseudolabels
            only. None if no classifier can be had.
        device: where the text encoder runs.

    Raises:
        ValueError: the dataset does not have the words asked for, or a flag's value is unknown.
        FileNotFoundError: the encoder or the file of words cannot be had.
    """
    chosen = _choose_words(args, class_names, labels, captions, imagenet_logits)
    embeds = _encode(build_encoder(args.language_model, device), chosen.texts)
    return LanguageGuide(
        embeds, chosen, derive(args.seed, "language_control"), control=args.language_control
    )


def class_word_embeds(
    encoder: TextEncoder, class_names: Sequence[str], prompt: str = words.PROMPT
) -> Tensor:
    """(C, D) unit rows: the embedding of each class's name in the prompt."""
    return _encode(encoder, words.with_prompt(class_names, prompt))


def _choose_words(
    args: argparse.Namespace,
    class_names: Sequence[str],
    labels: NDArray[np.int64],
    captions: Sequence[str],
    imagenet_logits: Callable[[], Tensor] | None,
) -> Words:
    source = args.language_words
    prompt = args.language_prompt
    if source == "classnames":
        return words.from_class_names(class_names, prompt=prompt)
    if source == "captions":
        return words.from_captions(captions)
    if source == "pseudolabels":
        if imagenet_logits is None:
            raise ValueError(
                "--language_words pseudolabels needs an ImageNet classifier and none is given"
            )
        level = args.language_pseudoclass_level
        classes = pseudolabels.top_classes(
            imagenet_logits(),
            torch.as_tensor(labels),
            topk=args.language_pseudoclass_topk,
            level=level,
            average=args.language_pseudoclass_average,
        )
        names = pseudolabels.imagenet_names()
        return words.from_pseudolabels(
            classes, names, level="row" if level == "sample" else level, prompt=prompt
        )
    if not source.endswith(".json") and not Path(source).is_file():
        raise ValueError(
            f"--language_words {source} is unknown; known, closest first: "
            + ", ".join(closest_first(source, SOURCES))
            + ", or the path of a JSON file that maps class names to words"
        )
    return words.from_json(Path(source).expanduser(), class_names, prompt=prompt)


def _encode(encoder: TextEncoder, texts: Sequence[str]) -> Tensor:
    """Embed, and say which texts have no embedding and so guide nothing."""
    embeds = encoder.encode(texts)
    blank = [texts[row] for row in (embeds == 0).all(dim=1).nonzero().flatten().tolist()]
    if blank:
        shown = ", ".join(repr(text) for text in blank[:5]) + (", ..." if len(blank) > 5 else "")
        warnings.warn(
            f"--language_model {encoder.name} has no embedding for {len(blank)} of {len(texts)} "
            f"texts ({shown}); their similarity to all others is 0",
            stacklevel=3,
        )
    return embeds
