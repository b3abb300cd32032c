"""What every miner promises, whatever triplets it looks for."""

import argparse
import io
import itertools

import pytest
import torch
import torch.nn.functional as F

import batchminer
from batchminer.base import NegativeMiner, rising
from batchminer.distance import Distance
from batchminer.hard import Hard
from batchminer.intra_random import IntraRandom
from batchminer.lifted import Lifted
from batchminer.multisimilarity import MultiSimilarity
from batchminer.npair import NPair
from batchminer.random import Random
from batchminer.random_distance import RandomDistance
from batchminer.rho_distance import RhoDistance
from batchminer.semihard import Semihard
from batchminer.softhard import Softhard
from utilities.seeding import derive
from utilities.structures import References

MINERS = {
    "distance": Distance,
    "hard": Hard,
    "intra_random": IntraRandom,
    "lifted": Lifted,
    "multisimilarity": MultiSimilarity,
    "npair": NPair,
    "random": Random,
    "random_distance": RandomDistance,
    "rho_distance": RhoDistance,
    "semihard": Semihard,
    "softhard": Softhard,
}
CERTAIN = ("hard", "lifted", "multisimilarity")  # the others draw
OTHER_CLASSES = ("intra_random", "random_distance", "rho_distance")  # not only, as negatives


def each(*left_out):
    kept = {name: miner for name, miner in MINERS.items() if name not in left_out}
    return pytest.mark.parametrize("miner", kept.values(), ids=kept)


def only(*names):
    return each(*(MINERS.keys() - set(names)))


def batch(labels, dim=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(len(labels), dim, generator=generator), dim=1), labels


def rows(triplets):
    return list(zip(*(x.tolist() for x in triplets), strict=True))


UNEVEN = torch.tensor([7, 7, 2, 2, 2, 9, 7, 30, 30])  # 9 is alone, order is mixed
SEVERAL = torch.tensor([2, 30, 4, 7, 2, 11, 7, 2, 11, 7, 5])  # references: no 9, and some new ones


@each()
def test_triplets_are_three_columns_of_indices(miner):
    for labels in (UNEVEN, torch.arange(4)):
        triplets = miner(0)(*batch(labels))
        assert {x.dtype for x in triplets} == {torch.int64}
        assert {x.shape for x in triplets} == {(len(triplets.anchors),)}


@each(*OTHER_CLASSES)
@pytest.mark.parametrize("seed", range(5))
def test_positives_share_the_anchors_class_and_negatives_do_not(miner, seed):
    embeds, labels = batch(UNEVEN, seed=seed)
    anchors, positives, negatives = miner(seed)(embeds, labels)
    assert len(anchors) > 0
    assert (anchors != positives).all()
    assert (labels[anchors] == labels[positives]).all()
    assert (labels[anchors] != labels[negatives]).all()


@each(*OTHER_CLASSES)
@pytest.mark.parametrize("seed", range(5))
def test_references_take_the_batchs_place(miner, seed):
    embeds, labels = batch(UNEVEN, seed=seed)
    references = References(*batch(SEVERAL, seed=seed + 100))
    anchors, positives, negatives = miner(seed)(embeds, labels, references)
    assert set(labels[anchors].tolist()) <= {2, 7, 30}
    assert len(anchors) > 0
    assert (labels[anchors] == references.labels[positives]).all()
    assert (labels[anchors] != references.labels[negatives]).all()


@each()
def test_references_may_be_one_image(miner):
    embeds, labels = batch(UNEVEN)
    one = References(embeds[:1], labels[:1])
    triplets = miner(0)(embeds, labels, one)
    if miner is IntraRandom:
        assert triplets.anchors.tolist() == [0, 1, 6]
        assert not triplets.negatives.any()
    else:
        assert rows(triplets) == []


@each(*CERTAIN, "npair", "softhard", "intra_random", "random_distance", "rho_distance")
@pytest.mark.parametrize("seed", range(3))
def test_each_pair_gets_one_negative(miner, seed):
    assert issubclass(miner, NegativeMiner)
    embeds, labels = batch(UNEVEN, seed=seed)
    anchors, positives, _ = miner(seed)(embeds, labels)
    ids = range(len(labels))
    pairs = [(a, p) for a, p in itertools.product(ids, ids) if a != p and labels[a] == labels[p]]
    assert list(zip(anchors.tolist(), positives.tolist(), strict=True)) == pairs


@only("hard", "softhard", "intra_random")
def test_each_image_with_a_positive_is_anchor_once(miner):
    assert miner(0)(*batch(UNEVEN)).anchors.tolist() == [0, 1, 2, 3, 4, 6, 7, 8]


@each("intra_random")
@pytest.mark.parametrize("labels", [[0], [0, 0], [0, 1], [3, 3, 3, 3], [0, 1, 2, 3]])
def test_no_pair_or_no_negative_gives_no_triplet(miner, labels):
    triplets = miner(0)(*batch(torch.tensor(labels)))
    assert [len(x) for x in triplets] == [0, 0, 0]


@pytest.mark.parametrize(("labels", "number"), [([0], 0), ([0, 1, 2], 0), ([3, 3, 3, 3], 4)])
def test_triplets_within_a_class_need_no_other_class(labels, number):
    assert len(IntraRandom(0)(*batch(torch.tensor(labels))).anchors) == number


POLE = torch.eye(4)[0]
DEGENERATE = {
    "antipodal": torch.stack([POLE, POLE, -POLE, -POLE]),
    "collapsed": POLE.expand(4, 4),
    "zero": torch.zeros(4, 4),
    "huge": 1e15 * torch.randn(4, 4, generator=torch.Generator().manual_seed(0)),
    "overflow": 1e30 * torch.randn(4, 4, generator=torch.Generator().manual_seed(0)),
    "nan": torch.stack([POLE, POLE, POLE, torch.full((4,), torch.nan)]),
    "all nan": torch.full((4, 4), torch.nan),
    "infinite": torch.stack([POLE, -POLE, torch.inf * torch.ones(4), POLE]),
}
PAIRS = torch.tensor([0, 0, 1, 1])


@each("random_distance")
@pytest.mark.parametrize("against", ["itself", "references"])
@pytest.mark.parametrize("embeds", DEGENERATE.values(), ids=DEGENERATE)
def test_degenerate_embeddings_still_give_valid_triplets(miner, embeds, against):
    references = References(embeds.flip(0), PAIRS.flip(0)) if against == "references" else None
    other = PAIRS if references is None else references.labels
    for seed in range(3):
        anchors, positives, negatives = miner(seed)(embeds, PAIRS, references)
        assert (PAIRS[anchors] == other[positives]).all()
        alike = PAIRS[anchors] == other[negatives]
        if miner is IntraRandom:
            assert alike.all()
        elif miner is not RhoDistance:
            assert not alike.any()
        elif references is None:
            assert torch.equal(alike, positives == anchors)
            assert (negatives != anchors).all()
        if miner is not MultiSimilarity:  # no similarity violates a margin where it is no number
            assert set(anchors.tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("embeds", DEGENERATE.values(), ids=DEGENERATE)
def test_degenerate_embeddings_with_shuffled_labels_give_indices(embeds):
    for x in RandomDistance(0)(embeds, PAIRS):
        assert len(x) == 4
        assert ((x >= 0) & (x < 4)).all()


@each(*CERTAIN)
def test_same_seed_same_triplets_and_each_call_moves_on(miner):
    embeds, labels = batch(torch.arange(20).repeat_interleave(2) % 20, dim=3)
    one, two, other = miner(1), miner(1), miner(2)
    first = one(embeds, labels).negatives
    assert torch.equal(first, two(embeds, labels).negatives)
    assert not torch.equal(first, one(embeds, labels).negatives)
    assert not torch.equal(first, other(embeds, labels).negatives)


@only(*CERTAIN)
def test_without_chance_each_call_gives_the_same(miner):
    embeds, labels = batch(UNEVEN)
    one = miner(1)
    first = one(embeds, labels)
    assert rows(first) == rows(one(embeds, labels)) == rows(miner(2)(embeds, labels))
    assert one.get_extra_state() == {}


@each()
def test_global_generators_are_left_alone(miner):
    before = torch.get_rng_state()
    miner(0)(*batch(UNEVEN))
    assert torch.equal(before, torch.get_rng_state())


@each(*CERTAIN)
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


@each()
def test_mining_has_no_gradient_ignores_autocast_and_leaves_its_input_alone(miner):
    embeds, labels = batch(UNEVEN)
    given = embeds.clone().requires_grad_()
    references = References(*batch(SEVERAL))
    plain = miner(0)(embeds, labels), miner(0)(embeds, labels, references)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = miner(0)(given, labels), miner(0)(given, labels, references)
    assert [rows(x) for x in plain] == [rows(x) for x in inside]
    assert torch.equal(embeds, given)
    assert torch.equal(references.embeds, batch(SEVERAL)[0])


@each()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_floating_type_is_mined_in_float32(miner, dtype):
    embeds, labels = batch(UNEVEN)
    given = embeds.to(dtype)
    references = References(*batch(SEVERAL))
    assert rows(miner(0)(given, labels)) == rows(miner(0)(given.float(), labels))
    mixed = miner(0)(given, labels, references)
    assert rows(mixed) == rows(miner(0)(given.float(), labels, references))


@only(*CERTAIN)
@pytest.mark.parametrize("seed", range(3))
def test_selection_does_not_depend_on_the_order_of_the_batch(miner, seed):
    embeds, labels = batch(UNEVEN, seed=seed)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    shuffled = miner(0)(embeds[order], labels[order])
    back = [order[x] for x in shuffled]
    assert sorted(rows(back)) == rows(miner(0)(embeds, labels))


@only("distance", "random", "semihard")
@pytest.mark.parametrize("seed", range(3))
def test_probabilities_do_not_depend_on_the_order_of_the_batch(miner, seed):
    embeds, labels = batch(UNEVEN, seed=seed)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    a, p = torch.tensor([0, 3, 8]), torch.tensor([6, 2, 7])
    place = order.argsort()
    here = miner(0).weights(embeds, embeds, labels[:, None] != labels, a, p)
    embeds, labels = embeds[order], labels[order]
    there = miner(0).weights(embeds, embeds, labels[:, None] != labels, place[a], place[p])
    torch.testing.assert_close(here.float(), there.float()[:, place])


@only("hard", "lifted", "multisimilarity")
@pytest.mark.parametrize("seed", range(3))
def test_references_that_are_the_batch_add_the_pairs_with_oneself(miner, seed):
    embeds, labels = batch(UNEVEN, seed=seed)
    alone = set(rows(miner(0)(embeds, labels)))
    both = set(rows(miner(0)(embeds, labels, References(embeds, labels))))
    single = 5  # the one of its class, which has a positive then
    if miner is Hard:  # whose farthest positive is another, if it has one
        assert {x for x in both if x[0] != single} == alone
    else:
        assert {x for x in both if x[0] != x[1]} >= alone
    assert any(a == p == single for a, p, _ in both) or miner is MultiSimilarity


def test_build_reads_the_flags_of_the_chosen_miner():
    args = argparse.Namespace(batch_mining="semihard", miner_semihard_margin=0.3, seed=4)
    miner = batchminer.build(args)
    assert isinstance(miner, Semihard)
    assert miner.margin == 0.3
    assert miner.seed == derive(4, "batchminer")
    args.batch_mining = "semi_hard"
    with pytest.raises(ValueError, match=r"--batch_mining semi_hard is unknown.*first: semihard"):
        batchminer.build(args)


def test_sums_of_a_parallel_scan_are_put_right():
    """Columns of zero weight grew, and one sum fell, by rounding."""
    weights = torch.tensor([[0.0, 1.0, 0.0, 2.0, 0.0, 1e-9, 3.0]])
    edges = torch.tensor([[1e-7, 1.0, 1.0000001, 3.0, 3.0000002, 2.9999998, 6.0]])
    assert rising(edges, weights).tolist() == [[0.0, 1.0, 1.0, 3.0, 3.0, 3.0, 6.0]]
    sequential = weights.cumsum(dim=1)
    assert torch.equal(rising(sequential, weights), sequential)
