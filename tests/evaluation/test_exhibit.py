"""What a report shows agrees with sums written out by hand, whatever the set lacks."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import metrics
from datasets.image_set import ImageSet
from evaluation import build_exhibit
from evaluation import exhibit as ex
from evaluation.exhibit import Exhibit


def make(sizes=(5, 5, 5, 5, 1), *, d=6, before=True, words=True, groups=True, seed=0):
    """Classes of the given sizes around centres of their own, in shuffled order."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=rng)]
    n, n_classes = len(labels), len(sizes)
    noise = torch.randn(n, d, generator=rng)
    after = torch.randn(n_classes, d, generator=rng)[labels] + noise
    queries = metrics.per_query(["recall@1", "mAP@R"], metrics.Gallery(after, labels))
    return Exhibit(
        name="made.test",
        paths=[f"{row}.png" for row in range(n)],
        labels=labels,
        class_names=[f"class {label}" for label in range(n_classes)],
        after=after,
        recall=queries["recall@1"],
        average_precision=queries["mAP@R"],
        before=torch.randn(n, d + 1, generator=rng) if before else None,
        class_groups=["even" if c % 2 == 0 else "odd" for c in range(n_classes)] if groups else (),
        class_words=torch.randn(n_classes, 3, generator=rng) if words else None,
        seed=seed,
    )


def mean_of(embeds, labels, label):
    """The mean unit embedding of a class as a unit vector."""
    mean = F.normalize(embeds, dim=1)[labels == label].mean(dim=0)
    return mean / mean.norm()


# --------------------------------------------------------------------------------------------------
# The exhibit itself
# --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"paths": []}, "no images"),
        ({"recall": torch.ones(3)}, "recall has 3 rows for 21 images"),
        ({"before": torch.ones(4, 2)}, "before has 4 rows for 21 images"),
        ({"class_groups": ["one"]}, "class_groups has 1 rows for 5 classes"),
        ({"class_words": torch.ones(4, 2)}, "class_words has 4 rows for 5 classes"),
        ({"labels": torch.full((21,), 5)}, r"labels must be in \[0, 5\)"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    with pytest.raises(ValueError, match=f"made.test.*{message}"):
        Exhibit(**{**vars(make()), **change})


def test_classes_are_drawn_by_the_seed():
    drawn = [make((1,) * 40, seed=seed).draw_classes(10, "matrices").tolist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] == sorted(set(drawn[0]))
    assert drawn[0] != drawn[2] and len(drawn[0]) == 10
    assert make((2, 3)).draw_classes(10, "matrices").tolist() == [0, 1]


# --------------------------------------------------------------------------------------------------
# Retrieval
# --------------------------------------------------------------------------------------------------
def test_queries_are_the_best_the_median_and_the_worst():
    shown = make((4,) * 9)
    shown = Exhibit(**{**vars(shown), "average_precision": torch.linspace(0, 1, 36)})
    found = ex.retrievals(shown, each=1)
    (best,), (median,), (worst,) = (found[name] for name in ("best", "median", "worst"))
    assert (best.row, worst.row) == (35, 0)
    assert median.row in (17, 18)
    assert best.average_precision == 1 and worst.average_precision == 0


def test_queries_are_of_different_classes_and_none_is_shown_twice():
    found = ex.retrievals(shown := make((6,) * 8), each=4)
    scores = shown.average_precision
    for queries in found.values():
        assert len({int(shown.labels[query.row]) for query in queries}) == 4
    rows = [query.row for queries in found.values() for query in queries]
    assert len(rows) == len(set(rows)) == 12
    lowest = {name: min(query.average_precision for query in found[name]) for name in found}
    assert lowest["best"] >= float(scores.median()) >= lowest["worst"]
    assert found == ex.retrievals(shown, each=4)


def test_a_class_gives_several_queries_where_classes_are_few():
    found = ex.retrievals(make((9,)), each=3)
    assert [len(queries) for queries in found.values()] == [3, 3, 3]


@pytest.mark.parametrize(("sizes", "n"), [((1, 1, 1), 0), ((1,), 0), ((2, 1), 2)])
def test_images_alone_in_their_class_are_no_queries(sizes, n):
    shown = make(sizes)
    rows = [query.row for queries in ex.retrievals(shown).values() for query in queries]
    assert len(rows) == n
    assert not shown.average_precision[rows].isnan().any()


@pytest.mark.parametrize("k", [1, 4, 100])
def test_neighbours_are_those_of_sorted_distances(k):
    shown = make()
    found = ex.nearest(shown.after, shown.labels, torch.tensor([3, 0, 20]), k)
    for row, neighbours in zip((3, 0, 20), found.tolist(), strict=True):
        distances = (shown.after - shown.after[row]).norm(dim=1).tolist()
        expected = sorted((other for other in range(21) if other != row), key=distances.__getitem__)
        assert neighbours == expected[:k]


def test_equal_distances_favour_other_classes_then_lower_rows():
    labels = torch.tensor([0, 0, 1, 0, 2])
    assert ex.nearest(torch.ones(5, 3), labels, torch.tensor([1]), 8).tolist() == [[2, 4, 0, 3]]


# --------------------------------------------------------------------------------------------------
# Classes beside classes
# --------------------------------------------------------------------------------------------------
def test_matrices_hold_the_cosines_of_each_class_once():
    shown = make()
    found = ex.similarities(shown)
    assert sorted(found.classes.tolist()) == [0, 1, 2, 3, 4]
    assert (found.n_classes, found.ordered_by) == (5, "words")
    assert list(found.matrices) == ["words", "before", "after"]
    for i, first in enumerate(found.classes.tolist()):
        for j, second in enumerate(found.classes.tolist()):
            for name, embeds in (("before", shown.before), ("after", shown.after)):
                cosine = mean_of(embeds, shown.labels, first) @ mean_of(
                    embeds, shown.labels, second
                )
                torch.testing.assert_close(found.matrices[name][i, j], cosine, atol=1e-5, rtol=0)
            words = F.cosine_similarity(shown.class_words[first], shown.class_words[second], dim=0)
            torch.testing.assert_close(found.matrices["words"][i, j], words, atol=1e-5, rtol=0)


def test_without_words_the_trained_images_give_the_order():
    found = ex.similarities(make(words=False, before=False))
    assert (list(found.matrices), found.ordered_by) == (["after"], "after")
    many = ex.similarities(make((1,) * 12), limit=7)
    assert len(set(many.classes.tolist())) == 7 and many.n_classes == 12


def test_clustering_puts_like_classes_side_by_side():
    sims = torch.eye(6) + 0.9 * torch.eye(6).roll(3, dims=1)  # i is like i + 3
    order = ex.cluster_order(sims).tolist()
    assert sorted(order) == list(range(6))
    assert {frozenset(order[at : at + 2]) for at in (0, 2, 4)} == {
        frozenset((i, i + 3)) for i in range(3)
    }
    assert ex.cluster_order(torch.ones(2, 2)).tolist() == [0, 1]


def test_pairs_are_those_whose_standing_changed_most():
    shown = make((3,) * 7)
    cosines = {
        name: {
            (i, j): float(mean_of(embeds, shown.labels, i) @ mean_of(embeds, shown.labels, j))
            for i in range(7)
            for j in range(i + 1, 7)
        }
        for name, embeds in (("before", shown.before), ("after", shown.after))
    }

    def standing(name, pair):
        values = np.array(list(cosines[name].values()))
        return (cosines[name][pair] - values.mean()) / values.std()

    change = {pair: standing("after", pair) - standing("before", pair) for pair in cosines["after"]}
    ascending = sorted(change, key=change.__getitem__)
    found = ex.pulled_pairs(shown, n=4)
    assert [pair.classes for pair in found.apart] == ascending[:4]
    assert [pair.classes for pair in found.together] == ascending[:-5:-1]
    for pair in (*found.together, *found.apart):
        assert pair.change == pytest.approx(change[pair.classes], abs=1e-4)
        assert pair.before == pytest.approx(cosines["before"][pair.classes], abs=1e-5)
        assert pair.after == pytest.approx(cosines["after"][pair.classes], abs=1e-5)
        i, j = pair.classes
        words = F.cosine_similarity(shown.class_words[i], shown.class_words[j], dim=0)
        assert pair.words == pytest.approx(float(words), abs=1e-5)
    assert found.n_classes == 7


def test_nothing_was_pulled_where_nothing_changed():
    shown = make()
    found = ex.pulled_pairs(Exhibit(**{**vars(shown), "before": shown.after}))
    assert (found.together, found.apart) == ([], [])
    assert found.agreement[0] == found.agreement[1]


def test_pairs_need_the_untrained_embeddings_and_two_classes():
    assert ex.pulled_pairs(make(before=False)) is None
    assert ex.pulled_pairs(make((4,))) is None
    found = ex.pulled_pairs(make((2, 2), words=False))
    assert found.agreement is None and found.n_classes == 2


def test_rank_correlation():
    values = torch.tensor([0.1, 5.0, 2.0, 3.0])
    assert ex.rank_correlation(values, values.exp()) == pytest.approx(1)
    assert ex.rank_correlation(values, -values) == pytest.approx(-1)
    assert ex.rank_correlation(values, torch.ones(4)) == 0
    # ranks 1, 2.5, 2.5, 4 beside 1, 2, 3, 4: 4.5 / sqrt(4.5 * 5)
    tied = ex.rank_correlation(torch.tensor([0.0, 1, 1, 2]), torch.tensor([0.0, 1, 2, 3]))
    assert tied == pytest.approx(4.5 / math.sqrt(4.5 * 5))


# --------------------------------------------------------------------------------------------------
# Map and classes
# --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("sizes", "method"), [((1,), "PCA"), ((3, 4), "PCA"), ((20,) * 5, "t-SNE")]
)
def test_a_map_fills_the_unit_square(sizes, method):
    found = ex.image_map(make(sizes))
    assert found.method == method
    assert found.rows.tolist() == list(range(sum(sizes)))
    assert found.points.shape == (sum(sizes), 2)
    assert float(found.points.min()) == 0 and found.points.isfinite().all()
    assert float(found.points.max()) == (pytest.approx(1) if sum(sizes) > 1 else 0)


def test_a_map_of_few_images_keeps_their_distances_in_a_plane():
    flat = F.pad(
        F.normalize(torch.randn(9, 2, generator=torch.Generator().manual_seed(0)), dim=1), (0, 3)
    )
    found = ex.image_map(Exhibit(**{**vars(make((9,))), "after": flat}))
    apart, wanted = torch.pdist(found.points), torch.pdist(flat)
    torch.testing.assert_close(apart / apart.max(), wanted / wanted.max(), atol=1e-4, rtol=0)


def test_a_map_takes_whole_classes():
    shown = make((4,) * 10)
    labels = shown.labels[ex.image_map(shown, limit=12).rows]
    assert sorted(labels.bincount()[labels.unique()].tolist()) == [4, 4, 4]


def test_equal_images_have_a_map():
    found = ex.image_map(Exhibit(**{**vars(make((50, 50))), "after": torch.ones(100, 3)}))
    assert found.points.tolist() == [[0.0, 0.0]] * 100


def test_scores_of_each_class():
    shown = make()
    table = ex.per_class(shown)
    assert sorted(row.label for row in table) == [0, 1, 2, 3, 4]
    for row in table:
        of_it = shown.labels == row.label
        assert row.n_images == int(of_it.sum())
        if row.n_images == 1:
            assert math.isnan(row.recall) and math.isnan(row.average_precision)
        else:
            assert row.recall == pytest.approx(float(shown.recall[of_it].mean()))
            mean = float(shown.average_precision[of_it].mean())
            assert row.average_precision == pytest.approx(mean)
        mine = mean_of(shown.after, shown.labels, row.label)
        cosines = {
            other: float(mine @ mean_of(shown.after, shown.labels, other))
            for other in range(5)
            if other != row.label
        }
        assert row.nearest == max(cosines, key=cosines.__getitem__)
        assert row.cosine == pytest.approx(max(cosines.values()), abs=1e-5)
    scores = [row.average_precision for row in table]
    assert scores[:-1] == sorted(scores[:-1]) and math.isnan(scores[-1])


def test_one_class_has_no_other_beside_it():
    (row,) = ex.per_class(make((4,)))
    assert row.nearest == -1 and math.isnan(row.cosine)


def test_separate_queries_find_gallery_images_alone():
    """In-Shop: the nearest image of all is another query, and is not shown."""
    torch.manual_seed(0)
    embeds = torch.randn(40, 3)
    labels = torch.arange(40) % 5
    asks = torch.arange(40) < 15
    scores = torch.where(asks, torch.rand(40), torch.nan).double()
    shown = Exhibit(
        "shop.test", [f"{row}.jpg" for row in range(40)], labels, tuple("abcde"), embeds,
        scores, scores, queries=asks,
    )  # fmt: skip
    for found in ex.retrievals(shown, k=30).values():
        for query in found:
            assert query.row < 15 and len(query.neighbours) == 25
            distances = [float((embeds[query.row] - embeds[row]).norm()) for row in range(15, 40)]
            order = sorted(range(15, 40), key=lambda row: distances[row - 15])
            assert query.neighbours == order


def test_the_report_of_a_set_with_a_gallery_shows_the_scores_of_its_queries():
    asks = np.array([True, False, True, False, False, True, False, False])
    labels = np.array([0, 0, 1, 1, 0, 1, 0, 2])
    images = ImageSet(
        "shop.test", tuple(Path(f"{row}.jpg") for row in range(8)), labels, tuple("abc"),
        queries=asks,
    )  # fmt: skip
    rows = torch.tensor([0, 1, 2, 3, 4, 5, 7])  # one could not be read
    embeds = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    shown = build_exhibit(images, embeds, rows)
    gallery = [place for place, row in enumerate(rows.tolist()) if not asks[row]]
    for place, row in enumerate(rows.tolist()):
        if not asks[row]:
            assert math.isnan(shown.recall[place])
            continue
        nearest = min(gallery, key=lambda other: float((embeds[place] - embeds[other]).norm()))
        assert float(shown.recall[place]) == (labels[rows[nearest]] == labels[row])
    assert shown.queries.tolist() == [bool(asks[row]) for row in rows]
    assert build_exhibit(replace(images, queries=None), embeds, rows).queries is None
