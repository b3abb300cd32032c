"""Tuples of an image with itself, with a neighbour by its caption, or with any other."""

import io
import logging
import tracemalloc
from collections import Counter
from itertools import chain

import numpy as np
import pytest
import torch
from scipy import stats

from datasampler import Random
from datasampler.pairs import AugmentedPairs, LanguagePairs, RandomPairs

N, BS = 60, 12


def neighbours(n=N, k=3, seed=0):
    """Random neighbours, nearest first, none of them the image itself."""
    rng = np.random.default_rng(seed)
    partners = np.stack(
        [rng.permutation(np.delete(np.arange(n), row))[:k] for row in range(n)]
    ).astype(np.int64)
    similarities = -np.sort(-rng.uniform(0.2, 1, (n, k)), axis=1).astype(np.float32)
    return partners, similarities


def language(*place, n=N, bs=BS, k=3, n_views=2, **changed):
    return LanguagePairs(n, bs, *neighbours(n, k), *place, n_views=n_views, **changed)


MAKE = {
    "augmented": lambda *place: AugmentedPairs(N, BS, *place),
    "random": lambda *place: RandomPairs(N, BS, *place),
    "language": language,
    "language_threshold": lambda *place: language(*place, pairs_threshold=0.8, pairs_self=0.3),
}
NAMES = list(MAKE)


@pytest.mark.parametrize("name", NAMES)
def test_an_epoch_is_full_batches_in_which_no_first_image_comes_twice(name):
    sampler = MAKE[name](3)
    batches = list(sampler)
    assert len(batches) == len(sampler) > 0
    assert {len(batch) for batch in batches} == {BS}
    tuples = list(chain(*batches))
    assert {type(item) for item in tuples} == {tuple} and {len(item) for item in tuples} == {2}
    assert {type(row) for item in tuples for row in item} == {int}
    assert set(chain(*tuples)) <= set(range(N))
    firsts = [first for first, _ in tuples]
    assert len(set(firsts)) == len(firsts) and firsts != sorted(firsts)
    if name != "language_threshold":
        assert set(firsts) == set(range(N))  # BS divides N


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_epochs_and_each_epoch_differs(name):
    one, two, other = (MAKE[name](seed) for seed in (1, 1, 2))
    first = list(one)
    assert first == list(two)
    assert first != list(one)
    assert first != list(other)


@pytest.mark.parametrize("n_batches", [None, 0, 1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_a_saved_state_repeats_what_followed(name, n_batches):
    """After a whole pass, or within one: then what a new pass would have drawn."""
    one, two = MAKE[name](1), MAKE[name](5)
    under_way = iter(one)
    for _ in range(len(one) if n_batches is None else n_batches):
        next(under_way)
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    after = [list(one), list(one)]
    file.seek(0)
    two.load_state_dict(torch.load(file, weights_only=True))
    assert [list(two), list(two)] == after


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("world_size", [2, 3, 12])
def test_shares_in_order_of_rank_are_the_batches_of_one_process(name, world_size):
    whole = MAKE[name](4)
    ranks = [MAKE[name](4, rank, world_size) for rank in range(world_size)]
    for _ in range(2):
        shares = [list(sampler) for sampler in ranks]
        assert {len(part) for share in shares for part in share} == {BS // world_size}
        assert [list(chain(*parts)) for parts in zip(*shares, strict=True)] == list(whole)
    assert all(sampler.state_dict() == whole.state_dict() for sampler in ranks)


@pytest.mark.parametrize("name", NAMES)
def test_global_generators_are_left_alone(name):
    before_numpy, before_torch = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    list(MAKE[name](0))
    assert np.array_equal(before_numpy, np.random.get_state()[1])  # noqa: NPY002
    assert torch.equal(before_torch, torch.get_rng_state())


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
    (record,) = caplog.records  # once, not for each epoch
    assert f"{N - len(images)} of {N} images are left out" in record.message
    assert f"--data_pairs_threshold {threshold:g}" in record.message


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
    """A million images: beside the arrays' files, two integers for each image and some blocks."""
    n = 1_000_000
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
    assert peak < 50e6  # the arrays are 48 MB; tuples of all rows would be 100 MB and more
    assert 0.05 < sampler.n_left_out / n < 0.075  # 1 of 16: all four under the threshold

    monkeypatch.setattr("datasampler.pairs.BLOCK", 300_000)  # neither divides the other
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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: language(n_views=1),
            "--data_sampler language_pairs makes pairs of two images, --loss takes 1 view of each; "
            "use a loss of two views, such as simclr, or --data_sampler augmented_pairs",
        ),
        (
            lambda: RandomPairs(N, BS, n_views=1),
            "--data_sampler random_pairs makes pairs of two images, --loss takes 1 view of each; "
            "use a loss of two views, such as simclr, or --data_sampler augmented_pairs",
        ),
        (
            lambda: RandomPairs(1, 1),
            "--data_sampler random_pairs finds no other image for the only one; use a --dataset of "
            "2 images or more",
        ),
        (
            lambda: AugmentedPairs(N, 70),
            "--bs 70 is more than the 60 training images; use --bs 60 or less",
        ),
        (
            lambda: language(0, 0, 8),
            "--bs 12 does not divide among 8 processes; use --bs 8 or 16",
        ),
        (
            lambda: language(pairs_self=1.5),
            "--data_pairs_self 1.5 is no probability; use one from 0 to 1",
        ),
        (
            lambda: LanguagePairs(50, BS, *neighbours()),
            "neighbours of captions must be (N, k) for the 50 training images, got partners (60, 3)"
            " and similarities (60, 3); make them anew with python -m language.neighbours",
        ),
        (
            lambda: LanguagePairs(N, BS, neighbours()[0], neighbours(k=2)[1]),
            "neighbours of captions must be (N, k) for the 60 training images, got partners (60, 3)"
            " and similarities (60, 2); make them anew with python -m language.neighbours",
        ),
        (
            lambda: LanguagePairs(N, BS, *changed(41, 2, 41)),
            "neighbours of captions: image 41 is its own partner; make them anew with python -m "
            "language.neighbours. Pairs of an image with itself come by --data_pairs_self",
        ),
    ],
)
def test_what_cannot_work_is_named_with_the_remedy(make, message):
    with pytest.raises(ValueError, match=r"--|neighbours") as error:
        make()
    assert str(error.value) == message


@pytest.mark.parametrize("value", [60, -2])
def test_a_partner_that_is_no_row_is_refused(value):
    with pytest.raises(ValueError, match=rf"image 8 has the partners \[{value}, .*rows of the 60"):
        LanguagePairs(N, BS, *changed(8, 0, value))


def test_a_threshold_that_leaves_no_batch_names_one_that_does():
    partners, similarities = neighbours(k=2)
    similarities[3] = np.nan  # of a caption without an embedding
    with pytest.raises(ValueError, match=r"--data_pairs_threshold 0.99 leaves") as error:
        LanguagePairs(N, 30, partners, similarities, world_size=2, pairs_threshold=0.99)
    words = str(error.value).split()
    n_left = int((similarities[:, 0] >= np.float32(0.99)).sum())
    assert words[:6] == f"--data_pairs_threshold 0.99 leaves {n_left} of {N}".split()
    lower = float(words[words.index("use") + 2])
    assert len(LanguagePairs(N, 30, partners, similarities, pairs_threshold=lower)) == 1
    with pytest.raises(ValueError, match="leaves"):
        LanguagePairs(N, 30, partners, similarities, pairs_threshold=lower + 0.05)


def test_without_neighbours_no_threshold_is_proposed():
    nothing = np.full((N, 1), -1), np.zeros((N, 1), dtype=np.float32)
    with pytest.raises(
        ValueError, match=r"leaves 0 of 60 .* use images with captions that are more"
    ):
        LanguagePairs(N, BS, *nothing)
