"""Scores of a report: sets side by side, and what a change says."""

import math

from evaluation.report_scores import kinds_in, parse_name, score_tables
from metrics import Interval

R1, TRAIN = "test/embeds/e_recall@1", "train/embeds/e_recall@1"
ALIGNMENT = "test/embeds/alignment"


def test_sets_are_side_by_side_and_accuracies_apart():
    rows = [
        {"epoch": 0, R1: 0.25, TRAIN: 0.5, "test/backbone/e_recall@1": 0.3, ALIGNMENT: 0.5},
        {"epoch": 3, R1: 0.5, TRAIN: 0.75, "train/loss": 1.0, "pets/knn@20": 0.75},
    ]
    assert kinds_in(rows) == ["embeds", ""]
    searched, classified = score_tables(rows, {R1: Interval(0.4, 0.6)}, {}, kinds_in(rows))
    assert (searched.sets, classified.sets) == (["test", "train"], ["pets"])
    (rows_of,) = searched.groups.values()
    assert [row.score.metric for row in rows_of] == ["e_recall@1", "alignment"]
    test, train = rows_of[0].cells.values()
    assert test == ("25.00", "50.00", "40.00 to 60.00", "+25.00", "", "")
    assert (train.untrained, train.trained, train.change) == ("50.00", "75.00", "+25.00")
    assert rows_of[1].cells["train"] is None
    assert searched.compared and not classified.compared


def test_a_change_is_better_or_worse_where_its_interval_excludes_zero():
    rows = [{"epoch": 0, R1: 0.25, ALIGNMENT: 0.5}, {"epoch": 1, R1: 0.5, ALIGNMENT: 0.75}]

    def effects(low, high):
        changes = dict.fromkeys((R1, ALIGNMENT), Interval(low, high))
        (table,) = score_tables(rows, {}, changes, ["embeds"])
        return [row.cells["test"].effect for row in table.groups["Search by picture"]]

    assert effects(0.1, 0.4) == ["better", "worse"]  # lower is better for alignment
    assert effects(-0.4, -0.1) == ["worse", "better"]
    assert effects(-0.1, 0.1) == effects(math.nan, math.nan) == ["", ""]


def test_three_sets_take_two_tables():
    rows = [{"epoch": 0, **{f"{name}/embeds/mAP": 0.5 for name in ("val", "test", "train")}}]
    assert [table.sets for table in score_tables(rows, {}, {}, ["embeds"])] == [
        ["val", "test"], ["train"],
    ]  # fmt: skip


def test_losses_and_speeds_are_not_scores():
    names = ("train/loss", "train/images_per_second", "epoch", "a/b/c/d", "test/backbone/mAP")
    assert not any(map(parse_name, names))
