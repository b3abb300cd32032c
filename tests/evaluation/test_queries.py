"""Queries of pictures, words and both."""

from pathlib import Path

import numpy as np
import pytest

from evaluation.queries import Query, queries_of, vectors_of

A, B = Path("a.png"), Path("b.png")


def unit(*rows):
    rows = np.array(rows, np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


NONE = np.zeros((0, 3), np.float32)
IMAGES, WORDS = unit((1, 2, 2), (0, 1, 0)), unit((2, 1, -2), (0, 3, 4), (1, 0, 0))


def test_each_image_is_mixed_with_each_of_the_words():
    assert queries_of([A, B], []) == [Query(A), Query(B)]
    assert queries_of([], ["fox", "owl"]) == [Query(None, "fox"), Query(None, "owl")]
    both = queries_of([A, B], ["fox", "owl"])
    assert both == [Query(A, "fox"), Query(A, "owl"), Query(B, "fox"), Query(B, "owl")]
    assert [str(query) for query in (both[0], Query(A), Query(None, "red fox"))] == [
        'a.png + "fox"', "a.png", '"red fox"',
    ]  # fmt: skip


@pytest.mark.parametrize("weight", [0.0, 0.25, 0.5, 1.0])
def test_a_mixture_is_the_weighted_sum_of_both(weight):
    queries = queries_of([A, B], ["x", "y", "z"])
    found = vectors_of(queries, IMAGES, WORDS, weight)
    expected = []
    for image in IMAGES.tolist():
        for words in WORDS.tolist():
            mixed = [(1 - weight) * x + weight * t for x, t in zip(image, words, strict=True)]
            length = sum(value**2 for value in mixed) ** 0.5
            expected.append([value / length for value in mixed])
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_images_or_words_alone_are_as_they_are():
    assert vectors_of(queries_of([A, B], []), IMAGES, NONE, 0.5) is IMAGES
    assert vectors_of(queries_of([], ["x", "y", "z"]), NONE, WORDS, 0.5) is WORDS
