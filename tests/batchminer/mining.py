"""Batches to mine, and the tests of frequencies."""

import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F

import batchminer

MINERS = {n: row if isinstance(row, type) else row.load() for n, row in batchminer.MINERS.items()}
UNEVEN = torch.tensor([7, 7, 2, 2, 2, 9, 7, 30, 30])  # 9 is alone, order is mixed
SEVERAL = torch.tensor([2, 30, 4, 7, 2, 11, 7, 2, 11, 7, 5])  # references: no 9, and some new ones
ANCHORS = 32  # copies of one point, whose 992 pairs all draw from the same distribution


def points(labels, dim=3, seed=0):
    """A unit row for each label."""
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(len(labels), dim, generator=generator), dim=1)


def around(distances, dim=8):
    """The anchors at the pole of the sphere, class 0, then a class at each of the distances."""
    sphere = torch.zeros(ANCHORS + len(distances), dim)
    sphere[:ANCHORS, 0] = 1
    cosines = 1 - torch.tensor(distances).square() / 2
    sphere[ANCHORS:, 0] = cosines
    sphere[ANCHORS:, 1] = (1 - cosines.square()).clamp(min=0).sqrt()
    return sphere, torch.tensor([0] * ANCHORS + list(range(1, len(distances) + 1)))


def places_drawn(miner, embeds, labels, calls=8):
    """The places around the anchors that their pairs drew."""
    pairs = ANCHORS * (ANCHORS - 1)
    return [
        n - ANCHORS for _ in range(calls) for n in miner(embeds, labels).negatives[:pairs].tolist()
    ]


def rows(triplets):
    return list(zip(*(x.tolist() for x in triplets), strict=True))


def assert_drawn_with(probabilities, outcomes):
    """The outcomes' frequencies pass Pearson's test against {outcome: probability}.

    It fails for about 3 in 100,000 sets of draws; the seeds are fixed.
    """
    counts = Counter(outcomes)
    assert sum(probabilities.values()) == pytest.approx(1)
    assert counts.keys() <= probabilities.keys()
    total = sum(counts.values())
    statistic = sum((counts[x] - p * total) ** 2 / (p * total) for x, p in probabilities.items())
    freedom = len(probabilities) - 1
    assert statistic < freedom + 4 * math.sqrt(2 * freedom) + 8


def uniform(outcomes):
    outcomes = list(outcomes)
    return {x: 1 / len(outcomes) for x in outcomes}


def normalised(weights):
    """Probabilities from weights; what has none is left out."""
    total = math.fsum(weights.values())
    return {x: w / total for x, w in weights.items() if w}
