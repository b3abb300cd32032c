"""What the wrong neighbours are like: points placed by hand, then plain loops."""

import math
from statistics import fmean

import pytest
import torch
import torch.nn.functional as F

import metrics
from metrics import Gallery, Queries

NAMES = ["wrong_word_similarity@1", "wrong_word_similarity@3", "wrong_group_share@1"]


def test_points_on_a_line():
    """dog at 0 and 1, wolf at 3, car at 10: the wrong neighbour of every dog is the wolf."""
    embeds = torch.tensor([[0.0], [1.0], [3.0], [10.0]])
    labels = torch.tensor([0, 0, 1, 2])
    words = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    gallery = Gallery(embeds, labels, words, ("animal", "animal", "vehicle"))
    found = metrics.per_query([*NAMES, "wrong_group_share@3"], gallery)
    # Nearest of another class: dogs -> wolf, wolf -> dog at 1, car -> wolf.
    assert found["wrong_word_similarity@1"].tolist() == pytest.approx([0.8, 0.8, 0.8, 0.6])
    assert found["wrong_group_share@1"].tolist() == [1, 1, 1, 0]
    # Up to three: dogs -> wolf, car; wolf -> dog, dog, car; car -> wolf, dog, dog.
    expected = [(0.8 + 0) / 2, (0.8 + 0) / 2, (0.8 + 0.8 + 0.6) / 3, (0.6 + 0 + 0) / 3]
    assert found["wrong_word_similarity@3"].tolist() == pytest.approx(expected)
    assert found["wrong_group_share@3"].tolist() == pytest.approx([1 / 2, 1 / 2, 2 / 3, 0])


def oracle(embeds, labels, words, groups, k):
    """Means over queries of word similarity and of group share; among ties the lower row first."""
    sims, shares = [], []
    for query in range(len(labels)):
        others = [row for row in range(len(labels)) if labels[row] != labels[query]]
        others.sort(key=lambda row: (float((embeds[query] - embeds[row]).square().sum()), row))
        if near := [int(labels[row]) for row in others[:k]]:
            own = int(labels[query])
            sims.append(fmean(float(words[own] @ words[c]) for c in near))
            shares.append(fmean(groups[own] == groups[c] for c in near))
    return (fmean(sims), fmean(shares)) if sims else (math.nan, math.nan)


@pytest.mark.parametrize("k", [1, 4, 100])
@pytest.mark.parametrize(
    ("seed", "n", "n_classes", "span"),
    [(0, 60, 6, 1), (1, 60, 6, 9), (2, 9, 9, 0), (3, 8, 1, 3), (4, 1, 1, 1)],
)
def test_equals_plain_loops(seed, n, n_classes, span, k):
    """Whole numbers, so that there are ties to break and copies; span 0 is a collapsed embedder."""
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randint(-span, span + 1, (n, 3), generator=generator).float()
    labels = torch.randint(0, n_classes, (n,), generator=generator)
    words = F.normalize(torch.randn(n_classes, 5, generator=generator), dim=1)
    groups = tuple("abc"[c % 3] for c in range(n_classes))
    names = [f"wrong_word_similarity@{k}", f"wrong_group_share@{k}"]
    found = metrics.compute(names, Gallery(embeds, labels, words, groups))
    expected = oracle(embeds, labels, words, groups, k)
    assert tuple(found.values()) == pytest.approx(expected, abs=1e-6, nan_ok=True)


def group_hits(embeds, labels, groups, points, classes, itself, k):
    """Whether an image of the query's group is among the k nearest; ties count against."""
    values = []
    for query, (point, own) in enumerate(zip(points, classes.tolist(), strict=True)):
        others = [row for row in range(len(labels)) if not itself or row != query]
        alike = {row: groups[int(labels[row])] == groups[own] for row in others}
        others.sort(key=lambda row: (float((point - embeds[row]).square().sum()), alike[row]))
        hit = float(any(alike[row] for row in others[:k]))
        values.append(hit if any(alike.values()) else math.nan)
    return values


@pytest.mark.parametrize("k", [1, 3, 100])
@pytest.mark.parametrize(
    ("seed", "n", "n_classes", "span"),
    [(0, 60, 9, 1), (1, 60, 40, 9), (2, 9, 9, 0), (3, 8, 1, 3), (4, 1, 1, 1)],
)
def test_group_recall_equals_plain_loops(seed, n, n_classes, span, k):
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randint(-span, span + 1, (n, 3), generator=generator).float()
    labels = torch.randint(0, n_classes, (n,), generator=generator)
    groups = tuple("abcdef"[c % 5] for c in range(n_classes))
    gallery = Gallery(embeds, labels, class_groups=groups)
    found = metrics.per_query([f"group_recall@{k}"], gallery)[f"group_recall@{k}"]
    expected = group_hits(embeds, labels, groups, embeds, labels, True, k)
    assert found.tolist() == pytest.approx(expected, nan_ok=True)

    asked = Queries(embeds[: n // 2 + 1] + 1, labels.flip(0)[: n // 2 + 1])
    gallery = Gallery(embeds, labels, class_groups=groups, queries=asked)
    found = metrics.per_query([f"group_recall@{k}"], gallery)[f"group_recall@{k}"]
    expected = group_hits(embeds, labels, groups, *asked, False, k)
    assert found.tolist() == pytest.approx(expected, nan_ok=True)


def test_group_recall_is_recall_where_groups_are_classes():
    embeds = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    gallery = Gallery(embeds, torch.arange(60) % 7, class_groups=tuple("abcdefg"))
    found = metrics.compute(["group_recall@2", "recall@2"], gallery)
    assert 0.1 < found["recall@2"] < 0.9
    assert found["group_recall@2"] == found["recall@2"]


def test_wrong_neighbours_of_separate_queries():
    """A query of the class of row 0 stands upon it; row 1 is next, then row 2."""
    gallery = Gallery(
        torch.tensor([[0.0], [1.0], [3.0]]),
        torch.tensor([0, 1, 2]),
        torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]),
        ("animal", "animal", "vehicle"),
        queries=Queries(torch.tensor([[0.0], [2.9]]), torch.tensor([0, 1])),
    )
    names = ["wrong_word_similarity@1", "wrong_word_similarity@9", "wrong_group_share@2"]
    found = metrics.per_query(names, gallery)
    assert found["wrong_word_similarity@1"].tolist() == pytest.approx([0.8, 0.6])
    assert found["wrong_word_similarity@9"].tolist() == pytest.approx([0.4, (0.6 + 0.8) / 2])
    assert found["wrong_group_share@2"].tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("name", "lacks"),
    [
        ("wrong_word_similarity@1", "class_words"),
        ("c_wrong_group_share@5", "class_groups"),
        ("group_recall@1", "class_groups"),
    ],
)
def test_says_what_a_gallery_lacks(name, lacks):
    gallery = Gallery(torch.ones(2, 2), torch.zeros(2).long())
    with pytest.raises(ValueError, match=f"{name} needs .* leave it out, .*{lacks}"):
        metrics.compute([name], gallery)


def test_refuses_words_of_too_few_classes():
    with pytest.raises(ValueError, match="class_words describes 2 classes, labels need 4"):
        Gallery(torch.ones(2, 2), torch.tensor([0, 3]), torch.eye(2))
