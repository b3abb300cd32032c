"""Multinomial logistic regression by L-BFGS, along the principal axes of the features.

Our own, because scikit-learn's has no GPU path: same minimum, about as fast on one CPU core
(``python -m tests.benchmarks.probe``).
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor

BLOCK = 1 << 24  # logits at a time
TOLERANCE = 1e-5  # of fits that are compared
ITERATIONS = 1000


class Axes(NamedTuple):
    """The principal axes of N points, without those along which the points do not differ."""

    mean: Tensor  # (D,)
    rotation: Tensor  # (D, R), orthonormal columns
    variances: Tensor  # (R,) float64

    def apply(self, features: Tensor) -> Tensor:
        """Return the same points in these axes, (N, R), on the device of the axes."""
        rows = [
            (part.to(self.mean) - self.mean) @ self.rotation
            for part in features.split(max(1, BLOCK // features.shape[1]))
        ]
        return torch.cat(rows)


def principal_axes(features: Tensor) -> Axes:
    """Return the axes of (N, D) finite points, or of a sample of them if N is far more than D."""
    n, d = features.shape
    if not bool(features.sum(dim=0).isfinite().all()):
        raise ValueError(
            "the linear probe needs finite features, some are not; check the weights, or evaluate "
            "with --precision fp32"
        )
    sample = features[:: max(1, n // (4 * d))].double()
    mean = sample.mean(dim=0)
    centred = sample - mean
    variances, rotation = torch.linalg.eigh(centred.T @ centred / len(sample))
    if len(sample) == n:  # an axis that is empty in a sample may not be empty elsewhere
        kept = variances > 1e-10 * variances[-1]
        variances, rotation = variances[kept], rotation[:, kept]
    return Axes(mean.to(features), rotation.to(features), variances.clamp(min=0))


class Fit(NamedTuple):
    """A linear classifier in principal axes."""

    weights: Tensor  # (C, R) float64
    bias: Tensor  # (C,) float64
    converged: bool

    def logits(self, points: Tensor) -> Tensor:
        """Return (N, C) logits of (N, R) points."""
        weights, bias = self.weights.to(points), self.bias.to(points)
        return torch.addmm(bias, points, weights.T)


class LogisticRegression:
    """Minimises C Σ_i −log softmax(W x_i + b)[y_i] + ½ |W|², as scikit-learn's LogisticRegression.

    With two classes scikit-learn uses one logit for both, so that its C is twice the one here.
    Matrix products are computed in the type of the points and on their device; sums and L-BFGS
    (scipy's) in float64.

    Args:
        points: (N, R), centred.
        labels: (N,) int64 in [0, n_classes).
        variances: (R,) float64, of the points along their axes.
        n_classes: at least 2, else ValueError.
    """

    def __init__(self, points: Tensor, labels: Tensor, variances: Tensor, n_classes: int) -> None:
        if n_classes < 2:
            raise ValueError(f"the linear probe needs at least two classes; got {n_classes}")
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
        """Return the minimum for C = ``cost``, from the classifier ``start`` or zero.

        ``tolerance`` is the largest absolute entry of the gradient at which to stop, of the
        objective divided by C N, in the scaled coordinates.
        """
        from scipy.optimize import minimize  # a quarter of a second, of every start of main.py

        n, k, r = len(self.points), self.n_classes, len(self.variances)
        decay = 1 / (cost * n)
        # L-BFGS sees W in other coordinates, which change its path and not the minimum. Along
        # principal axes the Hessian at W = 0 is diagonal: variance / classes + 1 / (C N) for the
        # mean loss. Its root is the scale of each axis; the mean variance is added because the
        # Hessian fades where classes are separable, and would blow up axes of little variance.
        # One more column for the bias, which acts on a constant 1.
        scale = torch.cat(
            [
                ((self.variances + self.variances.mean()) / k + decay).sqrt(),
                self.variances.new_tensor([k**-0.5]),
            ]
        )

        def unpack(flat: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
            both = torch.from_numpy(flat).to(self.variances).view(k, r + 1) / scale
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
        options = {
            "maxiter": iterations,
            "maxfun": 2 * iterations,
            "gtol": tolerance,
            "ftol": 10 * tolerance**2,  # of the value: an iteration gains about |g|²
        }
        # L-BFGS's own sums over vectors are short; numpy's threads for them would spin on the
        # cores that torch's threads need.
        with threadpool_limits(1, "blas"):
            found = minimize(objective, begin, jac=True, method="L-BFGS-B", options=options)
        # Status 2 is a line search stopped by rounding: as good as these floats get.
        return Fit(*unpack(found.x), converged=found.status != 1)

    def _cross_entropy(self, weights: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return Σ_i −log softmax(W x_i + b)[y_i] and its gradients by W and b, float64."""
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
