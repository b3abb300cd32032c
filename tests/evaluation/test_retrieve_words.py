"""Words find in an index what brute force finds, by the map beside the checkpoint that made it."""

import json
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from evaluation import contact_sheet, nearest, retrieve, search_models, word_map_file
from evaluation.queries import Query
from evaluation.word_map import WordMap
from evaluation.word_map_file import StoredMap
from language.word_vectors import WordVectors
from tests.evaluation.test_retrieve import brute_force, draw, refusal, run_command, save_run
from utilities import checkpoint

KNOWN = ("red", "fox", "barn", "owl", "snow")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run with a map, word vectors, and an index of ten pictures; to be read only."""
    place = tmp_path_factory.mktemp("place")
    rng = np.random.default_rng(0)
    vectors = [f"{word} {' '.join(map(str, rng.normal(size=6)))}\n" for word in KNOWN]
    (place / "words.txt").write_text("".join(vectors))
    save_run(place / "run")
    write_map(place, place / "run" / "last.words.safetensors")
    for seed in range(10):
        draw(place / "photos" / f"{seed}.png", seed)
    draw(place / "asked.png", 50)
    index = ("--index", str(place / "index"), "--kernels", "0", "--device", "cpu")
    retrieve.main(["index", str(place / "photos"), "--checkpoint", str(place / "run"), *index])
    return place


def write_map(place, file, **changes):
    rng = torch.Generator().manual_seed(1)
    weight, mean = torch.randn(6, 8, generator=rng), 0.1 * torch.randn(6, generator=rng)
    names = ["red fox", "barn owl"]
    probes = dict(zip(names, WordVectors(place / "words.txt").encode(names), strict=True))
    stored = StoredMap(
        WordMap(weight, mean, (1.0, 1.0)),
        *(str(place / "words.txt"), "embeds", 8, search_models.load_model(place / "run").digest),
        probes,
    )
    word_map_file.write(file, stored._replace(**changes))
    return file


@pytest.fixture(autouse=True)
def _own_cache(own_cache):
    pass


def asked(place, *more):
    return ("query", *more, "--index", place / "index", "--device", "cpu")


def expected_vectors(place, words):
    """(W, D): the map of each text, worked out by itself."""
    fitted = word_map_file.read(place / "run" / "last.words.safetensors").map
    texts = WordVectors(place / "words.txt").encode(words)
    return torch.stack(
        [F.normalize((t - fitted.text_mean) @ fitted.weight, dim=0)
         for t in texts]
    ).numpy()  # fmt: skip


def found(out):
    return [[(hit["path"], hit["similarity"]) for hit in q["neighbours"]] for q in json.loads(out)]


def assert_found(hits, similarities, paths):
    order = np.argsort(-similarities)
    assert [path for path, _ in hits] == [str(paths[row]) for row in order]
    np.testing.assert_allclose([cosine for _, cosine in hits], similarities[order], atol=1e-5)


def test_words_find_what_brute_force_finds(place, capsys, monkeypatch):
    words = ["red fox", "snow owl"]
    paths = sorted((place / "photos").iterdir())
    gallery = brute_force(place / "run", paths)
    monkeypatch.setattr(search_models, "load_embedder", None)  # which words alone do not need
    texts = [part for text in words for part in ("--words", text)]
    out = run_command(capsys, *asked(place, *texts, "--json"))
    assert [(q["query"], q["words"]) for q in json.loads(out)] == [(None, text) for text in words]
    for hits, vector in zip(found(out), expected_vectors(place, words), strict=True):
        assert_found(hits, gallery @ vector, paths)
    lines = run_command(capsys, *asked(place, *texts, "--k", 1)).splitlines()
    assert lines[0] == 'query: "red fox"' and lines[4] == 'query: "snow owl"'


@pytest.mark.parametrize("weight", [None, 0, 0.3, 1])
def test_words_are_mixed_with_a_picture(place, capsys, weight):
    image = place / "asked.png"
    more = () if weight is None else ("--words_weight", weight)
    out = run_command(capsys, *asked(place, image, "--words", "snow", *more, "--json"))
    [query] = json.loads(out)
    assert (query["query"], query["words"]) == (str(image), "snow")
    w = 0.5 if weight is None else weight
    [x], [t] = brute_force(place / "run", [image]), expected_vectors(place, ["snow"])
    mixed = (1 - w) * x + w * t
    paths = sorted((place / "photos").iterdir())
    gallery = brute_force(place / "run", paths)
    [hits] = found(out)
    assert_found(hits, gallery @ (mixed / np.linalg.norm(mixed)), paths)


def test_the_contact_sheet_shows_the_words(place, tmp_path, monkeypatch):
    drawn = []

    def noting(function):
        def noted(self, place, text, *args, **options):
            drawn.append(text)
            return function(self, place, text, *args, **options)

        return noted

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", noting(ImageDraw.ImageDraw.text))
    monkeypatch.setattr(
        ImageDraw.ImageDraw, "multiline_text", noting(ImageDraw.ImageDraw.multiline_text)
    )
    queries = [
        Query(None, "a red fox asleep in the snow"),
        Query(None, "Жук на снегу"),
        Query(place / "asked.png", "at night"),
        Query(None, "Donaudampfschifffahrtselektrizitätenhauptbetriebswerk"),
        Query(None, "so many words " * 30),
    ]
    hits = [nearest.Hit(1, 0.5, place / "asked.png")]
    contact_sheet.contact_sheet(queries, [hits] * len(queries), tmp_path / "sheet.png")
    drawn = [" ".join(text.split()) for text in drawn]
    assert {"a red fox asleep in the snow", "Жук на снегу", "+ at night"} <= {*drawn}
    assert any(text.startswith("so many") and text.endswith("…") for text in drawn)
    with Image.open(tmp_path / "sheet.png") as sheet:
        tile, gap = contact_sheet.TILE, contact_sheet.GAP
        step = tile + contact_sheet.LABEL + gap
        for row in (0, 1, 3, 4):  # ink, and none of it beyond the frame
            top = gap + row * step
            inside = np.asarray(sheet.crop((gap, top, gap + tile, top + tile)).convert("L"))
            assert inside.min() < 100
            below = np.asarray(sheet.crop((gap, top + tile + 3, gap + 2, top + tile + 4)))
            assert (below == 255).all()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--words", " "), "--words must not be blank"),
        (("--words", "zebra"), r"--words 'zebra': the text encoder .* knows none of these words"),
        (("--words_weight", "0.5", "--words", "fox"), "--words_weight mixes --words with an IMAGE"),
        (("IMAGE", "--words_weight", "0.5"), "--words_weight mixes --words with an IMAGE"),
        (
            ("IMAGE", "--words", "fox", "--words_weight", "1.5"),
            r"--words_weight must be in \[0, 1\]; got 1.5",
        ),
        (("IMAGE", "--words", "fox", "--words_weight", "nan"), r"must be in \[0, 1\]; got nan"),
        (("IMAGE", "--map", "x"), "--map is read for --words alone"),
        (("IMAGE", "--language_model", "x"), "--language_model is read for --words alone"),
        (("--words", "fox", "--map", "absent"), "there is no map from words absent"),
        (("--words", "fox", "--language_model", "absent.txt"), "absent.txt"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_words_that_cannot_be_answered(place, capsys, monkeypatch, words, says):
    monkeypatch.setattr(search_models, "load_embedder", None)  # before an embedder is loaded
    words = [str(place / "asked.png") if word == "IMAGE" else word for word in words]
    assert re.search(says, refusal(capsys, *asked(place, *words)))


def test_words_that_are_half_known_are_answered_with_a_warning(place, capsys, caplog):
    out = run_command(capsys, *asked(place, "--words", "red zebra"))
    assert 'query: "red zebra"' in out and "knows a part of 1 ('red zebra')" in caplog.text


def test_a_map_that_does_not_fit_is_refused(place, tmp_path, capsys):
    other = write_map(place, tmp_path / "other.words.safetensors", embedder="of others")
    said = refusal(capsys, *asked(place, "--words", "fox", "--map", other))
    assert "fitted to other weights than those that made the index" in said
    pooled = write_map(place, tmp_path / "pooled.words.safetensors", output="features")
    assert "leads to features" in refusal(capsys, *asked(place, "--words", "fox", "--map", pooled))
    (tmp_path / "words.txt").write_text("red 1 0 0 0 0 0\nfox 0 1 0 0 0 0\n")
    model = ("--language_model", tmp_path / "words.txt")
    said = refusal(capsys, *asked(place, "--words", "fox", *model))
    assert "is not the one of the map" in said and "'red fox', 'barn owl' differently" in said


def test_without_a_map_the_query_says_how_to_make_one_or_why_there_is_none(place, tmp_path, capsys):
    run = save_run(tmp_path / "run")  # the same weights
    query = asked(place, "--words", "fox", "--checkpoint", run)
    said = refusal(capsys, *query)
    assert f"beside {run / 'last.pt'}; make it: python -m evaluation.words --checkpoint" in said
    parts = checkpoint.load(run / "last.pt")
    for data, classes in (({"train": {"classes": ["a", "b"]}}, 2), ({"train": {"captions": 1}}, 0)):
        checkpoint.save(run / "last.pt", {**parts, "data": data})
        assert f"was trained on {classes} classes with different names" in refusal(capsys, *query)
    (run / "last.pt").unlink()
    moved = ("--map", place / "run" / "last.words.safetensors")
    assert "query" in run_command(capsys, *query, *moved)
