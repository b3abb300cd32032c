"""Image retrieval among classes: every image of a set queries all the others.

Of a set that tells its queries from its gallery (``ImageSet.queries``), such as In-Shop's, only
these query, and only that is searched.
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metrics as scoring
from datasets.image_set import ImageSet
from datasets.loading import Transform
from evaluation.extract import Features, extract
from evaluation.tables import number
from metrics import Gallery, Interval, Queries
from metrics.gallery import BLOCK_BYTES
from utilities import distributed

T = TypeVar("T")

EVALTYPES = ("embeds", "features")


class Scores(dict[str, float]):
    """Scores by name, and of each how it was measured, how sure it is, and what it is by class.

    Values are fractions but for words, distances and the like (see ``metrics``), and NaN where no
    query counts. Only scores of single queries have an interval and a value for each class.

    Attributes:
        protocols: such as "cub200.test n=5924 d=128 euclidean exact seed=2"; where queries are a
            set of their own also how many, "inshop.test q=14218 n=12612 d=...".
        intervals: 95 % bootstrap confidence interval over the test classes.
        by_class: (C,) float64, NaN where no query of a class counts.
    """

    def __init__(
        self,
        values: Mapping[str, float],
        protocols: Mapping[str, str],
        intervals: Mapping[str, Interval] | None = None,
        by_class: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(values)
        self.protocols = dict(protocols)
        self.intervals = dict(intervals or {})
        self.by_class = dict(by_class or {})

    def add(self, other: "Scores", prefix: str = "") -> None:
        """Take in other scores, ``prefix`` put before their names."""
        self.update(_prefixed(other, prefix))
        self.protocols.update(_prefixed(other.protocols, prefix))
        self.intervals.update(_prefixed(other.intervals, prefix))
        self.by_class.update(_prefixed(other.by_class, prefix))

    def lines(self) -> list[str]:
        """``embeds/e_recall@1 70.12 | cub200.test n=5924 d=128 euclidean exact seed=2``."""
        return [
            f"{name} {number(name, value)} | {self.protocols[name]}" for name, value in self.items()
        ]


def _prefixed(values: Mapping[str, T], prefix: str) -> dict[str, T]:
    return {prefix + name: value for name, value in values.items()}


def score(
    gallery: Gallery, names: Sequence[str], *, set_name: str, block_bytes: int = BLOCK_BYTES
) -> Scores:
    """The named metrics of a gallery.

    Args:
        names: as ``metrics`` parses them.
        set_name: of the image set, for the protocol.
        block_bytes: what the search may take at a time.

    Raises:
        ValueError: as ``metrics.validate``.
    """
    protocols = {}
    n, d = gallery.embeds.shape
    asked = "" if gallery.queries is None else f"q={len(gallery.queries.labels)} "
    values, queries = scoring.measure(names, gallery, block_bytes=block_bytes)
    for name in values:
        metric = scoring.parse(name)
        distance = "cosine" if metric.cosine else "euclidean"
        method = "k-means" if metric.compare else "exact"
        protocols[name] = f"{set_name} {asked}n={n} d={d} {distance} {method} seed={gallery.seed}"
    labels = gallery.asking.labels
    by_class = scoring.per_class(queries, labels)
    more = int(gallery.labels.max()) - int(labels.max())  # classes at the end that nothing asks for
    return Scores(
        values,
        protocols,
        scoring.bootstrap(queries, labels, seed=gallery.seed),
        {
            name: F.pad(found, (0, max(more, 0)), value=torch.nan)
            for name, found in by_class.items()
        },
    )


def refuse_one_sided(images: ImageSet) -> None:
    """Raise ValueError for a set whose queries or whose gallery is empty."""
    if images.queries is not None and not 0 < images.queries.sum() < len(images):
        n_queries = int(images.queries.sum())
        raise ValueError(
            f"{images.name} has {n_queries} queries and {len(images) - n_queries} gallery images; "
            "retrieval needs both, or images that query one another"
        )


def gallery_of(
    images: ImageSet, embeds: Tensor, rows: Tensor, words: Tensor | None = None, seed: int = 0
) -> Gallery:
    """What is searched of an embedded set, and its queries where they are apart from it.

    Args:
        embeds: (M, D) of the images ``rows``, on any device.
        rows: (M,) int64, of the set.
        words: (C, Dw) of its classes.
        seed: as ``Gallery``.
    """
    labels, groups = torch.from_numpy(images.labels)[rows], images.class_groups or None
    if images.queries is None:
        return Gallery(embeds, labels, words, groups, seed=seed)
    asks = torch.from_numpy(images.queries)[rows]
    queries = Queries(embeds[asks.to(embeds.device)], labels[asks])
    return Gallery(embeds[~asks.to(embeds.device)], labels[~asks], words, groups, seed, queries)


def run(
    embedder: nn.Module,
    image_set: ImageSet,
    transform: Transform,
    *,
    metrics: Sequence[str],
    evaltypes: Sequence[str] = ("embeds",),
    class_words: Tensor | None = None,
    bs: int = 112,
    workers: int = 6,
    device: torch.device | str = "cpu",
    search_device: torch.device | str | None = None,
    precision: str = "fp32",
    seed: int = 0,
    block_bytes: int = BLOCK_BYTES,
) -> tuple[Scores, Features]:
    """Embed a set once and score it, as ``<evaltype>/<metric>`` such as ``embeds/e_recall@1``.

    What cannot be computed is refused before anything is embedded.

    Args:
        metrics: names as ``metrics`` parses them.
        evaltypes: which of the embedder's outputs to score, of ``EVALTYPES``.
        class_words: (C, Dw) unit rows, for the metrics that compare the words of classes.
        device: where the embedder is.
        search_device: where the images are compared; None for where they are embedded.
        seed: of the run; k-means starts from it.
        bs, workers, precision: as ``extract``.
        block_bytes: what the search may take at a time.

    Returns:
        the scores, and what they were computed from. Processes that train together embed a share
        each, and the first of them scores; the others return no score.

    Raises:
        ValueError: a metric or evaltype is unknown, or needs words or groups that there are not;
            the set has queries and no gallery, or the other way round.
    """
    refuse_one_sided(image_set)
    scoring.validate(metrics, class_words, image_set.class_groups or None)
    for evaltype in evaltypes:
        if evaltype not in EVALTYPES:
            raise ValueError(
                f"--evaltypes {evaltype} is unknown; use one of {', '.join(EVALTYPES)}"
            )

    extracted = extract(
        embedder,
        image_set,
        transform,
        bs=bs,
        workers=workers,
        device=device,
        precision=precision,
        shared=True,
    )
    scores = Scores({}, {})
    if not distributed.is_first():
        return scores, extracted
    for evaltype in evaltypes:
        embeds = getattr(extracted, evaltype).to(device if search_device is None else search_device)
        gallery = gallery_of(image_set, embeds, extracted.rows, class_words, seed)
        found = score(gallery, metrics, set_name=image_set.name, block_bytes=block_bytes)
        scores.add(found, f"{evaltype}/")
    return scores, extracted
