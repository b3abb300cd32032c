"""Learning curves: a readable PNG for whatever columns there are."""

import pytest
from PIL import Image

from utilities.plots import learning_curves

ROWS = [
    {"epoch": 0, "nmi": 0.5},
    {"epoch": 1, "nmi": 0.6, "loss": 2.0, "broken": None},
    {"epoch": 2, "nmi": None, "loss": 1.0, "broken": None},
    {"epoch": 3, "nmi": 0.7, "loss": 0.5, "broken": None},
]


def test_one_labelled_panel_per_score_with_values(tmp_path, figures):
    path = tmp_path / "curves.png"
    learning_curves(ROWS, path)
    nmi, loss = (panel for panel in figures[0].axes if panel.get_visible())
    assert nmi.get_title() == "nmi  (last 0.7)"
    assert loss.get_title() == "loss  (last 0.5)"
    assert nmi.get_xlabel() == "epoch"
    assert list(loss.lines[-1].get_xdata()) == [1, 2, 3]
    assert list(nmi.lines[-1].get_ydata()) == [0.5, 0.6, 0.7]
    assert nmi.get_xlim() == loss.get_xlim()
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width > 800
        assert len(image.convert("RGB").getcolors(1 << 24)) > 10
    assert list(tmp_path.iterdir()) == [path]


def test_the_untrained_score_is_a_line_to_measure_against(tmp_path, figures):
    learning_curves(ROWS, tmp_path / "curves.png")
    nmi, loss = figures[0].axes[:2]
    assert list(nmi.lines[0].get_ydata()) == [0.5, 0.5]
    assert len(loss.lines) == 1  # no epoch 0, no reference


def test_more_scores_than_columns_wrap(tmp_path, figures):
    row = {"epoch": 0} | {f"score{i}": float(i) for i in range(7)}
    learning_curves([row], tmp_path / "curves.png")
    visible = [panel for panel in figures[0].axes if panel.get_visible()]
    assert (len(visible), len(figures[0].axes)) == (7, 9)


def test_nothing_to_draw(tmp_path):
    with pytest.raises(ValueError, match="no score to draw"):
        learning_curves([{"epoch": 0, "loss": None}], tmp_path / "curves.png")
    assert list(tmp_path.iterdir()) == []
