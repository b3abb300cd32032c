"""Judges frozen features on a labelled dataset by several protocols, from one extraction."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import metrics as scoring
from datasets.downstream import Downstream
from datasets.image_set import Images
from datasets.loading import Transform
from evaluation.extract import Features
from evaluation.feature_cache import cached_features, digest_of_embedder
from evaluation.fewshot import draw_episodes, score_episodes
from evaluation.knn_classifier import TEMPERATURE, classify
from evaluation.linear_probe import Labelled, class_accuracies, linear_probe
from evaluation.retrieval import EVALTYPES, Scores, score
from metrics import Gallery
from utilities import distributed
from utilities.distributed import world_size
from utilities.registry import lookup


@dataclass
class Frozen:
    """A dataset's features, extracted when a protocol first asks for them, and the protocols.

    Each protocol returns its scores as ``<dataset>/<protocol>``: values in [0, 1] (retrieval: as
    its metrics), intervals of few-shot and retrieval, values by class where a protocol has them.

    Args:
        embedder: images (B, 3, H, W) -> ``Embedding``, on ``device`` already; not trained.
        transform: image -> (3, H, W) float32, without chance.
        bs, workers, device, precision: as ``extract``.
        search_device: where classifiers are fitted and features compared; None: where they are
            extracted.
        seed: of episodes and, where none is published, of the validation images.
        cache: folder that keeps features; None keeps none.
        which: of the embedder's outputs, of ``EVALTYPES``; "features" are the pooled ones.
        retrieval_metrics: as ``metrics`` parses them, without those that read words.
        knn_k: numbers of neighbours.
        ways, shots, queries, episodes: as ``draw_episodes``.

    Raises:
        ValueError: an option is unknown, or a metric cannot be computed.
    """

    embedder: nn.Module
    downstream: Downstream
    transform: Transform
    bs: int = 112
    workers: int = 6
    device: torch.device | str = "cpu"
    search_device: torch.device | str | None = None
    precision: str = "fp32"
    seed: int = 0
    cache: Path | None = None
    which: str = "features"
    retrieval_metrics: Sequence[str] = ("recall@1", "mAP@R")
    knn_k: Sequence[int] = (20, 200)
    ways: int = 5
    shots: int = 5
    queries: int = 6
    episodes: int = 5000

    def __post_init__(self) -> None:
        if self.which not in EVALTYPES:
            known = ", ".join(EVALTYPES)
            raise ValueError(f"--evaltypes {self.which} is unknown; use one of {known}")
        scoring.validate(self.retrieval_metrics, None, self.groups)

    @cached_property
    def train(self) -> Labelled:
        return self._extracted(self.downstream.train)

    @cached_property
    def val(self) -> Labelled | None:
        return None if self.downstream.val is None else self._extracted(self.downstream.val)

    @cached_property
    def test(self) -> Labelled:
        return self._extracted(self.downstream.test)

    @cached_property
    def train_and_val(self) -> Labelled:
        return self.train if self.val is None else _joined(self.train, self.val)

    @property
    def fitting(self) -> torch.device | str:
        return self.device if self.search_device is None else self.search_device

    @cached_property
    def digest(self) -> str | None:
        return digest_of_embedder(self.embedder) if self.cache else None

    @property
    def groups(self) -> tuple[str, ...] | None:
        return getattr(self.downstream.test, "class_groups", ()) or None

    def _extracted(self, images: Images) -> Labelled:
        extracted: Features = cached_features(
            self.embedder,
            images,
            self.transform,
            cache=self.cache,
            embedder_digest=self.digest,
            bs=self.bs,
            workers=self.workers,
            device=self.device,
            precision=self.precision,
        )
        return Labelled(getattr(extracted, self.which), extracted.labels)

    def protocol(self, *words: str) -> str:
        """What was measured on which features, as one line."""
        d = self.train.features.shape[1]
        said = " ".join(words)
        return f"{self.downstream.name}.downstream {said} {self.which} d={d} seed={self.seed}"

    @property
    def sizes(self) -> str:
        n_train, n_test = len(self.train_and_val.labels), len(self.test.labels)
        return f"n_train={n_train} n_test={n_test} classes={self.downstream.n_classes}"

    # ------------------------------------------------------------------------------- protocols

    def linear_probe(self) -> Scores:
        """``linear_probe``: accuracy, or its mean over classes where the dataset is scored so."""
        per_class = self.downstream.per_class
        found = linear_probe(
            *(self.train, self.val, self.test),
            per_class=per_class,
            device=self.fitting,
            seed=self.seed,
        )
        measured = "mean class accuracy" if per_class else "accuracy"
        drawn = "" if self.downstream.val else " chosen on a drawn fifth of train"
        protocol = self.protocol(self.sizes, measured, f"cost={found.cost:.3g}{drawn}")
        return self._one("linear_probe", found.accuracy, protocol, found.correct)

    def fewshot(self) -> Scores:
        """``fewshot_5w5s``, with the 95 % interval of its mean over episodes.

        Images are those of test; of the whole dataset where test has too few of each class. They
        are centred by the mean of train, whose labels play no part.
        """
        pool, whence = self.test, "test"
        sizes = self.test.labels.bincount()
        if int((sizes >= self.shots + self.queries).sum()) < self.ways:
            pool, whence = _joined(self.train_and_val, self.test), "all"
        drawn = draw_episodes(
            pool.labels,
            ways=self.ways,
            shots=self.shots,
            queries=self.queries,
            episodes=self.episodes,
            seed=self.seed,
        )
        centre = self.train.features.mean(dim=0)
        found = score_episodes(pool.features, drawn, centre=centre, device=self.fitting)
        name = f"{self.downstream.name}/fewshot_{self.ways}w{self.shots}s"
        fit = int((pool.labels.bincount() >= self.shots + drawn.queries).sum())
        protocol = self.protocol(
            f"{self.ways}-way {self.shots}-shot {drawn.queries} queries episodes={self.episodes}",
            f"of {whence} n={len(pool.labels)} classes={fit} centred by train",
        )
        return Scores({name: found.accuracy}, {name: protocol}, {name: found.interval})

    def knn(self) -> Scores:
        """``knn@20`` and the like: accuracy, or its mean over classes."""
        train = self.train_and_val
        predicted = classify(*train, self.test.features, self.knn_k, device=self.fitting)
        scores = Scores({}, {})
        for k, labels in predicted.items():
            correct = labels == self.test.labels
            accuracy = float(correct.double().mean())
            measured = "accuracy"
            if self.downstream.per_class:
                accuracy = float(class_accuracies(self.test.labels, correct, 0).nanmean())
                measured = "mean class accuracy"
            setting = f"cosine exact T={TEMPERATURE}"
            protocol = self.protocol(self.sizes, measured, setting)
            scores.add(self._one(f"knn@{k}", accuracy, protocol, correct))
        return scores

    def retrieval(self) -> Scores:
        """``features/recall@1`` and the like: each test image queries all the others."""
        features, labels = self.test
        gallery = Gallery(features.to(self.fitting), labels, None, self.groups, seed=self.seed)
        set_name = f"{self.downstream.name}.downstream.test"
        scores = Scores({}, {})
        found = score(gallery, self.retrieval_metrics, set_name=set_name)
        scores.add(found, f"{self.downstream.name}/{self.which}/")
        return scores

    def _one(self, name: str, value: float, protocol: str, correct: Tensor) -> Scores:
        name = f"{self.downstream.name}/{name}"
        by_class = class_accuracies(self.test.labels, correct, self.downstream.n_classes)
        return Scores({name: value}, {name: protocol}, by_class={name: by_class})


PROTOCOLS = {
    "retrieval": Frozen.retrieval,
    "linear_probe": Frozen.linear_probe,
    "fewshot": Frozen.fewshot,
    "knn": Frozen.knn,
}


def evaluate(
    names: Sequence[str],
    embedder: nn.Module,
    downstream: Downstream,
    transform: Transform,
    **options: Any,
) -> Scores:
    """The scores of some protocols of ``PROTOCOLS``; ``options`` are further fields of ``Frozen``.

    Processes that train together embed a share each; the first alone has scores.

    Raises:
        ValueError: a name is unknown, before anything is embedded; or as the protocols.
    """
    asked = [lookup(PROTOCOLS, name, "--evaluations") for name in dict.fromkeys(names)]
    frozen = Frozen(embedder, downstream, transform, **options)
    scores = Scores({}, {})
    if world_size() > 1:
        for part in ("train", "val", "test"):  # all processes embed, the first one judges
            getattr(frozen, part)
        if not distributed.is_first():
            return scores
    for protocol in asked:
        scores.add(protocol(frozen))
    return scores


def _joined(first: Labelled, second: Labelled) -> Labelled:
    return Labelled(*(torch.cat(pair) for pair in zip(first, second, strict=True)))
