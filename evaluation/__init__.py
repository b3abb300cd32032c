"""Embeds an image set once, scores it by a protocol, and reports the scores.

The protocol here is retrieval among classes: ``run`` does all of it, ``extract`` is its first half,
and an ``Evaluator`` repeats it during training.
"""

import argparse
from collections.abc import Mapping

import torch
from torch import Tensor, nn

import metrics
from datasets.image_set import ImageSet
from datasets.loading import Transform
from evaluation.evaluator import Evaluator
from evaluation.exhibit import Exhibit
from evaluation.extract import Features, extract, predict
from evaluation.frozen import evaluate as judge
from evaluation.report_html import write_report
from evaluation.retrieval import EVALTYPES, Scores, gallery_of, run
from evaluation.tables import listing, table, write_by_class

__all__ = [
    "EVALTYPES",
    "Evaluator",
    "Exhibit",
    "Features",
    "Scores",
    "build",
    "build_exhibit",
    "extract",
    "judge",
    "listing",
    "predict",
    "run",
    "table",
    "write_by_class",
    "write_report",
]


def build(
    args: argparse.Namespace,
    embedder: nn.Module,
    sets: Mapping[str, ImageSet],
    transform: Transform,
    class_words: Mapping[str, Tensor],
    device: torch.device,
) -> Evaluator:
    """The evaluator that ``--evaluation_metrics`` and ``--evaltypes`` ask for."""
    return Evaluator(
        embedder,
        sets,
        transform,
        class_words,
        metrics=args.evaluation_metrics,
        evaltypes=args.evaltypes,
        bs=args.bs,
        workers=args.kernels,
        device=device,
        search_device="cpu" if args.evaluate_on_cpu else device,
        precision=args.precision,
        seed=args.seed,
        block_bytes=int(args.eval_memory * 2**30),
    )


def build_exhibit(
    images: ImageSet,
    embeds: Tensor,
    rows: Tensor,
    *,
    before: Tensor | None = None,
    class_words: Tensor | None = None,
    seed: int = 0,
) -> Exhibit:
    """What the report of an embedded set shows.

    Args:
        embeds, before: (M, D) of the same images after and before training.
        rows: (M,) int64, rows of the set that were embedded.
        class_words: (C, Dw), embedded words of the classes.
    """
    labels = torch.from_numpy(images.labels)[rows]
    asks = torch.ones(len(rows), dtype=torch.bool)
    if images.queries is not None:
        asks = torch.from_numpy(images.queries)[rows]
    found = metrics.per_query(["recall@1", "mAP@R"], gallery_of(images, embeds, rows))
    none = torch.full((len(rows),), torch.nan, dtype=torch.float64)  # of the gallery's images
    queries = {name: none.masked_scatter(asks, values) for name, values in found.items()}
    return Exhibit(
        name=images.name,
        paths=[images.paths[row] for row in rows.tolist()],
        labels=labels,
        class_names=images.class_names,
        after=embeds,
        recall=queries["recall@1"],
        average_precision=queries["mAP@R"],
        before=before,
        class_groups=images.class_groups,
        class_words=None if class_words is None else class_words.cpu(),
        seed=seed,
        queries=None if images.queries is None else asks,
    )
