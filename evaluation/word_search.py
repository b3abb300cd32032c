"""Search by words: names of classes look for their images, and images for their names.

A ``WordMap`` takes names to the space of the images. It is fitted on training classes, and judged
on the names and images of classes that training never saw.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metrics as scoring
from datasets.image_set import ImageSet
from evaluation.feature_cache import digest_of_embeddings
from evaluation.preprocessing import Preprocessing
from evaluation.retrieval import score
from evaluation.scores import Scores
from evaluation.word_map import FEWEST, WordMap, fit
from evaluation.word_map_file import StoredMap, probes_of
from metrics import Gallery, Queries

WORDS, PERMUTED = "words", "permuted_words"  # in the place of an evaltype


class WordSearch:
    """Fits a map from words to images on training classes, and scores it on others.

    Beside it stands a control: the same fit on training classes with each other's names.

    Args:
        train: the images to fit on.
        words: (C, D_text) unit rows by set, the embedded names of its classes; "train" among them.
        metrics: names of metrics of words, as ``metrics`` parses them.
        seed: of the control's permutation.

    Attributes:
        map: of the last ``fit``.
        n_classes: that it was fitted to.
    """

    def __init__(
        self, train: ImageSet, words: Mapping[str, Tensor], metrics: Sequence[str], *, seed: int = 0
    ) -> None:
        self.train = train
        self.words = words
        self.metrics = list(metrics)
        cycle = np.random.default_rng(seed).permutation(train.n_classes)
        self.permutation = torch.empty(train.n_classes, dtype=torch.int64)
        self.permutation[cycle] = torch.from_numpy(np.roll(cycle, -1))  # none keeps its own
        self.n_classes = 0
        self.map: WordMap | None = None
        self.control: WordMap | None = None

    def fit(self, embeds: Tensor, rows: Tensor) -> None:
        """Fit the map and its control to embeddings (M, D) of training images ``rows`` (M,)."""
        labels = torch.from_numpy(self.train.labels)[rows]
        counts = labels.bincount(minlength=self.train.n_classes)
        read = counts > 0  # a class may have no image that can be read
        sums = torch.zeros(self.train.n_classes, embeds.shape[1], dtype=torch.float64)
        sums.index_add_(0, labels, F.normalize(embeds.cpu().double(), dim=1))
        means = (sums / counts[:, None])[read]
        self.n_classes = int(read.sum())
        words = self.words["train"]
        self.map = fit(words[read], means)
        self.control = fit(words[self.permutation][read], means)

    def scores(self, name: str, images: ImageSet, embeds: Tensor, rows: Tensor) -> Scores:
        """Return the scores of a set by the fitted map and by the control, as ``words/<metric>``.

        Args:
            name: of the set in ``words``.
            embeds: (M, D), of the images ``rows`` (M,) of the set.
        """
        found = Scores({}, {})
        for kind, fitted in ((WORDS, self.map), (PERMUTED, self.control)):
            assert fitted is not None  # by ``fit``
            queries = fitted(self.words[name]).to(embeds.device)
            found.add(by_words(images, embeds, rows, queries, self.metrics), f"{kind}/")
        return found

    def stored(
        self,
        language_model: str,
        output: str,
        arch: str,
        preprocessing: Preprocessing,
        embedder: nn.Module,
    ) -> StoredMap:
        """Return the fitted map with what it was fitted with, to be kept beside a checkpoint.

        Args:
            language_model: the text encoder of ``words``.
            output: of the embedder, that the map was fitted to.
        """
        assert self.map is not None  # by ``fit``
        return StoredMap(
            self.map,
            language_model,
            output,
            self.n_classes,
            digest_of_embeddings(arch, preprocessing, embedder),
            probes_of(self.train.class_names, self.words["train"]),
        )


def by_words(
    images: ImageSet, embeds: Tensor, rows: Tensor, queries: Tensor, metrics: Sequence[str]
) -> Scores:
    """Score C names in the space of the images, (C, D) ``queries``, against a set's embeddings.

    Classes of one name are one class, since no words can tell them apart.
    """
    numbers = {name: number for number, name in enumerate(dict.fromkeys(images.class_names))}
    named = torch.tensor([numbers[name] for name in images.class_names])  # (C,)
    first = torch.tensor([images.class_names.index(name) for name in numbers])
    labels = named[torch.from_numpy(images.labels)[rows]]
    texts, classes = queries[first.to(queries.device)], torch.arange(len(numbers))
    galleries = {
        "words": Gallery(embeds, labels, queries=Queries(texts, classes)),
        "images": Gallery(texts, classes, queries=Queries(embeds, labels)),
    }
    scores = Scores({}, {})
    for asking, gallery in galleries.items():
        names = [name for name in metrics if scoring.parse(name).words_by == asking]
        if names:
            scores.add(score(gallery, names, set_name=images.name))
    return scores


def can_fit(train: ImageSet) -> bool:
    """Return whether there are enough differently named classes to fit a map."""
    return len(set(train.class_names)) >= FEWEST
