"""Builds what the language flags ask for."""

import argparse
import logging
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from language import ENCODERS, SOURCES, encoders, pseudolabels, readability, words
from language.guide import LanguageGuide
from language.image_features import image_features
from language.pairing import find, identity, image_embedder, rows_of
from language.partner_folder import Partners, read
from language.search import Options
from language.text_encoder import TextEncoder, embed_captions
from language.tokenizer import Tokenizer
from language.words import Words
from utilities.checksums import digest, stamp
from utilities.disk_cache import Entry
from utilities.files import cache_folder
from utilities.registry import from_flags
from utilities.seeding import derive

LOG = logging.getLogger(__name__)


class Captioned(Protocol):
    """N images, whose captions may be empty; a ``CaptionSet`` or an ``ImageSet``."""

    @property
    def name(self) -> str: ...
    @property
    def captions(self) -> Sequence[str]: ...
    def __len__(self) -> int: ...


@runtime_checkable
class Classified(Captioned, words.Named, Protocol):
    """N images of C classes; an ``ImageSet``."""

    @property
    def labels(self) -> NDArray: ...  # (N,) int64 in [0, C)
    @property
    def paths(self) -> Sequence[Path]: ...  # (N,)
    @property
    def reading(self) -> int: ...  # version of how files are read as pixels


def build_encoder(name: str, device: torch.device) -> TextEncoder:
    """Return the text encoder that ``--language_model`` names; its embeddings are kept on disk."""
    return encoders.build(name, device, cache_folder() / "text")


def reads_words(args: argparse.Namespace) -> bool:
    """Return whether a term of the loss reads words."""
    free = args.language_proxy_vectors == "free"
    return bool(args.language_distill_w or (args.language_proxy_w and not free))


def files(
    args: argparse.Namespace, train: Captioned, reads_captions: bool
) -> dict[str, Path | list[str]]:
    """Return what shapes a run besides images and their names, by the flags that name it.

    Files and folders of words, models and partners; and the descriptions or tags of the training
    classes, a text for each class.

    Args:
        reads_captions: the objective does, by ``--language_model``.

    Raises:
        ValueError: the classes have no such words.
    """
    guided = reads_words(args)
    paired = args.data_sampler == "language_pairs"
    by_language = paired and args.data_pairs_by == "language"
    of_classes = guided or args.data_sampler == "class_related"
    embedded = of_classes or reads_captions or by_language
    named = {
        "language_words": args.language_words if of_classes else None,
        "language_model": args.language_model if embedded else None,
        "evaluation_language_model": args.evaluation_language_model,
        "data_pairs_from": args.data_pairs_from if paired else None,
        "data_pairs_checkpoint": args.data_pairs_checkpoint if paired else None,
    }
    known = {*ENCODERS, *SOURCES, None}
    paths = {flag: Path(name).expanduser() for flag, name in named.items() if name not in known}
    if "data_pairs_checkpoint" in paths and paths["data_pairs_checkpoint"].is_dir():
        paths["data_pairs_checkpoint"] /= "last.pt"
    found: dict[str, Path | list[str]] = {f: path for f, path in paths.items() if path.exists()}
    if of_classes and words.is_described(args.language_words) and isinstance(train, Classified):
        texts = words.of_classes(args.language_words, train)
        found["language_words"] = ["\n".join(of_class) for of_class in texts]
    return found


def build_guide(
    args: argparse.Namespace, train: Captioned, device: torch.device, classify: Callable[[], Tensor]
) -> LanguageGuide | None:
    """Return the guide that the language flags ask for; None if no term reads words.

    Args:
        classify: computes the (N, 1000) logits of the training images by
            ``--language_pseudoclass_model``; called for pseudolabels that the cache does not hold.

    Raises:
        ValueError: the images have no such words, or a flag's value is unknown.
        FileNotFoundError: the encoder or the file of words is not there.
    """
    if not reads_words(args):
        return None
    chosen = _choose_words(args, train, classify)
    return _guide(args, args.language_words, chosen, device)


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
        of_images = args.language_words in ("pseudolabels", "captions")
        source = "classnames" if of_images else args.language_words
        chosen = words.collect(words.of_classes(source, train), "class")
        uncontrolled = argparse.Namespace(**{**vars(args), "language_control": "none"})
        return {"class_words": _guide(uncontrolled, source, chosen, device).class_words}
    if args.data_sampler == "language_pairs":
        found = partners(args, train, device, visual)
        return {"partners": found.partners, "similarities": found.similarities}
    return {}


@dataclass(frozen=True)
class NamesReader:
    """Reads names, in a prompt or without, by any text encoder."""

    device: torch.device

    def __call__(self, model: str, names: Sequence[str], prompt: str = "{}") -> Tensor:
        """Return (C, D) unit rows of C names."""
        return class_word_embeds(build_encoder(model, self.device), names, prompt)

    def image_features(self, model: str, images: Tensor) -> Tensor | None:
        """Return what ``language.image_features`` does, by the image tower beside an encoder."""
        return image_features(model, images)


def caption_readers(
    args: argparse.Namespace, captions: Sequence[str], device: torch.device
) -> dict[str, Callable]:
    """Return functions that make what ``criteria`` read captions with: tokenizer and encoder.

    Args:
        captions: which they must be able to read.
    """

    def tokenizer(length: int) -> Tokenizer:
        reader = Tokenizer(args.language_model, length)
        readability.check_captions(reader, captions)
        return reader

    def encoder() -> TextEncoder:
        reader = build_encoder(args.language_model, device)
        readability.check_captions(reader, captions)
        return reader

    return {"tokenizer": tokenizer, "encoder": encoder}


def class_word_embeds(
    encoder: TextEncoder, class_names: Sequence[str], prompt: str | Sequence[str] = words.PROMPT
) -> Tensor:
    """Return (C, D) unit rows, the embedding of each class's name in the prompt, or in several."""
    return _embed(encoder, class_names, [prompt] if isinstance(prompt, str) else prompt)


def query_embeds(encoder: TextEncoder, texts: Sequence[str]) -> Tensor:
    """Return (N, D) unit rows of what someone looks for, which the encoder must be able to read."""
    embeds = encoder.encode(texts)
    readability.check_queries(encoder, texts, embeds)
    return embeds


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


def _guide(
    args: argparse.Namespace, source: str, chosen: Words, device: torch.device
) -> LanguageGuide:
    """Embed words of a source and compare them as the flags say."""
    encoder = build_encoder(args.language_model, device)
    if source == "captions":
        embeds = embed_captions(encoder, chosen.texts)
        readability.check(encoder, chosen.texts, embeds, "captions")
    else:
        prompts = args.language_prompt if words.is_prompted(source) else ["{}"]
        embeds = _embed(encoder, chosen.texts, prompts)
    seed = derive(args.seed, "language_control")
    return from_flags(LanguageGuide, args, "language_", embeds=embeds, words=chosen, seed=seed)


def _choose_words(
    args: argparse.Namespace, train: Captioned, classify: Callable[[], Tensor]
) -> Words:
    source = args.language_words
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
        return words.collect(items, "row" if level == "sample" else level)
    if alone := words.by_name_alone(source, train):
        LOG.info(
            "--language_words %s: %d of %d classes have only a name: %s",
            *(source, len(alone), len(train.class_names), reprlib.repr(alone)),
        )
    return words.collect(words.of_classes(source, train), "class")


def _embed(encoder: TextEncoder, texts: Sequence[str], prompts: Sequence[str]) -> Tensor:
    """(N, D) unit rows, the mean over prompts of texts that the encoder must be able to read.

    Source: prompt ensembles of Radford et al., Learning Transferable Visual Models From Natural
    Language Supervision, ICML 2021, section 3.1.4.
    """
    embeds = encoder.encode(words.with_prompt(texts, prompts[0]))
    if len(prompts) > 1:
        others = [encoder.encode(words.with_prompt(texts, prompt)) for prompt in prompts[1:]]
        embeds = F.normalize(torch.stack([embeds, *others]).mean(dim=0), dim=1)
    readability.check(encoder, texts, embeds)
    return embeds
