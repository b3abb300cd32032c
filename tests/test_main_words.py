"""A run whose classes search by their names, from training to the report and README's picture."""

import csv
import itertools
import json

import numpy as np
import pytest
import torch
from PIL import Image

import language
import main
from evaluation import word_map_file
from tests.benchmarks import readme_picture, words_picture
from tests.runs import tiny_run

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 220), "grey": (120,) * 3}
THINGS = ("ball", "box", "cap", "door", "egg", "fan")
WORDS = ("test/words/word_recall@1", "test/words/word_mAP", "test/words/named@1")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Twenty-four classes, each a colour and a place of a white square; and word vectors."""
    source, rng = tmp_path_factory.mktemp("source"), np.random.default_rng(0)
    names = [f"{colour} {thing}" for colour, thing in itertools.product(COLOURS, THINGS)]
    for name in names:
        colour, thing = name.split()
        folder = source / "shelf" / "images" / name
        folder.mkdir(parents=True)
        for image in range(4):
            pixels = np.full((32, 32, 3), COLOURS[colour]) + rng.integers(-20, 20, (32, 32, 3))
            pixels[4 * THINGS.index(thing) :][:8, 8:24] = 255
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{image}.png")
    groups = {name: {"name": name, "group": name.split()[-1]} for name in names}
    (source / "shelf" / "classes.json").write_text(json.dumps(groups))
    vectors = [f"{word} {' '.join(map(str, rng.normal(size=8)))}\n" for word in (*COLOURS, *THINGS)]
    (source / "words.txt").write_text("".join(vectors))
    return source


@pytest.fixture(scope="module")
def run(source, tmp_path_factory):
    words = tiny_run(source, tmp_path_factory.mktemp("runs"), "--n_epochs", "1", report=True)
    words[words.index("animals")] = "shelf"
    words += ["--evaluation_language_model", str(source / "words.txt"), "--savename", "run"]
    words += ["--evaluation_metrics", "e_recall@1", *(name.rpartition("/")[2] for name in WORDS)]
    scores = main.main([*words, "--storage_metrics", "e_recall@1", "word_mAP"])
    return scores, next(iter(tmp_path_factory.getbasetemp().glob("runs*/shelf/run")))


def test_scores_by_words_are_in_every_file(run):
    scores, folder = run
    names = [*WORDS, *(name.replace("/words/", "/permuted_words/") for name in WORDS)]
    with (folder / "metrics.csv").open(newline="") as file:
        first, last = csv.DictReader(file)
    for name in names:
        assert 0 <= float(first[name]) <= 1
        assert float(last[name]) == pytest.approx(scores[name], abs=1e-6)
    with (folder / "classes_test.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for name in names:
        values = [float(row[name.removeprefix("test/")]) for row in rows]
        assert np.mean(values) == pytest.approx(scores[name], abs=1e-5)
    report = (folder / "report.html").read_text()
    assert "Words that find" in report and "none of these names was trained on" in report


def test_the_best_checkpoint_is_chosen_by_words(run):
    assert (run[1] / "best_test_words_word_mAP.pt").is_file()


def test_the_picture_of_words_is_drawn_from_a_run(run, tmp_path, capsys, monkeypatch):
    """Of a run whose encoder knows none of the names, so theirs are drawn here."""
    _, folder = run
    n = len(readme_picture.THINGS)
    width = len(word_map_file.read(folder / "last.words.safetensors").map.weight)
    texts = torch.nn.functional.normalize(torch.randn(n, width), dim=1)
    monkeypatch.setattr(language, "class_word_embeds", lambda _, names, __: texts[: len(names)])
    words_picture.main([str(folder), "--out", str(tmp_path / "words.png")])
    with Image.open(tmp_path / "words.png") as picture:
        assert picture.width > 1.5 * picture.height
    printed = capsys.readouterr().out
    assert f"{n} names, {n * len(readme_picture.HANDS)} drawings: word_recall@1 " in printed
