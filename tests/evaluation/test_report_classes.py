"""What a report says of classes agrees with sums written out by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from evaluation import report_classes as rc
from tests.evaluation.conftest import make_report_data as make


def cosine_of(embeds, labels, i, j):
    """The cosine of the mean unit embeddings of two classes."""
    means = [F.normalize(embeds, dim=1)[labels == label].mean(dim=0) for label in (i, j)]
    return float(F.cosine_similarity(*means, dim=0))


def word_cosine(shown, i, j):
    return float(F.cosine_similarity(shown.class_words[i], shown.class_words[j], dim=0))


def test_matrices_hold_the_cosines_of_each_class_once():
    shown = make()
    found = rc.similarities(shown)
    assert sorted(found.classes.tolist()) == [0, 1, 2, 3, 4]
    assert (found.n_classes, found.ordered_by) == (5, "words")
    assert list(found.matrices) == ["words", "before", "after"]
    for row, i in enumerate(found.classes.tolist()):
        for column, j in enumerate(found.classes.tolist()):
            at = {name: float(matrix[row, column]) for name, matrix in found.matrices.items()}
            assert at == pytest.approx(
                {
                    "words": word_cosine(shown, i, j),
                    "before": cosine_of(shown.before, shown.labels, i, j),
                    "after": cosine_of(shown.after, shown.labels, i, j),
                },
                abs=1e-5,
            )


def test_without_words_the_trained_images_give_the_order():
    found = rc.similarities(make(words=False, before=False))
    assert (list(found.matrices), found.ordered_by) == (["after"], "after")
    many = rc.similarities(make((1,) * 12), limit=7)
    assert len(set(many.classes.tolist())) == 7 and many.n_classes == 12


def test_clustering_puts_similar_classes_side_by_side():
    sims = torch.eye(6) + 0.9 * torch.eye(6).roll(3, dims=1)  # i is like i + 3
    order = rc.cluster_order(sims).tolist()
    assert sorted(order) == list(range(6))
    assert {frozenset(order[at : at + 2]) for at in (0, 2, 4)} == {
        frozenset((i, i + 3)) for i in range(3)
    }
    assert rc.cluster_order(torch.ones(2, 2)).tolist() == [0, 1]


def test_pairs_are_those_whose_standing_changed_most():
    shown = make((3,) * 7)
    pairs = [(i, j) for i in range(7) for j in range(i + 1, 7)]
    before, after = (
        {pair: cosine_of(embeds, shown.labels, *pair) for pair in pairs}
        for embeds in (shown.before, shown.after)
    )

    def standing(cosines, pair):
        values = np.array(list(cosines.values()))
        return (cosines[pair] - values.mean()) / values.std()

    change = {pair: standing(after, pair) - standing(before, pair) for pair in pairs}
    ascending = sorted(change, key=change.__getitem__)
    found = rc.pulled_pairs(shown, n=4)
    agreeing = sorted(ascending[:-5:-1], key=lambda pair: -word_cosine(shown, *pair))
    assert [pair.classes for pair in found.together] == agreeing
    agreeing = sorted(ascending[:4], key=lambda pair: word_cosine(shown, *pair))
    assert [pair.classes for pair in found.apart] == agreeing
    unnamed = rc.pulled_pairs(make((3,) * 7, words=False), n=4)
    assert [pair.classes for pair in unnamed.together] == ascending[:-5:-1]
    for pair in (*found.together, *found.apart):
        assert pair.change == pytest.approx(change[pair.classes], abs=1e-4)
        assert pair.before == pytest.approx(before[pair.classes], abs=1e-5)
        assert pair.after == pytest.approx(after[pair.classes], abs=1e-5)
        assert pair.words == pytest.approx(word_cosine(shown, *pair.classes), abs=1e-5)
    assert found.n_classes == 7


def test_nothing_was_pulled_where_nothing_changed():
    shown = make()
    found = rc.pulled_pairs(replace(shown, before=shown.after))
    assert (found.together, found.apart) == ([], [])
    assert found.agreement[0] == found.agreement[1]


def test_pairs_need_the_untrained_embeddings_and_two_classes():
    assert rc.pulled_pairs(make(before=False)) is None
    assert rc.pulled_pairs(make((4,))) is None
    found = rc.pulled_pairs(make((2, 2), words=False))
    assert found.agreement is None and found.n_classes == 2


def test_rank_correlation():
    values = torch.tensor([0.1, 5.0, 2.0, 3.0])
    assert rc.rank_correlation(values, values.exp()) == pytest.approx(1)
    assert rc.rank_correlation(values, -values) == pytest.approx(-1)
    assert rc.rank_correlation(values, torch.ones(4)) == 0
    # ranks 1, 2.5, 2.5, 4 beside 1, 2, 3, 4: 4.5 / sqrt(4.5 * 5)
    tied = rc.rank_correlation(torch.tensor([0.0, 1, 1, 2]), torch.tensor([0.0, 1, 2, 3]))
    assert tied == pytest.approx(4.5 / math.sqrt(4.5 * 5))


def test_scores_of_each_class():
    shown = make()
    table = rc.class_scores(shown)
    assert sorted(row.label for row in table) == [0, 1, 2, 3, 4]
    for row in table:
        members = shown.labels == row.label
        assert row.n_images == int(members.sum())
        for value, queries in (
            (row.recall, shown.recall), (row.average_precision, shown.average_precision)
        ):  # fmt: skip
            mean = math.nan if row.n_images == 1 else float(queries[members].mean())
            assert value == pytest.approx(mean, nan_ok=True)
        cosines = {
            other: cosine_of(shown.after, shown.labels, row.label, other)
            for other in range(5)
            if other != row.label
        }
        assert row.nearest == max(cosines, key=cosines.__getitem__)
        assert row.cosine == pytest.approx(max(cosines.values()), abs=1e-5)
    scores = [row.average_precision for row in table]
    assert scores[:-1] == sorted(scores[:-1]) and math.isnan(scores[-1])


def test_one_class_has_no_other_beside_it():
    (row,) = rc.class_scores(make((4,)))
    assert row.nearest == -1 and math.isnan(row.cosine)
