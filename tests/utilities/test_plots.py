"""Learning curves of a run and of groups of runs: what is drawn, and that it can be read."""

import itertools
import math
import warnings

import matplotlib
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.figure import Figure
from PIL import Image

from utilities import plots
from utilities.plots import drawable, font_file, learning_curves
from utilities.results.curves import COLOURS, MAX_GROUPS, Curve, Panel, curve, draw, panels
from utilities.results.runs import Result, Run, by_group

ROWS = [
    {"epoch": 0, "nmi": 0.5},
    {"epoch": 1, "nmi": 0.6, "loss": 2.0, "broken": None},
    {"epoch": 2, "nmi": None, "loss": 1.0, "broken": None},
    {"epoch": 3, "nmi": 0.7, "loss": 0.5, "broken": None},
]
SHORT = Curve([0, 1], [10.0, 20.0], [1.0, 1.0], 3)


@pytest.fixture
def figures(monkeypatch):
    """The figures that were saved, in order."""
    saved, savefig = [], Figure.savefig

    def spy(figure, *args, **kwargs):
        saved.append(figure)
        return savefig(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", spy)
    return saved


def shown(figure):
    return [panel for panel in figure.axes if panel.get_visible()]


# --------------------------------------------------------------------------------------------------
# A run
# --------------------------------------------------------------------------------------------------
def test_one_labelled_panel_per_score_with_values(tmp_path, figures):
    path = tmp_path / "curves.png"
    learning_curves(ROWS, path)
    nmi, loss = shown(figures[0])
    assert nmi.get_title() == "nmi  (last 0.7)"
    assert loss.get_title() == "loss  (last 0.5)"
    assert nmi.get_xlabel() == "epoch"
    assert list(loss.lines[-1].get_xdata()) == [1, 2, 3]
    assert list(nmi.lines[-1].get_ydata()) == [0.5, 0.6, 0.7]
    assert nmi.get_xlim() == loss.get_xlim()
    assert list(nmi.lines[0].get_ydata()) == [0.5, 0.5]  # the untrained score, dashed
    assert len(loss.lines) == 1  # no epoch 0, no such line
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width > 800
        assert len(image.convert("RGB").getcolors(1 << 24)) > 10
    assert list(tmp_path.iterdir()) == [path]


def test_more_scores_than_columns_wrap(tmp_path, figures):
    learning_curves([{"epoch": 0} | {f"score{i}": float(i) for i in range(7)}], tmp_path / "c.png")
    assert (len(shown(figures[0])), len(figures[0].axes)) == (7, 9)


# --------------------------------------------------------------------------------------------------
# Groups of runs
# --------------------------------------------------------------------------------------------------
def results_of(group, *rows_by_seed):
    runs = [
        Run(None, {"flags": {"group": group, "seed": seed}}, rows)
        for seed, rows in enumerate(rows_by_seed)
    ]
    return [Result(run, run.rows[-1]["epoch"], {}) for run in runs]


def rows(*values, name="recall"):
    return [{"epoch": 2 * i, name: value} for i, value in enumerate(values)]


def test_a_curve_is_over_the_epochs_that_all_seeds_have():
    """At epoch 2 mean 30 and s 10: 4.3027 · 10 / sqrt(3). Epoch 4 lacks a seed, 6 two."""
    seeds = (rows(0.1, 0.2, 0.5), rows(0.1, 0.3, None), rows(0.1, 0.4, 0.5, 0.6))
    found = curve(by_group(results_of("g", *seeds)), "g", "recall")
    assert found.epochs == [0, 2] and found.n_seeds == 3
    assert found.means == pytest.approx([10, 30])
    assert found.halves == pytest.approx([0, 24.8414], abs=1e-3)


def test_one_evaluation_makes_no_curve_and_short_runs_are_named():
    longer = results_of("long", rows(0.1, 0.2, 0.3), rows(0.1, 0.2))
    for result in longer:
        result.run.rows[-1]["probe"] = 0.5
    groups = by_group([*longer, *results_of("same", rows(0.1, 0.2, name="train/loss"))])
    found, notes = panels(
        groups, {"long": "Long", "same": "Same"}, {"recall": "R@1", "probe": "P", "train/loss": "L"}
    )
    drawn = [(panel.heading, panel.unit, list(panel.curves)) for panel in found]
    assert drawn == [("R@1", "%", ["Long"]), ("L", "", ["Same"])]
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
    legend = [text.get_text() for text in figures[0].legends[0].texts]
    assert legend == ["seeds  (3 seeds)", "single  (1 seed)"]
    assert figures[0].texts[0].get_text() == "a caption"
    with Image.open(path) as image:
        assert image.format == "PNG"
    assert list(tmp_path.iterdir()) == [path]


def test_a_wide_band_does_not_flatten_the_curves(tmp_path, figures):
    wide = SHORT._replace(halves=[0.0, 500.0], n_seeds=2)
    for curves in (wide, SHORT):
        draw([Panel("s", "%", {"g": curves})], tmp_path / "c.png")
    assert figures[0].axes[0].get_ylim() == (0, 30)  # one span of the means beyond them
    low, high = figures[1].axes[0].get_ylim()
    assert 8 < low <= 9 and 21 <= high < 22


@pytest.mark.parametrize("n_panels", [1, 2, 4, 7])
def test_no_text_overlaps(tmp_path, figures, n_panels):
    """Titles, labels, legend and caption each in its own place, with as many groups as can be."""
    curves = {
        f"league_subcenter_arcface_{i}": Curve([0, 100], [10.0, 20.0 + i], [1.0, 1.0], 3)
        for i in range(MAX_GROUPS)
    }
    all_panels = [Panel(f"test/embeds/wrong_similarity@{i}", "%", curves) for i in range(n_panels)]
    caption = "Mean over seeds at every evaluation; bands: 95 % interval."
    draw(all_panels, tmp_path / "c.png", caption)
    figure = figures[0]
    renderer = figure.canvas.get_renderer()
    legend = figure.legends[0]
    boxes = [panel.get_tightbbox(renderer) for panel in shown(figure)]
    boxes += [legend.get_window_extent(renderer), figure.texts[0].get_window_extent(renderer)]
    texts = [text.get_window_extent(renderer) for text in legend.texts]
    for one, other in (*itertools.combinations(boxes, 2), *itertools.combinations(texts, 2)):
        assert not one.overlaps(other)
    for box in boxes:
        assert box.x0 >= -1 and box.y0 >= -1
        assert box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1
    lines = {(line.get_color(), line.get_linestyle()) for line in shown(figure)[0].lines}
    assert len(lines) == MAX_GROUPS


@pytest.mark.parametrize(("suffix", "start"), [(".svg", b"<?xml"), (".PDF", b"%PDF")])
def test_other_formats_by_suffix(tmp_path, suffix, start):
    path = tmp_path / f"curves{suffix}"
    draw([Panel("s", "%", {"g": SHORT})], path)
    assert path.read_bytes().startswith(start)


def test_nothing_to_draw_and_too_much(tmp_path):
    path = tmp_path / "c.png"
    with pytest.raises(ValueError, match="no score to draw"):
        learning_curves([{"epoch": 0, "loss": None}], path)
    with pytest.raises(ValueError, match="no score was evaluated at two epochs"):
        draw([], path)
    many = {str(i): SHORT for i in range(MAX_GROUPS + 1)}
    with pytest.raises(ValueError, match=f"{MAX_GROUPS + 1} groups.*--groups"):
        draw([Panel("s", "%", many)], path)
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------------------
# Characters that the font lacks
# --------------------------------------------------------------------------------------------------
@pytest.fixture
def fonts(monkeypatch):
    """Matplotlib's list of fonts, which tests add to, and no memory of what they hold."""
    matplotlib.rcParams["font.family"]  # matplotlib sets it up
    monkeypatch.setitem(matplotlib.rcParams, "font.family", ["sans-serif"])
    own = [entry for entry in font_manager.fontManager.ttflist if "DejaVu" in entry.name]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    plots._families.cache_clear()
    yield font_manager.fontManager
    plots._families.cache_clear()


def write_font(path, characters, family="Made"):
    """Write a font whose glyphs are triangles."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    pen.lineTo((0, 700))
    pen.lineTo((700, 700))
    pen.closePath()
    names = [".notdef", *(f"g{ord(c)}" for c in characters)]
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder(names)
    font.setupCharacterMap({ord(c): f"g{ord(c)}" for c in characters})
    font.setupGlyf(dict.fromkeys(names, pen.glyph()))
    font.setupHorizontalMetrics(dict.fromkeys(names, (800, 0)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": family, "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(path)
    return path


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("花", "\\u82b1"),
        ("a ทะเล", "a \\u0e17\\u0e30\\u0e40\\u0e25"),
        ("\U0001f9ff", "\\U0001f9ff"),
        ("caf\udce9", "caf\\udce9"),  # a byte of a file name that is not UTF-8
        ("❤\ufe0f\U000e0067", "❤\ufe0f"),
        ("naïve ✓ Ж Ω\n", "naïve ✓ Ж Ω\n"),
    ],
)
def test_a_character_without_a_font_is_written_as_in_python(fonts, text, shown):
    assert drawable(text) == shown
    assert drawable(drawable(text)) == drawable(text)
    assert matplotlib.rcParams["font.family"] == ["sans-serif"]


def test_a_font_at_hand_is_found_and_used(fonts, tmp_path, figures):
    file = write_font(tmp_path / "made.ttf", "花木")
    fonts.addfont(file)
    (tmp_path / "no.ttf").write_text("no font")
    fonts.ttflist.append(fonts.ttflist[-1].__class__(fname=str(tmp_path / "no.ttf"), name="No"))
    assert drawable("花 and 木, 水") == "花 and 木, \\u6c34"
    assert matplotlib.rcParams["font.family"] == ["sans-serif", "Made"]
    assert font_file("a花") == str(file) and "DejaVu" in font_file("Ж")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learning_curves([{"epoch": 0, "花/nmi": 0.5}], tmp_path / "c.png")
        draw([Panel("花", "%", {"木": SHORT, "水": SHORT})], tmp_path / "d.png")
    assert shown(figures[0])[0].get_title() == "花/nmi  (last 0.5)"
    legend = [text.get_text() for text in figures[1].legends[0].texts]
    assert legend == ["木  (3 seeds)", "\\u6c34  (3 seeds)"]


def test_dollars_in_a_name_are_no_formula(tmp_path, figures):
    learning_curves([{"epoch": 0, "a$_$b": 0.5}], tmp_path / "c.png")
    assert shown(figures[0])[0].get_title() == "a$_$b  (last 0.5)"
