"""Linear probe: how well a linear classifier on frozen features tells classes apart.

Multinomial logistic regression with the cost C chosen on validation images, fitted anew on training
and validation images together, and scored on test images: Kornblith, Shlens and Le, Do Better
ImageNet Models Transfer Better?, CVPR 2019. The search over C is that of Radford et al., Learning
Transferable Visual Models From Natural Language Supervision, ICML 2021, A.3.
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits
from torch import Tensor

from utilities.seeding import derive

T = TypeVar("T")

log = logging.getLogger(__name__)

EXPONENTS = tuple(range(-6, 7, 2))  # of the costs that are tried first: 1e-6 ... 1e6
FINEST = 1 / 8  # decades between the costs that are tried last
HELD_OUT = 0.2  # of each class's training images, where no validation images are given
BLOCK = 1 << 24  # logits at a time
TOLERANCE = 1e-5  # of fits that are compared
FINAL_TOLERANCE = 1e-6  # of the fit that is scored
ITERATIONS = 1000


class Labelled(NamedTuple):
    """N points with their classes."""

    features: Tensor  # (N, D) floating
    labels: Tensor  # (N,) int64, >= 0


class ProbeScore(NamedTuple):
    """What a probe scored, and how."""

    accuracy: float  # on test; or the mean over its classes of their accuracy
    cost: float  # C, chosen on validation
    validation: float  # the score that chose it
    correct: Tensor  # (M,) bool, of the test images


def linear_probe(
    train: Labelled,
    val: Labelled | None,
    test: Labelled,
    *,
    per_class: bool = False,
    iterations: int = ITERATIONS,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> ProbeScore:
    """Choose C on ``val``, fit on ``train`` and ``val``, score ``test``.

    Test images have no part in the choice. A class that only they have is always wrong.

    Args:
        val: None takes a fifth of each class of ``train``, drawn by ``seed``; a class of one image
            stays in train.
        per_class: score, and choose by, the mean over classes of their accuracy.
        iterations: most that L-BFGS takes for one fit.
        device: where the products of matrices are computed.

    Raises:
        ValueError: features are not finite, there are fewer than two classes, or nothing is left to
            choose by.
    """
    if val is None:
        train, val = hold_out(train, seed)
    if not len(val.labels):
        raise ValueError(
            "the linear probe has no validation image to choose its cost by: no class has two "
            "training images; give a dataset with more images per class"
        )
    n_train = len(train.labels)
    both = Labelled(*(torch.cat(pair) for pair in zip(train, val, strict=True)))
    axes = principal_axes(both.features.to(device))
    points = axes.apply(both.features)
    classes, labels = both.labels.to(device).unique(return_inverse=True)
    score = partial(_score, per_class=per_class)

    chosen_by = LogisticRegression(points[:n_train], labels[:n_train], axes.variances, len(classes))
    cost, start, validation = choose_cost(
        partial(chosen_by.fit, iterations=iterations),
        lambda fit: score(labels[n_train:], fit.logits(points[n_train:]).argmax(dim=1)),
    )
    final = LogisticRegression(points, labels, axes.variances, len(classes))
    fit = final.fit(cost, start, iterations=iterations, tolerance=FINAL_TOLERANCE)
    if not fit.converged:
        log.warning(
            "the linear probe at cost %.3g was not converged after %d iterations", cost, iterations
        )
    predicted = classes[fit.logits(axes.apply(test.features)).argmax(dim=1)].cpu()
    correct = predicted == test.labels.cpu()
    return ProbeScore(score(test.labels.cpu(), predicted), cost, validation, correct)


def hold_out(train: Labelled, seed: int) -> tuple[Labelled, Labelled]:
    """The rest, and for validation a fifth of each class, or one image where there are two."""
    rng = np.random.default_rng(derive(seed, "probe validation"))
    labels = train.labels.cpu().numpy()
    held = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        held[rows[: min(max(1, round(HELD_OUT * len(rows))), len(rows) - 1)]] = True
    mask = torch.from_numpy(held)
    return (
        Labelled(train.features[~mask], train.labels[~mask]),
        Labelled(train.features[mask], train.labels[mask]),
    )


def class_accuracies(labels: Tensor, correct: Tensor, n_classes: int) -> Tensor:
    """(C,) float64 share of correct images of each class; NaN where a class has none."""
    sizes = labels.bincount(minlength=n_classes)
    return labels.bincount(weights=correct.double(), minlength=n_classes) / sizes


def _score(labels: Tensor, predicted: Tensor, per_class: bool) -> float:
    correct = predicted == labels
    if not per_class:
        return float(correct.double().mean())
    return float(class_accuracies(labels, correct, 0).nanmean())


# -------------------------------------------------------------------------------- choosing the C


def choose_cost(
    fit: Callable[[float, T | None], T], score: Callable[[T], float]
) -> tuple[float, T, float]:
    """The cost whose fit scores best, its fit and its score; the smaller cost among equals.

    Seven costs a hundredfold apart come first, then the neighbours of the best at ever smaller
    steps down to an eighth of a decade: fifteen fits, each started from the nearest before it.
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
        middle = best()
        attempt(middle - step)
        attempt(middle + step)
        step /= 2
    return 10.0 ** best(), fits[best()], scores[best()]


# ------------------------------------------------------------------------------------ the solver


class Axes(NamedTuple):
    """The principal axes of N points, without those along which the points do not differ."""

    mean: Tensor  # (D,)
    rotation: Tensor  # (D, R), orthonormal columns
    variances: Tensor  # (R,) float64

    def apply(self, features: Tensor) -> Tensor:
        """(N, R): the same points in these axes, on their device."""
        rows = [
            (part.to(self.mean) - self.mean) @ self.rotation
            for part in features.split(max(1, BLOCK // features.shape[1]))
        ]
        return torch.cat(rows)


def principal_axes(features: Tensor) -> Axes:
    """The axes of (N, D) points, of some of them where they are far more than D.

    Raises:
        ValueError: a feature is not finite.
    """
    n, d = features.shape
    if not bool(features.sum(dim=0).isfinite().all()):
        raise ValueError(
            "the linear probe needs finite features, some are not; check the weights, or evaluate "
            "with --precision fp32"
        )
    some = features[:: max(1, n // (4 * d))].double()
    mean = some.mean(dim=0)
    centred = some - mean
    variances, rotation = torch.linalg.eigh(centred.T @ centred / len(some))
    if len(some) == n:  # else an axis that is empty here may not be empty elsewhere
        kept = variances > 1e-10 * variances[-1]
        variances, rotation = variances[kept], rotation[:, kept]
    return Axes(mean.to(features), rotation.to(features), variances.clamp(min=0))


class Fit(NamedTuple):
    """A linear classifier in principal axes."""

    weights: Tensor  # (C, R) float64
    bias: Tensor  # (C,) float64
    converged: bool
    evaluations: int  # of the objective and its gradient

    def logits(self, points: Tensor) -> Tensor:
        """(N, C) of (N, R) points."""
        weights, bias = self.weights.to(points), self.bias.to(points)
        return torch.addmm(bias, points, weights.T)

    def in_features(self, axes: Axes) -> tuple[Tensor, Tensor]:
        """The same classifier of (N, D) features: weights (C, D) and bias (C,), float64."""
        weights = self.weights @ axes.rotation.to(self.weights).T
        return weights, self.bias - weights @ axes.mean.to(self.weights)


class LogisticRegression:
    """Minimises C Σ_i −log softmax(W x_i + b)[y_i] + ½ |W|², of scikit-learn's LogisticRegression.

    The penalty is on the squared norm, and b has none. With two classes scikit-learn takes one
    logit for both, so that its C is twice the one here.

    L-BFGS (scipy's) sees W in other coordinates, which change its path and not the minimum. Along
    principal axes the Hessian at W = 0 is diagonal: variance / classes + 1 / (C N) for the mean
    loss. With the mean variance added, which keeps axes of little variance from being blown up
    where classes are separable and the Hessian fades, its root is the scale of each axis. That
    takes half of the steps or fewer on networks' features. Products of matrices are computed in
    the type of the points and on their device; sums and L-BFGS itself in float64.

    Args:
        points: (N, R), centred.
        labels: (N,) int64 in [0, n_classes).
        variances: (R,) float64, of the points along their axes.

    Raises:
        ValueError: there are fewer than two classes.
    """

    def __init__(self, points: Tensor, labels: Tensor, variances: Tensor, n_classes: int) -> None:
        if n_classes < 2:
            raise ValueError(f"the linear probe needs two classes or more, found {n_classes}")
        self.points = points
        self.labels = labels
        self.variances = variances
        self.n_classes = n_classes

    def fit(
        self,
        cost: float,
        start: Fit | None = None,
        *,
        iterations: int = ITERATIONS,
        tolerance: float = TOLERANCE,
    ) -> Fit:
        """The minimum for C = ``cost``.

        Args:
            start: where to begin; None begins at zero.
            iterations: most of L-BFGS.
            tolerance: largest absolute entry of the gradient at which to stop, of the objective
                divided by C N, in the coordinates above.
        """
        n, k, r = len(self.points), self.n_classes, len(self.variances)
        decay = 1 / (cost * n)
        # One column more for the bias, which acts on a constant 1.
        scale = torch.cat(
            [
                ((self.variances + self.variances.mean()) / k + decay).sqrt(),
                self.variances.new_tensor([k**-0.5]),
            ]
        )
        where = self.variances

        def unpack(flat: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
            both = torch.from_numpy(flat).to(where).view(k, r + 1) / scale
            return both[:, :-1], both[:, -1]

        def objective(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            weights, bias = unpack(flat)
            loss, by_weights, by_bias = self._cross_entropy(weights, bias)
            value = loss / n + decay / 2 * weights.square().sum()
            gradient = torch.cat([by_weights / n + decay * weights, by_bias[:, None] / n], dim=1)
            return float(value), (gradient / scale).view(-1).cpu().numpy()

        begin = np.zeros(k * (r + 1))
        if start is not None:
            both = torch.cat([start.weights, start.bias[:, None]], dim=1) * scale
            begin = both.view(-1).cpu().numpy()
        # L-BFGS's own sums over vectors are short; numpy's threads for them would wait for work in
        # a loop, on the cores that torch's threads need.
        with threadpool_limits(1, "blas"):
            found = minimize(
                objective,
                begin,
                jac=True,
                method="L-BFGS-B",
                options={
                    "maxiter": iterations,
                    "maxfun": 2 * iterations,
                    "gtol": tolerance,
                    "ftol": 10 * tolerance**2,  # of the value: an iteration gains |g|² or so
                },
            )
        # Status 2 is a line search that rounding has stopped: as good as these floats get.
        return Fit(*unpack(found.x), converged=found.status != 1, evaluations=int(found.nfev))

    def _cross_entropy(self, weights: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Σ_i −log softmax(W x_i + b)[y_i] and its gradients by W and b, float64."""
        loss = weights.new_zeros(())
        by_weights, by_bias = torch.zeros_like(weights), torch.zeros_like(bias)
        w, b = weights.to(self.points), bias.to(self.points)
        n_rows = max(1, BLOCK // self.n_classes)
        for points, labels in zip(
            self.points.split(n_rows), self.labels.split(n_rows), strict=True
        ):
            log_p = torch.addmm(b, points, w.T).log_softmax(dim=1)  # (B, C)
            loss -= log_p.gather(1, labels[:, None]).sum(dtype=torch.float64)
            residual = log_p.exp_()
            residual[torch.arange(len(labels), device=labels.device), labels] -= 1
            by_weights += residual.T @ points
            by_bias += residual.sum(dim=0, dtype=torch.float64)
        return loss, by_weights, by_bias
