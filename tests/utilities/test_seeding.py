"""Seeds: the same run twice draws the same, and components do not share a stream."""

import random

import numpy as np
import torch

from utilities.seeding import derive, seed_everything, seed_worker


def draws():
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002


def test_the_same_seed_draws_the_same_everywhere():
    seed_everything(3)
    first = draws()
    seed_everything(3)
    assert draws() == first
    seed_everything(4)
    assert all(a != b for a, b in zip(draws(), first, strict=True))


def test_derived_seeds_differ_by_name_and_seed_and_stay_in_range():
    seeds = [derive(seed, name) for seed in range(20) for name in ("sampler", "miner", 0, "0")]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_derived_seeds_are_fixed_for_good():
    assert derive(0, "sampler") == 8022433103957144086


def test_workers_follow_their_torch_seed():
    torch.manual_seed(2**40 + 5)  # beyond what numpy takes
    seed_worker(0)
    first = random.random(), float(np.random.rand())  # noqa: NPY002
    seed_worker(1)
    assert (random.random(), float(np.random.rand())) == first  # noqa: NPY002
