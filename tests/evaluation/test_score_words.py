"""Every score that a run can record has words for its reader."""

import pytest

from evaluation.score_words import words_of
from metrics import METRICS


@pytest.mark.parametrize("pattern", METRICS)
def test_every_metric_has_words_of_its_own(pattern):
    first, tenth = (words_of(pattern.replace("@k", f"@{k}")) for k in (1, 10))
    assert first.heading and "{" not in first.heading + first.meaning + tenth.meaning
    assert (first == tenth) == (not pattern.endswith("@k"))
    for prefix in ("e_", "c_"):
        assert words_of(prefix + pattern.replace("@k", "@10")).heading == tenth.heading


@pytest.mark.parametrize(
    ("metric", "heading", "meaning", "better"),
    [
        ("e_recall@1", "Recall@1", "the nearest other image is of the same class", 1),
        ("c_recall@4", "Recall@4",
         "one of the 4 nearest other images is of the same class, by cosine", 1),
        ("word_recall@1", "Word recall@1", "names with a right image first", 1),
        ("c_word_recall@10", "Word recall@10", "names with a right image among the first 10", 1),
        ("named@5", "Named@5", "images with their own name among the first 5", 1),
        ("dists@intra", "Distance within classes", "of unit rows, as of Roth et al. 2020", -1),
        ("rho_spectrum@-1", "Spectrum, ρ@-1", "how far the singular values are from all equal", 0),
        ("knn@20", "20-NN", "accuracy of a vote of the 20 nearest training images", 1),
        ("fewshot_5w2s", "Few-shot", "accuracy among 5 classes with 2 images of each", 1),
    ],
)  # fmt: skip
def test_words_say_what_is_measured(metric, heading, meaning, better):
    assert words_of(metric) == (heading, meaning, better)


@pytest.mark.parametrize("name", ["", "loss", "images_per_second", "recall@", "<b>"])
def test_what_is_not_a_score_has_no_words(name):
    assert words_of(name) is None
