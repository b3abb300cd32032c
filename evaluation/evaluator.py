"""The retrieval that a run evaluates again and again."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

import metrics as scoring
from datasets.image_set import ImageSet
from datasets.loading import Transform
from evaluation.retrieval import refuse_one_sided, run
from evaluation.scores import Scores


class Evaluator:
    """Scores an embedder on each of several image sets when called.

    Args:
        sets: by the name that goes before a score, as in ``test/embeds/e_recall@1``.
        class_words: (C, D) unit rows for each set whose words a metric reads.
        metrics, options: arguments of ``evaluation.retrieval.run``.

    Attributes:
        embeds: embeddings of each set at the last call, and their rows in the set.

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
        self.options = {"metrics": metrics, **options}
        self.embeds: dict[str, tuple[Tensor, Tensor]] = {}  # (M, D) and (M,) int64

    def __call__(self) -> Scores:
        """Return the scores of all sets as ``<set>/<evaltype>/<metric>``, with their protocols."""
        scores = Scores({}, {})
        for name, images in self.sets.items():
            options = {"class_words": self.class_words.get(name), **self.options}
            found, features = run(self.embedder, images, self.transform, **options)
            scores.add(found, f"{name}/")
            self.embeds[name] = features.embeds, features.rows
        return scores
