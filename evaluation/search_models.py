"""Loads what turns pictures and words into queries: an embedder, and a reader of texts.

Like an entry point it assembles parts of several folders; only entry points import it.
"""

import argparse
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import criteria
import language
import parameters
from architectures.load import Trained, load_embedder
from architectures.onnx_file import check_onnx, detached, write_onnx
from evaluation import quick_embedder, word_map_file
from evaluation.image_index import ImageIndex
from evaluation.indexing import SearchModel
from evaluation.preprocessing import preprocessing
from evaluation.tower_search import AmongTexts
from language import readability
from utilities import checkpoint
from utilities.run_files import checkpoint_file

LOG = logging.getLogger(__name__)

ReadTexts = Callable[[Sequence[str]], NDArray[np.float32]]  # texts -> (W, D) unit rows


def load_model(run: Path, space: str = "embeds") -> SearchModel:
    """Load the embedder of a run folder or a checkpoint, as its run evaluated it.

    Raises:
        ValueError: the space is "words", and the run trained no text side.
    """
    trained = load_embedder(run)
    flags = trained.flags
    return SearchModel(
        trained.embedder if space == "embeds" else among_texts(trained),
        preprocessing(flags, trained.embedder.mean, trained.embedder.std),
        flags.get("precision", "fp32"),
        flags["arch"],
        trained.file.resolve(),
        trained.epoch,
        space,
    )


def among_texts(trained: Trained) -> AmongTexts:
    """Return an embedder into the space that a run on captions shares with its text side."""
    args = argparse.Namespace(**vars(parameters.build_parser().parse_args([])) | trained.flags)
    readers = language.caption_readers(args, (), torch.device("cpu"))
    criterion = criteria.load_text_side(args, trained, readers)
    if criterion is None:
        raise ValueError(
            f"--space words is of runs that train a text side, which --loss {args.loss} of "
            f"{trained.file} does not; leave it out"
        )
    return AmongTexts(trained.embedder, criterion)


def keep_quick_embedder(where: Path, index: ImageIndex, model: SearchModel) -> None:
    """Write an embedder for queries beside the index ``where``; a log line tells why if not."""

    def write(path: Path) -> None:
        if model.precision != "fp32":
            raise ValueError(f"the run evaluates in {model.precision}")
        embedder = detached(model.embedder)
        check_onnx(embedder)
        side = model.preprocessing.image_size
        LOG.info("writing the embedder for queries")
        write_onnx(embedder, torch.zeros(2, 3, side, side), path)

    quick_embedder.keep(where, index, model.preprocessing.settings(), write)


def reader_by_map(
    run: Path,
    word_map: Path | None,
    language_model: str | None,
    digest: str,
    where: Path,
    device: torch.device,
) -> ReadTexts:
    """Return a reader of texts by a map from words to images.

    Args:
        run, word_map, language_model: as ``evaluation.searcher.Searcher`` takes them.
        digest: of the embedder that made the index ``where``.

    Raises:
        FileNotFoundError: there is no map.
        ValueError: it is damaged, or of another embedder or text encoder.
    """
    file = word_map
    if not file:
        made_by = checkpoint_file(run)
        file = word_map_file.map_file(made_by)
        if not file.is_file():
            content = checkpoint.load(made_by)
            why = word_map_file.why_none(made_by, content.get("data"))
            if "captions" in criteria.CRITERIA[content["flags"].get("loss", "margin")].needs:
                why = f"{made_by} has a text side of its own; index the folder with --space words"
            raise FileNotFoundError(f"--words: {why}")
    stored = word_map_file.read(file)
    stored.check_embedder(
        *(digest, file, f"those that made the index {where}"),
        "index the folder again into another index, or give --map a map that was fitted to them",
    )
    name = language_model or stored.language_model
    encoder = language.build_encoder(name, device)
    stored.check_encoder(encoder.encode([*stored.probes]), name, file)

    def read(words: Sequence[str]) -> NDArray[np.float32]:
        return stored.map(language.query_embeds(encoder, words)).numpy()

    return read


@torch.no_grad()
def read_among_texts(criterion: Any, words: Sequence[str]) -> NDArray[np.float32]:
    """Return (W, D) unit rows of words by the text side that a run has trained."""
    embeds: Tensor = criterion.embed_texts(words)
    readability.check_queries(criterion.text_reader, words, embeds.cpu())
    return embeds.cpu().numpy()
