import argparse
import io
import itertools
import math

import pytest
import torch
import torch.nn.functional as F

import batchminer
from batchminer import MINERS, Distance, Random, Semihard
from utilities.seeding import derive


def batch(labels, dim=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(len(labels), dim, generator=generator), dim=1), labels


def ordered_pairs(labels):
    ids = range(len(labels))
    return [(a, p) for a, p in itertools.product(ids, ids) if a != p and labels[a] == labels[p]]


UNEVEN = torch.tensor([7, 7, 2, 2, 2, 9, 7, 30, 30])  # 9 is alone, order is mixed


@pytest.mark.parametrize("miner", MINERS.values(), ids=MINERS)
@pytest.mark.parametrize("seed", range(5))
def test_each_pair_gets_one_valid_negative(miner, seed):
    embeds, labels = batch(UNEVEN, seed=seed)
    anchors, positives, negatives = miner(seed)(embeds, labels)
    assert list(zip(anchors.tolist(), positives.tolist(), strict=True)) == ordered_pairs(labels)
    assert (labels[anchors] != labels[negatives]).all()
    assert {x.dtype for x in (anchors, positives, negatives)} == {torch.int64}


@pytest.mark.parametrize("miner", MINERS.values(), ids=MINERS)
@pytest.mark.parametrize("labels", [[0], [0, 0], [0, 1], [3, 3, 3, 3], [0, 1, 2, 3]])
def test_no_pair_or_no_negative_gives_no_triplet(miner, labels):
    triplets = miner(0)(*batch(torch.tensor(labels)))
    assert [len(x) for x in triplets] == [0, 0, 0]


POLE = torch.eye(4)[0]
DEGENERATE = {
    "antipodal": torch.stack([POLE, POLE, -POLE, -POLE]),
    "collapsed": POLE.expand(4, 4),
    "zero": torch.zeros(4, 4),
    "huge": 1e15 * torch.randn(4, 4, generator=torch.Generator().manual_seed(0)),
    "nan": torch.stack([POLE, POLE, POLE, torch.full((4,), torch.nan)]),
}


@pytest.mark.parametrize("miner", MINERS.values(), ids=MINERS)
@pytest.mark.parametrize("embeds", DEGENERATE.values(), ids=DEGENERATE)
def test_degenerate_embeddings_still_give_valid_negatives(miner, embeds):
    labels = torch.tensor([0, 0, 1, 1])
    anchors, _, negatives = miner(0)(embeds, labels)
    assert anchors.tolist() == [0, 1, 2, 3]
    assert (labels[anchors] != labels[negatives]).all()


@pytest.mark.parametrize("miner", MINERS.values(), ids=MINERS)
def test_same_seed_same_triplets_and_each_call_moves_on(miner):
    embeds, labels = batch(torch.arange(20).repeat_interleave(2) % 20, dim=3)
    one, two, other = miner(1), miner(1), miner(2)
    first = one(embeds, labels).negatives
    assert torch.equal(first, two(embeds, labels).negatives)
    assert not torch.equal(first, one(embeds, labels).negatives)
    assert not torch.equal(first, other(embeds, labels).negatives)


@pytest.mark.parametrize("miner", MINERS.values(), ids=MINERS)
def test_global_generators_are_left_alone(miner):
    before = torch.get_rng_state()
    miner(0)(*batch(UNEVEN))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("miner", MINERS.values(), ids=MINERS)
@pytest.mark.parametrize("calls", [0, 3])
def test_state_round_trip_repeats_the_draws(miner, calls):
    embeds, labels = batch(torch.arange(20).repeat_interleave(2), dim=3)
    one = miner(1)
    for _ in range(calls):
        one(embeds, labels)
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    two = miner(1)
    two(embeds, labels)  # a draw that restoring undoes
    two.load_state_dict(torch.load(file, weights_only=True))
    again = io.BytesIO()
    torch.save(two.state_dict(), again)  # saving before the first draw loses nothing
    again.seek(0)
    two.load_state_dict(torch.load(again, weights_only=True))
    for _ in range(3):
        assert torch.equal(one(embeds, labels).negatives, two(embeds, labels).negatives)


def test_mining_has_no_gradient_and_ignores_autocast():
    embeds, labels = batch(UNEVEN)
    plain = Distance(0)(embeds, labels).negatives
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = Distance(0)(embeds.clone().requires_grad_(), labels).negatives
    assert torch.equal(plain, inside)


def chi_square(counts, probabilities):
    """Pearson's statistic, and the value it stays below but for about 3 draws in 100,000."""
    expected = probabilities * counts.sum()
    kept = expected > 0
    assert counts[~kept].sum() == 0
    statistic = ((counts[kept] - expected[kept]) ** 2 / expected[kept]).sum().item()
    freedom = int(kept.sum()) - 1
    return statistic, freedom + 4 * math.sqrt(2 * freedom) + 8


ANCHORS = 32  # copies of one point, whose 992 pairs all draw from the same distribution


def around(distances, dim):
    """The anchors at the pole of the sphere, class 0, then a class at each of the distances."""
    points = torch.zeros(ANCHORS + len(distances), dim)
    points[:ANCHORS, 0] = 1
    cosines = 1 - torch.tensor(distances).square() / 2
    points[ANCHORS:, 0] = cosines
    points[ANCHORS:, 1] = (1 - cosines.square()).clamp(min=0).sqrt()
    return points, torch.tensor([0] * ANCHORS + list(range(1, len(distances) + 1)))


def counts_of(miner, embeds, labels, calls=8):
    """How often each negative of class 0 was drawn."""
    drawn = torch.cat([miner(embeds, labels).negatives for _ in range(calls)])
    return drawn.bincount(minlength=len(labels)).double()[ANCHORS:]


@pytest.mark.parametrize("dim", [2, 3, 8])
@pytest.mark.parametrize("length", [1.0, 7.0])
def test_distance_draws_with_the_papers_probabilities(dim, length):
    distances = [0.1, 0.3, 0.6, 0.8, 1.0, 1.2, 1.35, 1.45, 1.9]  # two below, two above the cutoffs
    points, labels = around(distances, dim)
    counts = counts_of(Distance(0), length * points, labels)
    weights = []
    for d in distances:
        d_cut = max(d, 0.5)
        density = d_cut ** (dim - 2) * (1 - d_cut**2 / 4) ** ((dim - 3) / 2)
        weights.append(1 / density if d < 1.4 else 0.0)
    weights = torch.tensor(weights, dtype=torch.float64)
    statistic, limit = chi_square(counts, weights / weights.sum())
    assert statistic < limit


def test_distance_equals_the_exact_log_probabilities_at_high_dimension():
    dim, distances = 512, [0.9, 0.905, 1.0, 1.39]
    embeds, labels = around(distances, dim)
    different = labels[:, None] != labels
    weights = Distance(0).weights(embeds, embeds, different, torch.tensor([0]), torch.tensor([1]))[
        0
    ]
    logs = [-(dim - 2) * math.log(d) - (dim - 3) / 2 * math.log(1 - d * d / 4) for d in distances]
    exact = [math.exp(x - max(logs)) for x in logs]
    assert weights.isfinite().all()
    assert weights[ANCHORS:].tolist() == pytest.approx([x / sum(exact) for x in exact], rel=0.02)
    assert weights[ANCHORS + 1] > 0.05  # the second is not rounded away beside the first


def test_distance_falls_back_to_all_negatives_beyond_the_upper_cutoff():
    counts = counts_of(Distance(0), *around([1.45, 1.7, 2.0], 4))
    statistic, limit = chi_square(counts, torch.ones(3) / 3)
    assert statistic < limit


def test_distance_without_upper_cutoff_stays_finite_at_the_antipode():
    embeds, labels = around([1.0, 2.0], 8)
    different = labels[:, None] != labels
    miner = Distance(0, upper_cutoff=3.0)
    weights = miner.weights(embeds, embeds, different, torch.tensor([0]), torch.tensor([1]))[0]
    assert weights.sum().item() == pytest.approx(1)
    assert weights[-1] > 0.99  # 1/q grows without bound there


def test_semihard_draws_only_between_the_positive_and_the_margin():
    # The positives are at distance 0, the margin ends at 0.2.
    counts = counts_of(Semihard(0), *around([0.05, 0.1, 0.19, 0.21], 4))
    statistic, limit = chi_square(counts, torch.tensor([1, 1, 1, 0]) / 3)
    assert statistic < limit


@pytest.mark.parametrize("seed", range(3))
def test_semihard_equals_the_definition_pair_by_pair(seed):
    embeds, labels = batch(torch.arange(12).repeat_interleave(3), dim=3, seed=seed)
    distances = torch.cdist(embeds.double(), embeds.double())
    triplets = Semihard(seed, margin=0.1)(embeds, labels)
    fallbacks = 0
    for a, p, n in zip(*(x.tolist() for x in triplets), strict=True):
        eligible = [
            k
            for k in range(len(labels))
            if labels[k] != labels[a] and 0 < distances[a, k] - distances[a, p] < 0.1
        ]
        fallbacks += not eligible
        assert n in eligible or not eligible
    assert fallbacks < len(triplets.anchors)


def test_semihard_falls_back_to_all_negatives():
    counts = counts_of(Semihard(0), *around([0.5, 1.5], 4))
    statistic, limit = chi_square(counts, torch.ones(2) / 2)
    assert statistic < limit


def test_random_draws_every_negative_alike():
    embeds, labels = around([0.1, 0.5, 1.0, 2.0], 4)
    labels[-1] = labels[-2]
    drawn = Random(0)(embeds, labels).negatives[: ANCHORS * (ANCHORS - 1)]
    statistic, limit = chi_square(drawn.bincount().double()[ANCHORS:], torch.ones(4) / 4)
    assert statistic < limit


@pytest.mark.parametrize("number", [0.0, 1.0])
@pytest.mark.parametrize("miner", MINERS.values(), ids=MINERS)
def test_a_random_number_on_the_edge_does_not_draw_a_positive(miner, number, monkeypatch):
    """A number in [0, 1) times a row's sum can round to the sum itself."""
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.full(shape, number))
    embeds, labels = batch(torch.tensor([0, 0, 1, 1, 0, 0]))
    anchors, _, negatives = miner(0)(embeds, labels)
    assert (labels[anchors] != labels[negatives]).all()


def test_build_reads_the_flags_of_the_chosen_miner():
    args = argparse.Namespace(batch_mining="semihard", miner_semihard_margin=0.3, seed=4)
    miner = batchminer.build(args)
    assert isinstance(miner, Semihard)
    assert miner.margin == 0.3
    assert miner.seed == derive(4, "batchminer")
    args.batch_mining = "semi_hard"
    with pytest.raises(ValueError, match=r"--batch_mining semi_hard is unknown.*first: semihard"):
        batchminer.build(args)
