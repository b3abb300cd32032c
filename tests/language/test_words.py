import json
import re
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from language import SOURCES, words


def texts_of(chosen):
    return [[chosen.texts[i] for i in item] for item in chosen.index.tolist()]


def write(path, table):
    path.write_text(table if isinstance(table, str) else json.dumps(table), encoding="utf-8")
    return path


def test_each_distinct_text_is_held_once():
    chosen = words.collect([["bicycle"], ["kettle"], ["bicycle"]], "class")
    assert chosen.texts == ("bicycle", "kettle")
    assert chosen.index.tolist() == [[0], [1], [0]]
    assert chosen.level == "class"


def test_words_keep_their_ranks():
    items = [["fox", "cat"], ["cat", "dog {}"]]
    assert texts_of(words.collect(items, "row")) == items


def test_prompt_without_a_place_for_the_word():
    with pytest.raises(ValueError, match=r'--language_prompt "a photo" has no \{\}'):
        words.with_prompt(["cat"], "a photo")


def test_braces_in_words_and_prompt_are_plain_text():
    assert words.with_prompt(["{0}", "{}"], "{x} {}") == ["{x} {0}", "{x} {}"]


def test_shorter_lists_are_repeated_and_the_mean_takes_each_text_once():
    items = [["kitty"], ["fox", "animal", "red"], ["car", "wheels"]]
    chosen = words.collect(items, "class")
    assert texts_of(chosen) == [
        ["kitty", "kitty", "kitty"],
        ["fox", "animal", "red"],
        ["car", "wheels", "car"],
    ]
    embeds = torch.randn(len(chosen.texts), 4, generator=torch.Generator().manual_seed(0))
    number = {text: row for row, text in enumerate(chosen.texts)}
    expected = torch.stack([sum(embeds[number[text]] for text in item) for item in items])
    torch.testing.assert_close(chosen.means(embeds), F.normalize(expected, dim=1))


def test_json_lists_words_of_each_class(tmp_path):
    table = {"fox": ["fox", "animal", "red"], "cat": "kitty", "car": ["car", "wheels"], "x": "y"}
    path = write(tmp_path / "words.json", table)
    found = words.from_json(path, ["cat", "fox", "car"])
    assert found == [["kitty"], ["fox", "animal", "red"], ["car", "wheels"]]


def test_json_with_missing_classes_names_the_closest(tmp_path):
    path = write(tmp_path / "words.json", {"kitfox": "fox", "car": "car"})
    message = r"lacks 1 of 2 classes: 'kit fox' \(closest: 'kitfox'\)"
    with pytest.raises(ValueError, match=message):
        words.from_json(path, ["kit fox", "car"])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "words.json is nested too deeply .*; expected an object such as"),
        ('{"cat": "a", "cat": "b"}', "the key 'cat' appears twice"),
        (["cat"], "must hold an object; got a list; expected an object such as"),
        ({}, "lacks 1 of 1 classes: 'cat'"),
        ({"cat": []}, "'cat' has \\[\\]; expected a word or a list of words"),
        ({"cat": ["a", 3]}, "expected a word or a list"),
        ({"cat": " "}, "expected a word or a list"),
        ({"cat": None}, "expected a word or a list"),
    ],
)
def test_bad_json(tmp_path, table, message):
    path = write(tmp_path / "words.json", table)
    with pytest.raises(ValueError, match=message):
        words.from_json(path, ["cat"])


def test_no_json_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.json: no such file"):
        words.from_json(tmp_path / "absent.json", ["cat"])


FOXES = SimpleNamespace(
    name="foxes.train",
    class_names=("kit fox", "Arctic fox", "fennec"),
    class_descriptions=(("small and grey", "with large ears"), (), ("the smallest fox",)),
    class_tags=(("fox", "Kit Fox", "desert"), ("white",), ()),
)


@pytest.mark.parametrize(
    ("source", "texts"),
    [
        ("classnames", [["kit fox"], ["Arctic fox"], ["fennec"]]),
        ("names+tags", [["kit fox, fox, desert"], ["Arctic fox, white"], ["fennec"]]),
        (
            "descriptions",
            [["small and grey", "with large ears"], ["Arctic fox"], ["the smallest fox"]],
        ),
        (
            "names+descriptions",
            [
                ["kit fox: small and grey", "kit fox: with large ears"],
                ["Arctic fox"],
                ["fennec: the smallest fox"],
            ],
        ),
    ],
)
def test_what_is_written_about_classes(source, texts):
    assert words.of_classes(source, FOXES) == texts


def test_words_of_a_file(tmp_path):
    path = write(tmp_path / "words.json", {name: ["a", "b"] for name in FOXES.class_names})
    assert words.of_classes(str(path), FOXES) == [["a", "b"]] * 3


def test_classes_that_only_have_a_name():
    alone = {source: words.by_name_alone(source, FOXES) for source in SOURCES}
    assert alone["names+tags"] == ["fennec"]
    assert alone["descriptions"] == alone["names+descriptions"] == ["Arctic fox"]
    assert not alone["classnames"] and not alone["captions"]


@pytest.mark.parametrize(
    ("source", "key"),
    [
        ("names+tags", "tags"),
        ("descriptions", "description"),
        ("names+descriptions", "description"),
    ],
)
@pytest.mark.parametrize("entries", [(), ((),) * 3])
def test_sets_without_them_are_refused(source, key, entries):
    bare = SimpleNamespace(**{**vars(FOXES), "class_descriptions": entries, "class_tags": entries})
    message = f'--language_words {source} reads the "{key}" of classes, and foxes.train has none'
    with pytest.raises(ValueError, match=re.escape(message)):
        words.of_classes(source, bare)


def test_sentences_take_no_prompt():
    prompted = [source for source in (*SOURCES, "my.json") if words.is_prompted(source)]
    assert prompted == ["classnames", "names+tags", "pseudolabels", "my.json"]
