import io
from itertools import islice

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from datasampler import D2Coreset, DistHistBatchmatch, FIDBatchmatch, GreedyCoreset
from datasampler.store import StoreSampler, squared_distances
from tests.datasampler.toy import rows_by_class, rows_of

ROWS = tuple(np.arange(30).reshape(10, 3))  # ten classes of three images


class Recorded(StoreSampler):
    """Keeps what it is shown."""

    def choose(self):
        self.shown = self.points(np.arange(self.n_images))
        return self.draw_batch()


def embeds(n=30, dim=6, seed=0):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def shown(sampler):
    """The store as a pass that begins now reads it."""
    next(sampler.batches())
    return torch.from_numpy(sampler.shown).float()


def test_a_refresh_is_due_before_the_first_epoch_and_every_so_many_after():
    def epochs(store_every, filled):
        sampler = Recorded(ROWS, 8, 2, store_every=store_every)
        if filled:
            sampler.refresh(embeds())
        return [epoch for epoch in range(1, 8) if sampler.due(epoch)]

    assert epochs(1, filled=True) == [1, 2, 3, 4, 5, 6, 7]
    assert epochs(3, filled=True) == [1, 4, 7]
    assert epochs(0, filled=True) == []
    # a run continued without a store has to fill it, whichever epoch it is at
    assert epochs(0, filled=False) == epochs(3, filled=False) == [1, 2, 3, 4, 5, 6, 7]


def test_a_pass_reads_the_store_as_it_was_when_the_pass_began():
    sampler = Recorded(ROWS, 8, 2)
    before, after = embeds(seed=0), embeds(8, seed=1)
    sampler.refresh(before)
    running = sampler.batches()
    next(running)
    sampler.observe(torch.arange(8), after)
    next(running)
    assert torch.equal(torch.from_numpy(sampler.shown).float(), before)
    assert torch.equal(shown(sampler), torch.cat([after, before[8:]]))
    assert not torch.equal(before[:8], after)  # the caller's tensor stays as it was


@pytest.mark.parametrize("ahead", [2, 3])
def test_how_far_batches_are_drawn_ahead_of_training_changes_no_batch(ahead):
    """``ahead`` batches are drawn before the first is trained, as loading processes do."""

    def epochs(ahead):
        sampler = GreedyCoreset(ROWS, 8, 2, seed=5, batchmatch_bigbs=12)
        sampler.refresh(embeds())
        drawn = []
        for epoch in range(3):
            waiting, steps = iter(sampler), 0
            queue = list(islice(waiting, ahead))
            while queue:
                batch = queue.pop(0)
                drawn.append(batch)
                rows = torch.tensor([row for (row,) in batch])
                sampler.observe(rows, embeds(8, seed=100 * epoch + steps))
                steps += 1
                queue += islice(waiting, 1)
        return drawn

    assert epochs(ahead) == epochs(1)
    assert len(epochs(ahead)) == 9


def test_a_batch_replaces_its_rows_or_moves_them_by_momentum():
    old, new, rows = embeds(), embeds(3, seed=1), torch.tensor([4, 0, 29])
    for momentum, share in ((-1, 0.0), (0, 0.0), (0.75, 0.75)):
        sampler = Recorded(ROWS, 8, 2, mb_mom=momentum)
        sampler.refresh(old)
        sampler.observe(rows, new)
        expected = old.clone()
        expected[rows] = share * old[rows] + (1 - share) * new
        assert torch.allclose(shown(sampler), expected)


def test_of_an_image_that_comes_twice_in_a_batch_the_last_counts():
    sampler = Recorded(ROWS, 8, 2)
    sampler.refresh(embeds())
    new = embeds(3, seed=1)
    sampler.observe(torch.tensor([7, 7, 7]), new)
    assert torch.equal(shown(sampler)[7], new[2])


def test_embeddings_of_any_floating_type_with_gradient():
    sampler = Recorded(ROWS, 8, 2)
    leaf = embeds().bfloat16().requires_grad_()
    sampler.refresh(leaf)
    sampler.observe(torch.arange(2), leaf[:2] * 2)
    assert torch.equal(shown(sampler)[:2], leaf[:2].detach().float() * 2)


def test_images_without_an_embedding_take_the_mean_of_the_others():
    sampler = Recorded(ROWS, 8, 2)
    known = torch.arange(1, 29)
    sampler.refresh(embeds()[known], known)
    assert torch.equal(shown(sampler)[known], embeds()[known])
    mean = embeds()[known].mean(dim=0)
    assert torch.allclose(shown(sampler)[[0, 29]], mean.expand(2, -1), atol=1e-6)


def test_cosine_shows_directions_and_leaves_a_zero_row_at_zero():
    sampler = Recorded(ROWS, 8, 2, sim_measure="cosine")
    table = embeds() * torch.arange(30)[:, None]
    sampler.refresh(table)
    assert torch.allclose(shown(sampler), F.normalize(table, dim=1), atol=1e-6)


def test_projection_lowers_the_dimension_and_keeps_squared_distances_in_the_mean():
    table = embeds(30, 64)
    true = torch.pdist(table).square()
    sampler = Recorded(ROWS, 8, 2, sampler_lowproj_dim=8)
    sampler.refresh(table)
    ratios = torch.stack([torch.pdist(shown(sampler)).square() / true for _ in range(200)])
    assert sampler.shown.shape == (30, 8)
    # a chi-square of 8 over 8: variance 1/4, over 200 draws a standard deviation of 0.035
    assert torch.allclose(ratios.mean(dim=0), torch.ones(435), atol=0.2)
    assert ratios.mean().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("dim", [-1, 6, 7])
def test_projection_to_no_fewer_dimensions_is_none(dim):
    sampler = Recorded(ROWS, 8, 2, sampler_lowproj_dim=dim)
    sampler.refresh(embeds())
    assert torch.equal(shown(sampler), embeds())


def test_state_carries_what_was_observed_since_the_pass_began():
    sampler = GreedyCoreset(ROWS, 8, 2, seed=1, sampler_lowproj_dim=4)
    sampler.refresh(embeds())
    for batch in sampler:
        sampler.observe(torch.tensor([row for (row,) in batch]), embeds(8, seed=9))
    file = io.BytesIO()
    torch.save(sampler.state_dict(), file)
    after = [list(sampler), list(sampler)]
    sampler.observe(torch.arange(8), embeds(8, seed=10))
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert state["store"].dtype == torch.float32
    resumed = GreedyCoreset(ROWS, 8, 2, seed=2, sampler_lowproj_dim=4)
    resumed.load_state_dict(state)
    assert [list(resumed), list(resumed)] == after


def test_state_is_a_copy_and_may_be_without_a_store():
    sampler = Recorded(ROWS, 8, 2)
    empty = sampler.state_dict()
    assert empty["store"] is None
    sampler.refresh(embeds())
    state = sampler.state_dict()
    sampler.observe(torch.arange(8), embeds(8, seed=1))
    assert torch.equal(state["store"], embeds())
    sampler.load_state_dict(state)
    sampler.observe(torch.arange(8), embeds(8, seed=1))
    assert torch.equal(state["store"], embeds())
    sampler.load_state_dict(empty)
    assert sampler.due(5)


def test_a_pass_or_a_batch_before_the_first_refresh_says_so():
    sampler = GreedyCoreset(ROWS, 8, 2)
    message = "GreedyCoreset .* has none yet; call refresh with those of all 30 training images"
    with pytest.raises(ValueError, match=message):
        next(iter(sampler))
    with pytest.raises(ValueError, match=message):
        sampler.observe(torch.arange(2), embeds(2))


def test_a_refresh_of_other_images_or_of_nan_says_so():
    sampler = GreedyCoreset(ROWS, 8, 2)
    with pytest.raises(ValueError, match=r"embeds must be of all 30 images .*; got 29"):
        sampler.refresh(embeds(29))
    broken = embeds()
    broken[3, 2] = torch.nan
    with pytest.raises(ValueError, match="must be finite; lower --lr"):
        sampler.refresh(broken)
    assert sampler.due(2)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (Recorded, {"batchmatch_bigbs": 7}, "batchmatch_bigbs must be at least bs = 8; got 7"),
        (Recorded, {"sampler_lowproj_dim": 0}, "sampler_lowproj_dim must be 1 or more, .*; got 0"),
        (Recorded, {"sim_measure": "l2"}, "sim_measure must be euclidean or cosine; got l2"),
        (Recorded, {"mb_mom": 1.0}, r"mb_mom must be in \[0, 1\), or -1 to replace; got 1.0"),
        (Recorded, {"mb_mom": -0.5}, "mb_mom must be in .*; got -0.5"),
        (Recorded, {"store_every": -1}, "store_every must be 1 or more, or 0 .*; got -1"),
        (GreedyCoreset, {"gc_coreset_lim": -1}, "gc_coreset_lim must be 0 or more; got -1"),
        (D2Coreset, {"d2_coreset_lambda": -2}, "d2_coreset_lambda must be 0 or more; got -2"),
        (FIDBatchmatch, {"batchmatch_ncomps": 0}, "batchmatch_ncomps must be 1 or more; got 0"),
        (FIDBatchmatch, {"bs": 1, "samples_per_class": 1}, "bs must be 2 or more .*; got 1"),
    ],
)
def test_values_out_of_range_are_named_with_what_fits(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(ROWS, **({"bs": 8, "samples_per_class": 2} | options))


@pytest.mark.parametrize("kind", [GreedyCoreset, D2Coreset, DistHistBatchmatch, FIDBatchmatch])
@pytest.mark.parametrize("measure", ["euclidean", "cosine"])
@pytest.mark.parametrize(
    "store",
    [torch.ones(40, 6), torch.zeros(40, 6), embeds(2).repeat(20, 1), torch.eye(40, 6) * 1e6],
    ids=["collapsed", "zero", "two points", "few huge rows"],
)
def test_degenerate_stores_give_full_batches_of_all_images(kind, measure, store):
    sampler = kind(rows_by_class([4] * 10), 12, 2, sim_measure=measure)
    sampler.refresh(store)
    batches = [rows_of(batch) for _ in range(30) for batch in sampler]
    assert {len(set(batch)) for batch in batches} == {12}
    assert {row for batch in batches for row in batch} == set(range(40))
    if hasattr(sampler, "costs"):
        points = store.double().numpy()
        assert np.isfinite(sampler.costs(points, points[None, :12])).all()


def test_squared_distances_equal_scalar_loops_far_from_the_origin_too():
    generator = np.random.default_rng(0)
    points = generator.standard_normal((2, 5, 3)) + 1e4
    points[0, 1] = points[0, 3]
    found = squared_distances(points)
    for b, i, j in np.ndindex(2, 5, 5):
        expected = sum((points[b, i, k] - points[b, j, k]) ** 2 for k in range(3))
        assert found[b, i, j] == pytest.approx(expected, abs=1e-8)
    assert (found >= 0).all()
