"""The names of a report against loops over all images, whatever the set lacks."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from evaluation.report_words import names_at, word_finds
from evaluation.word_search import DistinctNames, by_words
from tests.evaluation.conftest import make_report_data, with_words
from tests.evaluation.test_word_search import image_set


def of_loops(data):
    """Return average precision, rank of the first hit and the ranking of each class's name."""
    queries, images = (F.normalize(part, dim=1) for part in (data.word_queries, data.word_gallery))
    found = {}
    for label, query in enumerate(queries):
        order = sorted(range(len(images)), key=lambda row: -float(query @ images[row]))
        right = [data.class_of(row) == data.class_names[label] for row in order]
        places = [place for place, hit in enumerate(right, 1) if hit]
        if places:
            precision = sum(n / place for n, place in enumerate(places, 1)) / len(places)
            found[label] = precision, places[0], order
    return found


def test_names_find_what_loops_find():
    data = with_words((4, 3, 5, 2, 6, 4, 3))
    expected = of_loops(data)
    finds = word_finds(data, each=2, k=5)
    shown = [search for searches in finds.searches.values() for search in searches]
    assert [len(searches) for searches in finds.searches.values()] == [2, 2, 2]
    assert len({search.label for search in shown}) == 6
    for search in shown:
        precision, first_hit, order = expected[search.label]
        assert search.average_precision == pytest.approx(precision)
        assert (search.first_hit, search.found) == (first_hit, order[:5])
        assert search.right == [int(data.labels[row]) == search.label for row in order[:5]]
    ranked = sorted(expected, key=lambda label: -expected[label][0])
    assert [search.label for search in finds.searches["best"]] == ranked[:2]
    assert [search.label for search in finds.searches["worst"]] == ranked[:-3:-1]
    assert {search.label for search in finds.searches["median"]} < {*ranked[2:5]}


def test_the_mean_over_names_is_the_score():
    data = with_words((4, 3, 5, 2, 6, 4, 3))
    images = image_set("made.test", data.labels.tolist(), data.class_names)
    rows = torch.arange(len(data.labels))
    score = by_words(images, data.word_gallery, rows, [data.word_queries], ["word_mAP"])["word_mAP"]
    shown = word_finds(data, each=3)
    found = [s.average_precision for searches in shown.searches.values() for s in searches]
    assert shown.n_names == len(found) == 7 and sum(found) / 7 == pytest.approx(score)


def test_what_comes_first_instead_is_counted():
    data = with_words((3,) * 12)
    wrong = {label: order[0] for label, (_, first, order) in of_loops(data).items() if first > 1}
    classes = {label: int(data.labels[row]) for label, row in wrong.items()}
    finds = word_finds(data)
    assert 0 < finds.n_wrong == len(wrong) < 12
    groups = data.class_groups
    assert finds.in_group == sum(groups[a] == groups[b] for a, b in classes.items())
    by_chance = sum(
        sum(groups[c] == groups[a] for c in data.labels.tolist() if c != a) / (36 - 3)
        for a in wrong
    )
    assert finds.in_group_by_chance == pytest.approx(by_chance)
    counts = {label: n for label, n in Counter(classes.values()).items() if n > 1}
    assert {magnet.label: len(magnet.names) for magnet in finds.magnets} == counts
    for magnet in finds.magnets:
        assert all(classes[label] == magnet.label for label in magnet.names)


def test_classes_of_one_name_are_one():
    data = with_words((3, 3, 3, 3))
    names = ["dog", "cat", "dog", "owl"]
    queries = data.word_queries[[0, 1, 0, 3]]
    data = replace(data, class_names=names, word_queries=queries)
    expected = of_loops(data)
    finds = word_finds(data, each=1)
    assert finds.n_names == 3
    [dog] = [s for (s,) in finds.searches.values() if data.class_names[s.label] == "dog"]
    assert dog.label == 0 and sum(dog.right) == sum(
        data.class_of(row) == "dog" for row in expected[0][2][:8]
    )
    assert DistinctNames.among(names).first.tolist() == [0, 1, 3]


def test_a_class_without_an_image_is_not_shown():
    data = with_words((3, 3, 3, 3))
    rows = data.labels != 1
    data = replace(
        data, paths=data.paths[: int(rows.sum())], labels=data.labels[rows],
        after=data.after[rows], recall=data.recall[rows], before=None,
        average_precision=data.average_precision[rows], word_gallery=data.word_gallery[rows],
    )  # fmt: skip
    finds = word_finds(data)
    labels = [s.label for searches in finds.searches.values() for s in searches]
    assert finds.n_names == 3 and sorted(labels) == [0, 2, 3]


def test_equal_names_are_spread_over_groups():
    labels = torch.arange(12)
    space = torch.eye(12)
    groups = [*["fruit"] * 9, "bird", "fish", "tree"]
    data = make_report_data(
        (1,) * 12, labels=labels, word_queries=space, word_gallery=space, class_groups=groups
    )
    for each in (2, 4):
        best = word_finds(data, each=each).searches["best"]
        assert len({groups[search.label] for search in best}) == each
    assert word_finds(data) == word_finds(data)
    assert word_finds(data).n_wrong == 0 and word_finds(data).magnets == []


def test_names_at_percentiles_of_average_precision():
    data = with_words((3,) * 11)
    expected = of_loops(data)
    ranked = sorted(expected, key=lambda label: expected[label][0])
    found = names_at(data, [100, 90, 50, 0], k=4)
    assert [search.label for search in found] == [ranked[place] for place in (10, 9, 5, 0)]
    assert all(search.found == expected[search.label][2][:4] for search in found)


def test_without_a_search_by_words_nothing_is_found():
    assert word_finds(make_report_data()) is None
    finds = word_finds(with_words((2, 2), groups=False))
    assert finds.in_group is None and finds.n_names == 2
