"""Search by words: names of classes look for their images, and images for their names.

A ``WordMap`` takes names to the space of the images. It is fitted on training classes, and judged
on the names and images of classes that training never saw.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metrics as scoring
from datasets.image_set import ImageSet
from evaluation.feature_cache import digest_of_embeddings
from evaluation.preprocessing import Preprocessing
from evaluation.retrieval import summarise
from evaluation.scores import Scores
from evaluation.word_map import FEWEST, WordMap, fit
from evaluation.word_map_file import StoredMap, probes_of
from metrics import Gallery, Queries
from utilities.seeding import cyclic_permutation

LOG = logging.getLogger(__name__)

WORDS, PERMUTED = "words", "permuted_words"  # in the place of an evaltype
PERMUTATIONS = 5


class DistinctNames(NamedTuple):
    """The U names of C classes. Classes of one name are one, since no words tell them apart."""

    of: Tensor  # (C,) int64, the number of each class's name
    first: Tensor  # (U,) int64, the first class of each name

    @classmethod
    def among(cls, class_names: Sequence[str]) -> "DistinctNames":
        numbers = {name: number for number, name in enumerate(dict.fromkeys(class_names))}
        first = {name: label for label, name in reversed([*enumerate(class_names)])}
        of = torch.tensor([numbers[name] for name in class_names])
        return cls(of, torch.tensor([first[name] for name in numbers]))


class WordSearch:
    """Fits a map from words to images on training classes, and scores it on others.

    Beside it stands a control: the mean over ``PERMUTATIONS`` fits, with the same penalties, on
    training classes that have each other's names.

    Args:
        train: the images to fit on.
        words: (C, D_text) unit rows by set, the embedded names of its classes; "train" among them.
        metrics: names of metrics of words, as ``metrics`` parses them.
        seed: of the permutations, and of the folds that penalties are chosen by.

    Attributes:
        map: of the last ``fit``.
        n_classes: with different names, that it was fitted to.
        controls: beside it.
    """

    def __init__(
        self, train: ImageSet, words: Mapping[str, Tensor], metrics: Sequence[str], *, seed: int = 0
    ) -> None:
        self.train = train
        self.words = words
        self.metrics = list(metrics)
        self.seed = seed
        rng = np.random.default_rng(seed)
        self.names = DistinctNames.among(train.class_names)
        n = len(self.names.first)
        self.permutations = [cyclic_permutation(n, rng) for _ in range(PERMUTATIONS)]
        self.n_classes = 0
        self.map: WordMap | None = None
        self.controls: list[WordMap] = []

    def fit(self, embeds: Tensor, rows: Tensor) -> None:
        """Fit the map and its controls to embeddings (M, D) of training images ``rows`` (M,)."""
        named = self.names.of[torch.from_numpy(self.train.labels)[rows]]
        present, labels = named.unique(return_inverse=True)
        self.n_classes = len(present)
        self.map, self.controls = None, []
        if self.n_classes < FEWEST:
            LOG.warning(
                "no search by words: images of only %d training classes with different names can "
                "be read, and a map needs %d",
                *(self.n_classes, FEWEST),
            )
            return
        units, words = F.normalize(embeds.cpu(), dim=1), self.words["train"].cpu()[self.names.first]
        self.map = fit(words[present], units, labels, seed=self.seed)
        self.controls = [
            fit(words[permutation][present], units, labels, self.map.penalties)
            for permutation in self.permutations
        ]

    def scores(self, name: str, images: ImageSet, embeds: Tensor, rows: Tensor) -> Scores:
        """Return the scores of a set by the map and by the controls, as ``words/<metric>``.

        There are none if the map could not be fitted.

        Args:
            name: of the set in ``words``.
            embeds: (M, D), of the images ``rows`` (M,) of the set.
        """
        found = Scores({}, {})
        if self.map is None:
            return found
        for kind, maps in ((WORDS, [self.map]), (PERMUTED, self.controls)):
            queries = [fitted(self.words[name].cpu()).to(embeds.device) for fitted in maps]
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
    images: ImageSet,
    embeds: Tensor,
    rows: Tensor,
    queries: Sequence[Tensor],
    metrics: Sequence[str],
) -> Scores:
    """Score C names in the space of the images against a set's embeddings.

    Classes of one name are one class, and share its value in ``by_class``.

    Args:
        queries: (C, D) for each of several maps, whose scores are averaged.
    """
    named = DistinctNames.among(images.class_names)
    labels = named.of[torch.from_numpy(images.labels)[rows]]
    classes = torch.arange(len(named.first))
    scores = Scores({}, {})
    for asking in ("words", "images"):
        names = [name for name in metrics if scoring.parse(name).words_by == asking]
        per_query = []
        for of_map in queries if names else ():
            texts, looking = of_map[named.first.to(of_map.device)], Queries(embeds, labels)
            gallery = (
                Gallery(embeds, labels, queries=Queries(texts, classes))
                if asking == "words"
                else Gallery(texts, classes, queries=looking)
            )
            per_query.append(scoring.per_query(names, gallery))
        if names:
            means = {name: torch.stack([of[name] for of in per_query]).mean(0) for name in names}
            values = {name: float(means[name].nanmean()) for name in names}
            scores.add(summarise(values, means, gallery, images.name))
    scores.by_class = {name: found[named.of] for name, found in scores.by_class.items()}
    return scores


def can_fit(train: ImageSet) -> bool:
    """Return whether there are enough differently named classes to fit a map."""
    return len(set(train.class_names)) >= FEWEST
