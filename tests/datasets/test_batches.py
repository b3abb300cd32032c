"""An epoch that is interrupted after any batch is resumed there, whoever loads."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

import datasets
from datasampler import FIDBatchmatch
from datasampler.pairs import RandomPairs
from datasets import ImageSet
from datasets.batches import Batches
from datasets.transforms import train_views


@pytest.fixture
def images(tmp_path):
    paths = []
    for row in range(12):
        paths.append(tmp_path / f"{row}.png")
        pixels = np.random.default_rng(row).integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(paths[-1])
    return ImageSet("tiny", tuple(paths), np.arange(12) // 3, ("a", "b", "c", "d"))


class Counting:
    """Images that say which of them were read."""

    def __init__(self, images):
        self.images, self.name, self.was_read = images, images.name, []
        self.label, self.caption = images.label, images.caption

    def __len__(self):
        return len(self.images)

    def read(self, row):
        self.was_read.append(row)
        return self.images.read(row)


def pairs(images):
    return RandomPairs(len(images), 4, seed=1)


def stored(images):
    """Of those whose draws depend on the embeddings of earlier batches."""
    rows = [np.flatnonzero(images.labels == label) for label in range(4)]
    return FIDBatchmatch(rows, 4, 2, seed=1, batchmatch_bigbs=8)


def batches_of(images, sampler, workers=0):
    views = train_views(8, "simclr", sampler.n_views if hasattr(sampler, "n_views") else 1)
    return Batches(datasets.loader(images, views, sampler, workers=workers, seed=3))


def run(own, sampler, epochs, stop=None):
    """What was trained on, as (rows, sum of pixels), and the state after ``stop`` batches.

    An epoch is begun and its batches are observed as main.py does.
    """
    seen = []
    for epoch in epochs:
        if own.epoch < epoch and sampler.due(epoch):
            sampler.refresh(embeds_of(torch.arange(12), epoch))
        for batch in own.of(epoch):
            sampler.observe(batch.rows, embeds_of(batch.rows, own.done + 10 * epoch))
            seen.append(
                (batch.rows.tolist(), float(sum(view.double().sum() for view in batch.views)))
            )
            if len(seen) == stop:
                return seen, copy.deepcopy(own.state_dict())
    return seen, copy.deepcopy(own.state_dict())


def embeds_of(rows, when):
    return torch.sin(rows[:, None] * torch.tensor([1.0, 2.0, 3.0]) + when)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("make", [pairs, stored])
def test_what_is_left_of_a_run_is_what_would_have_come(images, make, workers):
    sampler = make(images)
    whole, _ = run(batches_of(images, sampler, workers), sampler, [1, 2, 3])
    assert len(whole) == 9
    for stop in (2, 3, 7) if workers else range(1, 9):
        sampler = make(images)
        first, state = run(batches_of(images, sampler, workers), sampler, [1, 2, 3], stop)
        again = make(images)
        own = batches_of(images, again, 0)
        own.load_state_dict(state)
        assert (own.epoch, own.done) == ((stop - 1) // 3 + 1, (stop - 1) % 3 + 1)
        rest, _ = run(own, again, range(own.epoch, 4))
        assert first + rest == whole


def test_batches_that_are_done_are_drawn_and_not_loaded(images):
    sampler = pairs(images)
    _, state = run(batches_of(images, sampler), sampler, [1], stop=2)
    counting, again = Counting(images), pairs(images)
    own = batches_of(counting, again)
    own.load_state_dict(state)
    [batch] = own.of(1)
    assert len(counting.was_read) == 8 and set(batch.rows.tolist()) <= set(counting.was_read)


def test_a_pass_that_is_done_gives_nothing_more_and_the_next_one_follows(images):
    sampler = pairs(images)
    whole, _ = run(batches_of(images, sampler), sampler, [1, 2])
    own = batches_of(images, again := pairs(images))
    run(own, again, [1])
    assert list(own.of(1)) == []
    assert run(own, again, [2])[0] == whole[3:]


def test_a_run_that_has_not_begun_begins(images):
    state = batches_of(images, pairs(images)).state_dict()
    own = batches_of(images, again := pairs(images))
    own.load_state_dict(state)
    sampler = pairs(images)
    assert run(own, again, [1])[0] == run(batches_of(images, sampler), sampler, [1])[0]
