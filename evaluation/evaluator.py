"""The retrieval that a run evaluates again and again."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

import metrics as scoring
from datasets.image_set import ImageSet
from datasets.loading import Transform
from evaluation.extract import Features
from evaluation.feature_cache import cached_features
from evaluation.retrieval import gallery_of, refuse_one_sided, run, score
from evaluation.scores import Scores
from evaluation.tower_search import TowerSearch
from evaluation.verdict import BACKBONE, HEADLINES
from evaluation.word_search import WordSearch
from utilities import distributed

MOST_KEPT = 20_000  # images of a set whose features are kept: 160 MB of ResNet50


class Evaluator:
    """Scores an embedder on each of several image sets when called.

    Args:
        sets: by the name that goes before a score, as in ``test/embeds/e_recall@1``.
        class_words: (C, D) unit rows for each set whose words a metric reads.
        word_search: scores the metrics of words, on all sets but the one that it is fitted on.
        tower_searches: score these metrics too, by text towers; on the same sets.
        metrics, options: arguments of ``evaluation.retrieval.run``.

    Attributes:
        embeds: embeddings of each set at the last call, and their rows in the set.
        searched: (M, D) of each set at the last call, what ``word_search`` searches in it.

    Raises:
        ValueError: a metric is unknown, or a set lacks the words or groups that it needs, or a
            gallery for its queries.
    """

    def __init__(
        self,
        embedder: nn.Module,
        sets: Mapping[str, ImageSet],
        transform: Transform,
        class_words: Mapping[str, Tensor],
        word_search: WordSearch | None = None,
        tower_searches: Sequence[TowerSearch] = (),
        *,
        metrics: list[str],
        **options: Any,
    ) -> None:
        for name, images in sets.items():
            refuse_one_sided(images)
            scoring.validate(metrics, class_words.get(name), images.class_groups or None)
        self.embedder = embedder
        self.sets = dict(sets)
        self.transform = transform
        self.class_words = dict(class_words)
        self.word_search = word_search
        self.tower_searches = list(tower_searches)
        self.options = {"metrics": metrics, **options}
        self.embeds: dict[str, tuple[Tensor, Tensor]] = {}  # (M, D) and (M,) int64
        self.searched: dict[str, Tensor] = {}

    def __call__(self, cache: Path | None = None, *, backbone: bool = False) -> Scores:
        """Return the scores of all sets as ``<set>/<evaltype>/<metric>``, with their protocols.

        Args:
            cache: folder in which features are kept, and read from; None keeps none.
            backbone: also search the first set with pooled features, as unit rows, for
                ``<set>/backbone/<metric>``; only the metrics that a ``verdict`` compares.
        """
        scores = Scores({}, {})
        searched: dict[str, tuple[Tensor, Tensor]] = {}
        pooled: dict[str, tuple[Tensor, Tensor]] = {}
        for name, images in self.sets.items():
            options = {"class_words": self.class_words.get(name), **self.options}
            kept = cache if len(images) <= MOST_KEPT else None
            found, features = run(self.embedder, images, self.transform, cache=kept, **options)
            scores.add(found, f"{name}/")
            if backbone and not pooled:
                scores.add(self._backbone_scores(images, features), f"{name}/{BACKBONE}/")
            self.embeds[name] = features.embeds, features.rows
            searched[name] = getattr(features, self.options["evaltypes"][0]), features.rows
            pooled[name] = features.features, features.rows
        if self.word_search is not None:
            self._search_by_words(self.word_search, searched, scores, cache)
        pooled.pop("train", None)
        for name, embedded in pooled.items() if distributed.is_first() else ():
            for search in self.tower_searches:
                scores.add(search.scores(self.sets[name], *embedded), f"{name}/")
        return scores

    def _backbone_scores(self, images: ImageSet, found: Features) -> Scores:
        if not distributed.is_first() or self.options["evaltypes"][0] != "embeds":
            return Scores({}, {})
        device, size = self.options["search_device"], self.options["block_bytes"]
        unit = F.normalize(found.features, dim=1).to(device)
        gallery = gallery_of(images, unit, found.rows, seed=self.options["seed"])
        names = [name for name in self.options["metrics"] if name in HEADLINES]
        return score(gallery, names, set_name=images.name, block_bytes=size)

    def _search_by_words(
        self,
        search: WordSearch,
        searched: dict[str, tuple[Tensor, Tensor]],
        scores: Scores,
        cache: Path | None,
    ) -> None:
        """Fit the map on the training images, which may be none of the sets, and add its scores."""
        if "train" in searched:
            embeds, rows = searched.pop("train")
        else:
            options = {key: self.options[key] for key in ("bs", "workers", "device", "precision")}
            images = self.embedder, search.train, self.transform
            kept = cache if len(search.train) <= MOST_KEPT else None
            features = cached_features(*images, cache=kept, **options)
            embeds, rows = getattr(features, self.options["evaltypes"][0]), features.rows
        if distributed.is_first():
            search.fit(embeds, rows)
            for name, (embeds, rows) in searched.items():
                scores.add(search.scores(name, self.sets[name], embeds, rows), f"{name}/")
                self.searched[name] = embeds
