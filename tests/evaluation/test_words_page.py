"""The page of language.check: self-contained, escaped, with each pair once."""

import re

import numpy as np
import pytest
from PIL import Image

from evaluation.words_page import EXAMPLES, MOST_ITEMS, Compared, Nearest, write_page
from tests.evaluation.test_report_html import HOSTILE, Page

ROWS = [
    Compared("classnames", "minilm", "{}", "centre", 0.2, 0.05, (-0.1, 0.1), 7.0, 20.0),
    Compared("captions", "mpnet", "", "", -0.3, 0.05, (-0.05, 0.1), 1234.0, 2000.0),
]


class Pictures:
    """Images of one colour each; some cannot be read."""

    name = "pictures"

    def __init__(self, n, unreadable=()):
        self.n, self.unreadable, self.asked = n, unreadable, []

    def __len__(self):
        return self.n

    def read(self, row):
        self.asked.append(row)
        if row in self.unreadable:
            raise OSError("gone")
        return Image.new("RGB", (90, 40), (row % 256, 0, 0))


def nearest(n, names=None, texts=None):
    names = names or [f"class {number:03d}" for number in range(n)]
    other = np.arange(n) ^ 1  # 0 and 1 are each other's, 2 and 3, ...
    cosines, places = np.linspace(1, 0, n), np.arange(1, n + 1).astype(float)
    rows = [[2 * number, 2 * number + 1] for number in range(n)]
    return Nearest(names, texts or names, rows, other, cosines, places)


def written(folder, shown, images=None, **changes):
    path = folder / "words.html"
    given = {
        "title": "shop", "what": ("class", "classes"), "facts": ["24 images"],
        "advice": ["Yes: it may.", "Do it."], "flags": '--language_prompt "{}"', "table": ROWS,
        "chosen": 0, "readings": {"minilm": "reads"}, "nearest": shown,
        "images": images or Pictures(1000),
    }  # fmt: skip
    write_page(path, **given | changes)
    return path.read_text(encoding="utf-8")


def test_the_page_shows_the_advice_the_table_and_the_pairs(tmp_path):
    text = written(tmp_path, nearest(12))
    page = Page(text)
    compared, agree, differ, every = page.tables
    assert [row[0] for row in compared[1:]] == ["classnames", "captions"]
    assert compared[1][3] == "centre"
    assert compared[1][4].split() == ["0.20", "±", "0.05"] and "1,234" in compared[2]
    assert "Yes: it may." in page.text and '--language_prompt "{}"' in page.text
    assert len(every) == 13 and "All classes" in page.text
    # Of the six classes that are most certain, three pairs, each once: near ones and far ones.
    assert [row[1] for row in agree[1:]] == ["class 000", "class 002", "class 004"][
        : len(agree) - 1
    ]
    assert [row[-1] for row in differ[1:]] == sorted((row[-1] for row in differ[1:]), reverse=True)
    for table in (agree, differ):
        pairs = [frozenset((row[1], row[3])) for row in table[1:]]
        assert pairs and len(pairs) == len({*pairs})


def test_pictures_are_in_the_page_and_unreadable_ones_left_out(tmp_path):
    images = Pictures(24, unreadable=(0,))
    page = Page(written(tmp_path, nearest(12), images))
    sources = [about["src"] for tag, about in page.tags if tag == "img"]
    assert sources and all(src.startswith("data:image/webp;base64,") for src in sources)
    assert sorted(images.asked) == list(range(24))  # each is read once
    assert not [
        tag for tag, about in page.tags if tag == "script" or about.get("href", "#")[0] == "h"
    ]


def test_names_and_words_are_escaped(tmp_path):
    names = [HOSTILE, *(f"class {number}" for number in range(11))]
    texts = ["a text of its own", *names[1:]]
    text = written(tmp_path, nearest(12, names, texts), title=HOSTILE, facts=[HOSTILE])
    page = Page(text)
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert not [about for tag, about in page.tags if tag == "img" and about["src"] == "x"]
    assert "a text of its own" in page.text and "{{ 7 * 6 }}" in page.text


def test_many_items_are_cut_and_few_have_no_pairs(tmp_path):
    n = 2 * MOST_ITEMS
    page = Page(written(tmp_path, nearest(n), Pictures(2 * n)))
    assert len(page.tables[-1]) == MOST_ITEMS + 1 and f"{MOST_ITEMS} of {n} classes" in page.text
    assert len(page.tables[1]) == len(page.tables[2]) == EXAMPLES + 1
    page = Page(written(tmp_path, None, table=[], flags="", chosen=-1))
    assert page.tables == [] and "too few classes to compare" in page.text


@pytest.mark.parametrize("place", [0, 1])
def test_bars_share_one_scale_that_holds_them(tmp_path, place):
    text = written(tmp_path, None)
    rect = re.findall(r'<rect x="([\d.-]+)" y="2" width="([\d.-]+)"', text)[place]
    line = re.findall(r'<line x1="([\d.-]+)" x2="([\d.-]+)" y1="0"', text)[place]
    assert float(rect[0]) <= float(line[0]) <= float(rect[0]) + float(rect[1])  # chance holds 0
    value = re.findall(r'<circle cx="([\d.-]+)"', text)[place]
    scale = 120 / (0.25 + 0.35)
    assert float(value) == pytest.approx(scale * (ROWS[place].correlation + 0.35), abs=0.1)
