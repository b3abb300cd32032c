"""The data of a report are refused if they do not fit, and scored as their set is."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.image_set import ImageSet
from evaluation.report_data import build_report_data
from tests.evaluation.conftest import make_report_data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"paths": []}, "no images"),
        ({"recall": torch.ones(3)}, "recall has 3 rows for 21 images"),
        ({"before": torch.ones(4, 2)}, "before has 4 rows for 21 images"),
        ({"class_groups": ["one"]}, "class_groups has 1 rows for 5 classes"),
        ({"class_words": torch.ones(4, 2)}, "class_words has 4 rows for 5 classes"),
        ({"word_queries": torch.ones(4, 2)}, "word_queries has 4 rows for 5 classes"),
        ({"word_gallery": torch.ones(4, 2)}, "word_gallery has 4 rows for 21 images"),
        ({"word_queries": torch.ones(5, 2)}, "word_queries and word_gallery come together"),
        ({"labels": torch.full((21,), 5)}, r"labels must be in \[0, 5\)"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    with pytest.raises(ValueError, match=f"made.test.*{message}"):
        replace(make_report_data(), **change)


def test_classes_are_drawn_by_the_seed():
    drawn = [
        make_report_data((1,) * 40, seed=seed).draw_classes(10, "matrices").tolist()
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] == sorted(set(drawn[0]))
    assert drawn[0] != drawn[2] and len(drawn[0]) == 10
    assert make_report_data((2, 3)).draw_classes(10, "matrices").tolist() == [0, 1]


def test_the_report_of_a_set_with_a_gallery_shows_the_scores_of_its_queries():
    is_query = np.array([True, False, True, False, False, True, False, False])
    labels = np.array([0, 0, 1, 1, 0, 1, 0, 2])
    images = ImageSet(
        "shop.test", tuple(Path(f"{row}.jpg") for row in range(8)), labels, tuple("abc"),
        queries=is_query,
    )  # fmt: skip
    rows = torch.tensor([0, 1, 2, 3, 4, 5, 7])  # one could not be read
    embeds = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    shown = build_report_data(images, embeds, rows)
    gallery = [place for place, row in enumerate(rows.tolist()) if not is_query[row]]
    for place, row in enumerate(rows.tolist()):
        if not is_query[row]:
            assert math.isnan(shown.recall[place])
            continue
        nearest = min(gallery, key=lambda other: float((embeds[place] - embeds[other]).norm()))
        assert float(shown.recall[place]) == (labels[rows[nearest]] == labels[row])
    assert shown.queries.tolist() == [bool(is_query[row]) for row in rows]
    assert build_report_data(replace(images, queries=None), embeds, rows).queries is None
