"""From images to named scores with their protocols."""

import csv
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import metrics
from evaluation import Scores, listing, run, table, write_by_class
from tests.evaluation.conftest import Colour, to_tensor
from utilities.structures import Embedding

REDS = (10, 12, 90, 95, 93, 200)
LABELS = (0, 0, 1, 1, 2, 2)


def raw(image):
    """(3, H, W) in [0, 255]."""
    return 255 * to_tensor(image)


@pytest.fixture
def image_set(colours):
    """Images of red by ``REDS`` and of green by row."""
    shown = [(red, 3 * row, 0) for row, red in enumerate(REDS)]
    return colours(shown, LABELS, groups=("animal", "animal", "vehicle"))


def test_scores_each_output_under_its_own_name(image_set):
    names = ["e_recall@1", "c_recall@1", "nmi", "wrong_group_share@1"]
    embedder = Colour()
    found, features = run(
        embedder, image_set, raw, metrics=names, bs=4, workers=0,
        evaltypes=("embeds", "features"), seed=2,
    )  # fmt: skip
    assert features.rows.tolist() == list(range(6))
    assert len(embedder.calls) == 2  # two batches, once
    assert list(found) == [f"{kind}/{name}" for kind in ("embeds", "features") for name in names]
    colours = torch.tensor([[red, 3 * row, 0.0] for row, red in enumerate(REDS)])
    for kind, part in (("embeds", colours[:, 1:]), ("features", colours)):
        gallery = metrics.Gallery(part, torch.tensor(LABELS), None, image_set.class_groups, 2)
        expected = metrics.compute(names, gallery)
        assert {name: found[f"{kind}/{name}"] for name in names} == expected


def test_every_score_carries_its_protocol(image_set):
    names = ["recall@2", "c_recall@1", "c_f1"]
    found, _ = run(Colour(), image_set, raw, metrics=names, bs=6, workers=0, seed=7)
    assert list(found.protocols.values()) == [
        f"colours.test n=6 d=2 {how} seed=7"
        for how in ("euclidean exact", "cosine exact", "cosine k-means")
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"metrics": ["e_recal@1"]},
            "e_recal@1 of --evaluation_metrics",
        ),
        ({"metrics": ["wrong_word_similarity@1"]}, "needs embedded words of the classes"),
        ({"evaltypes": ("embed",)}, "evaltypes must be among embeds, features; got embed"),
    ],
)
def test_refused_before_anything_is_embedded(image_set, change, message):
    embedder = Colour()
    with pytest.raises(ValueError, match=message):
        run(embedder, image_set, raw, **{"metrics": ["mAP"], "workers": 0, **change})
    assert not embedder.calls


def test_intervals_and_values_by_class(image_set, tmp_path):
    """Classes dog and wolf find each other, the car's images find their like."""
    found, _ = run(Colour(), image_set, raw, metrics=["recall@1", "nmi"], bs=6, workers=0)
    gallery = metrics.Gallery(
        torch.tensor([[3.0 * row, 0.0] for row in range(6)]), torch.tensor(LABELS)
    )
    queries = metrics.per_query(["recall@1"], gallery)
    expected = metrics.per_class(queries, gallery.labels)["recall@1"]
    assert list(found.by_class) == list(found.intervals) == ["embeds/recall@1"]  # no query has nmi
    assert torch.equal(found.by_class["embeds/recall@1"], expected)
    low, high = found.intervals["embeds/recall@1"]
    assert low <= found["embeds/recall@1"] <= high

    scores = Scores({}, {})
    scores.add(found, "test/")
    write_by_class(tmp_path / "classes.csv", scores, "test/", image_set)
    rows = list(csv.reader((tmp_path / "classes.csv").open()))
    assert rows[0] == ["class", "group", "images", "embeds/recall@1"]
    assert [row[:3] for row in rows[1:]] == [
        ["dog", "animal", "2"], ["wolf", "animal", "2"], ["car", "vehicle", "2"],
    ]  # fmt: skip
    assert [float(row[3]) for row in rows[1:]] == expected.tolist()


def test_table_is_aligned():
    before = Scores({"embeds/e_recall@1": 0.4181, "embeds/nmi": math.nan, "old/mAP": 1.0}, {})
    interval = {"embeds/e_recall@1": metrics.Interval(0.5, 0.601)}
    after = {"embeds/e_recall@1": 0.5512, "embeds/nmi": 0.7, "features/uniformity": -2.5}
    assert table(before, Scores(after, {}, interval)).splitlines() == [
        "in percent, with 95 % intervals over classes  untrained  trained                  change",
        "----------------------------------------------------------------------------------------",
        "embeds/e_recall@1                                 41.81    55.12  [50.00, 60.10]  +13.31",
        "embeds/nmi                                            –    70.00                       –",
        "features/uniformity                                   –  -2.5000                       –",
        "old/mAP                                          100.00        –                       –",
    ]


def test_a_listing_has_no_second_column():
    scores = Scores({"embeds/mAP": 0.5, "embeds/alignment": 0.25}, {})
    assert listing(scores).splitlines()[2:] == [
        "embeds/mAP                                     50.00",
        "embeds/alignment                              0.2500",
    ]


# ------------------------------------------------------------------------- queries and a gallery


@pytest.fixture
def apart(image_set):
    """Queries (rows 0, 3, 4) and a gallery in which nothing is of the car's class."""
    queries = np.array([True, False, False, True, True, True])
    return replace(image_set, queries=queries, labels=np.array([0, 0, 1, 1, 0, 2]))


def nearest_is_right(reds, labels, asks):
    """For each query by plain loops: whether its nearest gallery image is of its class."""
    hits = []
    for row in range(len(labels)):
        gallery = [other for other in range(len(labels)) if not asks[other]]
        if not asks[row] or labels[row] not in [labels[other] for other in gallery]:
            continue
        best = min(gallery, key=lambda other: abs(reds[other] - reds[row]))
        hits.append(labels[best] == labels[row])
    return hits


def test_queries_ask_and_the_gallery_is_searched(apart):
    class Red(nn.Module):
        def forward(self, images):
            red = images[:, :1].mean(dim=(2, 3))
            return Embedding(red, red, images)

    names = ["recall@1", "mAP@R", "nmi", "wrong_group_share@1"]
    found, features = run(Red(), apart, raw, metrics=names, bs=2, workers=0, seed=3)
    hits = nearest_is_right(REDS, apart.labels, apart.queries)
    assert 0 < sum(hits) < len(hits) == 3  # the query of class 2 finds none and does not count
    assert found["embeds/recall@1"] == pytest.approx(sum(hits) / len(hits))
    # Everyone against everyone would say something else.
    whole, _ = run(Red(), replace(apart, queries=None), raw, metrics=names, bs=6, workers=0, seed=3)
    assert whole["embeds/recall@1"] != found["embeds/recall@1"]
    protocol = "colours.test q=4 n=2 d=1 euclidean"
    assert found.protocols["embeds/recall@1"] == f"{protocol} exact seed=3"
    assert found.protocols["embeds/nmi"] == f"{protocol} k-means seed=3"
    assert len(features.embeds) == 6
    by_class = found.by_class["embeds/recall@1"]
    assert len(by_class) == 3 and math.isnan(by_class[2])


def test_scores_are_those_of_metrics_with_queries(apart):
    names = ["recall@1", "recall@2", "mAP", "group_recall@1"]
    found, _ = run(Colour(), apart, raw, metrics=names, bs=6, workers=0, seed=3)
    points = torch.tensor([[3.0 * row, 0.0] for row in range(6)])
    labels, asks = torch.tensor(apart.labels), torch.tensor(apart.queries)
    gallery = metrics.Gallery(
        points[~asks], labels[~asks], None, apart.class_groups, 3,
        metrics.Queries(points[asks], labels[asks]),
    )  # fmt: skip
    expected = metrics.compute(names, gallery)
    assert {name: found[f"embeds/{name}"] for name in names} == expected


def test_values_by_class_reach_the_last_class_of_the_gallery(image_set, tmp_path):
    """A class that nothing asks for has a row without values in the file."""
    asking = replace(image_set, queries=np.array([True, False, True, False, False, False]))
    found, _ = run(Colour(), asking, raw, metrics=["recall@1"], bs=6, workers=0)
    write_by_class(tmp_path / "classes.csv", found, "embeds/", asking)
    rows = list(csv.reader((tmp_path / "classes.csv").open()))
    assert rows[0] == ["class", "group", "images", "recall@1"]
    assert rows[1][3] != "" and rows[3] == ["car", "vehicle", "2", ""]


@pytest.mark.parametrize("asks", [True, False])
def test_a_set_of_queries_alone_or_of_none_is_refused(image_set, asks):
    embedder = Colour()
    one_sided = replace(image_set, queries=np.full(6, asks))
    with pytest.raises(ValueError, match=r"colours.test has . queries and . gallery images"):
        run(embedder, one_sided, raw, metrics=["recall@1"], workers=0)
    assert not embedder.calls


def test_unreadable_queries_and_gallery_images_stay_in_their_places(apart):
    """What cannot be read moves no other image to the other side."""
    Image.new("RGB", (6, 5)).save(apart.paths[5])
    apart.paths[3].write_bytes(b"")
    found, features = run(Colour(), apart, raw, metrics=["recall@1"], bs=6, workers=0)
    assert features.rows.tolist() == [0, 1, 2, 4, 5]
    assert found.protocols["embeds/recall@1"].startswith("colours.test q=3 n=2 ")
