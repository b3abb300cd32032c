"""Linear probe: how well a linear classifier of frozen features tells classes apart.

Logistic regression with the cost C chosen on validation images, fitted again with them, and scored
on test images: Kornblith, Shlens and Le, Do Better ImageNet Models Transfer Better?, CVPR 2019. The
search over C is that of Radford et al., Learning Transferable Visual Models, ICML 2021, A.3.
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from evaluation.logistic_regression import ITERATIONS, LogisticRegression, principal_axes
from utilities.seeding import derive

T = TypeVar("T")

log = logging.getLogger(__name__)

EXPONENTS = tuple(range(-6, 7, 2))  # of the costs that are tried first: 1e-6 ... 1e6
FINEST = 1 / 8  # decades between the costs that are tried last
HELD_OUT = 0.2  # of each class's training images, if there are no validation images
FINAL_TOLERANCE = 1e-6  # of the fit that is scored


class LabelledFeatures(NamedTuple):
    features: Tensor  # (N, D) floating
    labels: Tensor  # (N,) int64, >= 0


class ProbeScore(NamedTuple):
    accuracy: float  # on test; or its mean over the classes of test
    cost: float  # C, chosen on validation
    validation: float  # the score that chose it
    correct: Tensor  # (M,) bool, of the test images


def linear_probe(
    train: LabelledFeatures,
    val: LabelledFeatures | None,
    test: LabelledFeatures,
    *,
    per_class: bool = False,
    iterations: int = ITERATIONS,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> ProbeScore:
    """Choose C on ``val``, fit on ``train`` and ``val``, score ``test``.

    Test images have no part in the choice. A class that only they have is always wrong.

    Args:
        val: None holds out a fifth of each class of ``train``, drawn by ``seed``; a class of one
            image stays in train.
        per_class: score, and choose by, the mean class accuracy.
        iterations: of L-BFGS, at most, for one fit.

    Raises:
        ValueError: features are not finite, there are fewer than two classes, or no class has two
            images to hold one out.
    """
    if val is None:
        train, val = hold_out(train, seed)
    n_train = len(train.labels)
    both = joined(train, val)
    axes = principal_axes(both.features.to(device))
    points = axes.apply(both.features)
    classes, labels = both.labels.to(device).unique(return_inverse=True)
    score = partial(accuracy, per_class=per_class)

    chosen_by = LogisticRegression(points[:n_train], labels[:n_train], axes.variances, len(classes))
    cost, start, validation = choose_cost(
        partial(chosen_by.fit, iterations=iterations),
        lambda fit: score(labels[n_train:], fit.logits(points[n_train:]).argmax(dim=1)),
    )
    final = LogisticRegression(points, labels, axes.variances, len(classes))
    fit = final.fit(cost, start, iterations=iterations, tolerance=FINAL_TOLERANCE)
    if not fit.converged:
        log.warning(
            "the linear probe at cost %.3g has not converged after %d iterations", cost, iterations
        )
    predicted = classes[fit.logits(axes.apply(test.features)).argmax(dim=1)].cpu()
    correct = predicted == test.labels.cpu()
    return ProbeScore(score(test.labels.cpu(), predicted), cost, validation, correct)


def hold_out(train: LabelledFeatures, seed: int) -> tuple[LabelledFeatures, LabelledFeatures]:
    """Split off a fifth of each class, or one image of a class of two, for validation.

    Raises ValueError if no class has two.
    """
    rng = np.random.default_rng(derive(seed, "probe validation"))
    labels = train.labels.cpu().numpy()
    held = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        held[rows[: min(max(1, round(HELD_OUT * len(rows))), len(rows) - 1)]] = True
    if not held.any():
        raise ValueError(
            "the linear probe has no validation image to choose its cost by: no class has two "
            "training images; give a dataset with more images per class"
        )
    kept, drawn = (
        LabelledFeatures(train.features[mask], train.labels[mask])
        for mask in (torch.from_numpy(~held), torch.from_numpy(held))
    )
    return kept, drawn


def joined(first: LabelledFeatures, second: LabelledFeatures) -> LabelledFeatures:
    """Concatenate two sets of points."""
    return LabelledFeatures(*(torch.cat(pair) for pair in zip(first, second, strict=True)))


def class_accuracies(labels: Tensor, correct: Tensor, n_classes: int) -> Tensor:
    """Return the (C,) float64 share of correct images of each class; NaN for an empty class."""
    sizes = labels.bincount(minlength=n_classes)
    return labels.bincount(weights=correct.double(), minlength=n_classes) / sizes


def accuracy(labels: Tensor, predicted: Tensor, *, per_class: bool) -> float:
    """Return the share of correct images, or its mean over classes."""
    correct = predicted == labels
    if not per_class:
        return float(correct.double().mean())
    return float(class_accuracies(labels, correct, 0).nanmean())


def choose_cost(
    fit: Callable[[float, T | None], T], score: Callable[[T], float]
) -> tuple[float, T, float]:
    """Return the cost whose fit scores best, its fit and its score; the smallest among equals.

    Seven costs a hundredfold apart come first, then the neighbours of the best at ever smaller
    steps: fifteen fits, each started from the nearest before it.
    """
    fits: dict[float, T] = {}
    scores: dict[float, float] = {}

    def attempt(exponent: float) -> None:
        if exponent in fits or not EXPONENTS[0] <= exponent <= EXPONENTS[-1]:
            return
        nearest = min(fits, key=lambda other: abs(other - exponent), default=None)
        fits[exponent] = fit(10.0**exponent, None if nearest is None else fits[nearest])
        scores[exponent] = score(fits[exponent])

    def best() -> float:
        return max(scores, key=lambda exponent: (scores[exponent], -exponent))

    for exponent in EXPONENTS:
        attempt(exponent)
    step = 1.0
    while step >= FINEST:
        centre = best()
        attempt(centre - step)
        attempt(centre + step)
        step /= 2
    return 10.0 ** best(), fits[best()], scores[best()]
