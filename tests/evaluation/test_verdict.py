"""The verdict at the end of a run: its scores, its interval and its sentence."""

import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from evaluation.scores import Scores
from evaluation.verdict import Searched, change, interval_of_change, intervals_of_changes, verdict

METRICS = ["e_recall@1", "nmi", "mAP@R"]


def images(counts, queries=None):
    labels = np.repeat(np.arange(len(counts)), counts)
    return SimpleNamespace(labels=labels, queries=queries)


def searched(name, prefix, by_class, counts):
    """Return what has these (C,) scores by class in each metric."""
    values = torch.tensor(by_class, dtype=torch.float64)
    mean = float((values * torch.tensor(counts)).sum() / sum(counts))
    names = [f"{prefix}/{metric}" for metric in METRICS]
    return Searched(
        name, prefix, Scores(dict.fromkeys(names, mean), {}, {}, dict.fromkeys(names, values))
    )


COUNTS = [2, 3, 4, 5, 6, 7]
LOW, HIGH = [0.1, 0.2, 0.1, 0.3, 0.2, 0.1], [0.5, 0.7, 0.6, 0.6, 0.5, 0.6]


def conclude(backbone, untrained, trained, rows=(), split="test"):
    floors = [
        searched("backbone's features", f"{split}/backbone", backbone, COUNTS),
        searched("untrained embedding", f"{split}/embeds", untrained, COUNTS),
    ]
    last = searched("trained", f"{split}/embeds", trained, COUNTS)
    return verdict(last, floors, images(COUNTS), METRICS, rows, "--as before")


def epochs(*values, split="test"):
    return [{"epoch": epoch, f"{split}/embeds/e_recall@1": v} for epoch, v in enumerate(values)]


def test_a_run_below_its_backbone_says_so_though_it_beats_the_untrained_embedding():
    found = conclude(HIGH, LOW, [value - 0.1 for value in HIGH])
    assert [row[0] for row in found.rows] == [
        "test, in percent", "backbone's features", "untrained embedding", "trained",
        "trained − backbone's features",
    ]  # fmt: skip
    assert found.rows[0][1:] == ("Recall@1", "mAP@R")
    assert found.rows[-1][1].startswith("-10.00 [")
    assert "Recall@1 fell by 10.0 points below the backbone's features." in found.sentence
    assert "the same command with --as before leaves a run" in found.sentence


def test_recall_by_either_distance_is_told_once():
    floor = searched("backbone's features", "test/backbone", LOW, COUNTS)
    trained = searched("trained", "test/embeds", HIGH, COUNTS)
    for found in (floor, trained):
        for kept in (found.scores, found.scores.by_class):
            name = f"{found.prefix}/e_recall@1"
            kept[name.replace("e_", "")] = kept[name]
    found = verdict(trained, [floor], images(COUNTS), ["recall@1", *METRICS], (), "")
    assert found.rows[0][1:] == ("Recall@1", "mAP@R")


def test_a_gain_needs_no_remedy():
    found = conclude(LOW, LOW, HIGH)
    assert found.sentence.startswith("Recall@1 rose by") and "--" not in found.sentence


def test_a_gain_that_rests_on_one_class_is_not_clear():
    found = conclude(LOW, LOW, [*LOW[:-1], 0.9])
    assert "not clearly above or below" in found.sentence
    assert "need no training" in found.sentence


@pytest.mark.parametrize(
    ("recalls", "precisions", "says", "remedy"),
    [
        (HIGH, [*LOW[:-1], 0.9], "rose by.*mAP@R is not clearly above or below", False),
        ([*LOW[:-1], 0.9], HIGH, "Recall@1 is not clearly .* mAP@R rose by 41", False),
        (HIGH, [0.0] * 6, "Recall@1 rose by .* mAP@R fell by 17", True),
        ([0.0] * 6, HIGH, "Recall@1 fell by .* mAP@R rose by 41", True),
        (HIGH, HIGH, "Recall@1 rose by 41.* points over the backbone's features.$", False),
        (LOW, LOW, "^Recall@1 is not clearly above or below the backbone's features. The", True),
    ],
)
def test_a_score_that_changed_otherwise_is_told_too(recalls, precisions, says, remedy):
    floor = searched("backbone's features", "test/backbone", LOW, COUNTS)
    parts = [searched("trained", "test/embeds", of, COUNTS).scores for of in (recalls, precisions)]
    name = "test/embeds/mAP@R"
    scores = Scores(
        {**parts[0], name: parts[1][name]}, {}, {},
        {**parts[0].by_class, name: parts[1].by_class[name]},
    )  # fmt: skip
    trained = Searched("trained", "test/embeds", scores)
    found = verdict(trained, [floor], images(COUNTS), METRICS, (), "--as before")
    assert re.search(says, found.sentence)
    assert ("need no training" in found.sentence) == remedy


@pytest.mark.parametrize(
    ("values", "split", "expected"),
    [
        ((0.2, 0.5, 0.4), "test", "50.0 %, after epoch 1; choose the length on validation"),
        ((0.2, 0.5, 0.4), "val", "50.0 %, after epoch 1: train with --n_epochs 1."),
        ((0.6, 0.5, None, 0.4), "test", "highest before training, 60.0 %."),
        ((0.2, 0.5, 0.5), "test", None),
        ((0.2, None, 0.5), "test", None),
        ((0.2, 0.5, 0.0), "test", "50.0 %, after epoch 1; choose"),
    ],
)  # fmt: skip
def test_the_best_epoch_is_named_where_it_is_not_the_last(values, split, expected):
    found = conclude(LOW, LOW, HIGH, epochs(*values, split=split), split)
    assert ("highest" in found.sentence) is (expected is not None)
    assert expected is None or expected in found.sentence


def test_the_best_epoch_is_that_of_a_score_whose_checkpoint_is_kept():
    """Which of several metrics chose checkpoints is up to --storage_metrics."""

    def kept(score, epoch):
        return Path(f"run/best_{epoch}.pt") if score == "val/embeds/mAP@R" else None

    rows = [
        {"epoch": epoch, "val/embeds/e_recall@1": recall, "val/embeds/mAP@R": precision}
        for epoch, (recall, precision) in enumerate([(0.1, 0.1), (0.5, 0.2), (0.4, 0.3), (0, 0)])
    ]
    last = searched("trained", "val/embeds", HIGH, COUNTS)
    floor = searched("backbone's features", "val/backbone", LOW, COUNTS)
    found = verdict(last, [floor], images(COUNTS), METRICS, rows, "", kept)
    expected = (
        "mAP@R was highest, 30.0 %, after epoch 2: use best_2.pt, or train with --n_epochs 2."
    )
    assert expected in found.sentence


def test_the_change_is_that_of_the_queries():
    """Drawn by brute force: both scores of every query of the classes that are drawn."""
    before, after = searched("a", "x", LOW, COUNTS), searched("b", "x", HIGH, COUNTS)
    value, interval = change(after, before, images(COUNTS), "e_recall@1")
    labels = images(COUNTS).labels
    difference = (np.array(HIGH) - LOW)[labels]
    assert value == pytest.approx(difference.mean())
    rng, means = np.random.default_rng(0), []
    for _ in range(4000):
        drawn = rng.integers(len(COUNTS), size=len(COUNTS))
        means.append(np.concatenate([difference[labels == label] for label in drawn]).mean())
    # Six classes: the interval is a little wider than the percentiles, see metrics.bootstrap.
    low, high = np.quantile(means, [0.025, 0.975])
    assert interval.low < low < value < high < interval.high
    assert interval.high - interval.low < 1.6 * (high - low)


def test_only_queries_count_where_they_are_separate():
    gallery_first = np.array([False, True] * 2)
    split = images([2, 2], gallery_first)
    before, after = searched("a", "x", [0.0, 0.0], [1, 1]), searched("b", "x", [0.0, 1.0], [1, 1])
    assert change(after, before, split, "mAP@R")[0] == pytest.approx(0.5)


def test_one_class_has_no_interval_and_no_remedy():
    last, floor = searched("trained", "x", [0.2], [3]), searched("backbone", "y", [0.5], [3])
    found = verdict(last, [floor], images([3]), METRICS, [], "")
    assert found.rows[-1][1] == "-30.00" and "--" not in found.sentence


def test_nothing_is_concluded_without_scores_of_classes():
    last = searched("trained", "x", HIGH, COUNTS)
    unknown = Searched("backbone", "y", Scores({"y/e_recall@1": 0.5}, {}))
    assert verdict(last, [unknown], images(COUNTS), METRICS, [], "") is None
    assert verdict(last, [last], images(COUNTS), ["nmi"], [], "") is None


def test_a_missing_score_of_an_epoch_is_no_score():
    rows = [{"epoch": 0, "test/embeds/e_recall@1": math.nan}, {"epoch": 1}]
    assert "highest" not in conclude(LOW, LOW, HIGH, rows).sentence


def test_changes_of_a_set_have_the_interval_of_their_change():
    floor = searched("untrained", "test/embeds", LOW, COUNTS)
    last = searched("trained", "test/embeds", HIGH, COUNTS)
    before, after = floor.scores.by_class, last.scores.by_class
    found = intervals_of_changes(before, after, images(COUNTS), "test/")
    assert set(found) == {f"test/embeds/{metric}" for metric in METRICS}
    expected = change(last, floor, images(COUNTS), "e_recall@1")[1]
    assert found["test/embeds/e_recall@1"] == expected
    assert intervals_of_changes(before, after, images(COUNTS), "train/") == {}
    assert intervals_of_changes({}, after, images(COUNTS), "test/") == {}


def test_each_name_weighs_the_same_however_many_images_it_has():
    difference = torch.tensor([0.0, 0.5, 1.0, 0.5], dtype=torch.float64)
    few, many = images([1, 1, 1, 1]), images([1, 9, 1, 50])
    few.class_names = many.class_names = ["a", "b", "c", "d"]
    found = [interval_of_change("word_mAP", difference, some) for some in (few, many)]
    assert found[0] == found[1]
    few, many = (interval_of_change("named@1", difference, some) for some in (few, many))
    assert few != many
    twice = images([1, 1, 1, 1])
    twice.class_names = ["a", "b", "c", "b"]  # one name, counted once
    alone = images([1, 1, 1])
    alone.class_names = ["a", "b", "c"]
    assert interval_of_change("word_mAP", difference, twice) == interval_of_change(
        "word_mAP", difference[:3], alone
    )
