"""A map from words to the images that they name, so that words find images of classes never seen.

A ridge regression from the text embeddings of the training classes' names to the means of their
images' embeddings: Hoerl and Kennard, Ridge Regression, Technometrics 1970; for unseen classes,
Romera-Paredes and Torr, An Embarrassingly Simple Approach to Zero-Shot Learning, ICML 2015.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

PENALTIES = tuple(10.0 ** (step / 2) for step in range(-4, 5))  # 0.01 to 100
FEWEST = 8  # training classes, below which leaving one out says nothing


@dataclass(frozen=True)
class WordMap:
    """Text embeddings (U, D_text) -> where their images should be, (U, D) unit rows.

    q = m̄ + (t - t̄) W,   W = argmin Σ_c |(t_c - t̄) W - (m_c - m̄)|² + p |W|²
    """

    weight: Tensor  # (D_text, D) float32, W
    text_mean: Tensor  # (D_text,), t̄
    image_mean: Tensor  # (D,), m̄
    penalty: float  # p

    def __call__(self, texts: Tensor) -> Tensor:
        return F.normalize(self.image_mean + (texts - self.text_mean) @ self.weight, dim=1)


class Fit(NamedTuple):
    """Ridge solutions for all penalties at once, from one decomposition of the texts."""

    left: Tensor  # (C, R) U of the centred texts T = U S Vᵀ
    singular: Tensor  # (R,) S
    right: Tensor  # (R, D_text) Vᵀ
    targets: Tensor  # (C, D) centred class means

    @classmethod
    def of(cls, texts: Tensor, means: Tensor) -> "Fit":
        texts, means = texts.double(), means.double()
        left, singular, right = torch.linalg.svd(texts - texts.mean(dim=0), full_matrices=False)
        return cls(left, singular, right, means - means.mean(dim=0))

    def weight(self, penalty: float) -> Tensor:
        """Return W (D_text, D)."""
        shrunk = self.singular / (self.singular.square() + penalty)
        return self.right.T @ (shrunk[:, None] * (self.left.T @ self.targets))

    def left_out(self, penalty: float) -> Tensor:
        """Return (C, D): m̄ + what the map of all other classes predicts for each class, less m̄.

        In closed form, y_i - (y_i - ŷ_i) / (1 - H_ii), with the diagonal of the hat matrix H:
        Allen, The Relationship Between Variable Selection and Data Augmentation and a Method for
        Prediction, Technometrics 1974.
        """
        shares = self.singular.square() / (self.singular.square() + penalty)
        fitted = self.left @ (shares[:, None] * (self.left.T @ self.targets))
        hat = 1 / len(self.left) + self.left.square() @ shares
        return self.targets - (self.targets - fitted) / (1 - hat)[:, None]


def fit(texts: Tensor, means: Tensor, penalties: Sequence[float] = PENALTIES) -> WordMap:
    """Return the map of C training classes, its penalty chosen by leaving out one class at a time.

    The penalty by which the words of a class, by the map of all others, rank its mean highest among
    all class means (mean reciprocal rank) is taken; the largest of equals.

    Args:
        texts: (C, D_text) unit rows.
        means: (C, D), mean of the unit embeddings of the images of each class.

    Raises:
        ValueError: there are fewer than ``FEWEST`` classes.
    """
    if len(texts) < FEWEST:
        raise ValueError(
            f"a map from words to images needs at least {FEWEST} training classes; got {len(texts)}"
        )
    fitted = Fit.of(texts, means)
    image_mean = means.double().mean(dim=0)
    units = F.normalize(means.double(), dim=1)
    scores = {p: _reciprocal_rank(image_mean + fitted.left_out(p), units) for p in penalties}
    best = max(scores, key=lambda p: (scores[p], p))
    return WordMap(
        fitted.weight(best).float(), texts.double().mean(dim=0).float(), image_mean.float(), best
    )


def _reciprocal_rank(predicted: Tensor, units: Tensor) -> float:
    cosines = predicted @ units.T  # the length of a prediction does not change its ranking
    own = cosines.diagonal()[:, None]
    return float((1 / (cosines >= own).sum(dim=1)).mean())
