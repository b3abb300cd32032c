"""Clustering metrics against scikit-learn and against counted pairs."""

import math
from itertools import combinations

import faiss
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

import metrics
from metrics import Gallery, Queries
from metrics.clustering import ami, f1, kmeans, nmi


def pair_f1(labels, clusters):
    pairs = list(combinations(range(len(labels)), 2))
    together = [clusters[a] == clusters[b] for a, b in pairs]
    alike = [labels[a] == labels[b] for a, b in pairs]
    both = sum(t and s for t, s in zip(together, alike, strict=True))
    if not any(together) or not any(alike) or not both:
        return math.nan if not any(together) and not any(alike) else 0.0
    precision, recall = both / sum(together), both / sum(alike)
    return 2 * precision * recall / (precision + recall)


def blobs(n_classes=5, each=12, spread=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(n_classes, 4, generator=generator)
    labels = torch.arange(n_classes).repeat(each)
    return centres[labels] + spread * torch.randn(len(labels), 4, generator=generator), labels


PARTITIONS = [
    *(
        (
            torch.randint(0, 6, (40,), generator=torch.Generator().manual_seed(seed)),
            torch.randint(0, n, (40,), generator=torch.Generator().manual_seed(seed + 100)),
        )
        for seed, n in ((0, 6), (1, 2), (2, 30))
    ),
    (torch.arange(8), torch.arange(8).flip(0)),  # no pair at all
    (torch.arange(8), torch.zeros(8, dtype=torch.int64)),
    (torch.zeros(8, dtype=torch.int64), torch.zeros(8, dtype=torch.int64)),
    (torch.tensor([3]), torch.tensor([0])),
]


@pytest.mark.parametrize(
    ("labels", "clusters"),
    [*PARTITIONS, (torch.arange(3000) % 700, torch.arange(3000) // 5 % 400)],
)
def test_mutual_information_equals_scikit_learn(labels, clusters):
    expected = normalized_mutual_info_score(labels, clusters)
    assert nmi(labels, clusters) == pytest.approx(expected, abs=1e-12)
    expected = adjusted_mutual_info_score(labels, clusters)
    assert ami(labels, clusters) == pytest.approx(expected, abs=1e-9)


def test_ami_of_chance_is_nothing_however_many_clusters():
    labels = torch.arange(600) % 100
    clusters = torch.randint(0, 100, (600,), generator=torch.Generator().manual_seed(0))
    assert nmi(labels, clusters) > 0.5
    assert abs(ami(labels, clusters)) < 0.03


@pytest.mark.parametrize(("labels", "clusters"), PARTITIONS)
def test_f1_equals_counted_pairs(labels, clusters):
    expected = pair_f1(labels.tolist(), clusters.tolist())
    assert f1(labels, clusters) == pytest.approx(expected, nan_ok=True)


def test_kmeans_finds_well_separated_classes():
    embeds, labels = blobs()
    found = metrics.compute(["nmi", "f1"], Gallery(embeds, labels, seed=3))
    assert found["nmi"] > 0.85
    assert found["f1"] > 0.75


def test_cosine_clusters_ignore_length():
    """Classes are directions; lengths differ a hundredfold, which misleads euclidean k-means."""
    directions = F.normalize(torch.tensor([[1.0, 0.1], [0.1, 1.0]]), dim=1)
    labels = torch.arange(40) % 2
    lengths = torch.logspace(0, 2, 20).repeat_interleave(2)
    gallery = Gallery(directions[labels] * lengths[:, None], labels)
    found = metrics.compute(["c_nmi", "c_f1", "nmi"], gallery)
    assert found["c_nmi"] == pytest.approx(1)
    assert found["c_f1"] == pytest.approx(1)
    assert found["nmi"] < 0.9


def test_as_many_clusters_as_the_gallery_has_classes():
    embeds, labels = blobs(n_classes=7)
    gallery = Gallery(embeds, labels * 10)
    assert len(gallery.clusters.unique()) == 7


def test_one_clustering_for_each_distance(monkeypatch):
    """k-means is the costly part, so that nmi, ami and f1 share it; queries are not clustered."""
    asked = []

    def counted(points, n_clusters, **options):
        asked.append((len(points), n_clusters, options.get("spherical", False)))
        return kmeans(points, n_clusters, **options)

    monkeypatch.setattr("metrics.gallery.kmeans", counted)
    embeds, labels = blobs()
    gallery = Gallery(embeds, labels, queries=Queries(embeds[:2], torch.tensor([0, 99])))
    metrics.compute(["nmi", "ami", "f1", "c_nmi", "c_ami", "c_f1"], gallery)
    assert asked == [(60, 5, False), (60, 5, True)]


def test_kmeans_takes_no_longer_than_twenty_iterations(monkeypatch):
    """The most that it may do is 20 rounds; separated classes need few."""
    rounds = []
    train = faiss.Kmeans.train
    monkeypatch.setattr(
        faiss.Kmeans,
        "train",
        lambda self, *a, **k: rounds.append(self.cp.niter) or train(self, *a, **k),
    )
    kmeans(blobs()[0], 5, seed=0)
    assert sum(rounds) < 10
    rounds.clear()
    noise = torch.randn(3000, 8, generator=torch.Generator().manual_seed(0))
    kmeans(noise, 40, seed=0, tolerance=0)
    assert sum(rounds) == 20


def test_kmeans_is_seeded_and_gives_as_many_clusters_as_points():
    points = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    first = kmeans(points, 30, seed=0)
    assert first.equal(kmeans(points, 30, seed=0))
    assert not first.equal(kmeans(points, 30, seed=1))
    for n in (1, 2, 9):
        assert kmeans(points[:n], n, seed=0).unique().tolist() == list(range(n))


@pytest.mark.parametrize("spherical", [False, True])
def test_kmeans_assigns_to_the_nearest_mean(spherical):
    """At convergence every point is nearer to its own cluster's mean than to any other."""
    points = F.normalize(torch.randn(200, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    clusters = kmeans(points, 5, seed=0, spherical=spherical, max_iterations=200, tolerance=0)
    means = torch.stack([points[clusters == c].mean(dim=0) for c in range(5)])
    if spherical:
        nearest = (points @ F.normalize(means, dim=1).T).argmax(dim=1)
    else:
        nearest = torch.cdist(points, means).argmin(dim=1)
    assert clusters.equal(nearest)


def test_copies_and_one_class():
    names = ["nmi", "ami", "f1"]
    found = metrics.compute(names, Gallery(torch.ones(9, 2), torch.zeros(9).long()))
    assert found == dict.fromkeys(names, 1)
    found = metrics.compute(["nmi", "f1"], Gallery(torch.ones(9, 2), torch.arange(9) % 3))
    assert 0 <= found["nmi"] <= 1 and 0 <= found["f1"] <= 1
