"""Searches an index by pictures and words: what the command and the page of a search share.

Like an entry point it assembles parts of several folders; only entry points import it.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import cached_property, partial
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
from evaluation import word_map_file
from evaluation.image_index import check_provenance, read_index, version_of
from evaluation.indexing import Hit, SearchModel, embed_queries, rows_of_image, search
from evaluation.preprocessing import preprocessing
from evaluation.queries import Query, queries_of, vectors_of
from evaluation.tower_search import AmongTexts
from language import readability
from utilities import checkpoint
from utilities.console import printable
from utilities.run_files import checkpoint_file


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


class Searcher:
    """Turns pictures and words into queries of one index.

    The embedder and the text encoder are loaded when they are first needed, and then kept.

    Args:
        where: folder of the index, which is read at once.
        run: run folder or checkpoint; None for the one that made the index.
        word_map: map from words to images; None for the one beside the checkpoint.
        language_model: where the text encoder of the map is now; None for where it was.

    Raises:
        FileNotFoundError: there is no index.
        ValueError: it is damaged, or its space needs neither map nor text encoder.
    """

    def __init__(
        self,
        where: Path,
        run: Path | None = None,
        word_map: Path | None = None,
        language_model: str | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.where = where
        self.version = version_of(where)
        self.index = read_index(where)
        self.run = run or self.index.provenance.checkpoint
        self.word_map = word_map
        self.language_model = language_model
        self.device = torch.device(device)
        if self.among_words and (word_map or language_model):
            raise ValueError(
                f"the index {where} is of the space of its run's own words, which needs no --map "
                "and no --language_model; leave them out"
            )

    @property
    def among_words(self) -> bool:
        return self.index.provenance.space == "words"

    def refresh(self) -> None:
        """Read the index again if it was replaced since, as by indexing its folder again.

        Raises:
            ValueError: it is of another model or folder now, or damaged; the earlier one is kept.
        """
        version = version_of(self.where)
        if version == self.version:
            return
        index = read_index(self.where)
        check_provenance(index.provenance, self.index.provenance, self.where)
        self.index, self.version = index, version

    @cached_property
    def model(self) -> SearchModel:
        """The embedder; ValueError if it is not the one that made the index."""
        made_by = self.index.provenance
        model = load_model(self.run, made_by.space)
        check_provenance(made_by, model.provenance(made_by.folder), self.where)
        return model

    @cached_property
    def read_texts(self) -> Callable[[Sequence[str]], NDArray[np.float32]]:
        """A function of texts to (W, D) unit rows; raises why there is none, and the remedy."""
        if self.among_words:
            return partial(read_among_texts, self.model.embedder.criterion)
        return self._read_by_map()

    def find(
        self,
        images: Sequence[Path],
        words: Sequence[str],
        *,
        weight: float = 0.5,
        k: int = 10,
        leave_out: bool = False,
        indexed: bool = False,
    ) -> list[tuple[Query, list[Hit]]]:
        """Return each query that ``queries_of`` makes of images and words, with the k nearest.

        Args:
            weight: of words beside an image, in [0, 1].
            leave_out: do not find the image of a query itself, nor copies of its file.
            indexed: the images are some of the index, which need not be embedded again.

        Raises:
            ValueError: an image cannot be read or is not in the index, the text encoder knows none
                of some words, or embedder or map are not those of the index.
        """
        # Words come first: they are read in less time than an embedder is loaded, and may not need
        # one.
        texts = self.embed_words(words)
        pictures = self._stored(images) if indexed else self.embed_images(images)
        queries = queries_of(images, words)
        without: list[set[int]] = []
        if leave_out:
            pairs = zip(images, pictures, strict=True)
            own = [rows_of_image(image, vector, self.index) for image, vector in pairs]
            without = [rows for rows in own for _ in words or [""]]  # in the order of the queries
        vectors = vectors_of(queries, pictures, texts, weight)
        found = search(vectors, self.index, k=k, without=without)
        return list(zip(queries, found, strict=True))

    def embed_words(self, words: Sequence[str]) -> NDArray[np.float32]:
        """Return (W, D) unit rows; ValueError if the text encoder knows none of some words."""
        return self.read_texts(words) if words else self._none()

    def embed_images(self, images: Sequence[Path]) -> NDArray[np.float32]:
        """Return (I, D) unit rows of image files; ValueError if one cannot be read."""
        return embed_queries(images, self.model, device=self.device) if images else self._none()

    def _stored(self, images: Sequence[Path]) -> NDArray[np.float32]:
        folder, files = self.index.provenance.folder, self.index.embedded.files
        rows = {file.path: row for row, file in enumerate(files)}
        places = [image.relative_to(folder).as_posix() for image in images]
        for image, place in zip(images, places, strict=True):
            if place not in rows:
                raise ValueError(f"{printable(image)} is no longer in the index {self.where}")
        return self.index.embedded.vectors[[rows[place] for place in places]]

    def _none(self) -> NDArray[np.float32]:
        return np.zeros((0, self.index.provenance.embed_dim), np.float32)

    def _read_by_map(self) -> Callable[[Sequence[str]], NDArray[np.float32]]:
        file = self.word_map
        if not file:
            made_by = checkpoint_file(self.run)
            file = word_map_file.map_file(made_by)
            if not file.is_file():
                content = checkpoint.load(made_by)
                why = word_map_file.why_none(made_by, content.get("data"))
                if "captions" in criteria.CRITERIA[content["flags"].get("loss", "margin")].needs:
                    why = (
                        f"{made_by} has a text side of its own; index the folder with --space words"
                    )
                raise FileNotFoundError(f"--words: {why}")
        stored = word_map_file.read(file)
        stored.check_embedder(
            *(self.index.provenance.digest, file, f"those that made the index {self.where}"),
            "index the folder again into another index, or give --map a map that was fitted to "
            "them",
        )
        name = self.language_model or stored.language_model
        encoder = language.build_encoder(name, self.device)
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
