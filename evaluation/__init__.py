"""Embeds an image set once, scores it by a protocol, and reports the scores.

The protocol here is retrieval among classes: ``run`` does all of it, ``extract`` and ``retrieve``
are its halves, and an ``Evaluator`` repeats it during training.
"""

import argparse
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from datasets.image_set import ImageSet
from datasets.loading import Transform
from evaluation.evaluator import Evaluator
from evaluation.extract import Features, extract, predict
from evaluation.report import table
from evaluation.retrieval import EVALTYPES, Scores, retrieve, run

__all__ = [
    "EVALTYPES",
    "Evaluator",
    "Features",
    "Scores",
    "build",
    "extract",
    "predict",
    "retrieve",
    "run",
    "table",
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
        autocast=args.use_float16,
        seed=args.seed,
    )
