import json

import pytest

from language import words


def texts_of(chosen):
    return [[chosen.texts[i] for i in item] for item in chosen.index.tolist()]


def write(path, table):
    path.write_text(table if isinstance(table, str) else json.dumps(table), encoding="utf-8")
    return path


def test_each_distinct_text_is_held_once():
    chosen = words.collect([["bicycle"], ["kettle"], ["bicycle"]], "class", prompt="a {}!")
    assert chosen.texts == ("a bicycle!", "a kettle!")
    assert chosen.index.tolist() == [[0], [1], [0]]
    assert chosen.level == "class"


def test_words_keep_their_ranks():
    items = [["fox", "cat"], ["cat", "dog {}"]]
    assert texts_of(words.collect(items, "row")) == items


def test_prompt_without_a_place_for_the_word():
    with pytest.raises(ValueError, match=r'--language_prompt "a photo" has no \{\}'):
        words.collect([["cat"]], "class", prompt="a photo")


def test_braces_in_words_and_prompt_are_plain_text():
    assert words.with_prompt(["{0}", "{}"], "{x} {}") == ["{x} {0}", "{x} {}"]


def test_json_repeats_shorter_lists(tmp_path):
    table = {"fox": ["fox", "animal", "red"], "cat": "kitty", "car": ["car", "wheels"], "x": "y"}
    path = write(tmp_path / "words.json", table)
    chosen = words.from_json(path, ["cat", "fox", "car"], prompt="{}")
    assert texts_of(chosen) == [
        ["kitty", "kitty", "kitty"],
        ["fox", "animal", "red"],
        ["car", "wheels", "car"],
    ]


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
