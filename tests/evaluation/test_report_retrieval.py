"""The queries of a report and its map, against sorted distances, whatever the set lacks."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from evaluation.report_retrieval import image_map, neighbours_of, retrievals
from tests.evaluation.conftest import make_report_data as make


def test_queries_are_the_best_the_median_and_the_worst():
    shown = replace(make((4,) * 9), average_precision=torch.linspace(0, 1, 36))
    found = retrievals(shown, each=1)
    (best,), (median,), (worst,) = (found[name] for name in ("best", "median", "worst"))
    assert (best.row, worst.row) == (35, 0)
    assert median.row in (17, 18)
    assert best.average_precision == 1 and worst.average_precision == 0


def test_queries_are_of_different_classes_and_none_is_shown_twice():
    found = retrievals(shown := make((6,) * 8), each=4)
    scores = shown.average_precision
    for queries in found.values():
        assert len({int(shown.labels[query.row]) for query in queries}) == 4
    rows = [query.row for queries in found.values() for query in queries]
    assert len(rows) == len(set(rows)) == 12
    lowest = {name: min(query.average_precision for query in found[name]) for name in found}
    assert lowest["best"] >= float(scores.median()) >= lowest["worst"]
    assert found == retrievals(shown, each=4)


def test_a_class_gives_several_queries_where_classes_are_few():
    found = retrievals(make((9,)), each=3)
    assert [len(queries) for queries in found.values()] == [3, 3, 3]


@pytest.mark.parametrize(("sizes", "n"), [((1, 1, 1), 0), ((1,), 0), ((2, 1), 2)])
def test_images_alone_in_their_class_are_no_queries(sizes, n):
    shown = make(sizes)
    rows = [query.row for queries in retrievals(shown).values() for query in queries]
    assert len(rows) == n
    assert not shown.average_precision[rows].isnan().any()


def test_found_are_the_right_ones_among_the_first_r_even_if_fewer_are_shown():
    labels, embeds = torch.tensor([0, 0, 1, 0, 1]), torch.tensor([[0.0], [1], [2], [5], [6]])
    shown = replace(make((3, 2), labels=labels, after=embeds), before=embeds.flip(0))
    queries = {q.row: q for found in retrievals(shown, k=1).values() for q in found}
    assert {row: (q.n_found, q.n_right) for row, q in queries.items()} == {
        0: (1, 2), 1: (1, 2), 2: (0, 1), 3: (0, 2), 4: (0, 1),
    }  # fmt: skip
    before = {row: (q.untrained.n_found, q.untrained.neighbours) for row, q in queries.items()}
    assert before == {0: (1, [1]), 1: (1, [0]), 2: (0, [3]), 3: (0, [2]), 4: (0, [3])}


@pytest.mark.parametrize("k", [1, 4, 100])
def test_neighbours_are_those_of_sorted_distances(k):
    shown = make()
    found = neighbours_of(shown.after, shown.labels, torch.tensor([3, 0, 20]), k)
    for row, neighbours in zip((3, 0, 20), found.tolist(), strict=True):
        distances = (shown.after - shown.after[row]).norm(dim=1).tolist()
        expected = sorted((other for other in range(21) if other != row), key=distances.__getitem__)
        assert neighbours == expected[:k]


def test_equal_distances_favour_other_classes_then_lower_rows():
    labels = torch.tensor([0, 0, 1, 0, 2])
    found = neighbours_of(torch.ones(5, 3), labels, torch.tensor([1]), 8)
    assert found.tolist() == [[2, 4, 0, 3]]


def test_separate_queries_find_gallery_images_alone():
    """In-Shop: the nearest image of all is another query, and is not shown."""
    is_query = torch.arange(40) < 15
    scores = torch.where(is_query, torch.rand(40), torch.nan).double()
    shown = replace(make((8,) * 5), average_precision=scores, queries=is_query)
    for found in retrievals(shown, k=30).values():
        for query in found:
            assert query.row < 15 and len(query.neighbours) == 25
            distances = (shown.after - shown.after[query.row]).norm(dim=1).tolist()
            assert query.neighbours == sorted(range(15, 40), key=distances.__getitem__)


@pytest.mark.parametrize(
    ("sizes", "method"), [((1,), "PCA"), ((3, 4), "PCA"), ((20,) * 5, "t-SNE")]
)
def test_a_map_fills_the_unit_square(sizes, method):
    found = image_map(make(sizes))
    assert found.method == method
    assert found.rows.tolist() == list(range(sum(sizes)))
    assert found.points.shape == (sum(sizes), 2)
    assert float(found.points.min()) == 0 and found.points.isfinite().all()
    assert float(found.points.max()) == (pytest.approx(1) if sum(sizes) > 1 else 0)


def test_a_map_of_few_images_keeps_their_distances_in_a_plane():
    flat = F.pad(
        F.normalize(torch.randn(9, 2, generator=torch.Generator().manual_seed(0)), dim=1), (0, 3)
    )
    found = image_map(make((9,), after=flat))
    apart, wanted = torch.pdist(found.points), torch.pdist(flat)
    torch.testing.assert_close(apart / apart.max(), wanted / wanted.max(), atol=1e-4, rtol=0)


def test_a_map_takes_whole_classes():
    shown = make((4,) * 10)
    labels = shown.labels[image_map(shown, limit=12).rows]
    assert sorted(labels.bincount()[labels.unique()].tolist()) == [4, 4, 4]


def test_equal_images_have_a_map():
    found = image_map(make((50, 50), after=torch.ones(100, 3)))
    assert found.points.tolist() == [[0.0, 0.0]] * 100
