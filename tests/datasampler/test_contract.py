"""What holds for every sampler, and how it is built from flags."""

import argparse
import io
import subprocess
import sys
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

import datasampler
import parameters
from datasampler import ClassRandom, Random
from datasampler.store import StoreSampler
from datasets.image_set import ImageSet
from tests.datasampler.toy import (
    BS,
    BY_CLASS,
    CLASS_OF,
    MAKE,
    PAIRS,
    STORED,
    made,
    rows_by_class,
    words,
)
from utilities import distributed
from utilities.registry import needing

EVERY = pytest.mark.parametrize("name", MAKE)


@EVERY
def test_an_epoch_is_full_batches_of_tuples_of_rows(name):
    sampler = made(name, 3)
    batches = list(sampler)
    assert len(batches) == len(sampler) > 0
    assert {len(batch) for batch in batches} == {BS}
    tuples = list(chain(*batches))
    assert {type(item) for item in tuples} == {tuple}
    assert {len(item) for item in tuples} == {2 if name in PAIRS else 1}
    assert {type(row) for item in tuples for row in item} == {int}
    assert set(chain(*tuples)) <= set(range(60 if name in PAIRS else 55))
    firsts = [first for first, *_ in tuples]
    assert firsts != sorted(firsts)
    if name not in BY_CLASS:
        assert len(set(firsts)) == len(firsts)
        assert len(firsts) == {"random": 48, "language_threshold": len(batches) * BS}.get(name, 60)


@EVERY
def test_same_seed_same_epochs_and_each_epoch_differs(name):
    one, two, other = (made(name, seed) for seed in (1, 1, 2))
    first = list(one)
    assert first == list(two)
    assert first != list(one)
    assert first != list(other)


@EVERY
@pytest.mark.parametrize("n_batches", [None, 0, 1])
def test_a_saved_state_repeats_what_followed(name, n_batches):
    """After a whole pass, or within one: then what a new pass would have drawn."""
    one, two = made(name, 1), made(name, 5)
    under_way = iter(one)
    for _ in range(len(one) if n_batches is None else n_batches):
        next(under_way)
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    after = [list(one), list(one)]
    file.seek(0)
    two.load_state_dict(torch.load(file, weights_only=True))
    assert [list(two), list(two)] == after


@EVERY
def test_global_generators_are_left_alone(name):
    before_numpy, before_torch = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    list(made(name))
    assert np.array_equal(before_numpy, np.random.get_state()[1])  # noqa: NPY002
    assert torch.equal(before_torch, torch.get_rng_state())


@EVERY
@pytest.mark.parametrize("world", [2, 3, 12])
def test_shares_in_order_of_rank_are_the_batches_of_one_process(name, world):
    """Every epoch, with embeddings of the whole batch given to all after each step."""
    one = MAKE[name](4)
    ranks = [MAKE[name](4, rank, world) for rank in range(world)]
    for epoch in range(1, 4):
        assert {sampler.due(epoch) for sampler in ranks} == {one.due(epoch)}
        if one.due(epoch):
            for sampler in (one, *ranks):
                sampler.refresh(words(55, seed=epoch))
        for number, (batch, *shares) in enumerate(zip(one, *ranks, strict=True)):
            assert {len(share) for share in shares} == {BS // world}
            assert list(chain(*shares)) == batch
            rows = torch.tensor([item[0] for item in batch])
            for sampler in (one, *ranks):
                sampler.observe(rows, words(BS, seed=100 * epoch + number))
    assert all(same(sampler.state_dict(), one.state_dict()) for sampler in ranks)
    resumed = MAKE[name](7, 1, world)
    resumed.load_state_dict(one.state_dict())
    assert list(resumed) == list(ranks[1])


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return one == other


@pytest.mark.parametrize("name", sorted(set(MAKE) - set(STORED)))
def test_samplers_that_need_no_embeddings_ignore_them(name):
    one, two = made(name, 3), made(name, 3)
    assert not any(one.due(epoch) for epoch in range(1, 5))
    one.refresh(words(55))
    one.observe(torch.arange(4), words(4))
    assert list(one) == list(two)


@pytest.mark.parametrize("name", BY_CLASS)
def test_a_batch_holds_different_classes_and_spreads_over_their_images(name):
    """The images of a class stand together."""
    sampler = made(name)
    for batch in (batch for _ in range(20) for batch in sampler):
        classes = [CLASS_OF[row] for (row,) in batch]
        assert all(len(set(classes[start : start + 3])) == 1 for start in range(0, BS, 3))
        assert set(Counter(classes).values()) == {3} and len(set(classes)) == 4
        images = Counter(row for (row,) in batch)
        for label in set(classes):
            drawn = [images[row] for row, other in CLASS_OF.items() if other == label]
            assert max(drawn) - min(drawn) <= 1  # and so never twice in a class of 3 or more


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Random(55, 10, 0, 0, 4),
            "bs must be a multiple of the 4 processes; got 10, use 8 or 12",
        ),
        (
            lambda: Random(9, 3, 0, 0, 4),
            "bs must be a multiple of the 4 processes; got 3, use 4",
        ),
        (
            lambda: Random(10, 10, 0, 0, 4),
            "bs must be a multiple of the 4 processes; got 10, use 8",
        ),
        (
            lambda: Random(3, 3, 0, 0, 4),
            "bs must be a multiple of the 4 processes; got 3, use fewer processes",
        ),
        (
            lambda: ClassRandom(rows_by_class([9] * 60), 90, 3, world_size=4),
            "bs must be a multiple of the 4 processes; got 90, use 84 or 96",
        ),
        (lambda: Random(55, 60, 0, 0, 4), "bs must be at most 52 for 55 training images; got 60"),
        (lambda: Random(8, 9), "bs must be at most 8 for 8 training images; got 9"),
        (lambda: Random(55, 12, 0, 2, 2), "rank must be from 0 to 1; got 2"),
    ],
)
def test_sizes_and_shares_that_do_not_fit_are_named_with_what_fits(make, message):
    with pytest.raises(ValueError, match=r"bs|rank") as error:
        make()
    assert str(error.value) == message


# ------------------------------------------------------------------------------------------- flags

SAMPLERS = datasampler.SAMPLERS
OF_CLASSES, OF_PAIRS = needing(SAMPLERS, "classes"), needing(SAMPLERS, "pairs")
DEFAULTS = {name: value for name, value in vars(parameters.parse([])).items() if "data_" in name}
NEXT = np.roll(np.arange(24), -1)[:, None]  # the image after, of 24


def image_set(n_classes=6, per_class=4):
    labels = np.tile(np.arange(n_classes), per_class)
    return ImageSet(
        name="toy.train",
        paths=tuple(Path(f"{row}.jpg") for row in range(len(labels))),
        labels=labels,
        class_names=tuple(f"class {label}" for label in range(n_classes)),
    )


def flags(name, **changed):
    small = {"bs": 8, "samples_per_class": 2, "seed": 3, "data_batchmatch_bigbs": 16}
    return argparse.Namespace(**(DEFAULTS | small | {"data_sampler": name} | changed))


def build(name, train, **changed):
    """With the words, the views and the partners that a run would hand over."""
    return datasampler.build(
        flags(name, **changed),
        train,
        n_views=2 if name in OF_PAIRS else 1,
        class_words=words(6),
        partners=NEXT,
        similarities=np.linspace(0, 1, 24)[:, None],
    )


def test_the_table_is_read_without_torch():
    code = "import sys, datasampler; assert not {'torch', 'numpy'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert OF_CLASSES == parameters.CLASS_SAMPLERS and OF_PAIRS == parameters.PAIR_SAMPLERS


@pytest.mark.parametrize("name", SAMPLERS)
def test_build_from_flags(name, monkeypatch):
    train = image_set()
    sampler = build(name, train)
    assert type(sampler) is SAMPLERS[name].load()
    needs = SAMPLERS[name].needs
    assert sampler.due(1) == isinstance(sampler, StoreSampler) == ("embeddings" in needs)
    sampler.refresh(words(24))
    assert len(sampler) == len(list(sampler)) == 3
    assert {len(item) for batch in sampler for item in batch} == {2 if "pairs" in needs else 1}
    if "classes" in needs:
        batch = [row for (row,) in next(iter(sampler))]
        assert set(Counter(train.labels[batch].tolist()).values()) == {2}
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    share = build(name, train)
    assert (share.rank, share.world_size) == (1, 2)


def test_build_hands_over_views_partners_and_what_is_asked_of_them():
    train = image_set()
    pairs = [item for batch in build("language_pairs", train) for item in batch]
    assert all(j == (i + 1) % 24 for i, j in pairs)
    chosen = build("language_pairs", train, data_pairs_threshold=0.5)
    assert chosen.n_left_out == 12 and len(chosen) == 1
    own = build("language_pairs", train, data_pairs_self=1.0)
    assert all(i == j for batch in own for i, j in batch)
    three = datasampler.build(flags("augmented_pairs"), train, n_views=3)
    assert all(len(set(item)) == 1 and len(item) == 3 for batch in three for item in batch)
    one = datasampler.build(flags("augmented_pairs"), train)
    assert all(len(item) == 1 for batch in one for item in batch)


@pytest.mark.parametrize("name", SAMPLERS)
def test_images_without_classes_go_to_samplers_that_need_none(name):
    args = flags(name, bs=4, dataset="captioned")
    given = {"partners": np.roll(np.arange(10), 1)[:, None], "similarities": np.ones((10, 1))}
    if name in OF_CLASSES:
        with pytest.raises(ValueError, match=rf"{name} draws by class, --dataset captioned has"):
            datasampler.build(args, range(10), class_words=words(6))
        return
    sampler = datasampler.build(args, range(10), n_views=2, **given)
    assert len(list(sampler)) == 2
    assert {row for batch in sampler for item in batch for row in item} <= set(range(10))


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("class_rand", {}, r"--data_sampler class_rand is unknown.*: class_random"),
        ("class_related", {}, "needs words for every class"),
        ("class_random", {"bs": 7}, "^--bs must be a multiple of samples_per_class = 2; got 7"),
        ("class_random", {"samples_per_class": 0}, "^--samples_per_class must be 1 or more; got 0"),
        ("fid_batchmatch", {"data_mb_mom": 1}, "^--data_mb_mom must be in .*; got 1"),
        ("language_pairs", {"data_pairs_self": 2}, "^--data_pairs_self must be in .*; got 2"),
    ],
)
def test_build_names_what_is_unknown_or_missing_and_the_flag(name, changed, message):
    given = {"partners": NEXT, "similarities": np.ones((24, 1)), "n_views": 2}
    with pytest.raises(ValueError, match=message):
        datasampler.build(flags(name, **changed), image_set(), **given)
