import argparse
import io
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import datasampler
from datasampler import ClassRandom, ClassRelated, Random
from datasampler.batchmatch import DistHistBatchmatch, FIDBatchmatch
from datasampler.coreset import D2Coreset, GreedyCoreset
from datasampler.pairs import Pairs
from datasampler.store import StoreSampler
from datasets.caption_set import open_caption_set
from datasets.image_set import ImageSet
from tests.datasets.captioned import pair


def rows_by_class(sizes, seed=0):
    """Rows of classes of the given sizes, shuffled over the rows."""
    rows = np.random.default_rng(seed).permutation(sum(sizes))
    return tuple(np.split(rows, np.cumsum(sizes)[:-1]))


def words(n_classes, dim=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n_classes, dim, generator=generator), dim=1)


SIZES = [9, 3, 5, 1, 2, 8, 7, 4, 6, 10]  # N = 55


def samplers(seed=0, rank=0, world_size=1):
    """One of each, at bs 12; those that look at embeddings have some."""
    rows, place = rows_by_class(SIZES), (seed, rank, world_size)
    by_classes = (rows, 12, 3, *place)
    made = {
        "random": Random(55, 12, *place),
        "class_random": ClassRandom(*by_classes),
        "class_related": ClassRelated(rows, 12, 3, words(10), *place, related_classes=2),
        "greedy_coreset": GreedyCoreset(*by_classes, batchmatch_bigbs=20),
        "softened_coreset": GreedyCoreset(*by_classes, batchmatch_bigbs=20, gc_softened=True),
        "d2_coreset": D2Coreset(*by_classes, sampler_lowproj_dim=3),
        "disthist_batchmatch": DistHistBatchmatch(*by_classes, sim_measure="cosine"),
        "fid_batchmatch": FIDBatchmatch(*by_classes, batchmatch_ncomps=3),
    }
    for sampler in made.values():
        if sampler.due(1):
            sampler.refresh(words(55))
    return made


NAMES = list(samplers())
BY_CLASSES = [name for name in NAMES if name != "random"]


@pytest.mark.parametrize("name", NAMES)
def test_an_epoch_is_full_batches_of_one_row_tuples(name):
    sampler = samplers()[name]
    batches = list(sampler)
    assert len(batches) == len(sampler) == 55 // 12
    for batch in batches:
        assert len(batch) == 12
        assert all(type(item) is tuple and len(item) == 1 for item in batch)
        assert all(type(row) is int and 0 <= row < 55 for (row,) in batch)


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_epochs_and_each_epoch_differs(name):
    one, two, other = samplers(1)[name], samplers(1)[name], samplers(2)[name]
    first = list(one)
    assert first == list(two)
    assert first != list(one)
    assert first != list(other)


@pytest.mark.parametrize("name", NAMES)
def test_state_round_trip_repeats_the_epochs_that_follow(name):
    one, two = samplers(1)[name], samplers(5)[name]
    list(one)
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    after = [list(one), list(one)]
    file.seek(0)
    two.load_state_dict(torch.load(file, weights_only=True))
    assert [list(two), list(two)] == after


@pytest.mark.parametrize("name", NAMES)
def test_global_generators_are_left_alone(name):
    before_numpy, before_torch = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    list(samplers()[name])
    assert np.array_equal(before_numpy, np.random.get_state()[1])  # noqa: NPY002
    assert torch.equal(before_torch, torch.get_rng_state())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("world_size", [2, 3, 12])
def test_shares_of_all_ranks_in_order_are_the_batches_of_one_process(name, world_size):
    whole = samplers(4)[name]
    ranks = [samplers(4, rank, world_size)[name] for rank in range(world_size)]
    for _ in range(2):
        shares = [list(sampler) for sampler in ranks]
        assert {len(share) for share in shares} == {len(sampler) for sampler in ranks} == {4}
        assert {len(part) for share in shares for part in share} == {12 // world_size}
        joined = [list(chain(*parts)) for parts in zip(*shares, strict=True)]
        assert joined == list(whole)


@pytest.mark.parametrize("name", NAMES)
def test_a_rank_continues_from_the_state_of_another(name):
    first, second = samplers(1, 0, 2)[name], samplers(1, 1, 2)[name]
    list(first)
    list(second)
    resumed = samplers(7, 1, 2)[name]
    resumed.load_state_dict(first.state_dict())
    assert list(resumed) == list(second)


@pytest.mark.parametrize("name", BY_CLASSES)
def test_images_of_a_class_stand_together(name):
    class_of = {int(row): c for c, rows in enumerate(rows_by_class(SIZES)) for row in rows}
    for batch in samplers()[name]:
        classes = [class_of[row] for (row,) in batch]
        assert all(len(set(classes[start : start + 3])) == 1 for start in range(0, 12, 3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Random(55, 10, rank=0, world_size=4),
            "--bs 10 does not divide among 4 processes; use --bs 8 or 12",
        ),
        (
            lambda: Random(9, 3, rank=0, world_size=4),
            "--bs 3 does not divide among 4 processes; use --bs 4",
        ),
        (
            lambda: Random(10, 10, rank=0, world_size=4),
            "--bs 10 does not divide among 4 processes; use --bs 8",
        ),
        (
            lambda: Random(3, 3, rank=0, world_size=4),
            "--bs 3 does not divide among 4 processes; use fewer processes",
        ),
        (
            lambda: ClassRandom(rows_by_class([9] * 60), 90, 3, world_size=4),
            "--bs 90 does not divide among 4 processes; use --bs 84 or 96",
        ),
        (
            lambda: Random(55, 60, rank=0, world_size=4),
            "--bs 60 is more than the 55 training images; use --bs 52 or less",
        ),
        (
            lambda: Random(55, 12, rank=2, world_size=2),
            "rank 2 is none of 2 processes; count from 0 to 1",
        ),
    ],
)
def test_shares_that_do_not_fit_are_named_with_what_fits(make, message):
    with pytest.raises(ValueError, match=r"processes|images") as error:
        make()
    assert str(error.value) == message


@pytest.mark.parametrize("name", ["random", "class_random", "class_related"])
def test_samplers_that_look_at_no_embeddings_take_note_of_none(name):
    one, two = samplers(3)[name], samplers(3)[name]
    assert not any(one.due(epoch) for epoch in range(1, 5))
    one.refresh(words(55))
    one.observe(torch.arange(4), words(4))
    assert list(one) == list(two)


def test_random_shows_each_image_at_most_once_in_an_epoch():
    rows = [row for batch in Random(55, 12) for (row,) in batch]
    assert len(set(rows)) == len(rows) == 48


def test_random_leaves_no_image_out_for_good():
    sampler = Random(13, 4)
    assert {row for _ in range(20) for batch in sampler for (row,) in batch} == set(range(13))


@pytest.mark.parametrize("name", BY_CLASSES)
def test_a_batch_holds_different_classes_and_spreads_over_their_images(name):
    class_of = {int(row): c for c, rows in enumerate(rows_by_class(SIZES)) for row in rows}
    sampler = samplers()[name]
    for batch in (batch for _ in range(20) for batch in sampler):
        classes = Counter(class_of[row] for (row,) in batch)
        assert len(classes) == 4
        assert set(classes.values()) == {3}
        images = Counter(row for (row,) in batch)
        for label, rows in enumerate(rows_by_class(SIZES)):
            if label in classes:
                drawn = [images[int(row)] for row in rows]
                assert max(drawn) - min(drawn) <= 1  # and so never twice in a class of 3 or more


def test_class_random_draws_classes_and_images_evenly():
    rows = rows_by_class([4] * 10)
    sampler = ClassRandom(rows, 8, 2)
    drawn = Counter(row for _ in range(400) for batch in sampler for (row,) in batch)
    # 400 epochs × 5 batches × 8 images over 40 images: 400 each, standard deviation below 20
    assert len(drawn) == 40
    assert all(abs(count - 400) < 100 for count in drawn.values())


def test_class_related_groups_a_seed_with_its_nearest_classes_not_taken_yet():
    rows, table = rows_by_class([4] * 30), words(30)
    sampler = ClassRelated(rows, 20, 2, table * 5, related_classes=4)  # 10 classes: 4 + 4 + 2
    sims = table @ table.T
    for _ in range(50):
        classes = sampler.draw_classes().tolist()
        groups = [classes[:4], classes[4:8], classes[8:]]
        assert len(set(classes)) == 10
        taken = {group[0] for group in groups}
        for seed, *others in groups:
            for other in others:
                free = [c for c in range(30) if c not in taken]
                assert other == max(free, key=lambda c: sims[seed, c].item())
                taken.add(other)


def test_class_related_batches_have_more_alike_words_than_random_ones():
    rows, table = rows_by_class([2] * 200), words(200)
    related = ClassRelated(rows, 80, 2, table)
    plain = ClassRandom(rows, 80, 2)

    def spread(sampler):
        sims = [table[c] @ table[c].T for c in (sampler.draw_classes() for _ in range(20))]
        return torch.stack([s[~torch.eye(40, dtype=torch.bool)].std() for s in sims]).mean()

    assert spread(related) > 1.02 * spread(plain)


def test_class_related_can_take_every_class_and_groups_of_one():
    rows = rows_by_class([3] * 6)
    everything = ClassRelated(rows, 12, 2, words(6), related_classes=4)
    assert sorted(everything.draw_classes()) == list(range(6))
    singles = ClassRelated(rows, 8, 2, words(6), related_classes=1)
    assert len(set(singles.draw_classes().tolist())) == 4
    wide = ClassRelated(rows, 8, 2, words(6), related_classes=50)
    assert len(set(wide.draw_classes().tolist())) == 4


@pytest.mark.parametrize(
    ("sizes", "bs", "per_class", "message"),
    [
        ([9] * 60, 90, 4, "--samples_per_class 4 does not divide --bs 90; use --bs 88 or 92"),
        ([9] * 60, 3, 4, "--samples_per_class 4 does not divide --bs 3; use --bs 4"),
        (
            [9] * 40,
            112,
            2,
            "--bs 112 with --samples_per_class 2 needs 56 classes per batch, the training set has "
            "40; use --bs 80 or less, or --samples_per_class 4",
        ),
        ([1] * 10 + [2], 20, 2, "--bs 20 is more than the 12 training images; use --bs 12 or less"),
        ([9] * 60, 90, 0, "--samples_per_class 0 is no count; use 2 or more"),
    ],
)
def test_sizes_that_do_not_fit_are_named_with_what_fits(sizes, bs, per_class, message):
    with pytest.raises(ValueError, match="--") as error:
        ClassRandom(rows_by_class(sizes), bs, per_class)
    assert str(error.value) == message


def test_random_names_a_batch_larger_than_the_set():
    with pytest.raises(ValueError, match="--bs 9 is more than the 8 training images; use --bs 8"):
        Random(8, 9)


def test_class_related_names_missing_words_and_bad_groups():
    rows = rows_by_class([4] * 6)
    with pytest.raises(ValueError, match=r"class_related needs words .* --language_model"):
        ClassRelated(rows, 8, 2, None)
    with pytest.raises(ValueError, match="words of 5 classes for 6 training classes"):
        ClassRelated(rows, 8, 2, words(5))
    with pytest.raises(ValueError, match="--data_related_classes 0"):
        ClassRelated(rows, 8, 2, words(6), related_classes=0)


PAIRS = {name for name, made in datasampler.SAMPLERS.items() if issubclass(made, Pairs)}
FREE = PAIRS | {"random"}  # of classes


def image_set(n_classes=6, per_class=4):
    labels = np.tile(np.arange(n_classes), per_class)
    return ImageSet(
        name="toy.train",
        paths=tuple(Path(f"{row}.jpg") for row in range(len(labels))),
        labels=labels,
        class_names=tuple(f"class {label}" for label in range(n_classes)),
    )


def flags(**changed):
    defaults = {
        "data_sampler": "class_random",
        "bs": 8,
        "samples_per_class": 2,
        "seed": 3,
        "data_related_classes": 2,
        "data_store_every": 1,
        "data_mb_mom": -1.0,
        "data_sampler_lowproj_dim": -1,
        "data_sim_measure": "euclidean",
        "data_batchmatch_bigbs": 16,
        "data_batchmatch_ncomps": 3,
        "data_d2_coreset_lambda": 1.0,
        "data_gc_coreset_lim": 1e-9,
        "data_gc_softened": False,
        "data_pairs_threshold": -1.0,
        "data_pairs_self": 0.0,
    }
    return argparse.Namespace(**(defaults | changed))


@pytest.mark.parametrize("name", datasampler.SAMPLERS)
def test_build_from_flags(name):
    train = image_set()
    sampler = build(name, train)
    assert type(sampler) is datasampler.SAMPLERS[name]
    assert sampler.due(1) == isinstance(sampler, StoreSampler)
    sampler.refresh(words(24))
    assert len(sampler) == len(list(sampler)) == 3
    assert {len(item) for batch in sampler for item in batch} == {2 if name in PAIRS else 1}
    if name not in FREE:
        batch = [row for (row,) in next(iter(sampler))]
        assert set(Counter(train.labels[batch].tolist()).values()) == {2}


NEXT = np.roll(np.arange(24), -1)[:, None]  # the image after, of 24


def build(name, train, **changed):
    """With the words, the views and the partners that a run would hand over."""
    return datasampler.build(
        flags(data_sampler=name, **changed),
        train,
        n_views=2 if name in PAIRS else 1,
        class_words=words(6),
        partners=NEXT,
        similarities=np.linspace(0, 1, 24)[:, None],
    )


def test_build_hands_over_views_partners_and_what_is_asked_of_them():
    train = image_set()
    pairs = [item for batch in build("language_pairs", train) for item in batch]
    assert all(j == (i + 1) % 24 for i, j in pairs)
    chosen = build("language_pairs", train, data_pairs_threshold=0.5)
    assert chosen.n_left_out == 12 and len(chosen) == 1
    own = build("language_pairs", train, data_pairs_self=1.0)
    assert all(i == j for batch in own for i, j in batch)
    three = datasampler.build(flags(data_sampler="augmented_pairs"), train, n_views=3)
    assert all(len(set(item)) == 1 and len(item) == 3 for batch in three for item in batch)
    one = datasampler.build(flags(data_sampler="augmented_pairs"), train)
    assert all(len(item) == 1 for batch in one for item in batch)


def caption_set(folder, n=10):
    for number in range(n):
        pair(folder / "drawings", f"{number}.jpg", f"drawing {number}", seed=number)
    return open_caption_set(folder)


@pytest.mark.parametrize("name", datasampler.SAMPLERS)
def test_images_without_classes_go_to_samplers_that_ask_for_none(name, tmp_path):
    train = caption_set(tmp_path / "captioned")
    args = flags(data_sampler=name, bs=4, dataset="captioned")
    partners = np.roll(np.arange(10), 1)[:, None]
    if name not in FREE:
        with pytest.raises(ValueError, match=rf"{name} draws by class, --dataset captioned has"):
            datasampler.build(args, train, class_words=words(6))
        return
    sampler = datasampler.build(
        args, train, n_views=2, partners=partners, similarities=np.ones((10, 1))
    )
    assert len(list(sampler)) == 2
    assert {row for batch in sampler for item in batch for row in item} <= set(range(10))


@pytest.mark.parametrize("name", datasampler.SAMPLERS)
@pytest.mark.parametrize("rank", [0, 1])
def test_build_takes_the_share_of_this_process(name, rank, monkeypatch):
    train = image_set()
    whole = list(build(name, train)) if name in FREE else None
    monkeypatch.setattr(datasampler.distributed, "rank", lambda: rank)
    monkeypatch.setattr(datasampler.distributed, "world_size", lambda: 2)
    share = build(name, train)
    assert (share.rank, share.world_size) == (rank, 2)
    if whole is not None:
        part = slice(4 * rank, 4 * rank + 4)
        assert list(share) == [batch[part] for batch in whole]


def test_build_names_what_is_unknown_or_missing():
    with pytest.raises(ValueError, match=r"--data_sampler class_rand is unknown.*: class_random"):
        datasampler.build(flags(data_sampler="class_rand"), image_set())
    with pytest.raises(ValueError, match="needs words for every class"):
        datasampler.build(flags(data_sampler="class_related"), image_set())
