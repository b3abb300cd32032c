"""Few-shot classification by the nearest class mean.

Features are centred and normalised to length 1, and each query gets the class whose mean shot is
nearest: Wang et al., SimpleShot, 2019 (arXiv 1911.04623), "CL2N".
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metrics import Interval
from utilities.seeding import derive

BLOCK_BYTES = 4 << 20  # of features of episodes at a time: what a core's caches hold
GPU_BLOCK_BYTES = 256 << 20


class Episodes(NamedTuple):
    """The images of E episodes."""

    rows: Tensor  # (E, ways, shots + queries) int64, the shots first
    shots: int

    @property
    def queries(self) -> int:
        return self.rows.shape[2] - self.shots


class FewShotScore(NamedTuple):
    accuracy: float
    interval: Interval
    accuracies: Tensor  # (E,) float64


def draw_episodes(
    labels: Tensor,
    *,
    ways: int = 5,
    shots: int = 5,
    queries: int = 6,
    episodes: int = 5000,
    seed: int = 0,
) -> Episodes:
    """Draw the classes of each episode, then images of each class, all without replacement.

    Only classes with enough images for shots and queries take part; ``queries`` is lowered until
    there are ``ways`` of them, and ValueError raised if it would be 0.
    """
    classes, of, sizes = np.unique(labels.cpu().numpy(), return_inverse=True, return_counts=True)
    largest = np.sort(sizes)[::-1]
    possible = int(largest[ways - 1]) - shots if len(classes) >= ways else 0
    if possible < 1:
        raise ValueError(
            f"episodes of {ways} ways and {shots} shots need {ways} classes of {shots + 1} images; "
            f"{int((sizes > shots).sum())} of {len(classes)} classes have as many"
        )
    queries = min(queries, possible)
    rng = np.random.default_rng(derive(seed, "fewshot"))
    eligible = np.flatnonzero(sizes >= shots + queries)
    drawn = _without_replacement(np.full(episodes, len(eligible)), ways, rng)
    chosen = eligible[drawn].reshape(-1)  # (E * ways,)
    by_class = np.argsort(of, kind="stable")  # rows, class after class
    first = np.cumsum(sizes) - sizes
    places = _without_replacement(sizes[chosen], shots + queries, rng)
    rows = by_class[first[chosen][:, None] + places]
    return Episodes(torch.from_numpy(rows.reshape(episodes, ways, shots + queries)), shots)


def _without_replacement(sizes: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw (M, count) numbers, those of row m below ``sizes[m]`` and distinct, in random order."""
    # Bentley and Floyd, A Sample of Brilliance, Communications of the ACM, 1987.
    drawn = np.empty((len(sizes), count), dtype=np.int64)
    for place in range(count):
        last = sizes - count + place
        tried = rng.integers(last + 1)
        taken = (drawn[:, :place] == tried[:, None]).any(axis=1)
        drawn[:, place] = np.where(taken, last, tried)
    return rng.permuted(drawn, axis=1)  # Floyd's sets are uniform, their order is not


def score_episodes(
    features: Tensor,
    episodes: Episodes,
    *,
    centre: Tensor | None = None,
    device: torch.device | str = "cpu",
    block_bytes: int | None = None,
) -> FewShotScore:
    """Return the accuracy of the nearest class mean over episodes, with its 95 % interval.

    Args:
        features: (N, D), by the rows of the episodes.
        centre: (D,), subtracted before features are normalised; None: their mean.
        block_bytes: memory of a block of episodes; changes no result. None: what suits the device.
    """
    features = features.to(device).float()
    centre = features.mean(dim=0) if centre is None else centre.to(features)
    points = F.normalize(features - centre, dim=1)
    ways = episodes.rows.shape[1]
    per_episode = 4 * episodes.rows[0].numel() * points.shape[1]
    if block_bytes is None:
        block_bytes = BLOCK_BYTES if points.device.type == "cpu" else GPU_BLOCK_BYTES
    parts = []
    for rows in episodes.rows.to(device).split(max(1, block_bytes // per_episode)):
        # (B, ways, shots + queries, D)
        chosen = points.index_select(0, rows.flatten()).unflatten(0, rows.shape)
        means = chosen[:, :, : episodes.shots].mean(dim=2)  # (B, ways, D)
        queries = chosen[:, :, episodes.shots :].flatten(1, 2)  # (B, ways * queries, D)
        # −½ |q − m|² without ½ |q|², which is the same for all classes
        scores = queries @ means.mT - means.square().sum(dim=2)[:, None] / 2
        right = torch.arange(ways, device=device).repeat_interleave(episodes.queries)
        parts.append((scores.argmax(dim=2) == right).double().mean(dim=1))
    accuracies = torch.cat(parts).cpu()
    return FewShotScore(float(accuracies.mean()), interval(accuracies), accuracies)


def interval(accuracies: Tensor) -> Interval:
    """Return mean ± 1.96 s / √E, the 95 % confidence interval of the mean of E episodes."""
    mean = float(accuracies.mean())
    half = 1.96 * float(accuracies.std()) / len(accuracies) ** 0.5 if len(accuracies) > 1 else 0.0
    return Interval(mean - half, mean + half)
