"""Matrices, map and views of a report's page."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from evaluation import report_images as ri
from evaluation.report_classes import similarities
from tests.evaluation.conftest import make_report_data as make


@pytest.mark.parametrize("n_classes", [2, 5, 40])
def test_matrices_have_names_on_their_rows_and_no_diagonal(n_classes):
    shown = make((2,) * n_classes)
    found = similarities(shown)
    for matrix in ri.matrix_images(found):
        png = base64.b64decode(matrix["source"].partition(",")[2])
        with Image.open(io.BytesIO(png)) as image:
            ink = np.asarray(image)[..., 3]
        assert not ink.diagonal().any()
        assert n_classes == 2 or ink.max() == 255  # by the scale of what is off the diagonal
    labels = ri.row_labels(shown, found)
    assert len(labels) == min(n_classes, 14)  # of 40, every third
    step = 3 if n_classes == 40 else 1
    for number, (height, name) in enumerate(labels):
        row = number * step
        assert name == shown.class_names[int(found.classes[row])]
        assert height == pytest.approx(ri.ROW_BOX[1] * (row + 0.5) / n_classes, abs=0.06)


def test_thumbnails_of_the_map_do_not_overlap():
    places = np.random.default_rng(0).integers(0, 1000, (400, 2)).tolist()
    circles = [(x, y, -1) for x, y in places]
    drawn = ri.map_thumbnails(circles, ["", *["AAAA"] * 399])
    assert 40 < len(drawn) <= ri.MAP_THUMBNAILS
    for one, (x, y, *_) in enumerate(drawn):
        for a, b, *_ in drawn[:one]:
            assert abs(x - a) > ri.MAP_SIDE or abs(y - b) > ri.MAP_SIDE
    first = circles[1]  # the image before it cannot be read
    assert drawn[0][:2] == (first[0] - ri.MAP_SIDE // 2, first[1] - ri.MAP_SIDE // 2)


def test_views_are_shown_if_they_were_drawn(tmp_path):
    path = tmp_path / "views.png"
    assert ri.views_source(path) == ""
    Image.new("RGB", (2000, 500), "red").save(path)
    encoded = base64.b64decode(ri.views_source(path).partition(",")[2])
    with Image.open(io.BytesIO(encoded)) as image:
        assert (image.format, image.size) == ("WEBP", (1040, 260))
