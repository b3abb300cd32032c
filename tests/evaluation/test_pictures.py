"""The pictures of a run can be opened, hold what they say, and need no display."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from evaluation import pictures
from evaluation.contact_sheet import contact_sheet
from evaluation.nearest import Hit
from evaluation.queries import Query
from evaluation.report_classes import similarities
from evaluation.report_retrieval import Retrieved, image_map, retrievals
from tests.evaluation.conftest import make_report_data

HOSTILE = "$\\frac{1}$ 一 </style><script>" + "x" * 200


@pytest.fixture
def shown(tmp_path):
    """Four classes of three images, each class a colour; the last image cannot be read."""
    colours = ["#ff0000", "#00ff00", "#0000ff", "#ffff00"]
    paths = []
    for row in range(12):
        paths.append(tmp_path / f"{row}.png")
        Image.new("RGB", (40, 20), colours[row // 3]).save(paths[-1])
    paths[-1].write_bytes(b"no image")
    scores = torch.linspace(0, 1, 12)
    return make_report_data(
        (3,) * 4,
        paths=paths,
        labels=torch.arange(12) // 3,
        class_names=["red", "green", "blue", HOSTILE],
        recall=scores,
        average_precision=scores,
        class_groups=["warm", "cold", "cold", HOSTILE],
    )


@pytest.fixture(autouse=True)
def _strict():
    """A warning of matplotlib is a flaw of a picture."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def opened(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def has_colour(pixels, colour, within=12):
    return bool((np.abs(pixels - np.array(colour)).max(axis=2) <= within).any())


def test_retrieved_images_lie_in_frames(shown, tmp_path):
    pictures.retrieval_picture(shown, retrievals(shown, each=2, k=4), tmp_path / "retrieval.png")
    pixels = opened(tmp_path / "retrieval.png")
    assert pixels.shape[0] == pytest.approx(130 * 1.42 * 6, abs=2)  # six queries in rows
    assert pixels.shape[1] == pytest.approx(130 * (1.2 * 5 + 0.25), abs=2)
    for colour in [(255, 0, 0), (0, 255, 0), (0, 0, 255), (0x2E, 0x8B, 0x57), (0xC0, 0x39, 0x2B)]:
        assert has_colour(pixels, colour)


def test_a_right_neighbour_has_no_wrong_frame(shown, tmp_path):
    queries = {"best": [Retrieved(0, 1.0, [1, 2], 2, 2)], "median": [], "worst": []}
    pictures.retrieval_picture(shown, queries, tmp_path / "right.png")
    pixels = opened(tmp_path / "right.png")
    assert has_colour(pixels, (0x2E, 0x8B, 0x57)) and not has_colour(pixels, (0xC0, 0x39, 0x2B))


def test_no_query_is_refused(shown, tmp_path):
    with pytest.raises(ValueError, match=r"made\.test has no query"):
        pictures.retrieval_picture(shown, {"best": []}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_matrices_stand_side_by_side(shown, tmp_path):
    widths = []
    for before in (shown.before, None):
        one = replace(shown, before=before)
        pictures.similarity_picture(one, similarities(one), tmp_path / "similarities.png")
        pixels = opened(tmp_path / "similarities.png")
        assert pixels.std() > 10
        widths.append(pixels.shape[1])
    assert widths[0] - widths[1] == pytest.approx(130 * 4.2, abs=2)


def test_a_map_has_the_colours_of_its_groups(shown, tmp_path):
    pictures.map_picture(shown, image_map(shown), tmp_path / "map.png")
    pixels = opened(tmp_path / "map.png")
    assert pixels.shape[:2] == (780, 910)
    found = pictures.largest_groups(shown, image_map(shown))
    assert found[0] == "cold" and set(found[1:]) == {"warm", HOSTILE}
    for colour in pictures.GROUP_COLOURS[:3]:
        assert has_colour(pixels, [int(colour[at : at + 2], 16) for at in (1, 3, 5)])


@pytest.mark.parametrize(("n", "n_views"), [(1, 2), (12, 2), (5, 3), (2, 8)])
def test_views_stand_side_by_side_over_their_captions(tmp_path, n, n_views):
    colours = np.linspace(40, 250, n * n_views).astype(np.uint8).reshape(n, n_views, 1, 1, 1)
    views = np.broadcast_to(colours, (n, n_views, 9, 9, 3))
    said = [[HOSTILE if number % 2 else ""] * n_views for number in range(n)]
    pictures.views_picture(views, said, tmp_path / "views.png")
    pixels = opened(tmp_path / "views.png")
    assert all(has_colour(pixels, (int(colour),) * 3, within=1) for colour in colours.flat)


def test_groups_beyond_the_colours_share_one(shown):
    n = len(pictures.GROUP_COLOURS) + 3
    labels = torch.cat([torch.arange(n), torch.arange(n - 3)])
    many = make_report_data(
        (2,) * (n - 3) + (1,) * 3,
        labels=labels,
        paths=[shown.paths[0]] * len(labels),
        class_groups=[f"{label:02}" for label in range(n)],
    )
    found = image_map(many)
    assert pictures.largest_groups(many, found) == [f"{label:02}" for label in range(n - 3)]
    assert pictures.group_numbers(many, found).tolist() == [
        label if label < n - 3 else -1 for label in labels.tolist()
    ]


def test_thumbnails_fit_and_what_cannot_be_read_is_none(shown, tmp_path):
    *read, unreadable, missing = pictures.thumbnails([*shown.paths, tmp_path / "none.png"], 16)
    assert unreadable is None and missing is None
    assert {(image.size, image.mode) for image in read} == {((16, 8), "RGB")}


def test_shading_leaves_out_the_diagonal():
    matrix = np.eye(50) + 0.2 * (1 - np.eye(50))
    assert pictures.shading(matrix) == pytest.approx((0.2, 0.201))
    assert pictures.shading(np.ones((1, 1))) == (0, 1)


def test_long_names_are_cut_and_lines_joined():
    assert pictures.shorten("a\n b\tc", 9) == "a b c"
    assert pictures.shorten("abcdef", 4) == "abc…"


@pytest.mark.parametrize("name", ["花", "ทะเล ❤️", "caf\udce9 \U0001f9ff"])
def test_names_in_any_script_are_drawn_without_a_warning(shown, tmp_path, name):
    data = replace(
        shown, name=name, class_names=[f"{name} {c}" for c in range(4)],
        class_groups=[f"{name} {c % 2}" for c in range(4)],
    )  # fmt: skip
    pictures.retrieval_picture(data, retrievals(data, each=2, k=4), tmp_path / "retrieval.png")
    pictures.similarity_picture(data, similarities(data), tmp_path / "similarities.png")
    pictures.map_picture(data, image_map(data), tmp_path / "map.png")
    views = np.zeros((1, 2, 8, 8, 3), np.uint8)
    pictures.views_picture(views, [[name, f"{name} {name}"]], tmp_path / "views.png")
    assert len(list(tmp_path.glob("*s.png"))) == 2


@pytest.mark.parametrize(("name", "drawn"), [("花", "\\u82b1.png"), ("Жук", "Жук.png")])
def test_a_contact_sheet_names_files_in_any_script(tmp_path, monkeypatch, name, drawn):
    path = tmp_path / f"{name}.png"
    Image.new("RGB", (9, 9), "red").save(path)
    texts, text = [], ImageDraw.ImageDraw.text

    def noted(self, place, words, **options):
        texts.append((words, options["font"].getname()[0]))
        text(self, place, words, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", noted)
    contact_sheet([Query(path)], [[Hit(1, 0.5, path)]], tmp_path / "sheet.png")
    fonts = [font for words, font in texts if words == drawn]
    assert len(fonts) == 2 and (drawn.isascii() or fonts[0] == "DejaVu Sans")
