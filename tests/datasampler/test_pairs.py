"""Tuples of an image with itself, with a neighbour by its caption, or with any other."""

import logging
import re
import tracemalloc
from collections import Counter
from itertools import chain

import numpy as np
import pytest
from scipy import stats

from datasampler import AugmentedPairs, LanguagePairs, Random, RandomPairs
from tests.datasampler.toy import BS, N, language, neighbours

# ---------------------------------------------------------------------------- one image, any image


@pytest.mark.parametrize("n_views", [1, 2, 3])
def test_views_of_one_image_are_that_image(n_views):
    sampler, rows = AugmentedPairs(N, BS, 7, n_views=n_views), Random(N, BS, 7)
    for batch, alone in zip(sampler, rows, strict=True):
        assert batch == [row * n_views for row in alone]


def test_random_partners_are_every_other_image_equally_often():
    sampler = RandomPairs(6, 6, seed=0)
    pairs = Counter(chain(*(batch for _ in range(2000) for batch in sampler)))
    assert set(pairs) == {(i, j) for i in range(6) for j in range(6) if i != j}
    for i in range(6):
        assert (
            stats.chisquare([count for (first, _), count in pairs.items() if first == i]).pvalue
            > 1e-4
        )


def test_a_third_view_is_of_the_first_image_and_the_partner_comes_last():
    for sampler in (language(n_views=3), RandomPairs(N, BS, n_views=3)):
        assert all(i == also and i != j for i, also, j in chain(*sampler))


# -------------------------------------------------------------------------------------- neighbours


def test_with_one_neighbour_each_image_meets_its_own():
    partners, _ = neighbours(k=1)
    for i, j in chain(*language(k=1)):
        assert j == partners[i, 0]


def test_a_neighbour_is_drawn_uniformly_among_those_that_are_similar_enough():
    partners = np.array([[1, 2, 3, -1], [0, 2, 3, 4], [0, -1, -1, -1], [4, 0, 1, 2], [3, 2, 1, 0]])
    similarities = np.array(
        [
            [0.9, 0.8, 0.7, 0.0],  # three, and a place that is empty
            [0.9, 0.9, 0.5, 0.4],  # two
            [0.6, 0.0, 0.0, 0.0],  # one, at the threshold
            [0.59, 0.5, 0.4, 0.3],  # none
            [0.5, 0.7, 0.2, 0.8],  # two, though not in order
        ],
        dtype=np.float32,
    )
    sampler = LanguagePairs(5, 4, partners, similarities, pairs_threshold=0.6)
    assert (sampler.n_left_out, len(sampler)) == (1, 1)
    counts = Counter(chain(*(batch for _ in range(3000) for batch in sampler)))
    drawn = {i: {j: count for (first, j), count in counts.items() if first == i} for i in range(5)}
    assert {i: set(partners) for i, partners in drawn.items()} == {
        0: {1, 2, 3}, 1: {0, 2}, 2: {0}, 3: set(), 4: {2, 0},
    }  # fmt: skip
    for i in (0, 1, 4):
        assert stats.chisquare(list(drawn[i].values())).pvalue > 1e-4


@pytest.mark.parametrize("threshold", [-1.0, 0.5, 0.75, 0.9])
def test_the_threshold_leaves_out_and_is_counted(threshold, caplog):
    partners, similarities = neighbours(k=2)
    partners[5] = partners[17] = -1  # without any
    similarities[5] = similarities[17] = 0
    good = {
        (i, int(j))
        for i in range(N)
        for j, similarity in zip(partners[i], similarities[i], strict=True)
        if j != -1 and similarity >= threshold
    }
    images = {i for i, _ in good}
    with caplog.at_level(logging.INFO):
        sampler = LanguagePairs(N, 4, partners, similarities, pairs_threshold=threshold)
        seen = set(chain(*(batch for _ in range(60) for batch in sampler)))
    assert seen == good
    assert sampler.n_left_out == N - len(images) >= 2
    assert len(sampler) == len(images) // 4
    record, described = caplog.records  # once, not for each epoch
    assert described.message.startswith(f"language pairs: {len(good):,} pairs of {len(images):,} ")
    assert f"skipped {N - len(images)} of {N} training images" in record.message
    assert f"pairs_threshold {threshold:g}" in record.message


def test_mutual_partners_alone_are_drawn_and_counted(caplog):
    partners = np.array([[1, 2], [0, 2], [3, 0], [2, 4], [0, 1], [0, -1], [0, 1]])
    similarities = np.array(
        [[0.9, 0.8], [0.9, 0.5], [0.8, 0.7], [0.8, 0.4], [0.7, 0.6], [0.3, -np.inf], [0.4, 0.3]],
        np.float32,
    )
    # The least of 0 is 0.8, of 1 0.5, of 2 0.7, of 3 0.4; 2 is as near to 1 as its second partner.
    good = {(0, 1), (0, 2), (1, 0), (2, 3), (3, 2), (4, 1), (3, 4)} - {(3, 4)}
    with caplog.at_level(logging.INFO):
        sampler = LanguagePairs(7, 1, partners, similarities, pairs_mutual=True)
        seen = set(chain(*(batch for _ in range(80) for batch in sampler)))
    assert seen == good
    assert "skipped 2 of 7 training images: no mutual neighbour's similarity" in caplog.text
    assert f"language pairs: {len(good)} pairs of 5 images" in caplog.text
    assert "100.0% mutual" in caplog.text
    both = LanguagePairs(7, 1, partners, similarities, pairs_mutual=True, pairs_threshold=0.85)
    assert set(chain(*(batch for _ in range(20) for batch in both))) == {(0, 1), (1, 0)}
    with pytest.raises(ValueError, match=r"a mutual neighbour; .* 2 of 7; use no pairs_mutual"):
        LanguagePairs(7, 3, partners, similarities, pairs_mutual=True, pairs_threshold=0.85)


def test_only_the_first_process_tells_what_is_left_out(caplog):
    with caplog.at_level(logging.INFO):
        assert language(0, 1, 2, pairs_threshold=0.9).n_left_out
    assert not caplog.records


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (0.25, 0.2, 0.3), (1.0, 1, 1)])
def test_a_share_of_the_pairs_is_of_an_image_with_itself(share, low, high):
    sampler = language(0, k=1, pairs_threshold=0.5, pairs_self=share)
    pairs = list(chain(*(batch for _ in range(60) for batch in sampler)))
    assert low <= np.mean([i == j for i, j in pairs]) <= high
    assert {i for i, _ in pairs} == set(sampler.rows.tolist())  # none comes back by it
    assert sampler.n_left_out > 0


def test_memory_mapped_arrays_give_the_same_and_are_not_copied(tmp_path, monkeypatch):
    """Many images: beside the arrays' files, two integers for each image and some blocks."""
    n = 400_000
    partners, similarities = tmp_path / "partners.npy", tmp_path / "similarities.npy"
    rng = np.random.default_rng(0)
    np.save(partners, (np.arange(n)[:, None] + rng.integers(1, n, (n, 4))) % n)
    np.save(similarities, rng.random((n, 4), dtype=np.float32))
    mapped = [np.load(path, mmap_mode="r") for path in (partners, similarities)]
    tracemalloc.start()
    sampler = LanguagePairs(n, 500, *mapped, pairs_threshold=0.5, pairs_self=0.1)
    under_way = iter(sampler)
    drawn = [next(under_way) for _ in range(20)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6  # the arrays are 19 MB; tuples of all rows would be 40 MB and more
    assert 0.05 < sampler.n_left_out / n < 0.075  # 1 of 16: all four under the threshold

    monkeypatch.setattr("language.pair_quality.BLOCK", 150_000)  # neither divides the other
    whole = [np.load(path) for path in (partners, similarities)]
    again = iter(LanguagePairs(n, 500, *whole, pairs_threshold=0.5, pairs_self=0.1))
    assert [next(again) for _ in range(20)] == drawn


def test_neighbours_may_be_kept_in_fewer_bytes():
    partners, similarities = neighbours()
    small = LanguagePairs(N, BS, partners.astype(np.int32), similarities.astype(np.float16))
    assert list(small) == list(LanguagePairs(N, BS, partners, similarities))


# ------------------------------------------------------------------------------------------ errors


def changed(row, column, value):
    partners, similarities = neighbours()
    partners[row, column] = value
    return partners, similarities


VIEWS = (
    "n_views must be 2 or more for pairs of two images; got 1. Use a loss of two views, such as "
    "simclr, or augmented_pairs"
)
SHAPES = (
    "neighbours of captions must be (N, k) for the {} training images; got partners (60, 3) and "
    "similarities (60, {}); recompute them with python -m language.neighbours"
)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: language(n_views=1), VIEWS),
        (lambda: RandomPairs(N, BS, n_views=1), VIEWS),
        (
            lambda: RandomPairs(1, 1),
            "n_images must be 2 or more for pairs of two images; got 1",
        ),
        (lambda: AugmentedPairs(N, 70), "bs must be at most 60 for 60 training images; got 70"),
        (
            lambda: language(0, 0, 8),
            "bs must be a multiple of the 8 processes; got 12, use 8 or 16",
        ),
        (lambda: language(pairs_self=1.5), "pairs_self must be in [0, 1]; got 1.5"),
        (lambda: LanguagePairs(50, BS, *neighbours()), SHAPES.format(50, 3)),
        (
            lambda: LanguagePairs(N, BS, neighbours()[0], neighbours(k=2)[1]),
            SHAPES.format(60, 2),
        ),
        (
            lambda: LanguagePairs(N, BS, *changed(41, 2, 41)),
            "neighbours of captions: image 41 is its own partner; recompute them with python -m "
            "language.neighbours. Use pairs_self for pairs of an image with itself",
        ),
    ],
)
def test_what_cannot_work_is_named_with_the_remedy(make, message):
    with pytest.raises(ValueError, match=r"must|neighbours") as error:
        make()
    assert str(error.value) == message


@pytest.mark.parametrize("value", [60, -2])
def test_a_partner_that_is_no_row_is_refused(value):
    with pytest.raises(ValueError, match=rf"image 8 has the partners \[{value}, .*rows of the 60"):
        LanguagePairs(N, BS, *changed(8, 0, value))


def test_a_threshold_that_leaves_no_batch_names_one_that_does():
    partners, similarities = neighbours(k=2)
    similarities[3] = np.nan  # of a caption without an embedding
    with pytest.raises(ValueError, match=r"pairs_threshold must leave bs = 30 images") as error:
        LanguagePairs(N, 30, partners, similarities, world_size=2, pairs_threshold=0.99)
    n_left = int((similarities[:, 0] >= np.float32(0.99)).sum())
    assert f"got 0.99, which leaves {n_left} of {N}; use a threshold of " in str(error.value)
    lower = float(re.search(r"a threshold of ([\d.]+) or less", str(error.value))[1])
    assert len(LanguagePairs(N, 30, partners, similarities, pairs_threshold=lower)) == 1
    with pytest.raises(ValueError, match="which leaves"):
        LanguagePairs(N, 30, partners, similarities, pairs_threshold=lower + 0.05)


def test_without_neighbours_no_threshold_is_proposed():
    nothing = np.full((N, 1), -1), np.zeros((N, 1), dtype=np.float32)
    with pytest.raises(ValueError, match="leaves 0 of 60; use images with captions that are more"):
        LanguagePairs(N, BS, *nothing)
