import json

import pytest
import torch

from language import words


def texts_of(chosen):
    return [[chosen.texts[i] for i in item] for item in chosen.index.tolist()]


def write(path, table):
    path.write_text(table if isinstance(table, str) else json.dumps(table), encoding="utf-8")
    return path


def test_class_names_share_texts():
    chosen = words.from_class_names(["bicycle", "kettle", "bicycle"])
    assert chosen.texts == ("a photo of a bicycle", "a photo of a kettle")
    assert chosen.index.tolist() == [[0], [1], [0]]
    assert chosen.level == "class"


def test_pseudolabels_keep_their_ranks():
    classes = torch.tensor([[2, 0], [0, 1]])
    chosen = words.from_pseudolabels(classes, ["cat", "dog", "fox"], level="row", prompt="{}!")
    assert texts_of(chosen) == [["fox!", "cat!"], ["cat!", "dog!"]]
    assert chosen.level == "row"


def test_captions_take_no_prompt():
    chosen = words.from_captions(["a dog {}", "a cat", "a dog {}"])
    assert texts_of(chosen) == [["a dog {}"], ["a cat"], ["a dog {}"]]
    assert (len(chosen.texts), chosen.level) == (2, "row")


def test_no_captions():
    with pytest.raises(ValueError, match="--language_words captions needs a dataset with captions"):
        words.from_captions([])


def test_prompt_without_a_place_for_the_word():
    with pytest.raises(ValueError, match=r'--language_prompt "a photo" has no \{\}'):
        words.from_class_names(["cat"], prompt="a photo")


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
        (["cat"], "expected an object such as"),
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
