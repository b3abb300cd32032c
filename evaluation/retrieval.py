"""Image retrieval among classes: each image of a set queries the others.

A set with separate queries (``ImageSet.queries``), such as In-Shop, is searched by these alone, and
only its other images are the gallery.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metrics as scoring
from datasets.image_set import ImageSet
from datasets.loading import Transform
from evaluation.extract import Features
from evaluation.feature_cache import cached_features
from evaluation.scores import Scores
from metrics import Gallery, Queries
from metrics.search import BLOCK_BYTES
from utilities import distributed

EVALTYPES = ("embeds", "features")


def check_evaltypes(evaltypes: Sequence[str]) -> None:
    """Raise ValueError for a name that is not in ``EVALTYPES``."""
    if unknown := set(evaltypes).difference(EVALTYPES):
        raise ValueError(
            f"evaltypes must be among {', '.join(EVALTYPES)}; got {', '.join(sorted(unknown))}"
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
    """Return the gallery of an embedded set, with its queries if they are separate.

    Args:
        embeds: (M, D) of the images ``rows``, (M,) int64, of the set.
        words: (C, Dw), embedded names of its classes.
    """
    labels, groups = torch.from_numpy(images.labels)[rows], images.class_groups or None
    if images.queries is None:
        return Gallery(embeds, labels, words, groups, seed=seed)
    is_query = torch.from_numpy(images.queries)[rows]
    queries = Queries(embeds[is_query.to(embeds.device)], labels[is_query])
    in_gallery = ~is_query
    return Gallery(
        embeds[in_gallery.to(embeds.device)], labels[in_gallery], words, groups, seed, queries
    )


def score(
    gallery: Gallery, names: Sequence[str], *, set_name: str, block_bytes: int = BLOCK_BYTES
) -> Scores:
    """Compute valid metrics of a gallery; ``set_name`` begins their protocols."""
    values, per_query = scoring.measure(names, gallery, block_bytes=block_bytes)
    return summarise(values, per_query, gallery, set_name)


def summarise(
    values: Mapping[str, float], per_query: Mapping[str, Tensor], gallery: Gallery, set_name: str
) -> Scores:
    """Return scores with their protocols, intervals and values by class."""
    protocols = {}
    n, d = gallery.embeds.shape
    n_queries = "" if gallery.queries is None else f"q={len(gallery.queries.labels)} "
    for name in values:
        metric = scoring.parse(name)
        distance = "cosine" if metric.cosine else "euclidean"
        method = "k-means" if metric.compare else "exact"
        protocols[name] = (
            f"{set_name} {n_queries}n={n} d={d} {distance} {method} seed={gallery.seed}"
        )
    labels = gallery.asking.labels
    # The last classes of the gallery may have no query.
    missing = max(int(gallery.labels.max()) - int(labels.max()), 0)
    by_class = {
        name: F.pad(means, (0, missing), value=torch.nan)
        for name, means in scoring.per_class(per_query, labels).items()
    }
    intervals = scoring.bootstrap(per_query, labels, seed=gallery.seed)
    return Scores(values, protocols, intervals, by_class)


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
    cache: Path | None = None,
) -> tuple[Scores, Features]:
    """Embed a set once and score it, as ``<evaltype>/<metric>`` such as ``embeds/e_recall@1``.

    Args:
        metrics: names as ``metrics`` parses them; those of words are skipped.
        evaltypes: outputs of the embedder to score, of ``EVALTYPES``.
        class_words: (C, Dw) unit rows, for the metrics that compare the words of classes.
        search_device: where images are compared; None: ``device``.
        seed: of the run; k-means starts from it.
        block_bytes: memory that the search may take at a time.
        cache: folder in which features are kept, and read from if they are there.

    Returns:
        the scores and the features that they were computed from. Processes that train together
        embed a share each; the first of them scores, and the others return empty scores.

    Raises:
        ValueError: before anything is embedded: a metric or evaltype is unknown, or needs words or
            groups that are missing; the set has queries and no gallery, or the other way round.
    """
    refuse_one_sided(image_set)
    metrics = [name for name in metrics if not scoring.parse(name).words_by]
    scoring.validate(metrics, class_words, image_set.class_groups or None)
    check_evaltypes(evaltypes)
    extracted = cached_features(
        *(embedder, image_set, transform),
        cache=cache, bs=bs, workers=workers, device=device, precision=precision,
    )  # fmt: skip
    scores = Scores({}, {})
    if not distributed.is_first():
        return scores, extracted
    compare_on = device if search_device is None else search_device
    for evaltype in evaltypes:
        embeds = getattr(extracted, evaltype).to(compare_on)
        gallery = gallery_of(image_set, embeds, extracted.rows, class_words, seed)
        found = score(gallery, metrics, set_name=image_set.name, block_bytes=block_bytes)
        scores.add(found, f"{evaltype}/")
    return scores, extracted
