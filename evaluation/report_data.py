"""The embedded image set that a report is about, with the scores of its queries.

A report is deterministic: if a set is too large to show, classes are drawn by the seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import metrics
from datasets.image_set import ImageSet
from evaluation.retrieval import gallery_of
from utilities.seeding import derive


@dataclass(frozen=True, eq=False)
class ReportData:
    """N embedded images of C classes with their scores as queries.

    ValueError if there is no image, lengths do not agree, or a label has no class name.
    """

    name: str
    paths: Sequence[Path]
    labels: Tensor  # (N,) int64 in [0, C)
    class_names: Sequence[str]
    after: Tensor  # (N, D) float32 on the CPU, the embeddings that are shown
    recall: Tensor  # (N,) recall@1; NaN for an image alone in its class or in the gallery
    average_precision: Tensor  # (N,) mAP@R; NaN likewise
    before: Tensor | None = None  # (N, D') of the untrained embedder; None: no comparisons with it
    class_groups: Sequence[str] = ()  # C names of the group of each class, or none
    class_words: Tensor | None = None  # (C, Dw); None: no comparisons with words
    seed: int = 0
    # (N,) bool, True for separate queries, whose gallery is the other images; None: each image is
    # a query and has all others as its gallery.
    queries: Tensor | None = None
    # Search by words, or none: (C, D'') float32, the query that the map makes of each class's name,
    # and (N, D'') the images, which are compared with it by cosine.
    word_queries: Tensor | None = None
    word_gallery: Tensor | None = None
    names_seen: int = 0  # class names that the map was fitted on, too

    def __post_init__(self) -> None:
        n, n_classes = len(self.paths), len(self.class_names)
        if not n:
            raise ValueError(f"{self.name} has no images to show")
        by_image = "labels", "after", "recall", "average_precision", "before", "queries"
        for field in (*by_image, "word_gallery"):
            value = getattr(self, field)
            if value is not None and len(value) != n:
                raise ValueError(f"{self.name}: {field} has {len(value)} rows for {n} images")
        by_class = {"class_groups": self.class_groups or None, "class_words": self.class_words}
        for field, given in {**by_class, "word_queries": self.word_queries}.items():
            if given is not None and len(given) != n_classes:
                found = f"{field} has {len(given)} rows for {n_classes} classes"
                raise ValueError(f"{self.name}: {found}")
        if (self.word_queries is None) != (self.word_gallery is None):
            raise ValueError(f"{self.name}: word_queries and word_gallery come together")
        if not 0 <= int(self.labels.min()) <= int(self.labels.max()) < n_classes:
            raise ValueError(f"{self.name}: labels must be in [0, {n_classes})")

    @cached_property
    def classes(self) -> Tensor:
        """(M,) int64, ascending: the classes that have an image."""
        return self.labels.unique()

    def class_of(self, row: int) -> str:
        """Return the class name of an image."""
        return self.class_names[int(self.labels[row])]

    def class_means(self, embeds: Tensor, classes: Tensor) -> Tensor:
        """Return (M, D) unit rows: the mean unit embedding of the images of each class."""
        sums = embeds.new_zeros(len(self.class_names), embeds.shape[1])
        sums.index_add_(0, self.labels, F.normalize(embeds, dim=1))
        return F.normalize(sums[classes], dim=1)

    def draw_classes(self, limit: int, purpose: str) -> Tensor:
        """Return (<= limit,) int64, ascending: drawn classes, or all of them if they are few."""
        order = torch.randperm(len(self.classes), generator=self.generator(purpose))
        return self.classes[order[:limit].sort().values]

    def generator(self, purpose: str) -> torch.Generator:
        """Return a generator of the seed for one purpose."""
        return torch.Generator().manual_seed(derive(self.seed, "report", purpose))


def build_report_data(
    images: ImageSet,
    embeds: Tensor,
    rows: Tensor,
    *,
    before: Tensor | None = None,
    class_words: Tensor | None = None,
    seed: int = 0,
    word_queries: Tensor | None = None,
    word_gallery: Tensor | None = None,
    names_seen: int = 0,
) -> ReportData:
    """Score the queries of a set of which ``rows`` (M,) are embedded (M, D), for its report."""
    is_query = torch.ones(len(rows), dtype=torch.bool)
    if images.queries is not None:
        is_query = torch.from_numpy(images.queries)[rows]
    found = metrics.per_query(["recall@1", "mAP@R"], gallery_of(images, embeds, rows))
    unscored = torch.full((len(rows),), torch.nan, dtype=torch.float64)  # the gallery's images
    scores = {name: unscored.masked_scatter(is_query, values) for name, values in found.items()}
    return ReportData(
        name=images.name,
        paths=[images.paths[row] for row in rows.tolist()],
        labels=torch.from_numpy(images.labels)[rows],
        class_names=images.class_names,
        after=embeds,
        recall=scores["recall@1"],
        average_precision=scores["mAP@R"],
        before=before,
        class_groups=images.class_groups,
        class_words=None if class_words is None else class_words.cpu(),
        seed=seed,
        queries=None if images.queries is None else is_query,
        word_queries=None if word_queries is None else word_queries.cpu(),
        word_gallery=None if word_gallery is None else word_gallery.cpu(),
        names_seen=names_seen,
    )
