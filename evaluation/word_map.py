"""A map from words to the images that they name, so that words find images of classes never seen.

In closed form, with both penalties chosen on training classes that are left out in turn: Romera-
Paredes and Torr, An Embarrassingly Simple Approach to Zero-Shot Learning, ICML 2015, eq. 4.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# In multiples of the mean of the eigenvalues that they are added to.
IMAGE_PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0)
WORD_PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
FOLDS = 5
FEWEST = 2 * FOLDS  # training classes, so that a part left out has two
MOST = 1000  # classes that the penalties are chosen on


@dataclass(frozen=True)
class WordMap:
    """Text embeddings (U, D_text) -> queries for the images they name, (U, D) unit rows.

    The nearest images of q = (t - t̄) W are those of the largest cosine.
    """

    weight: Tensor  # (D_text, D) float32, W
    text_mean: Tensor  # (D_text,), t̄
    penalties: tuple[float, float]  # of images and words

    def __call__(self, texts: Tensor) -> Tensor:
        return F.normalize((texts - self.text_mean) @ self.weight, dim=1)


class Solver(NamedTuple):
    """The solutions for all penalties, from one decomposition each of images and words.

        W = (Tᵀ T + β I)⁻¹ Tᵀ M (Xᵀ X / N + γ I)⁻¹

    of centred text embeddings T (C, D_text) and class means M (C, D), and all centred images X.
    """

    text_mean: Tensor  # (D_text,)
    text_axes: Tensor  # (D_text, R), eigenvectors of Tᵀ T, but those of 0
    text_values: Tensor  # (R,)
    image_axes: Tensor  # (D, D), eigenvectors of the covariance of the images
    image_values: Tensor  # (D,)
    both: Tensor  # (R, D), Tᵀ M along these axes

    @classmethod
    def of(cls, texts: Tensor, embeds: Tensor, labels: Tensor) -> "Solver":
        """Decompose texts (C, D_text) and unit embeddings (N, D) of classes in [0, C), float64."""
        means = class_means(embeds, labels, len(texts))
        text_mean = texts.mean(dim=0)
        _, singular, axes = torch.linalg.svd(texts - text_mean, full_matrices=False)
        kept = singular > 1e-6 * singular[0]
        centred = embeds - embeds.mean(dim=0)
        image_values, image_axes = torch.linalg.eigh(centred.T @ centred / len(embeds))
        both = axes[kept] @ (texts - text_mean).T @ (means - means.mean(dim=0)) @ image_axes
        text_values = singular[kept].square()
        return cls(text_mean, axes[kept].T, text_values, image_axes, image_values, both)

    def weight(self, penalties: tuple[float, float]) -> Tensor:
        """Return W (D_text, D) for penalties of images and words."""
        return self.text_axes @ self._shrunk(penalties) @ self.image_axes.T

    def cosines(self, texts: Tensor, embeds: Tensor) -> Callable[[tuple[float, float]], Tensor]:
        """Return a function from penalties to (U, N) similarities, each row up to its scale."""
        along_texts = (texts - self.text_mean) @ self.text_axes
        along_images = embeds @ self.image_axes
        return lambda penalties: along_texts @ self._shrunk(penalties) @ along_images.T

    def _shrunk(self, penalties: tuple[float, float]) -> Tensor:
        gamma = penalties[0] * self.image_values.mean()
        beta = penalties[1] * self.text_values.mean()
        return self.both / (self.text_values + beta)[:, None] / (self.image_values + gamma)


def fit(
    texts: Tensor,
    embeds: Tensor,
    labels: Tensor,
    penalties: tuple[float, float] | None = None,
    *,
    seed: int = 0,
) -> WordMap:
    """Return the map of the training classes.

    Args:
        texts: (C, D_text) unit rows, the names of the classes.
        embeds: (N, D) unit rows.
        labels: (N,) int64 in [0, C), each at least once.
        penalties: of images and words; None chooses those by which the names of classes left out
            rank their first image highest (mean reciprocal rank, over ``FOLDS`` folds of classes).
        seed: of the folds.

    Raises:
        ValueError: there are fewer than ``FEWEST`` classes.
    """
    if len(texts) < FEWEST:
        raise ValueError(
            f"a map from words to images needs at least {FEWEST} training classes; got {len(texts)}"
        )
    texts, embeds, labels = texts.double().cpu(), embeds.double().cpu(), labels.cpu()
    if penalties is None:
        penalties = choose_penalties(texts, embeds, labels, seed)
    solver = Solver.of(texts, embeds, labels)
    return WordMap(solver.weight(penalties).float(), solver.text_mean.float(), penalties)


def choose_penalties(
    texts: Tensor, embeds: Tensor, labels: Tensor, seed: int
) -> tuple[float, float]:
    """Return the penalties of images and words that are best on classes left out."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(texts))[:MOST])
    totals = dict.fromkeys(product(IMAGE_PENALTIES, WORD_PENALTIES), 0.0)
    for fold in order.tensor_split(FOLDS):
        others = order[~torch.isin(order, fold)]
        kept, left_out = torch.isin(labels, others), torch.isin(labels, fold)
        solver = Solver.of(texts[others], embeds[kept], _places(labels[kept], others))
        own = _places(labels[left_out], fold) == torch.arange(len(fold))[:, None]
        cosines = solver.cosines(texts[fold], embeds[left_out])
        for penalties in totals:
            totals[penalties] += float(_reciprocal_ranks(cosines(penalties), own).sum())
    return max(totals, key=lambda penalties: totals[penalties])


def class_means(embeds: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """Return the (C, D) mean of the embeddings of each class."""
    sums = embeds.new_zeros(n_classes, embeds.shape[1]).index_add_(0, labels, embeds)
    return sums / labels.bincount(minlength=n_classes)[:, None]


def _places(labels: Tensor, classes: Tensor) -> Tensor:
    """Return the place in ``classes`` of each label."""
    places = labels.new_full((int(classes.max()) + 1,), -1)
    places[classes] = torch.arange(len(classes))
    return places[labels]


def _reciprocal_ranks(cosines: Tensor, own: Tensor) -> Tensor:
    """Return (C,), 1 / rank of the first of each query's own images; ties count against it."""
    best = cosines.masked_fill(~own, -torch.inf).amax(dim=1, keepdim=True)
    return 1 / (((cosines >= best) & ~own).sum(dim=1) + 1)
