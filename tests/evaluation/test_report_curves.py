"""Curves of a report: what shares a panel, and that its axis says the truth."""

import math

import pytest

from evaluation.report_curves import HEIGHT, LEFT, LINES, PANELS, POINTS, TOP, WIDTH, panels, ticks

R1, TRAIN = "test/embeds/e_recall@1", "train/embeds/e_recall@1"


def rows(**series):
    """Rows of epochs from 0 for lists of values by name."""
    n = max(map(len, series.values()))
    return [
        {"epoch": e, **{name: values[e] for name, values in series.items() if e < len(values)}}
        for e in range(n)
    ]


@pytest.mark.parametrize(
    ("low", "high", "least"),
    [(0, 1, 0), (63.2, 64.1, 2), (31.0, 31.0, 0), (31.0, 31.0, 2), (-0.3, 12, 0), (0, 0, 0),
     (1e-6, 3e-6, 0), (2, 98765, 0), (99.5, 100, 2)],
)  # fmt: skip
def test_ticks_are_round_and_enclose_the_values(low, high, least):
    found = ticks(low, high, least)
    values = list(found)
    assert 3 <= len(values) <= 8 and values[0] <= low + 1e-9 and values[-1] >= high - 1e-9
    assert values[-1] - values[0] >= least
    assert len(set(found.values())) == len(values)
    for value, label in found.items():
        assert float(label) == pytest.approx(value, abs=1e-9)


def test_sets_share_one_axis_and_the_best_epoch_is_marked():
    shown = rows(**{R1: [0.25, 0.5, 0.375], TRAIN: [0.5, 0.75, 1.0]})
    shown[0]["test/backbone/e_recall@1"] = 0.3
    (panel,) = panels(shown)
    assert [(line.name, line.last) for line in panel.lines] == [
        ("test", "37.5"),
        ("train", "100.0"),
    ]
    labels = {mark.label: mark.y for mark in panel.y_ticks}
    low, high = float(min(labels, key=float)), float(max(labels, key=float))

    def height(percent):
        return pytest.approx(TOP + HEIGHT * (high - percent) / (high - low), abs=0.06)

    assert [y for _, y in panel.lines[0].points] == [height(25), height(50), height(37.5)]
    assert [y for _, y in panel.lines[1].points] == [height(50), height(75), height(100)]
    assert [x for x, _ in panel.lines[0].points] == [LEFT, LEFT + WIDTH / 2, LEFT + WIDTH]
    assert panel.best == (LEFT + WIDTH / 2, height(50), "best 50.0 after epoch 1")
    levels = {mark.label: mark.y for mark in panel.levels}
    assert levels == {"untrained 25.0": height(25), "backbone's features 30.0": height(30)}


def test_the_best_is_the_lowest_where_lower_is_better():
    (panel,) = panels(rows(**{"test/embeds/alignment": [0.5, 0.25, 0.375]}))
    assert panel.best.label == "best 0.25 after epoch 1"
    (panel,) = panels(rows(**{"test/embeds/rho_spectrum@1": [0.5, 0.25, 0.375]}))
    assert panel.best is None


def test_permuted_words_are_a_line_beside_the_words():
    shown = rows(
        **{"test/words/word_recall@1": [0, 0.1], "test/permuted_words/word_recall@1": [0, 0.01]}
    )
    (panel,) = panels(shown)
    names = [(line.name, line.style) for line in panel.lines]
    assert names == [("test", 0), ("test, words permuted", -1)]
    assert panel.levels == []


def test_losses_share_a_panel_and_speeds_have_none():
    shown = rows(
        **{
            "train/loss": [3.0, 2.0], "train/loss_dml": [3.0, 2.0], "train/loss_match": [1.0, 0.5],
            "train/images_per_second": [9.0, 8.0], "train/waiting_for_data": [0.1, 0.2],
        }
    )  # fmt: skip
    (panel,) = panels(shown)
    assert [line.name for line in panel.lines] == ["loss", "loss_match"] and panel.best is None


def test_panels_lines_and_points_are_bounded():
    values = [math.sin(e) ** 2 for e in range(1000)]
    names = [f"s{s}/embeds/recall@{k}" for s in range(9) for k in range(1, 40)]
    found = panels(rows(**dict.fromkeys(names, values)))
    assert len(found) == PANELS and {len(panel.lines) for panel in found} == {LINES}
    assert {len(line.points) for panel in found for line in panel.lines} == {POINTS}
    assert (
        panels([]) == panels(rows(**{R1: [0.5]})) == panels([{"epoch": 0, R1: math.nan}] * 2) == []
    )
