"""Loads what turns pictures and words into queries: an embedder, and a reader of texts.

Like an entry point it assembles parts of several folders; only entry points import it.
"""

import argparse
import logging
from collections.abc import Sequence
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
from evaluation import quick_embedder
from evaluation.image_index import ImageIndex
from evaluation.indexing import SearchModel
from evaluation.preprocessing import preprocessing
from evaluation.tower_search import AmongTexts
from language import readability

LOG = logging.getLogger(__name__)


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
    """Write an embedder for queries beside the index ``where``, or log why there is none."""

    def write(path: Path) -> None:
        if model.precision != "fp32":
            raise ValueError(f"the run evaluates in {model.precision}")
        embedder = detached(model.embedder)
        check_onnx(embedder)
        side = model.preprocessing.image_size
        LOG.info("writing the embedder for queries")
        write_onnx(embedder, torch.zeros(2, 3, side, side), path)

    quick_embedder.keep(where, index, model.preprocessing.settings(), write)


@torch.no_grad()
def read_among_texts(criterion: Any, words: Sequence[str]) -> NDArray[np.float32]:
    """Return (W, D) unit rows of words by the text side that a run has trained."""
    embeds: Tensor = criterion.embed_texts(words)
    readability.check_queries(criterion.text_reader, words, embeds.cpu())
    return embeds.cpu().numpy()
