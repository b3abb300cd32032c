"""A default batch size is lowered to what the training images fill."""

import shlex
from types import SimpleNamespace

import numpy as np
import pytest

import datasampler
import parameters
from tests.datasampler.toy import rows_by_class
from utilities import distributed


class Images(SimpleNamespace):
    def __len__(self):
        return self.n


def images(sizes):
    return Images(n=sum(sizes), rows_by_class=rows_by_class(sizes))


def fitted(train, typed="", filled=("bs",), usual=112):
    """Return the batch size, and what the summary says about it."""
    args = parameters.parse(shlex.split(typed))
    args.bs, args.samples_per_class = args.bs or usual, args.samples_per_class or 2
    notes = datasampler.fit_bs(args, train, filled)
    return args.bs, notes.get("batch size", ""), args


@pytest.mark.parametrize(
    ("sizes", "typed", "bs"),
    [
        ([10] * 3, "", 6),
        ([10] * 3, "--samples_per_class 4", 12),
        ([1] * 6, "", 6),  # of each class twice were 12, but there are 6 images
        ([1] * 7, "", 6),
        ([40] * 60, "", 112),
        ([40] * 60, "--samples_per_class 5", 110),
        ([10] * 3, "--data_class_replacement", 30),
        ([40] * 60, "--data_sampler d2_coreset --data_batchmatch_bigbs 64", 64),
        ([10] * 3, "--data_sampler random", 30),
        ([1] * 30, "--loss simclr", 30),
    ],
)
def test_the_largest_batch_that_can_be_drawn(sizes, typed, bs):
    found, said, args = fitted(images(sizes), typed)
    assert found == bs and bool(said) == (bs != 112)
    sampler = datasampler.build(args, images(sizes), n_views=2 if "simclr" in typed else 1)
    if "coreset" not in typed:  # which needs embeddings first
        n_views = 2 if "simclr" in typed else 1
        assert np.shape(next(iter(sampler))) == (bs, n_views)
    if bs < 110:
        args.bs += args.samples_per_class
        with pytest.raises(ValueError, match=r"bs must be at most|must be at least bs"):
            datasampler.build(args, images(sizes))


def test_the_summary_says_what_it_fits():
    assert fitted(images([10] * 3))[1] == (
        "6, the largest that fits 3 training classes (default: 112)"
    )
    assert "that fits 30 training images" in fitted(images([1] * 30), "--loss simclr")[1]


def test_processes_share_it_equally(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    assert fitted(images([9] * 20))[0] == 36
    assert fitted(images([40] * 60))[0] == 108


def test_a_typed_size_is_refused_with_one_that_fits():
    found, said, args = fitted(images([10] * 3), "--bs 112", filled=())
    assert (found, said) == (112, "")
    with pytest.raises(ValueError, match="--bs must be at most 6 for 3 training classes"):
        datasampler.build(args, images([10] * 3))
    assert fitted(images([1]))[:2] == (112, "")  # too few for any batch, so refused as before
