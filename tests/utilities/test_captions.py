"""Several captions as the lines of one text."""

from collections import Counter

import pytest

from utilities.captions import draw, join


@pytest.mark.parametrize(
    ("value", "lines"),
    [
        ("a  red\n shoe ", "a red shoe"),
        (["a", "b\tc"], "a\nb c"),
        (["", " ", "a"], "a"),
        (["a\0b", "\ud800"], "a b\n?"),
        ([], ""),
        (" ", ""),
    ],
)
def test_captions_become_lines_of_single_spaces(value, lines):
    assert join(value, "caption") == lines


@pytest.mark.parametrize(
    ("value", "kind"),
    [(3, "a number"), (None, "null"), ({"en": "a"}, "an object"), (True, "true or false"),
     (["a", 3], "a number in a list"), ([["a"]], "a list in a list")],
)  # fmt: skip
def test_other_types_are_refused_by_name(value, kind):
    with pytest.raises(ValueError, match=f"caption of x must be a text .*; got {kind}$"):
        join(value, "caption of x")


def test_each_caption_is_drawn_as_often():
    drawn = Counter(draw("a\nb\nc", seed, 5) for seed in range(600))
    assert set(drawn) == {"a", "b", "c"} and min(drawn.values()) > 150
    assert draw("a\nb\nc", 1, 2) == draw("a\nb\nc", 1, 2)
    assert draw("only", 0) == "only" and draw("", 0) == ""


@pytest.mark.parametrize("text", ["['a', 'b']", '["a fox"]', " ['it\\'s a fox'] "])
def test_a_list_that_was_printed_as_text_is_no_caption(text):
    with pytest.raises(ValueError, match=r"caption must be a text .*; got a list that was printed"):
        join(text, "caption")
    assert join("[a fox] and 'a cat'", "caption") == "[a fox] and 'a cat'"
