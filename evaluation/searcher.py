"""Searches an index by pictures and words: what the command and the page of a search share.

torch is imported when it is first needed. A query by pictures alone need not wait for it.
"""

import logging
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from evaluation import quick_embedder
from evaluation.image_index import check_provenance, read_index, version_of
from evaluation.nearest import Hit, rows_of_image, search
from evaluation.queries import Query, queries_of, vectors_of
from evaluation.quick_embedder import QuickEmbedder
from utilities.console import printable

if TYPE_CHECKING:
    import torch

    from evaluation.indexing import SearchModel

LOG = logging.getLogger(__name__)

MOST_QUICK = 64  # pictures; for more it pays to load the checkpoint, which embeds each faster


class Searcher:
    """Turns pictures and words into queries of one index.

    The embedder and the text encoder are loaded when they are first needed, and then kept. Pictures
    are embedded by the index's own copy of the embedder if there is one and neither run nor device
    is given.

    Args:
        where: folder of the index, which is read at once.
        run: run folder or checkpoint; None for the one that made the index.
        word_map: map from words to images; None for the one beside the checkpoint.
        language_model: where the text encoder of the map is now; None for where it was.
        device: as ``utilities.device.choose`` takes it.

    Raises:
        FileNotFoundError: there is no index.
        ValueError: it is damaged, its space needs neither map nor text encoder, or there is no such
            device.
    """

    def __init__(
        self,
        where: Path,
        run: Path | None = None,
        word_map: Path | None = None,
        language_model: str | None = None,
        device: str = "auto",
    ) -> None:
        self.where = where
        self.version = version_of(where)
        self.index = read_index(where)
        self.run = run or self.index.provenance.checkpoint
        self.word_map = word_map
        self.language_model = language_model
        self.device_name = device
        # What the caller chooses is used, and checked against the index.
        self.may_be_quick = run is None and device == "auto"
        if device != "auto":
            _ = self.device  # refused now if there is none
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
    def device(self) -> "torch.device":
        from utilities import device

        return device.choose(self.device_name)

    @cached_property
    def quick_embedder(self) -> QuickEmbedder | None:
        digest = self.index.provenance.digest
        return quick_embedder.load(self.where, digest) if self.may_be_quick else None

    @cached_property
    def model(self) -> "SearchModel":
        """The embedder; ValueError if it is not the one that made the index."""
        from evaluation.search_models import load_model

        made_by = self.index.provenance
        model = load_model(self.run, made_by.space)
        check_provenance(made_by, model.provenance(made_by.folder), self.where)
        return model

    @cached_property
    def read_texts(self) -> Callable[[Sequence[str]], NDArray[np.float32]]:
        """A function of texts to (W, D) unit rows; raises why there is none, and the remedy."""
        if self.among_words:
            from evaluation.search_models import read_among_texts

            return partial(read_among_texts, self.model.embedder.criterion)
        from evaluation.text_reader import reader_by_map

        return reader_by_map(
            *(self.run, self.word_map, self.language_model),
            *(self.index.provenance.digest, self.where, self.device),
        )

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
        if not images:
            return self._none()
        if self.quick_embedder and len(images) <= MOST_QUICK:
            try:
                return self.quick_embedder.embed(images)
            except ValueError as error:
                # The checkpoint reads more formats, or tells what is wrong.
                LOG.info("%s; loading the checkpoint", error)
        from evaluation.indexing import embed_queries

        return embed_queries(images, self.model, device=self.device)

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
