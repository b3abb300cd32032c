"""Builds what the language flags ask for."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from numpy.typing import NDArray
from torch import Tensor

from language import ENCODERS, SOURCES, encoders, pseudolabels, readability, words
from language.guide import LanguageGuide
from language.pairing import find, identity, image_embedder, rows_of
from language.partner_folder import Partners, read
from language.search import Options
from language.text_encoder import TextEncoder, embed_captions
from language.tokenizer import Tokenizer
from language.words import Words
from utilities.disk_cache import Entry, digest, stamp
from utilities.files import cache_folder
from utilities.registry import from_flags
from utilities.seeding import derive


class Captioned(Protocol):
    """N images, whose captions may be empty; a ``CaptionSet`` or an ``ImageSet``."""

    @property
    def name(self) -> str: ...
    @property
    def captions(self) -> Sequence[str]: ...
    def __len__(self) -> int: ...


@runtime_checkable
class Classified(Captioned, Protocol):
    """N images of C classes; an ``ImageSet``."""

    @property
    def class_names(self) -> Sequence[str]: ...  # (C,)
    @property
    def labels(self) -> NDArray: ...  # (N,) int64 in [0, C)
    @property
    def paths(self) -> Sequence[Path]: ...  # (N,)
    @property
    def reading(self) -> int: ...  # version of how files are read as pixels


def build_encoder(name: str, device: torch.device) -> TextEncoder:
    """Return the text encoder that ``--language_model`` names; its embeddings are kept on disk."""
    return encoders.build(name, device, cache_folder() / "text")


def files(args: argparse.Namespace, reads_captions: bool) -> dict[str, Path]:
    """Return the files and folders of words, models and partners that shape a run, by their flags.

    Args:
        reads_captions: the objective does, by ``--language_model``.
    """
    guided = bool(args.language_distill_w)
    paired = args.data_sampler == "language_pairs"
    by_language = paired and args.data_pairs_by == "language"
    reads_words = guided or reads_captions or by_language or args.data_sampler == "class_related"
    named = {
        "language_words": args.language_words if guided else None,
        "language_model": args.language_model if reads_words else None,
        "evaluation_language_model": args.evaluation_language_model,
        "data_pairs_from": args.data_pairs_from if paired else None,
        "data_pairs_checkpoint": args.data_pairs_checkpoint if paired else None,
    }
    known = {*ENCODERS, *SOURCES, None}
    found = {flag: Path(name).expanduser() for flag, name in named.items() if name not in known}
    if "data_pairs_checkpoint" in found and found["data_pairs_checkpoint"].is_dir():
        found["data_pairs_checkpoint"] /= "last.pt"
    return {flag: path for flag, path in found.items() if path.exists()}


def build_guide(
    args: argparse.Namespace, train: Captioned, device: torch.device, classify: Callable[[], Tensor]
) -> LanguageGuide | None:
    """Return the guide that the language flags ask for; None at ``--language_distill_w 0``.

    Args:
        classify: computes the (N, 1000) logits of the training images by
            ``--language_pseudoclass_model``; called for pseudolabels that the cache does not hold.

    Raises:
        ValueError: the images have no such words, or a flag's value is unknown.
        FileNotFoundError: the encoder or the file of words is not there.
    """
    if not args.language_distill_w:
        return None
    chosen = _choose_words(args, train, classify)
    encoder = build_encoder(args.language_model, device)
    if args.language_words == "captions":
        embeds = embed_captions(encoder, chosen.texts)
        readability.check(encoder, chosen.texts, embeds, "captions")
    else:
        embeds = _embed(encoder, chosen.texts, args.language_prompt)
    seed = derive(args.seed, "language_control")
    return from_flags(LanguageGuide, args, "language_", embeds=embeds, words=chosen, seed=seed)


def sampler_inputs(
    args: argparse.Namespace,
    train: Captioned,
    device: torch.device,
    visual: Callable[[], Mapping[str, Any]],
) -> dict[str, Any]:
    """Return what the sampler reads of words, as arguments of ``datasampler.build``.

    ``class_words`` (C, D) for ``class_related``; ``partners`` and ``similarities`` (N, k) for
    ``language_pairs``. Args, Raises: as ``partners``.
    """
    if args.data_sampler == "class_related" and isinstance(train, Classified):
        encoder = build_encoder(args.language_model, device)
        return {"class_words": class_word_embeds(encoder, train.class_names, args.language_prompt)}
    if args.data_sampler == "language_pairs":
        found = partners(args, train, device, visual)
        return {"partners": found.partners, "similarities": found.similarities}
    return {}


def names_reader(device: torch.device) -> Callable[[str, Sequence[str]], Tensor]:
    """Return a function from a text encoder's name and C names, without prompt, to (C, D) rows."""
    return lambda model, names: class_word_embeds(build_encoder(model, device), names, "{}")


def caption_readers(
    args: argparse.Namespace, train: Captioned, device: torch.device
) -> dict[str, Callable]:
    """Return functions that make what ``criteria`` read captions with: tokenizer and encoder."""

    def tokenizer(length: int) -> Tokenizer:
        reader = Tokenizer(args.language_model, length)
        readability.check_captions(reader, train.captions)
        return reader

    def encoder() -> TextEncoder:
        reader = build_encoder(args.language_model, device)
        readability.check_captions(reader, train.captions)
        return reader

    return {"tokenizer": tokenizer, "encoder": encoder}


def class_word_embeds(
    encoder: TextEncoder, class_names: Sequence[str], prompt: str = words.PROMPT
) -> Tensor:
    """Return (C, D) unit rows, the embedding of each class's name in the prompt."""
    return _embed(encoder, words.with_prompt(class_names, prompt), prompt)


def partners(
    args: argparse.Namespace,
    train: Captioned,
    device: torch.device,
    visual: Callable[[], Mapping[str, Any]],
) -> Partners:
    """Return the partners of the training images: from ``--data_pairs_from``, the cache, or found.

    Args:
        device: where captions are embedded and vectors compared.
        visual: for ``--data_pairs_by visual``, makes the arguments of ``image_embedder``.

    Raises:
        FileNotFoundError: ``--data_pairs_from`` holds none.
        ValueError: it holds those of other images; or captions or scopes are missing.
    """
    if args.data_pairs_from:
        return read(Path(args.data_pairs_from), n=len(train), digest=identity(train))
    options = Options(
        k=args.data_pairs_k,
        scope=args.data_pairs_scope,
        distinct=args.data_pairs_distinct,
        csls=args.data_pairs_csls,
    )
    rows = rows_of(train, options.scope)
    if args.data_pairs_by == "visual":
        return find(rows, image_embedder(train, **visual()), options, device=device)
    return find(rows, encoders.build(args.language_model, device, None), options, device=device)


def _choose_words(
    args: argparse.Namespace, train: Captioned, classify: Callable[[], Tensor]
) -> Words:
    source, prompt = args.language_words, args.language_prompt
    if source == "captions":
        if not train.captions:
            raise ValueError(
                "--language_words captions needs a dataset with captions; "
                "use classnames, pseudolabels or a JSON file"
            )
        return words.collect([[caption] for caption in train.captions], "row")  # needs no prompt
    if not isinstance(train, Classified):
        raise ValueError(
            f"--language_words {source} are words of classes, {train.name} has captions instead; "
            "use --language_words captions"
        )
    if source == "classnames":
        return words.collect([[name] for name in train.class_names], "class", prompt=prompt)
    if source == "pseudolabels":
        fingerprint = digest(
            [args.language_pseudoclass_model, str(train.reading), *map(stamp, train.paths)]
        )
        kept = Entry("pseudolabels", train.name, fingerprint)
        classes: Tensor = from_flags(
            pseudolabels.top_classes,
            args,
            "language_pseudoclass_",
            logits=kept.tensors(lambda: {"logits": classify()})["logits"],  # takes minutes
            labels=torch.as_tensor(train.labels),
        )
        level = args.language_pseudoclass_level
        names = pseudolabels.imagenet_names()
        items = [[names[i] for i in item] for item in classes.tolist()]
        return words.collect(items, "row" if level == "sample" else level, prompt=prompt)
    return words.from_json(Path(source).expanduser(), train.class_names, prompt=prompt)


def _embed(encoder: TextEncoder, texts: Sequence[str], prompt: str) -> Tensor:
    """(N, D) unit rows of texts in their prompt, whose words the encoder must be able to read."""
    embeds = encoder.encode(texts)
    before, _, after = prompt.partition("{}")
    bare = [text[len(before) : len(text) - len(after)] for text in texts]
    readability.check(encoder, bare, embeds)
    return embeds
