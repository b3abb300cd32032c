"""Distances, alignment, uniformity and spectrum against loops over all pairs."""

import math
from statistics import fmean

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import entropy

import metrics
from metrics import Gallery, Queries

DISTANCES = ["intra_distance", "inter_distance", "intra_over_inter"]
LEGACY = ["dists@intra", "dists@inter", "dists@intra_over_inter"]


def awkward(seed, n, n_classes, d=4):
    """Some classes are large, some have one image, and some images are copies."""
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randn(n, d, generator=generator) + 0.3
    embeds[-(n // 3) or n :] = embeds[: n // 3].clone()
    weights = 0.6 ** torch.arange(n_classes).float()
    return embeds, 3 * torch.multinomial(weights, n, replacement=True, generator=generator)


GALLERIES = {
    **{f"awkward {seed}": awkward(seed, 50, 8) for seed in range(3)},
    "one class": awkward(3, 12, 1),
    "all singletons": (awkward(4, 9, 1)[0], torch.arange(9)),
    "one image": awkward(5, 1, 1),
}


def square(x, y):
    return sum((a - b) ** 2 for a, b in zip(x, y, strict=True))


def one_minus_cosine(x, y):
    lengths = math.hypot(*x) * math.hypot(*y)
    return 1 - sum(a * b for a, b in zip(x, y, strict=True)) / lengths


def mean(values):
    values = list(values)
    return fmean(values) if values else math.nan


def pair_means(embeds, labels, distance):
    """Mean distance within classes, between their centres, and the ratio, pair by pair."""
    classes = {}
    for point, label in zip(embeds.double().tolist(), labels.tolist(), strict=True):
        classes.setdefault(label, []).append(point)
    intra = mean(
        mean(distance(x, y) for i, x in enumerate(points) for y in points[:i])
        for points in classes.values()
        if len(points) > 1
    )
    centres = [
        [fmean(column) for column in zip(*points, strict=True)] for points in classes.values()
    ]
    inter = mean(distance(x, y) for i, x in enumerate(centres) for y in centres[:i])
    return [intra, inter, intra / inter]


@pytest.mark.parametrize("names", [DISTANCES, [f"c_{name}" for name in DISTANCES], LEGACY])
@pytest.mark.parametrize("case", GALLERIES)
def test_distances_equal_all_pairs(case, names):
    embeds, labels = GALLERIES[case]
    found = metrics.compute(names, Gallery(embeds, labels))
    expected = pair_means(embeds, labels, square)
    if names is not DISTANCES:
        expected = pair_means(F.normalize(embeds, dim=1), labels, one_minus_cosine)
    assert list(found.values()) == pytest.approx(expected, rel=1e-5, nan_ok=True)


def test_unit_rows_have_half_the_distance_by_cosine():
    embeds, labels = awkward(0, 40, 5)
    gallery = Gallery(F.normalize(embeds, dim=1), labels)
    found = metrics.compute(["intra_distance", "c_intra_distance"], gallery)
    assert found["intra_distance"] == pytest.approx(2 * found["c_intra_distance"])


def test_collapsed_classes_and_collapsed_sets():
    labels = torch.tensor([0, 0, 1, 1])
    found = metrics.compute(DISTANCES, Gallery(torch.eye(2)[labels], labels))
    assert found == {"intra_distance": 0, "inter_distance": 2, "intra_over_inter": 0}
    found = metrics.compute(DISTANCES, Gallery(torch.ones(4, 2), labels))
    assert (found["intra_distance"], found["inter_distance"]) == (0, 0)
    assert math.isnan(found["intra_over_inter"])
    apart = Gallery(torch.tensor([[1.0], [-1.0], [2.0], [-2.0]]), labels)
    assert metrics.compute(["intra_over_inter"], apart)["intra_over_inter"] == math.inf


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("case", GALLERIES)
def test_alignment_and_uniformity_equal_all_pairs(case, separate):
    embeds, labels = GALLERIES[case]
    points, classes = (awkward(9, 7, 6)) if separate else (embeds, labels)
    queries = Queries(points, classes) if separate else None
    found = metrics.compute(["alignment", "uniformity"], Gallery(embeds, labels, queries=queries))

    units, asked = (F.normalize(part, dim=1).double().tolist() for part in (embeds, points))
    spreads, energies = [], []
    for query, label in enumerate(classes.tolist()):
        others = [row for row in range(len(units)) if separate or row != query]
        alike = [square(asked[query], units[row]) for row in others if labels[row] == label]
        spreads.extend([fmean(alike)] if alike else [])
        energies.extend(math.exp(-2 * square(asked[query], units[row])) for row in others)
    assert found["alignment"] == pytest.approx(mean(spreads), rel=1e-5, nan_ok=True)
    uniformity = math.log(fmean(energies)) if energies else math.nan
    assert found["uniformity"] == pytest.approx(uniformity, rel=1e-5, nan_ok=True)


def test_uniformity_equals_the_papers_code_and_its_limit():
    """Their formula over pdist; points spread over a sphere of many dimensions tend to -4."""
    embeds = torch.randn(400, 256, generator=torch.Generator().manual_seed(0))
    found = metrics.compute(["uniformity"], Gallery(embeds, torch.arange(400)))["uniformity"]
    pairs = torch.pdist(F.normalize(embeds, dim=1))
    assert found == pytest.approx(pairs.pow(2).mul(-2).exp().mean().log().item(), rel=1e-5)
    assert found == pytest.approx(-4 + 8 / 256, abs=0.01)


@pytest.mark.parametrize("mode", [1, 2, 5, -1, -2, -5])
@pytest.mark.parametrize("shape", [(60, 8), (5, 8), (9000, 6)])
def test_rho_spectrum_equals_the_divergence_of_singular_values(shape, mode):
    embeds = torch.randn(shape, generator=torch.Generator().manual_seed(0)).cumsum(dim=1)
    gallery = Gallery(embeds, torch.zeros(len(embeds)).long())
    found = metrics.compute([f"rho_spectrum@{mode}"], gallery)[f"rho_spectrum@{mode}"]
    values = np.linalg.svd(embeds.double().numpy(), compute_uv=False)[abs(mode) - 1 :]
    uniform = np.ones(len(values))
    expected = entropy(uniform, values) if mode > 0 else entropy(values, uniform)
    assert found == pytest.approx(expected, abs=1e-9)


def test_rho_spectrum_of_few_directions():
    """A direction that is not used is infinitely surprising one way, and bounded the other."""
    embeds = torch.eye(4)[:3].repeat(5, 1)
    names = ["rho_spectrum@1", "rho_spectrum@-1", "rho_spectrum@5"]
    found = metrics.compute(names, Gallery(embeds, torch.zeros(15).long()))
    assert found["rho_spectrum@1"] == math.inf
    assert found["rho_spectrum@-1"] == pytest.approx(math.log(4 / 3))
    assert math.isnan(found["rho_spectrum@5"])
    evenly = Gallery(torch.eye(4), torch.zeros(4).long())
    assert metrics.compute(names[:2], evenly) == pytest.approx(dict.fromkeys(names[:2], 0))


def test_cosine_spectrum_ignores_length():
    embeds = torch.randn(50, 5, generator=torch.Generator().manual_seed(0))
    lengths = torch.logspace(-1, 1, 50)[:, None]
    even, uneven = (
        metrics.compute(["c_rho_spectrum@1"], Gallery(part, torch.zeros(50).long()))
        for part in (embeds, lengths * embeds)
    )
    assert even == pytest.approx(uneven, rel=1e-5)
