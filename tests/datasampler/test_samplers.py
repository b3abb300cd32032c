"""Samplers that draw images or classes at random, or classes of related words."""

from collections import Counter

import numpy as np
import pytest
import torch

from datasampler import ClassRandom, ClassRelated, Random
from tests.datasampler.toy import rows_by_class, words


def test_random_leaves_no_image_out_for_good():
    sampler = Random(13, 4)
    assert {row for _ in range(20) for batch in sampler for (row,) in batch} == set(range(13))


def test_class_random_draws_classes_and_images_evenly():
    sampler = ClassRandom(rows_by_class([4] * 10), 8, 2)
    drawn = Counter(row for _ in range(400) for batch in sampler for (row,) in batch)
    # 400 epochs × 5 batches × 8 images over 40 images: 400 each, standard deviation below 20
    assert len(drawn) == 40
    assert all(abs(count - 400) < 100 for count in drawn.values())


def batches_as_published(replacement):
    """What 1,000 batches of 90 hold of the training half of CUB200-2011, 5,864 images, on average:
    classes, positives of an anchor, and images that are in the batch already."""
    rows, bs = np.array_split(np.arange(5864), 100), 90
    classes = np.repeat(np.arange(100), [len(own) for own in rows])
    sampler = ClassRandom(rows, bs, 2, class_replacement=replacement)
    found = []
    for _ in range(1000):
        batch = sampler.choose()
        labels = classes[batch]
        positives = (labels[:, None] == labels).sum() / bs - 1
        found.append((len(set(labels)), positives, bs - len(set(batch))))
    return np.mean(found, axis=0)


def test_class_random_with_replacement_draws_as_released():
    assert batches_as_published(replacement=False).tolist() == [45, 1, 0]
    classes, positives, repeats = batches_as_published(replacement=True)
    assert classes == pytest.approx(100 * (1 - 0.99**45), abs=0.3)  # 36.4
    assert positives == pytest.approx(1 + 44 * 2 / 100, abs=0.03)  # 1.88
    assert repeats == pytest.approx(1.41, abs=0.15)


def test_a_class_of_one_image_has_it_twice_so_that_its_crops_are_positives():
    for batch in ClassRandom(rows_by_class([1] * 4), 4, 2, seed=1):
        assert sorted(Counter(np.ravel(batch).tolist()).values()) == [2, 2]


def test_class_random_with_replacement_fills_a_batch_from_fewer_classes():
    sampler = ClassRandom(rows_by_class([4] * 3), 8, 2, class_replacement=True)
    batches = [np.ravel(batch) for batch in sampler]
    assert [len(batch) for batch in batches] == [8]
    with pytest.raises(ValueError, match="at most 6 for 3 training classes"):
        ClassRandom(rows_by_class([4] * 3), 8, 2)


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

    def spread(sampler):
        sims = [table[c] @ table[c].T for c in (sampler.draw_classes() for _ in range(20))]
        return torch.stack([s[~torch.eye(40, dtype=torch.bool)].std() for s in sims]).mean()

    assert spread(ClassRelated(rows, 80, 2, table)) > 1.02 * spread(ClassRandom(rows, 80, 2))


@pytest.mark.parametrize(("bs", "related"), [(12, 4), (8, 1), (8, 50)])
def test_class_related_can_take_every_class_and_groups_of_any_size(bs, related):
    sampler = ClassRelated(rows_by_class([3] * 6), bs, 2, words(6), related_classes=related)
    assert len(set(sampler.draw_classes().tolist())) == bs // 2


@pytest.mark.parametrize(
    ("sizes", "bs", "per_class", "message"),
    [
        ([9] * 60, 90, 4, "bs must be a multiple of samples_per_class = 4; got 90, use 88 or 92"),
        ([9] * 60, 3, 4, "bs must be a multiple of samples_per_class = 4; got 3, use 4"),
        (
            [9] * 40,
            112,
            2,
            "bs must be at most 80 for 40 training classes and samples_per_class = 2; got 112, "
            "which needs 56 classes per batch, or samples_per_class 4",
        ),
        ([1] * 10 + [2], 20, 2, "bs must be at most 12 for 12 training images; got 20"),
        ([9] * 60, 90, 0, "samples_per_class must be 1 or more; got 0"),
    ],
)
def test_sizes_that_do_not_fit_are_named_with_what_fits(sizes, bs, per_class, message):
    with pytest.raises(ValueError, match=r"samples_per_class|bs") as error:
        ClassRandom(rows_by_class(sizes), bs, per_class)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("given", "related", "message"),
    [
        (None, 4, r"class_related needs words .* --language_model"),
        (words(5), 4, "class_words must have a row for each of the 6 training classes; got 5"),
        (words(6), 0, "related_classes must be 1 or more; got 0"),
    ],
)
def test_class_related_names_missing_words_and_bad_groups(given, related, message):
    with pytest.raises(ValueError, match=message):
        ClassRelated(rows_by_class([4] * 6), 8, 2, given, related_classes=related)
