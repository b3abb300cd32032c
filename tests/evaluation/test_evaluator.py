"""The evaluation that a training run repeats."""

from dataclasses import replace

import numpy as np
import pytest

from evaluation import Evaluator
from tests.evaluation.conftest import Colour, to_tensor


@pytest.fixture
def image_set(colours):
    """Two classes of two images, of similar colours within a class."""
    shown = [(0, 250, 0), (0, 240, 0), (0, 0, 250), (0, 0, 240)]
    return colours(shown, [0, 0, 1, 1], names=("green", "blue"))


def test_every_set_and_output_under_its_name(image_set):
    evaluate = Evaluator(
        Colour(), {"val": image_set, "test": image_set}, to_tensor, {},
        metrics=["e_recall@1", "nmi"], evaltypes=["embeds", "features"], workers=0,
    )  # fmt: skip
    scores = evaluate()
    assert set(scores) == {
        f"{name}/{output}/{metric}"
        for name in ("val", "test")
        for output in ("embeds", "features")
        for metric in ("e_recall@1", "nmi")
    }
    assert set(scores.values()) == {1.0}
    assert scores.protocols["test/embeds/e_recall@1"].startswith("colours.test n=4 d=2 euclidean")
    assert scores.protocols["test/features/nmi"].startswith(
        "colours.test n=4 d=3 euclidean k-means"
    )


def test_missing_words_or_gallery_are_refused_before_anything_is_embedded(image_set):
    with pytest.raises(ValueError, match="wrong_word_similarity@1 needs embedded words"):
        Evaluator(Colour(), {"test": image_set}, None, {}, metrics=["wrong_word_similarity@1"])
    queries = replace(image_set, queries=np.ones(4, dtype=bool))
    with pytest.raises(ValueError, match=r"colours.test has 4 queries and 0 gallery images"):
        Evaluator(Colour(), {"test": queries}, None, {}, metrics=["recall@1"])


def test_a_set_with_a_gallery_of_its_own_says_so(image_set):
    apart = replace(image_set, queries=np.array([True, False, True, False]))
    evaluate = Evaluator(
        Colour(), {"test": apart}, to_tensor, {}, metrics=["recall@1"], evaltypes=["embeds"],
        workers=0,
    )  # fmt: skip
    scores = evaluate()
    assert scores == {"test/embeds/recall@1": 1.0}
    assert scores.protocols["test/embeds/recall@1"].startswith("colours.test q=2 n=2 d=2")
    assert len(evaluate.embeds["test"][0]) == 4
