"""Evaluates frozen features on a labelled dataset by several protocols, from one extraction."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import metrics as scoring
from datasets.downstream import Downstream
from datasets.folders import listed
from datasets.image_set import Images
from datasets.loading import Transform
from evaluation.feature_cache import cached_features, digest_of_backbone
from evaluation.fewshot import Episodes, draw_episodes, interval, score_episodes
from evaluation.knn_classifier import TEMPERATURE, classify
from evaluation.linear_probe import (
    LabelledFeatures,
    accuracy,
    class_accuracies,
    hold_out,
    joined,
    linear_probe,
)
from evaluation.retrieval import check_evaltypes, score
from evaluation.scores import OVER_IMAGES, Scores
from metrics import Gallery
from utilities import distributed
from utilities.registry import lookup

LOG = logging.getLogger(__name__)


@dataclass
class DownstreamEvaluation:
    """The protocols for a dataset's features, which are extracted when first needed.

    Each protocol returns its scores as ``<dataset>/<protocol>``: values in [0, 1] (retrieval: as
    its metrics), intervals of few-shot and retrieval, and values by class except for few-shot.
    ValueError if an option is unknown, a metric cannot be computed, or features are not finite.
    """

    embedder: nn.Module  # images (B, 3, H, W) -> ``Embedding``, already on ``device``; not trained
    downstream: Downstream
    transform: Transform
    bs: int = 112
    workers: int = 6
    device: torch.device | str = "cpu"
    search_device: torch.device | str | None = None  # of classifiers; None: ``device``
    precision: str = "fp32"
    seed: int = 0  # of episodes and of the validation images, unless the dataset names some
    cache: Path | None = None  # folder that keeps features
    which: str = "features"  # of ``EVALTYPES``: the pooled ones, or "embeds"
    retrieval_metrics: Sequence[str] = ("recall@1", "mAP@R")  # none that reads words
    knn_k: Sequence[int] = (20, 200)
    ways: int = 5
    shots: int = 5
    queries: int = 6
    episodes: int = 5000

    def __post_init__(self) -> None:
        check_evaltypes([self.which])
        self.compare_on = self.device if self.search_device is None else self.search_device
        self.backbone_digest = digest_of_backbone(self.embedder) if self.cache else None
        self.groups = getattr(self.downstream.test, "class_groups", ()) or None
        scoring.validate(self.retrieval_metrics, None, self.groups)

    @cached_property
    def train(self) -> LabelledFeatures:
        return self._extracted(self.downstream.train)

    @cached_property
    def val(self) -> LabelledFeatures | None:
        return None if self.downstream.val is None else self._extracted(self.downstream.val)

    @cached_property
    def test(self) -> LabelledFeatures:
        return self._extracted(self.downstream.test)

    @cached_property
    def train_and_val(self) -> LabelledFeatures:
        return self.train if self.val is None else joined(self.train, self.val)

    def _extracted(self, images: Images) -> LabelledFeatures:
        extracted = cached_features(
            *(self.embedder, images, self.transform),
            cache=self.cache,
            backbone_digest=self.backbone_digest,
            **{name: getattr(self, name) for name in ("bs", "workers", "device", "precision")},
        )
        features = getattr(extracted, self.which)
        n_bad = int((~features.square().sum(dim=1).isfinite()).sum())
        if n_bad:
            raise ValueError(
                f"the {self.which} of {n_bad} of {len(features)} images of {images.name} are not "
                "finite, or too large to square; check the weights, or evaluate at --precision fp32"
            )
        return LabelledFeatures(features, extracted.labels)

    def _protocol(self, text: str) -> str:
        """Describe how a score was measured, in one line."""
        d = self.train.features.shape[1]
        return f"{self.downstream.name}.downstream {text} {self.which} d={d} seed={self.seed}"

    def _classified(self, name: str, value: float, correct: Tensor, setting: str) -> Scores:
        """Return the score of a classifier of the test images; ``setting`` ends its protocol."""
        name = f"{self.downstream.name}/{name}"
        n_classes = self.downstream.n_classes
        n_train, n_test = len(self.train_and_val.labels), len(self.test.labels)
        kind = "mean class accuracy" if self.downstream.per_class else "accuracy"
        protocol = self._protocol(
            f"n_train={n_train} n_test={n_test} classes={n_classes} {kind} {setting}"
        )
        by_class = class_accuracies(self.test.labels, correct, n_classes)
        return Scores({name: value}, {name: protocol}, by_class={name: by_class})

    def linear_probe(self) -> Scores:
        """``linear_probe``: accuracy, or the mean class accuracy for datasets scored by it."""
        found = linear_probe(
            *(self.train, self.val, self.test),
            per_class=self.downstream.per_class, device=self.compare_on, seed=self.seed,
        )  # fmt: skip
        drawn = "" if self.downstream.val else " chosen on a drawn fifth of train"
        setting = f"cost={found.cost:.3g}{drawn}"
        return self._classified("linear_probe", found.accuracy, found.correct, setting)

    def fewshot(self) -> Scores:
        """``fewshot_5w5s``: shots are of train and validation images, queries of test images.

        The 95 % interval is over classes; if there are no more than an episode has, over images.
        """
        train, test = self.train_and_val, self.test
        options = {n: getattr(self, n) for n in ("ways", "shots", "queries", "episodes", "seed")}
        drawn, source = draw_of_sets(train.labels, test.labels, **options)
        pool = joined(train, test)
        found = score_episodes(pool.features, drawn, device=self.compare_on)
        same = drawn.n_classes == self.ways
        units = drawn.rows.flatten(1) if same else pool.labels[drawn.rows[:, :, 0]]
        covered = f"of the same {self.ways} classes, {OVER_IMAGES}" if same else "over classes"
        name = f"{self.downstream.name}/fewshot_{self.ways}w{self.shots}s"
        protocol = self._protocol(
            f"{self.ways}-way {self.shots}-shot {drawn.queries} queries episodes={self.episodes} "
            f"{source} n_train={len(train.labels)} n_test={len(test.labels)} "
            f"classes={drawn.n_classes} centred by shots, interval {covered},"
        )
        bounds = interval(found.accuracies, units)
        return Scores({name: found.accuracy}, {name: protocol}, {name: bounds})

    def knn(self) -> Scores:
        """``knn@20`` and the like: accuracy, or its mean over classes."""
        train, device = self.train_and_val, self.compare_on
        predicted = classify(*train, self.test.features, self.knn_k, device=device)
        scores = Scores({}, {})
        for k, labels in predicted.items():
            value = accuracy(self.test.labels, labels, per_class=self.downstream.per_class)
            correct, setting = labels == self.test.labels, f"cosine exact T={TEMPERATURE}"
            scores.add(self._classified(f"knn@{k}", value, correct, setting))
        return scores

    def retrieval(self) -> Scores:
        """``features/recall@1`` and the like: each test image queries all the others."""
        features, labels = self.test
        gallery = Gallery(features.to(self.compare_on), labels, None, self.groups, seed=self.seed)
        name = self.downstream.name
        found = score(gallery, self.retrieval_metrics, set_name=f"{name}.downstream.test")
        scores = Scores({}, {})
        scores.add(found, f"{name}/{self.which}/")
        return scores


PROTOCOLS = {
    "retrieval": DownstreamEvaluation.retrieval,
    "linear_probe": DownstreamEvaluation.linear_probe,
    "fewshot": DownstreamEvaluation.fewshot,
    "knn": DownstreamEvaluation.knn,
}


def draw_of_sets(train: Tensor, test: Tensor, **options: Any) -> tuple[Episodes, str]:
    """Draw episodes of the rows of train and, after them, test; return them and their source.

    Shots are of train and queries of test, or both of all images if too few classes have enough.
    Arguments are labels, and options of ``draw_episodes``.
    """
    try:
        return draw_episodes(train, test, **options), "shots from train, queries from test"
    except ValueError:
        return draw_episodes(torch.cat([train, test]), **options), "shots and queries from all"


def check(names: Sequence[str], downstream: Downstream) -> None:
    """Raise ValueError if a dataset has too few images for a protocol; embeds nothing."""
    train, val, test = (
        torch.tensor([images.label(row) for row in range(len(images))] if images else [])
        for images in (downstream.train, downstream.val, downstream.test)
    )
    try:
        if "fewshot" in names:
            draw_of_sets(torch.cat([train, val]).long(), test, episodes=1)
        if "linear_probe" in names and downstream.val is None:
            hold_out(LabelledFeatures(train, train), seed=0)
    except ValueError as error:
        raise ValueError(f"--evaluations on {downstream.name}: {error}") from error


def evaluate_downstream(
    names: Sequence[str],
    embedder: nn.Module,
    downstream: Downstream,
    transform: Transform,
    **options: Any,
) -> Scores:
    """Return the scores of the named ``PROTOCOLS``, in the first of processes that train together.

    Args:
        options: further fields of ``DownstreamEvaluation``.

    Raises:
        ValueError: a name is unknown, before anything is embedded; or as the protocols.
    """
    protocols = [lookup(PROTOCOLS, name, "protocol") for name in dict.fromkeys(names)]
    evaluation = DownstreamEvaluation(embedder, downstream, transform, **options)
    scores = Scores({}, {})
    if distributed.world_size() > 1:
        for part in ("train", "val", "test"):  # all processes embed, the first one evaluates
            getattr(evaluation, part)
        if not distributed.is_first():
            return scores
    unknown = np.setdiff1d(evaluation.test.labels, evaluation.train_and_val.labels)
    if len(unknown):
        names = [downstream.class_names[label] for label in unknown]
        LOG.warning(
            "%s: %d %s test images, but no readable training image: %s",
            *(downstream.name, len(names), "class has" if len(names) == 1 else "classes have"),
            listed(names),
        )
    for protocol in protocols:
        scores.add(protocol(evaluation))
    return scores
