"""Processes that share each batch see what one process sees, whatever it learns in between."""

import itertools

import pytest
import torch

import datasampler
from tests.datasampler.test_samplers import build, image_set, words

N, BS, EPOCHS = 24, 8, 4


def made(name, monkeypatch, rank=0, world=1):
    monkeypatch.setattr(datasampler.distributed, "rank", lambda: rank)
    monkeypatch.setattr(datasampler.distributed, "world_size", lambda: world)
    return build(name, image_set(), bs=BS, data_mb_mom=0.5, data_store_every=2)


@pytest.mark.parametrize("name", datasampler.SAMPLERS)
@pytest.mark.parametrize("world", [2, 4])
def test_shares_in_order_of_rank_are_the_batches_of_one_process(name, world, monkeypatch):
    """Every epoch, with embeddings of the whole batch told to all after each step."""
    one = made(name, monkeypatch)
    ranks = [made(name, monkeypatch, rank, world) for rank in range(world)]
    for epoch in range(1, EPOCHS + 1):
        assert {sampler.due(epoch) for sampler in ranks} == {one.due(epoch)}
        if one.due(epoch):
            for sampler in (one, *ranks):
                sampler.refresh(words(N, seed=epoch))
        n_batches = 0
        for number, (batch, *shares) in enumerate(zip(one, *ranks, strict=True)):
            n_batches += 1
            assert {len(share) for share in shares} == {BS // world}
            joined = list(itertools.chain(*shares))
            assert joined == batch
            rows = torch.tensor([item[0] for item in joined])
            for sampler in (one, *ranks):
                sampler.observe(rows, words(BS, seed=100 * epoch + number))
        assert n_batches == len(one) == N // BS
    for sampler in ranks:
        assert same(sampler.state_dict(), one.state_dict())


@pytest.mark.parametrize("name", ["random", "augmented_pairs", "random_pairs"])
@pytest.mark.parametrize("world", [2, 4])
def test_no_two_processes_see_an_image_in_one_epoch(name, world, monkeypatch):
    ranks = [made(name, monkeypatch, rank, world) for rank in range(world)]
    for _ in range(EPOCHS):
        seen = [item[0] for sampler in ranks for batch in sampler for item in batch]
        assert sorted(seen) == list(range(N))


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return one == other
