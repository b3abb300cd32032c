"""Learning curves of groups: what is drawn, and that it can be read."""

import itertools
import math

import pytest
from PIL import Image

from utilities.results.curves import COLOURS, MAX_GROUPS, Curve, Panel, curve, draw, panels
from utilities.results.runs import Result, Run, by_group


def results_of(group, rows_by_seed):
    runs = [
        Run(None, {"flags": {"group": group, "seed": seed}}, rows)
        for seed, rows in enumerate(rows_by_seed)
    ]
    return [Result(run, run.rows[-1]["epoch"], {}) for run in runs]


def rows(*values, name="recall"):
    return [{"epoch": 2 * i, name: value} for i, value in enumerate(values)]


def test_a_curve_is_over_the_epochs_that_all_seeds_have():
    """At epoch 2 mean 30 and s 10: 4.3027 · 10 / sqrt(3). Epoch 4 lacks a seed, 6 two."""
    groups = by_group(
        results_of("g", [rows(0.1, 0.2, 0.5), rows(0.1, 0.3, None), rows(0.1, 0.4, 0.5, 0.6)])
    )
    found = curve(groups, "g", "recall")
    assert found.epochs == [0, 2] and found.n_seeds == 3
    assert found.means == pytest.approx([10, 30])
    assert found.halves == pytest.approx([0, 24.8414], abs=1e-3)


def test_one_evaluation_is_no_curve_and_short_runs_are_named():
    longer = results_of("long", [rows(0.1, 0.2, 0.3), rows(0.1, 0.2)])
    for result in longer:
        result.run.rows[-1]["probe"] = 0.5
    groups = by_group([*longer, *results_of("same", [rows(0.1, 0.2, name="train/loss")])])
    found, notes = panels(
        groups, {"long": "Long", "same": "Same"}, {"recall": "R@1", "probe": "P", "train/loss": "L"}
    )
    assert [(panel.heading, panel.unit, list(panel.curves)) for panel in found] == [
        ("R@1", "%", ["Long"]),
        ("L", "", ["Same"]),
    ]
    assert found[1].curves["Same"].means == [0.1, 0.2]
    assert notes == [
        "no curve of probe: it was evaluated at only one epoch",
        "the curve ends with the shortest run of the group: Long",
    ]


def test_lines_bands_and_legend(tmp_path, figures):
    curves = {
        "seeds": Curve([0, 4, 8], [10.0, 30.0, 40.0], [1.0, 2.0, 3.0], 3),
        "single": Curve([0, 4, 8], [10.0, 25.0, 35.0], [math.nan] * 3, 1),
    }
    path = tmp_path / "curves.png"
    draw([Panel("Recall@1", "%", curves), Panel("loss", "", curves)], path, "a caption")
    panel, loss = figures[0].axes
    assert [line.get_color() for line in panel.lines] == list(COLOURS[:2])
    assert list(panel.lines[0].get_ydata()) == [10, 30, 40]
    band = panel.collections[0].get_paths()[0].vertices
    assert {(8.0, 37.0), (8.0, 43.0), (0.0, 9.0)} <= set(map(tuple, band))
    assert (panel.get_title(), panel.get_xlabel(), panel.get_ylabel()) == ("Recall@1", "epoch", "%")
    assert loss.get_ylabel() == ""
    assert [text.get_text() for text in figures[0].legends[0].texts] == [
        "seeds  (3 seeds)",
        "single  (1 seed)",
    ]
    assert figures[0].texts[0].get_text() == "a caption"
    with Image.open(path) as image:
        assert image.format == "PNG"
    assert list(tmp_path.iterdir()) == [path]


def test_a_wide_band_does_not_flatten_the_curves(tmp_path, figures):
    narrow = Curve([0, 1], [10.0, 20.0], [1.0, 1.0], 3)
    draw(
        [Panel("s", "%", {"g": narrow._replace(halves=[0.0, 500.0], n_seeds=2)})],
        tmp_path / "a.png",
    )
    assert figures[0].axes[0].get_ylim() == (0, 30)  # one span of the means beyond them
    draw([Panel("s", "%", {"g": narrow})], tmp_path / "b.png")
    low, high = figures[1].axes[0].get_ylim()
    assert 8 < low <= 9 and 21 <= high < 22


@pytest.mark.parametrize("n_panels", [1, 2, 4, 7])
def test_no_text_overlaps(tmp_path, figures, n_panels):
    """Titles, labels, legend and caption each in its own place, with as many groups as can be."""
    names = [f"league_subcenter_arcface_{i}" for i in range(MAX_GROUPS)]
    curves = {
        name: Curve([0, 100], [10.0, 20.0 + i], [1.0, 1.0], 3) for i, name in enumerate(names)
    }
    all_panels = [Panel(f"test/embeds/wrong_similarity@{i}", "%", curves) for i in range(n_panels)]
    draw(
        all_panels, tmp_path / "c.png", "Mean over seeds at every evaluation; bands: 95 % interval."
    )
    figure = figures[0]
    renderer = figure.canvas.get_renderer()
    legend = figure.legends[0]
    visible = [axis for axis in figure.axes if axis.get_visible()]
    boxes = [axis.get_tightbbox(renderer) for axis in visible]
    boxes += [legend.get_window_extent(renderer), figure.texts[0].get_window_extent(renderer)]
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)
    texts = [text.get_window_extent(renderer) for text in legend.texts]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(texts, 2))
    for box in boxes:
        assert box.x0 >= -1 and box.y0 >= -1
        assert box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1
    shown = {(line.get_color(), line.get_linestyle()) for line in visible[0].lines}
    assert len(shown) == MAX_GROUPS


@pytest.mark.parametrize(("suffix", "start"), [(".svg", b"<?xml"), (".PDF", b"%PDF")])
def test_other_formats_by_suffix(tmp_path, suffix, start):
    path = tmp_path / f"curves{suffix}"
    draw([Panel("s", "%", {"g": Curve([0, 1], [1.0, 2.0], [0.1, 0.1], 2)})], path)
    assert path.read_bytes().startswith(start)


def test_nothing_to_draw_and_too_much(tmp_path):
    with pytest.raises(ValueError, match="no score was evaluated at two epochs"):
        draw([], tmp_path / "c.png")
    many = {str(i): Curve([0, 1], [1.0, 2.0], [0.1, 0.1], 2) for i in range(MAX_GROUPS + 1)}
    with pytest.raises(ValueError, match=f"{MAX_GROUPS + 1} groups.*--groups"):
        draw([Panel("s", "%", many)], tmp_path / "c.png")
    assert list(tmp_path.iterdir()) == []
