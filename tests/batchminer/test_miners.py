"""What every miner promises, whatever triplets it looks for."""

import argparse
import inspect
import io
import itertools

import pytest
import torch

import batchminer
from batchminer import Hard, IntraRandom, MultiSimilarity, RandomDistance, RhoDistance, Semihard
from batchminer.base import NegativeMiner, rising
from tests.batchminer.mining import MINERS, SEVERAL, UNEVEN, points, rows
from utilities.registry import hyperparameters
from utilities.seeding import derive
from utilities.structures import References

CERTAIN = ("hard", "lifted", "multisimilarity")  # the others draw
OTHER_CLASSES = ("intra_random", "random_distance", "rho_distance")  # not only, as negatives


def each(*left_out):
    kept = {name: miner for name, miner in MINERS.items() if name not in left_out}
    return pytest.mark.parametrize("miner", kept.values(), ids=kept)


def only(*names):
    return each(*(MINERS.keys() - set(names)))


each_seed = pytest.mark.parametrize("seed", range(3))


def batch(labels, dim=8, seed=0):
    return points(labels, dim, seed), labels


def saved(miner):
    """A state dict that went through a file."""
    file = io.BytesIO()
    torch.save(miner.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@each()
def test_triplets_are_three_columns_of_indices(miner):
    for labels in (UNEVEN, torch.arange(4)):
        triplets = miner(0)(*batch(labels))
        assert {x.dtype for x in triplets} == {torch.int64}
        assert {x.shape for x in triplets} == {(len(triplets.anchors),)}


@each(*OTHER_CLASSES)
@each_seed
def test_positives_share_the_anchors_class_and_negatives_do_not(miner, seed):
    embeds, labels = batch(UNEVEN, seed=seed)
    anchors, positives, negatives = miner(seed)(embeds, labels)
    assert len(anchors) > 0
    assert (anchors != positives).all()
    assert (labels[anchors] == labels[positives]).all()
    assert (labels[anchors] != labels[negatives]).all()

    references = References(*batch(SEVERAL, seed=seed + 100))
    anchors, positives, negatives = miner(seed)(embeds, labels, references)
    assert len(anchors) > 0
    assert set(labels[anchors].tolist()) <= {2, 7, 30}
    assert (labels[anchors] == references.labels[positives]).all()
    assert (labels[anchors] != references.labels[negatives]).all()


@each()
def test_references_may_be_one_image(miner):
    embeds, labels = batch(UNEVEN)
    triplets = miner(0)(embeds, labels, References(embeds[:1], labels[:1]))
    within = [(0, 0, 0), (1, 0, 0), (6, 0, 0)]
    assert rows(triplets) == (within if miner is IntraRandom else [])


@only("random", "distance", "semihard", "parametric")
@each_seed
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


@each()
@pytest.mark.parametrize("labels", [[0], [0, 0], [0, 1], [3, 3, 3, 3], [0, 1, 2, 3]])
def test_no_pair_or_no_negative_gives_no_triplet(miner, labels):
    """Triplets within a class need no other class."""
    n = len(labels) if miner is IntraRandom and len(set(labels)) == 1 < len(labels) else 0
    assert [len(x) for x in miner(0)(*batch(torch.tensor(labels)))] == [n] * 3


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
        if miner is not MultiSimilarity:  # NaN violates no margin
            assert set(anchors.tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("embeds", DEGENERATE.values(), ids=DEGENERATE)
def test_degenerate_embeddings_with_shuffled_labels_give_indices(embeds):
    for x in RandomDistance(0)(embeds, PAIRS):
        assert len(x) == 4
        assert ((x >= 0) & (x < 4)).all()


@each(*CERTAIN)
@pytest.mark.parametrize("calls", [0, 3])
def test_draws_follow_the_seed_and_the_state(miner, calls):
    """The same seed gives the same triplets, each call other ones, and a state the next ones."""
    embeds, labels = batch(torch.arange(20).repeat_interleave(2), dim=3)

    def draw(miner):
        return miner(embeds, labels).negatives

    one, same, other = miner(1), miner(1), miner(2)
    first = draw(one)
    assert torch.equal(first, draw(same))
    assert not torch.equal(first, draw(one))
    assert not torch.equal(first, draw(other))

    one = miner(1)
    for _ in range(calls):
        draw(one)
    two, three = miner(1), miner(1)
    draw(two)  # undone by the state
    two.load_state_dict(saved(one))
    three.load_state_dict(saved(two))  # saving before the first draw loses nothing
    for _ in range(3):
        assert torch.equal(draw(one), draw(three))


@only(*CERTAIN)
@each_seed
def test_without_chance_neither_call_nor_seed_nor_order_matters(miner, seed):
    embeds, labels = batch(UNEVEN, seed=seed)
    one = miner(1)
    first = rows(one(embeds, labels))
    assert first == rows(one(embeds, labels)) == rows(miner(2)(embeds, labels))
    assert one.get_extra_state() == {}
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    shuffled = miner(0)(embeds[order], labels[order])
    assert sorted(rows([order[x] for x in shuffled])) == first


@only("distance", "random", "semihard", "parametric")
@each_seed
def test_probabilities_do_not_depend_on_the_order_of_the_batch(miner, seed):
    embeds, labels = batch(UNEVEN, seed=seed)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    a, p = torch.tensor([0, 3, 8]), torch.tensor([6, 2, 7])
    place = order.argsort()
    here = miner(0).weights(embeds, embeds, labels[:, None] != labels, a, p)
    embeds, labels = embeds[order], labels[order]
    there = miner(0).weights(embeds, embeds, labels[:, None] != labels, place[a], place[p])
    torch.testing.assert_close(here.float(), there.float()[:, place])


@each()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_mining_is_in_float32_without_gradient_or_global_draws(miner, dtype):
    """Whatever autocast and the embeddings' type are; the input stays unchanged."""
    embeds, labels = batch(UNEVEN)
    given, references = embeds.to(dtype), References(*batch(SEVERAL))
    before, copy = torch.get_rng_state(), given.clone()
    for against in (None, references):
        plain = rows(miner(0)(given.float(), labels, against))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            triplets = miner(0)(given.clone().requires_grad_(), labels, against)
        assert rows(triplets) == plain
        assert rows(miner(0)(given, labels, against)) == plain
    assert torch.equal(given, copy)
    assert torch.equal(references.embeds, batch(SEVERAL)[0])
    assert torch.equal(before, torch.get_rng_state())


@only(*CERTAIN)
@each_seed
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


# --------------------------------------------------------------------------------------------------
# Flags
# --------------------------------------------------------------------------------------------------
def build(name, **chosen):
    """The miner ``name`` from flags, at its defaults but for the chosen ones."""
    keys = {**hyperparameters(MINERS[name]), **chosen}
    flags = {f"miner_{name}_{key}": value for key, value in keys.items()}
    return batchminer.build(argparse.Namespace(batch_mining=name, seed=4, **flags))


def test_build_reads_the_flags_of_the_chosen_miner():
    miner = build("semihard", margin=0.3)
    assert isinstance(miner, Semihard)
    assert miner.margin == 0.3
    assert miner.seed == derive(4, "batchminer")
    with pytest.raises(ValueError, match=r"--batch_mining semi_hard is unknown.*first: semihard"):
        batchminer.build(argparse.Namespace(batch_mining="semi_hard", seed=4))


@pytest.mark.parametrize(
    ("name", "key", "values"),
    [
        ("distance", "lower_cutoff", (-0.1, float("nan"), float("inf"))),
        ("distance", "upper_cutoff", (-0.1, float("nan"), float("inf"))),
        ("random_distance", "upper_cutoff", (-0.1, float("nan"), float("inf"))),
        ("rho_distance", "lower_cutoff", (-0.1, float("nan"), float("inf"))),
        ("rho_distance", "cp", (-0.1, 1.5, float("nan"))),
        ("semihard", "margin", (-0.1, float("nan"), float("inf"))),
        ("multisimilarity", "margin", (float("nan"), float("-inf"))),
        ("parametric", "every", (0,)),
        ("parametric", "bins", (0,)),
        ("parametric", "lower", (1.4, -0.1, float("nan"))),
        ("parametric", "lr", (-0.5, float("nan"), float("inf"))),
        ("parametric", "init", ("high",)),
    ],
)
def test_a_hyperparameter_out_of_range_is_named_with_its_flag_and_value(name, key, values):
    for value in values:
        with pytest.raises(ValueError, match=rf"--miner_{name}_{key}\b.*{value}"):
            build(name, **{key: value})


@each()
def test_hyperparameters_are_keyword_only(miner):
    parameters = inspect.signature(miner).parameters.values()
    keyword = inspect.Parameter.KEYWORD_ONLY
    assert [p.name for p in parameters if p.kind is not keyword] == ["seed"]


def test_sums_of_a_parallel_scan_are_corrected():
    """Columns of zero weight grew, and one sum fell, by rounding."""
    weights = torch.tensor([[0.0, 1.0, 0.0, 2.0, 0.0, 1e-9, 3.0]])
    edges = torch.tensor([[1e-7, 1.0, 1.0000001, 3.0, 3.0000002, 2.9999998, 6.0]])
    assert rising(edges, weights).tolist() == [[0.0, 1.0, 1.0, 3.0, 3.0, 3.0, 6.0]]
    sequential = weights.cumsum(dim=1)
    assert torch.equal(rising(sequential, weights), sequential)
