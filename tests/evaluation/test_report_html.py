"""One page that says what was measured, escapes what it is given, and works in a browser."""

import base64
import contextlib
import html
import io
import math
from dataclasses import replace
from html.parser import HTMLParser
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation import report_curves, report_html, report_images, report_retrieval, report_words
from evaluation.report_html import write_report
from evaluation.report_images import webp
from evaluation.verdict import Verdict
from metrics import Interval
from tests.browser import started_browser
from tests.evaluation.conftest import make_report_data, with_words

HOSTILE = """<script>alert(1)</script>"'&</style></script>{{ 7 * 6 }}<img src=x onerror=alert(2)>"""
R1, MAP, RHO = "test/embeds/e_recall@1", "test/embeds/mAP@R", "test/embeds/rho_spectrum@1"
ROWS = [
    {"epoch": 0, R1: 0.25, MAP: 0.125, RHO: 0.5},
    {"epoch": 1, R1: None, MAP: 0.25, RHO: math.nan, "train/loss": 1.5},
    {"epoch": 2, R1: 0.5, MAP: 0.375, RHO: 0.75, "train/loss": 1.25},
]


WORDS, CONTROL = "test/words/word_recall@1", "test/permuted_words/word_recall@1"


def make(folder, sizes=(4, 4, 4, 4), by_words=False, **changes):
    made = with_words if by_words else make_report_data
    return made(sizes, folder=folder / "<b>'images\" & more", **changes)


def report(
    folder, data, rows=ROWS, protocols=None, intervals=None, config=None, *, draw=False, **more
):
    """What was written and the page; the PNG files, which take longest, are mostly not needed."""
    folder.mkdir(exist_ok=True)
    pictures = ("retrieval_picture", "similarity_picture", "map_picture")
    with contextlib.ExitStack() as stack:
        for name in () if draw else pictures:
            stack.enter_context(mock.patch.object(report_html, name))
        written = write_report(
            folder,
            data,
            rows=rows,
            protocols=protocols or {},
            intervals=intervals,
            config={"lr": 0.1} if config is None else config,
            **more,
        )
    return written, written["report"].read_text(encoding="utf-8")


class Page(HTMLParser):
    """What a parser sees: tags with attributes, tables as text, and text outside of scripts."""

    VOID = frozenset(("meta", "link", "img", "br", "input", "wbr", "path", "circle", "polyline"))

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text, self.tables = [], [], "", []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if self.open and self.open[-1] in ("script", "style"):
            return
        self.text += data
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data

    def count(self, tag):
        return sum(name == tag for name, _ in self.tags)


# --------------------------------------------------------------------------------------------------
# What it says
# --------------------------------------------------------------------------------------------------
def test_pictures_and_page_are_written(tmp_path):
    written, text = report(tmp_path / "a run", make(tmp_path), draw=True)
    assert list(written) == ["retrieval", "similarities", "map", "report"]
    for path in written.values():
        assert path.parent == tmp_path / "a run" and path.stat().st_size > 1000
    assert "<title>a run – made.test</title>" in text


def test_scores_stand_beside_those_before_training(tmp_path):
    intervals = {R1: Interval(0.4, 0.6), MAP: Interval(math.nan, math.nan)}
    changes = {R1: Interval(0.1, 0.4), MAP: Interval(-0.1, 0.5)}
    _, text = report(tmp_path / "run", make(tmp_path), intervals=intervals, changes=changes)
    assert Page(text).tables[0] == [
        ["", "test"],
        ["", "untrained", "trained", "change"],
        ["Search by picture"],
        ["Recall@1 e_recall@1the nearest other image is of the same class", "25.00",
         "50.0040.00 to 60.00", "▲ better+25.00+10.00 to +40.00"],
        ["mAP@R mAP@Rprecision at each hit among the R nearest, where R are to be found", "12.50",
         "37.50", "+25.00-10.00 to +50.00"],
        ["Spectrum, ρ@1 rho_spectrum@1how far the singular values are from all equal", "0.5000",
         "0.7500", "+0.2500"],
    ]  # fmt: skip


def test_an_evaluation_has_one_score(tmp_path):
    rows = [{"epoch": 8, R1: 0.5, MAP: math.nan}]
    _, text = report(tmp_path / "run", make(tmp_path, before=False), rows=rows)
    heading, group, *lines = Page(text).tables[0]
    assert (heading, group) == (["", "test"], ["Search by picture"])
    assert [line[1:] for line in lines] == [["50.00"], ["–"]]
    assert "untrained" not in Page(text).text


def test_the_header_says_what_was_run_and_what_came_of_it(tmp_path):
    flags = {
        "dataset": "animals", "arch": "resnet50", "embed_dim": 8, "image_size": 64,
        "loss": "margin", "language_distill_w": 7.5, "language_proxy_w": 0,
        "language_proxy_vectors": "words",
        "language_words": "classnames", "language_model": "minilm", "language_control": "none",
    }  # fmt: skip
    config = {
        "flags": flags, "command": "main.py --lr '1'", "date": "2026-11-02T23:18:49+00:00",
        "git": {"commit": "0123456789abcdef", "dirty": True},
    }  # fmt: skip
    found = Verdict([("test, in percent", "Recall@1"), ("trained", "50.00")], "Recall@1 rose.")
    _, text = report(
        tmp_path / "run", make(tmp_path), config=config, verdict=found, changed={"loss"}
    )
    page = Page(text)
    header = text[text.index("<header>") : text.index("</header>")]
    assert "Recall@1 rose." in header and page.tables[0][1] == ["trained", "50.00"]
    for fact in (
        "animals", "resnet50, 8 dimensions, 64 px", "margin",
        "7.5 x L_match, classnames embedded by minilm", "2 November 2026, 23:18 UTC",
        "0123456789ab, with uncommitted changes", "main.py --lr &#39;1&#39;",
    ):  # fmt: skip
        assert f">{fact}<" in header
    first, others = text[text.index('id="flags"') :].split("<details>")
    assert "<dt>loss</dt>" in first and "<dt>arch</dt>" in others and "<dt>arch</dt>" not in first


@pytest.mark.parametrize(
    ("protocol", "over"),
    [
        ("set exact", "over classes."),
        ("set interval of the same 5 classes, over images, d=3",
         "over classes, few-shot over images of the same classes."),
    ],
)  # fmt: skip
def test_what_intervals_are_over_is_told(tmp_path, protocol, over):
    intervals = {R1: (0.25, 0.75)}
    _, text = report(tmp_path / "run", make(tmp_path), ROWS, {R1: protocol}, intervals)
    assert f"95 % intervals {over}" in Page(text).text


def test_protocols_are_listed_once(tmp_path):
    protocols = {R1: "set exact", MAP: "set exact", RHO: "set centres"}
    _, text = report(tmp_path / "run", make(tmp_path), protocols=protocols)
    seen = Page(text).text
    assert seen.count("set exact") == seen.count("set centres") == 1
    assert f"set centres{RHO}" in seen


def test_curves_are_of_what_has_two_values(tmp_path):
    _, text = report(tmp_path / "run", make(tmp_path))
    labels = [
        tag["aria-label"] for _, tag in Page(text).tags if " to " in tag.get("aria-label", "")
    ]
    assert labels == [
        "Recall@1, in percent, epoch 0 to 2: test 25.0 to 50.0; best 50.0 after epoch 2",
        "mAP@R, in percent, epoch 0 to 2: test 12.5 to 37.5; best 37.5 after epoch 2",
        "Loss, epoch 1 to 2: loss 1.5 to 1.25",
        "Spectrum, ρ@1, epoch 0 to 2: test 0.5 to 0.75",
    ]


def test_a_query_says_how_many_it_found_and_what_it_found_before(tmp_path):
    labels, embeds = torch.tensor([0, 0, 1, 0, 1]), torch.tensor([[0.0], [1], [2], [5], [6]])
    before = torch.tensor([[0.0], [0.1], [9], [0.2], [9.1]])
    data = replace(make(tmp_path, (3, 2), labels=labels, after=embeds), before=before)
    _, text = report(tmp_path / "run", data)
    shown = text[text.index('id="retrieval"') : text.index('id="similarities"')]
    assert [shown.count(f">{n} found<") for n in ("0 of 1", "0 of 2", "1 of 2")] == [2, 1, 2]
    assert [shown.count(f"untrained: {n}<") for n in ("1 of 1", "2 of 2")] == [2, 3]
    # of 4 neighbours, those after the 2nd in a class of 3 and after the 1st in a class of 2
    assert shown.count(" beyond") == 2 * (3 * 2 + 2 * 3)
    assert shown.count('class="file"') == 5 * (1 + 4) and "loading" not in text


def test_names_are_shown_with_their_scores_and_the_control(tmp_path):
    scores = {R1: 0.5, WORDS: 0.0707, CONTROL: 0.0032}
    rows = [{"epoch": 0, **dict.fromkeys(scores, 0.001)}, {"epoch": 2, **scores}]
    intervals = {WORDS: Interval(0.05, 0.09), CONTROL: Interval(0, 0.008)}
    data = make(tmp_path, by_words=True)
    _, text = report(tmp_path / "run", data, rows, intervals=intervals)
    page = Page(text)
    words = "Word recall@1 word_recall@1names with a right image first"
    searched, controls, by_words, *_ = page.tables
    assert by_words == [
        ["in percent", "words", "permuted"],
        [words, "7.075.00 to 9.00", "0.320.00 to 0.80"],
    ]
    assert searched[-2:] == [["Search by words"], [words, "0.10", "7.075.00 to 9.00", "+6.97"]]
    assert controls[-1] == [words, "0.10", "0.320.00 to 0.80", "+0.22"]
    seen = " ".join(page.text.split())
    assert "A right image comes first for 7.07 % of the names" in seen
    assert "permuted training names, for 0.32 %." in seen
    assert "none of these names was trained on" in seen
    assert "Best names" in seen and "Worst names" in seen
    tiles = text[text.index('id="words"') : text.index('id="similarities"')].count(
        '<li class="tile'
    )
    assert tiles == 4 * report_words.N_FOUND
    _, text = report(tmp_path / "run", replace(data, names_seen=4), rows[:1])
    assert "4 of these names were trained on" in Page(text).text


def test_a_run_without_a_search_by_words_says_nothing_of_it(tmp_path):
    _, text = report(tmp_path / "run", make(tmp_path))
    assert "Words that find" not in text and 'href="#words"' not in text


def test_words_without_scores_still_show_what_they_find(tmp_path):
    _, text = report(tmp_path / "run", make(tmp_path, by_words=True))
    assert "Words that find" in text and 'class="scores by-words"' not in text


def test_views_of_training_are_shown_if_the_run_drew_them(tmp_path):
    (tmp_path / "run").mkdir()
    Image.new("RGB", (600, 200), "red").save(tmp_path / "run" / "views.png")
    _, text = report(tmp_path / "run", make(tmp_path))
    assert '<section id="views">' in text
    assert '<section id="views">' not in report(tmp_path / "other", make(tmp_path))[1]


def test_flags_are_listed_with_what_they_hold(tmp_path):
    config = {"flags": {"lr": 0.1, "sizes": [1, 2]}, "chosen": {"arch": "resnet18"}}
    _, text = report(tmp_path / "run", make(tmp_path), config=config)
    for name, value in [("lr", "0.1"), ("sizes", "1 2"), ("chosen.arch", "resnet18")]:
        assert f"<div><dt>{name}</dt><dd>{value}</dd></div>" in text


# --------------------------------------------------------------------------------------------------
# What it is given
# --------------------------------------------------------------------------------------------------
def test_the_page_is_alone_and_admits_its_own_script_only(tmp_path):
    _, text = report(tmp_path / "run", make(tmp_path))
    assert "http:" not in text and "https:" not in text
    page = Page(text)
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:"))
    policy = next(tag["content"] for _, tag in page.tags if "http-equiv" in tag)
    assert policy.startswith("default-src 'none'; img-src data:;") and "unsafe" not in policy


def test_names_are_escaped_wherever_they_stand(tmp_path):
    plain = Page(report(tmp_path / "plain", make(tmp_path, (4,) * 8, by_words=True))[1])
    names = [f"{HOSTILE[at:]}" for at in (0, 8, 25, 30, 1, 2, 3, 4)]
    hostile = make(tmp_path, (4,) * 8, by_words=True, class_names=names)
    hostile = replace(hostile, name=HOSTILE, class_groups=[HOSTILE, "g"] * 4)
    rows = [ROWS[0], *({**row, HOSTILE: 1.0} for row in ROWS[1:])]
    _, text = report(
        tmp_path / "hostile", hostile, rows, dict.fromkeys((R1, MAP), HOSTILE), None,
        {HOSTILE: HOSTILE, "nested": {HOSTILE: [HOSTILE]}},
    )  # fmt: skip
    page = Page(text)
    assert page.count("script") == plain.count("script") == 2
    assert page.count("style") == plain.count("style")
    assert page.count("img") == plain.count("img")
    for mark in ("<script>alert", "<img src=x"):
        assert mark not in text and html.escape(mark) in text
    assert "{{ 7 * 6 }}" in page.text
    assert "<script>alert(1)" in page.text


@pytest.mark.parametrize(
    ("sizes", "absent"),
    [
        ((1,), {"retrieval", "similarities"}),
        ((5,), {"similarities"}),
        ((1, 1, 1), {"retrieval"}),
        ((2, 1), set()),
    ],
)
@pytest.mark.parametrize("full", [True, False])
def test_whatever_a_set_lacks_there_is_a_page(tmp_path, sizes, absent, full):
    data = make(tmp_path, sizes, before=full, words=full, groups=full)
    rows = [{"epoch": 0, R1: math.nan, MAP: None}] if full else []
    written, text = report(tmp_path / "run", data, rows, config={})
    assert {"retrieval", "similarities", "map", "report"} - set(written) == absent
    page = Page(text)
    assert "nan" not in page.text.lower()
    assert ("No score was recorded" in page.text) == (not full)
    assert ("No class has two images" in page.text) == ("retrieval" in absent)
    assert ("There is only one class" in page.text) == ("similarities" in absent)


def test_an_unreadable_image_leaves_a_mark(tmp_path):
    data = make(tmp_path, (2, 2), by_words=True)
    for path in data.paths:
        path.write_bytes(b"no image")
    _, text = report(tmp_path / "run", data)
    page = Page(text)
    assert not [tag for name, tag in page.tags if name == "img" and "webp" in tag["src"]]
    assert text.count('<div class="unreadable" role="img"') == sum(
        "tile" in tag.get("class", "") for _, tag in page.tags
    )


def test_the_page_is_no_larger_than_it_may_be(tmp_path, monkeypatch):
    # Noise is what compresses worst; the largest page holds the largest number of everything.
    data = make(tmp_path, (4,) * 40, by_words=True)
    _, text = report(tmp_path / "run", data)
    images = [
        len(base64.b64decode(tag["src"].partition(",")[2]))
        for name, tag in Page(text).tags
        if name == "img" and "webp" in tag["src"]
    ]
    assert max(images) <= report_images.GRID_IMAGE[1]
    # Bytes of an escaped character: 5 in HTML (&#39;), 12 in JSON (a pair of surrogates).
    queries, shown = 3 * report_retrieval.N_QUERIES, report_retrieval.N_NEIGHBOURS
    grids = queries * (1 + shown) * report_images.GRID_IMAGE[1] + 48 * report_images.PAIR_IMAGE[1]
    grids += queries * shown * report_images.BEFORE_IMAGE[1] + report_images.VIEWS_IMAGE[1]
    grids += 3 * report_words.N_NAMES * report_words.N_FOUND * report_images.FOUND_IMAGE[1]
    dots = (1500 + report_images.MAP_THUMBNAILS) * report_images.MAP_IMAGE[1]
    table = report_html.TABLE_CLASSES * (3 * 5 * report_images.NAME_LENGTH + 200)
    names = 12 * report_images.NAME_LENGTH * (150 + 2 * 1500)
    names += 5 * report_images.NAME_LENGTH * 6 * (1 + report_words.N_ASIDE)
    curves = report_curves.PANELS * report_curves.LINES * report_curves.POINTS * 12
    most = 4 / 3 * (grids + dots + 3 * 2 * 150**2) + table + names + curves + 1500 * 60
    assert len(text) < most < 0.95 * report_html.MAX_BYTES
    monkeypatch.setattr(report_html, "TABLE_CLASSES", 10)
    _, text = report(tmp_path / "run", data)
    assert len(Page(text).tables[-1]) == 1 + 10
    assert "The 5 classes with the lowest and the 5 with the highest mAP@R of 40" in Page(text).text


@pytest.mark.parametrize("most", [8192, 600, 200])
def test_an_image_is_encoded_to_fit(most):
    noise = np.random.default_rng(0).integers(0, 255, (112, 80, 3), dtype=np.uint8)
    encoded = base64.b64decode(webp(Image.fromarray(noise), most))
    assert len(encoded) <= most
    with Image.open(io.BytesIO(encoded)) as image:
        assert image.format == "WEBP" and image.width < image.height


# --------------------------------------------------------------------------------------------------
# In a browser
# --------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with started_browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    names = ["class 10", "class 9", HOSTILE, "alone"]
    data = make(folder, (4, 3, 2, 1), by_words=True, class_names=names)
    intervals = {name: Interval(0.45, 0.55) for name in (R1, MAP)}
    protocols = {R1: "made.test n=10 d=5 euclidean exact seed=0"}
    return report(folder / "run", data, ROWS, protocols, intervals)[0]["report"]


COLUMN = (
    "[...document.querySelectorAll('#class-table tbody tr')].map(row => row.cells[{}].textContent)"
)


@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it_without_complaint(browser, page, width):
    browser.open(page.resolve().as_uri(), width)
    assert browser.complaints() == []
    seen = browser.screenshot()
    assert seen.shape == (900, width) and seen.std() > 5
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    broken = "[...document.images].filter(image => image.complete && !image.naturalWidth).length"
    assert browser.evaluate(broken) == 0


def test_a_large_report_prints_to_six_pages(browser, tmp_path):
    kinds = {
        f"{s}/embeds/{m}": 0.5 for s in ("test", "train") for m in ("e_recall@1", "mAP@R", "nmi")
    }
    rows = [{"epoch": epoch, **kinds, WORDS: 0.1, CONTROL: 0.01} for epoch in range(3)]
    flags = {f"flag_{n}": n for n in range(200)}
    data = make(tmp_path, (4,) * 60, by_words=True)
    written, _ = report(tmp_path / "run", data, rows, config=flags, changed={"flag_1", "flag_2"})
    browser.open(written["report"].resolve().as_uri(), 1280)
    printed = browser.ask("Page.printToPDF", preferCSSPageSize=True)["data"]
    assert 1 <= base64.b64decode(printed).count(b"/Type /Page\n") <= 6


def test_a_heading_sorts_its_column(browser, page):
    browser.open(page.resolve().as_uri(), 1280)
    headings = "document.querySelectorAll('#class-table th button')"
    texts = browser.evaluate(f"[...{headings}].map(button => button.textContent)")
    images, precision = texts.index("images"), texts.index("mAP@R")
    browser.evaluate(f"{headings}[{images}].click()")
    assert browser.evaluate(COLUMN.format(images)) == ["1", "2", "3", "4"]
    browser.evaluate(f"{headings}[{images}].click()")
    assert browser.evaluate(COLUMN.format(images)) == ["4", "3", "2", "1"]
    browser.evaluate(f"{headings}[0].click()")
    assert browser.evaluate(COLUMN.format(0))[1:] == ["alone", "class 9", "class 10"]
    for sign in (1, -1):  # a class without a score is last either way
        browser.evaluate(f"{headings}[{precision}].click()")
        *scores, last = browser.evaluate(COLUMN.format(precision))
        assert last == "–" and scores == sorted(scores, key=lambda text: sign * float(text))
    assert browser.complaints() == []


def test_classes_can_be_found_and_shown_on_the_map(browser, page):
    browser.open(page.resolve().as_uri(), 1280)
    browser.evaluate(
        "const find = document.getElementById('class-filter'); find.value = 'ALONE';"
        "find.dispatchEvent(new Event('input'))"
    )
    rows = "[...document.querySelectorAll('#class-table tbody tr')]"
    shown = browser.evaluate(
        f"{rows}.filter(row => !row.hidden).map(row => row.cells[0].textContent)"
    )
    assert "alone" in shown
    browser.evaluate(
        "const choice = document.getElementById('map-class');"
        "choice.value = [...choice.options].find(one => one.text.startsWith('class 10')).value;"
        "choice.dispatchEvent(new Event('change'))"
    )
    assert "4 images" in browser.evaluate("document.getElementById('map-shown').textContent")
    assert browser.evaluate("document.querySelectorAll('#map-shown img').length") == 4
    assert browser.complaints() == []


def test_keys_move_through_a_matrix(browser, page):
    browser.open(page.resolve().as_uri(), 1280)
    readout = "document.getElementById('matrix-readout').textContent"
    press = (
        "document.querySelector('.matrix').dispatchEvent("
        "new KeyboardEvent('keydown', {key: 'ArrowRight', bubbles: true}))"
    )
    before = browser.evaluate(readout)
    browser.evaluate(press)
    after = browser.evaluate(readout)
    assert before != after and " × " in after and "trained" in after
