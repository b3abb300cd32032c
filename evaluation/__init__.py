"""Embeds an image set once, scores it by a protocol, and reports the scores.

The protocol here is retrieval among classes: ``run`` does all of it, ``extract`` is its first half,
and an ``Evaluator`` repeats it during training.
"""

import argparse
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from datasets.image_set import ImageSet
from datasets.loading import Transform
from evaluation.downstream import evaluate_downstream
from evaluation.evaluator import Evaluator
from evaluation.extract import Features, extract, predict
from evaluation.report_data import ReportData, build_report_data
from evaluation.report_html import write_report
from evaluation.retrieval import EVALTYPES, run
from evaluation.scores import Scores, listing, table, write_by_class

__all__ = [
    "EVALTYPES",
    "Evaluator",
    "Features",
    "ReportData",
    "Scores",
    "build",
    "build_report_data",
    "evaluate_downstream",
    "extract",
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
