"""Few-shot classification by the nearest class mean.

Features are centred by the mean of an episode's shots and normalised to length 1, and each query
gets the class whose mean shot is nearest: Wang et al., SimpleShot, 2019 (arXiv 1911.04623), "CL2N",
whose centre is the mean of the training classes instead.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import stdtrit
from torch import Tensor

from metrics import Interval
from utilities.seeding import derive

BLOCK_BYTES = 4 << 20  # of features of episodes at a time: what a core's caches hold
GPU_BLOCK_BYTES = 256 << 20


class Episodes(NamedTuple):
    """The images of E episodes."""

    rows: Tensor  # (E, ways, shots + queries) int64, the shots first
    shots: int
    n_classes: int  # that have enough images to take part

    @property
    def queries(self) -> int:
        return self.rows.shape[2] - self.shots


class FewShotScore(NamedTuple):
    accuracy: float
    accuracies: Tensor  # (E,) float64


def draw_episodes(
    labels: Tensor,
    query_labels: Tensor | None = None,
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

    Args:
        labels: (N,) int64 classes of the images that shots are drawn from.
        query_labels: (M,) of those that queries are drawn from, whose rows follow the N of shots;
            None: both are drawn from the N.
    """
    pools = [labels] if query_labels is None else [labels, query_labels]
    n_classes = 1 + max((int(pool.max()) for pool in pools if len(pool)), default=-1)
    sizes = [pool.cpu().bincount(minlength=n_classes).numpy() for pool in pools]
    room = sizes[0] - shots if query_labels is None else np.where(sizes[0] >= shots, sizes[1], 0)
    possible = int(np.sort(room)[-ways]) if n_classes >= ways else 0
    if possible < 1:
        raise ValueError(
            f"episodes of {ways} ways and {shots} shots need {ways} classes of {shots + 1} images; "
            f"{(room > 0).sum()} of {(sum(sizes[1:], sizes[0]) > 0).sum()} classes have as many"
        )
    queries = min(queries, possible)
    rng = np.random.default_rng(derive(seed, "fewshot"))
    eligible = np.flatnonzero(room >= queries)
    drawn = _without_replacement(np.full(episodes, len(eligible)), ways, rng)
    chosen = eligible[drawn].reshape(-1)  # (E * ways,)
    counts = [shots + queries] if query_labels is None else [shots, queries]
    rows, start = [], 0
    for pool, of_class, count in zip(pools, sizes, counts, strict=True):
        by_class = np.argsort(pool.cpu().numpy(), kind="stable")  # rows, class after class
        first = np.cumsum(of_class) - of_class
        places = _without_replacement(of_class[chosen], count, rng)
        rows.append(start + by_class[first[chosen][:, None] + places])
        start += len(pool)
    drawn_rows = np.concatenate(rows, axis=1).reshape(episodes, ways, shots + queries)
    return Episodes(torch.from_numpy(drawn_rows), shots, len(eligible))


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
    device: torch.device | str = "cpu",
    block_bytes: int | None = None,
) -> FewShotScore:
    """Return the accuracy of the nearest class mean over episodes.

    Args:
        features: (N, D), by the rows of the episodes.
        block_bytes: memory of a block of episodes; changes no result. None: what suits the device.
    """
    features = features.to(device).float()
    ways = episodes.rows.shape[1]
    per_episode = 4 * episodes.rows[0].numel() * features.shape[1]
    if block_bytes is None:
        block_bytes = BLOCK_BYTES if features.device.type == "cpu" else GPU_BLOCK_BYTES
    parts = []
    for rows in episodes.rows.to(device).split(max(1, block_bytes // per_episode)):
        # (B, ways, shots + queries, D)
        chosen = features.index_select(0, rows.flatten()).unflatten(0, rows.shape)
        centre = chosen[:, :, : episodes.shots].mean(dim=(1, 2), keepdim=True)
        points = F.normalize(chosen - centre, dim=3)
        means = points[:, :, : episodes.shots].mean(dim=2)  # (B, ways, D)
        queries = points[:, :, episodes.shots :].flatten(1, 2)  # (B, ways * queries, D)
        # −½ |q − m|² without ½ |q|², which is the same for all classes
        scores = queries @ means.mT - means.square().sum(dim=2)[:, None] / 2
        right = torch.arange(ways, device=device).repeat_interleave(episodes.queries)
        parts.append((scores.argmax(dim=2) == right).double().mean(dim=1))
    accuracies = torch.cat(parts).cpu()
    return FewShotScore(float(accuracies.mean()), accuracies)


def interval(accuracies: Tensor, units: Tensor) -> Interval:
    """Return the 95 % interval of the mean accuracy over draws of units: classes, or images.

    Leaves out each unit in turn: θ_u is the mean over the episodes without u. The jackknife
    variance (U − 1) / U Σ (θ_u − θ̄)² is that of other units of the same kind, however many episodes
    are drawn of these; the noise of the episodes makes it a little too wide. NaN if a unit is in
    all episodes. Source: Arvesen, Jackknifing U-Statistics, Annals of Math. Statistics, 1969.

    Args:
        accuracies: (E,) of episodes.
        units: (E, M) int64, the units of each episode, each once.
    """
    n_episodes = units.flatten().bincount()  # (U,) with each unit
    sums = units.flatten().bincount(weights=accuracies.repeat_interleave(units.shape[1]))
    drawn = n_episodes > 0
    without = (accuracies.sum() - sums)[drawn] / (len(accuracies) - n_episodes)[drawn]
    n_units = len(without)
    if n_units < 2 or not without.isfinite().all():
        return Interval(float("nan"), float("nan"))
    variance = (n_units - 1) * float(without.var(correction=0))
    mean, half = float(accuracies.mean()), float(stdtrit(n_units - 1, 0.975)) * variance**0.5
    return Interval(max(mean - half, 0.0), min(mean + half, 1.0))
