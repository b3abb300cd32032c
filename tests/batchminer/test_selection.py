"""Which triplets each miner takes, and how often: scalar loops and a second implementation."""

import math
from collections import Counter
from itertools import product

import pytest
import torch
from pytorch_metric_learning import distances as pml_distances
from pytorch_metric_learning import miners as pml_miners
from pytorch_metric_learning.utils import loss_and_miner_utils as pml_utils

from batchminer import (
    Distance,
    Hard,
    IntraRandom,
    Lifted,
    MultiSimilarity,
    NPair,
    Random,
    RandomDistance,
    RhoDistance,
    Semihard,
    Softhard,
)
from tests.batchminer.mining import (
    ANCHORS,
    SEVERAL,
    UNEVEN,
    around,
    assert_drawn_with,
    normalised,
    places_drawn,
    points,
    rows,
    uniform,
)
from utilities.structures import References


def cosine(a, b):
    return sum(i * j for i, j in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


class Case:
    """A batch of rows of one length, alone or against references, as plain numbers.

    ``positives`` and ``negatives`` list each image's, from the labels; ``d`` holds distances.
    """

    def __init__(self, seed, against_references, dim=3, length=1.0):
        self.embeds, self.labels = length * points(UNEVEN, dim, seed), UNEVEN
        self.references = None
        others, other_labels = self.embeds, self.labels
        if against_references:
            others, other_labels = length * points(SEVERAL, dim, seed + 100), SEVERAL
            self.references = References(others, other_labels)
        x, z = self.embeds.tolist(), others.tolist()
        self.dim = dim
        self.d = [[math.dist(a, b) for b in z] for a in x]
        self.cos = [[cosine(a, b) for b in z] for a in x]
        labels, self.other_labels = self.labels.tolist(), other_labels.tolist()
        self.batch, self.others = range(len(x)), range(len(z))
        self.positives = [
            [p for p in self.others
             if other_labels[p] == labels[a] and (against_references or p != a)]
            for a in self.batch
        ]  # fmt: skip
        self.negatives = [
            [n for n in self.others if other_labels[n] != labels[a]] for a in self.batch
        ]

    def mined(self, miner):
        return rows(miner(self.embeds, self.labels, self.references))


CASES = pytest.mark.parametrize(
    "case",
    [
        Case(seed, references, length=length)
        for references in (False, True)
        for seed, length in enumerate((1.0, 1.0, 2.0))
    ],
    ids=[f"{kind}-{seed}" for kind in ("batch", "references") for seed in range(3)],
)


# For what is drawn many times.
DRAWN = pytest.mark.parametrize(
    "case",
    [Case(2, references, length=2.0) for references in (False, True)],
    ids=["batch", "references"],
)


def probabilities_of(miner, case):
    """(anchor, positive) -> {negative: probability} by the miner's weights, zeros left out.

    Checks that its triplets are one of each pair.
    """
    mined = case.mined(miner)
    assert [x[:2] for x in mined] == [(a, p) for a in usable(case) for p in case.positives[a]]
    negative = case.labels[:, None] != torch.tensor(case.other_labels)
    embeds = case.embeds
    others = embeds if case.references is None else case.references.embeds
    anchors, positives = (torch.tensor(x) for x in list(zip(*mined, strict=True))[:2])
    weights = miner.weights(embeds, others, negative, anchors, positives).tolist()
    return {x[:2]: normalised(dict(enumerate(row))) for x, row in zip(mined, weights, strict=True)}


def drawn(miner, case, calls=200):
    """The triplets of many calls."""
    return [triplet for _ in range(calls) for triplet in case.mined(miner)]


def of_anchors(triplets):
    """anchor -> [(positive, negative), ...]"""
    found = {}
    for a, p, n in triplets:
        found.setdefault(a, []).append((p, n))
    return found


def usable(case):
    return [a for a in case.batch if case.positives[a] and case.negatives[a]]


# Draws by weight


class TestDraw:
    ROWS = torch.tensor(
        [
            [0, 0, 1, 0, 2, 0, 0],
            [3, 0, 0, 0, 0, 0, 0],
            [0, 0, 0, 0, 0, 0, 5],
            [0, 1e-30, 0, 1e30, 0, 1e-30, 0],
            [0, 1e30, 1e-30, 0, 1e-30, 0, 0],
            [0, 1e-30, 0, 0, 0, 0, 0],
            [0, 1e-44, 1, 1e-44, 0, 1e-44, 0],
            [0, 1, 1e-8, 0, 1e-8, 1e-8, 0],
            [0, 0, 0.1, 0.2, 0.3, 0, 0],
        ]
    )

    @pytest.mark.parametrize("number", [0.0, 2**-24, 0.5, 1 - 2**-12, 1 - 2**-24])
    def test_no_number_of_its_range_draws_a_weight_of_zero(self, number, monkeypatch):
        """The extremes of torch.rand, at which a product with the row's sum rounds."""
        monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.full(shape, number))
        columns = Random(0).draw(self.ROWS)
        assert (self.ROWS.gather(1, columns[:, None]) > 0).all()

    @pytest.mark.parametrize("seed", range(3))
    def test_no_column_of_weight_zero_among_many_scales(self, seed, monkeypatch):
        generator = torch.Generator().manual_seed(seed)
        shape = (4000, 37)
        weights = 10 ** torch.empty(shape).uniform_(-12, 12, generator=generator)
        weights *= torch.rand(shape, generator=generator) < 0.3
        weights = weights[weights.amax(dim=1) > 0]
        # numbers that put the target on an edge of the cumulative sum, and beside it
        edges = weights.cumsum(dim=1)
        chosen = torch.randint(shape[1], (len(weights), 1), generator=generator)
        on_edge = 1 - edges.gather(1, chosen) / edges[:, -1:]
        for numbers in (on_edge, on_edge - 2**-24, on_edge + 2**-24):
            numbers = numbers.clamp(0, 1 - 2**-24)
            monkeypatch.setattr(torch, "rand", lambda *_, numbers=numbers, **__: numbers)
            columns = Random(0).draw(weights)
            assert (weights.gather(1, columns[:, None]) > 0).all()

    def test_frequencies_are_the_weights(self):
        weights = [0.0, 3.0, 0.0, 0.5, 1.0, 0.01, 0.0]
        columns = Random(0).draw(torch.tensor(weights).expand(20_000, 7))
        assert_drawn_with(normalised(dict(enumerate(weights))), columns.tolist())

    def test_a_mask_draws_alike_and_an_empty_row_something(self):
        mask = torch.tensor([[False, True, True, False, True]]).expand(9000, 5)
        assert_drawn_with(uniform([1, 2, 4]), Random(0).draw(mask).tolist())
        assert 0 <= Random(0).draw(torch.zeros(1, 5)).item() < 5
        assert Random(0).draw(torch.zeros(0, 5)).shape == (0,)


# Distance-weighted sampling and what derives from it


def distance_weight(d, dim, lower=0.5, upper=1.4):
    d_cut = max(d, lower)
    density = d_cut ** (dim - 2) * (1 - d_cut**2 / 4) ** ((dim - 3) / 2)
    return 1 / density if d < upper else 0.0


def distance_probabilities(case, a, **cutoffs):
    unit = {n: math.sqrt(max(0, 2 - 2 * case.cos[a][n])) for n in case.negatives[a]}
    weights = {n: distance_weight(d, case.dim, **cutoffs) for n, d in unit.items()}
    return normalised(weights) if any(weights.values()) else uniform(case.negatives[a])


@CASES
def test_distance_has_the_papers_probabilities_pair_by_pair(case):
    for (a, _), probabilities in probabilities_of(Distance(0), case).items():
        assert probabilities == pytest.approx(distance_probabilities(case, a), abs=1e-5)


@pytest.mark.parametrize(("dim", "length"), [(2, 1.0), (3, 7.0), (8, 1.0), (8, 7.0)])
def test_distance_draws_with_the_papers_probabilities(dim, length):
    distances = [0.1, 0.3, 0.6, 0.8, 1.0, 1.2, 1.35, 1.45, 1.9]  # two below, two above the cutoffs
    embeds, labels = around(distances, dim)
    weights = {i: distance_weight(d, dim) for i, d in enumerate(distances)}
    assert_drawn_with(normalised(weights), places_drawn(Distance(0), length * embeds, labels))


def weights_around(miner, distances, dim):
    embeds, labels = around(distances, dim)
    different = labels[:, None] != labels
    return miner.weights(embeds, embeds, different, torch.tensor([0]), torch.tensor([1]))[0]


def test_distance_equals_the_exact_log_probabilities_at_high_dimension():
    dim, distances = 512, [0.9, 0.905, 1.0, 1.39]
    weights = weights_around(Distance(0), distances, dim)
    logs = [-(dim - 2) * math.log(d) - (dim - 3) / 2 * math.log(1 - d * d / 4) for d in distances]
    exact = [math.exp(x - max(logs)) for x in logs]
    assert weights.isfinite().all()
    assert weights[ANCHORS:].tolist() == pytest.approx([x / sum(exact) for x in exact], rel=0.02)
    assert weights[ANCHORS + 1] > 0.05  # the second is not rounded away beside the first


@pytest.mark.parametrize("dim", [2, 4, 512])
def test_distance_falls_back_to_all_negatives_beyond_the_upper_cutoff(dim):
    drawn_places = places_drawn(Distance(0), *around([1.45, 1.7, 2.0], dim))
    assert_drawn_with(uniform(range(3)), drawn_places)


def test_distance_draws_none_beyond_the_cutoff_however_heavy():
    """Past sqrt(2) 1/q grows again: at 1.99 it is 10^250 times that at 1.3."""
    weights = weights_around(Distance(0), [1.3, 1.99], 512)
    assert weights[ANCHORS:].tolist() == [1, 0]


@pytest.mark.parametrize("dim", [2, 3, 8, 512])
def test_distance_without_cutoffs_stays_finite_from_a_duplicate_to_the_antipode(dim):
    weights = weights_around(Distance(0, lower_cutoff=0, upper_cutoff=3.0), [0.0, 1.0, 2.0], dim)
    assert weights.sum().item() == pytest.approx(1)
    assert weights.isfinite().all()
    if dim > 3:
        assert weights[ANCHORS] + weights[-1] > 0.99  # 1/q grows without bound at both


def test_distance_has_the_probabilities_of_pytorch_metric_learning(monkeypatch):
    """Which takes embeddings normalised by its distance, and hands its weights on to be drawn from.

    Its rows without a negative below the cutoff have no probabilities, and are left out.
    """
    handed = {}
    monkeypatch.setattr(
        pml_utils,
        "get_random_triplet_indices",
        lambda *_, weights, **__: handed.update(weights=weights) or (torch.zeros(0).long(),) * 3,
    )
    embeds, labels = 3 * points(torch.arange(20), dim=8), torch.arange(20) // 2
    pml_miners.DistanceWeightedMiner()(embeds, labels)
    kept = handed["weights"].isfinite().all(dim=1).nonzero().squeeze(1)
    assert len(kept) > 10
    different = labels[:, None] != labels
    ours = Distance(0).weights(embeds, embeds, different, kept, kept ^ 1)
    torch.testing.assert_close(ours, handed["weights"][kept], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("against_references", [False, True])
@pytest.mark.parametrize("cp", [0.0, 0.3, 1.0])
def test_rho_distance_switches_a_pair_with_its_probability(cp, against_references):
    case = Case(0, against_references)
    found = of_anchors(drawn(RhoDistance(0, cp=cp), case))
    assert set(found) == set(usable(case))
    for a, mined in found.items():
        itself = a
        if against_references:
            itself = min(case.positives[a], key=lambda p: case.d[a][p])
        expected = Counter()  # of pairs (a, p) all alike, switched or not
        for p in case.positives[a]:
            share = 1 / len(case.positives[a])
            expected[itself, p] += cp * share
            for n, probability in distance_probabilities(case, a).items():
                expected[p, n] += (1 - cp) * share * probability
        assert_drawn_with(normalised(expected), mined)


def test_random_distance_shuffles_the_labels_of_the_batch():
    """Each pair of images is as likely to be the one of a class; the negatives are by distance."""
    labels = torch.tensor([0, 1, 2, 0, 3])
    embeds, miner = points(labels), RandomDistance(0)
    ids = range(5)
    pairs, negatives = [], {}
    for _ in range(800):
        (first, second) = rows(miner(embeds, labels))
        assert first[:2] == second[1::-1]
        pairs.append(first[:2])
        for a, p, n in (first, second):
            negatives.setdefault((a, p), []).append(n)
    assert_drawn_with(uniform((i, j) for i in ids for j in ids if i < j), pairs)
    x = embeds.tolist()
    for (a, p), drawn_negatives in negatives.items():
        weights = {n: distance_weight(math.dist(x[a], x[n]), 3) for n in ids if n not in (a, p)}
        if any(weights.values()):
            assert_drawn_with(normalised(weights), drawn_negatives)


def test_random_distance_shuffles_the_labels_of_references_among_themselves():
    labels, others = torch.tensor([0, 1]), torch.tensor([0, 5, 6])
    references = References(points(others, seed=1), others)
    miner = RandomDistance(0)
    found = [
        (a, p) for _ in range(400) for a, p, _ in rows(miner(points(labels), labels, references))
    ]
    assert_drawn_with(uniform(product(range(2), range(3))), found)


# Negatives drawn alike


@CASES
def test_random_draws_every_negative_alike(case):
    for (a, _), probabilities in probabilities_of(Random(0), case).items():
        assert probabilities == pytest.approx(uniform(case.negatives[a]))
    of_one_pair = [n for a, p, n in drawn(Random(0), case) if (a, p) == (0, case.positives[0][0])]
    assert_drawn_with(uniform(case.negatives[0]), of_one_pair)


def semihard_set(case, a, p, margin):
    return [n for n in case.negatives[a] if case.d[a][p] < case.d[a][n] < case.d[a][p] + margin]


@CASES
def test_semihard_draws_alike_from_between_the_positive_and_the_margin(case):
    fallbacks = []
    for (a, p), probabilities in probabilities_of(Semihard(0, margin=0.2), case).items():
        eligible = semihard_set(case, a, p, margin=0.2)
        assert probabilities == pytest.approx(uniform(eligible or case.negatives[a]))
        fallbacks.append(not eligible)
    assert any(fallbacks)
    assert not all(fallbacks)


@pytest.mark.parametrize("seed", range(3))
def test_semihard_has_the_sets_of_pytorch_metric_learning(seed):
    """With plain Euclidean distances; its margin is inclusive, which no distance here touches."""
    labels = torch.arange(24) // 3
    embeds, different = 2 * points(labels, seed=seed), labels[:, None] != labels
    plain = pml_distances.LpDistance(normalize_embeddings=False)
    kind = {"type_of_triplets": "semihard", "distance": plain}
    theirs = set(rows(pml_miners.TripletMarginMiner(margin=0.3, **kind)(embeds, labels)))
    with_one = {x[:2] for x in theirs}
    pairs = (~different).fill_diagonal_(False).nonzero()
    weights = Semihard(margin=0.3).weights(embeds, embeds, different, *pairs.T)
    ours = {
        (*pair, n)
        for pair, row in zip(map(tuple, pairs.tolist()), weights.tolist(), strict=True)
        for n, weight in enumerate(row)
        if weight and pair in with_one
    }
    assert ours == theirs
    assert len(theirs) > 20


# Positives and negatives both drawn


@DRAWN
def test_softhard_draws_from_the_wrong_sides(case):
    found = of_anchors(drawn(Softhard(0), case))
    assert set(found) == set(usable(case))
    for a, mined in found.items():
        d, positives, negatives = case.d[a], case.positives[a], case.negatives[a]
        hard_p = [p for p in positives if d[p] > min(d[n] for n in negatives)]
        hard_n = [n for n in negatives if d[n] < max(d[p] for p in positives)]
        assert_drawn_with(uniform(product(hard_p or positives, hard_n or negatives)), mined)


def test_softhard_falls_back_to_all_where_no_side_is_wrong():
    embeds, labels = around([0.5, 1.5], 4)
    assert_drawn_with(uniform(range(2)), places_drawn(Softhard(0), embeds, labels, calls=200))


@DRAWN
def test_intra_random_draws_twice_from_the_class(case):
    found = of_anchors(drawn(IntraRandom(0), case))
    assert set(found) == {a for a in case.batch if case.positives[a]}
    for a, mined in found.items():
        members = case.positives[a] if case.references else [a, *case.positives[a]]
        assert_drawn_with(uniform(product(members, repeat=2)), mined)


@DRAWN
def test_npair_draws_one_positive_and_one_of_every_other_class(case):
    anchors = usable(case)
    miner = NPair(0)
    tuples = {a: [] for a in anchors}
    for _ in range(400):
        found = of_anchors(case.mined(miner))
        assert set(found) == set(anchors)
        for a, mined in found.items():
            (positive,) = {p for p, _ in mined}
            picks = {case.other_labels[n]: n for _, n in mined}
            assert len(picks) == len(mined)
            tuples[a].append((positive, picks))
    for a in anchors:
        members = {}
        for n in case.negatives[a]:
            members.setdefault(case.other_labels[n], []).append(n)
        classes = sorted(members)
        assert all(sorted(picks) == classes for _, picks in tuples[a])
        assert_drawn_with(uniform(case.positives[a]), [p for p, _ in tuples[a]])
        # all picks of an anchor together: none depends on another, nor on the positive
        everything = product(case.positives[a], *(members[c] for c in classes))
        assert_drawn_with(
            uniform(everything), [(p, *(picks[c] for c in classes)) for p, picks in tuples[a]]
        )


# Without chance


@CASES
def test_lifted_takes_every_triplet(case):
    every = [(a, p, n) for a in case.batch for p in case.positives[a] for n in case.negatives[a]]
    assert case.mined(Lifted()) == every


@CASES
def test_hard_takes_the_farthest_positive_and_the_nearest_negative(case):
    hardest = [
        (
            a,
            max(case.positives[a], key=lambda p: case.d[a][p]),
            min(case.negatives[a], key=lambda n: case.d[a][n]),
        )
        for a in usable(case)
    ]
    assert case.mined(Hard()) == hardest


@CASES
@pytest.mark.parametrize("margin", [-0.2, 0.1, 5.0])
def test_multisimilarity_takes_the_pairs_that_violate_the_margin(case, margin):
    expected = []
    for a in usable(case):
        s, positives, negatives = case.cos[a], case.positives[a], case.negatives[a]
        mined_p = [p for p in positives if s[p] < max(s[n] for n in negatives) + margin]
        mined_n = [n for n in negatives if s[n] > min(s[p] for p in positives) - margin]
        expected += [(a, p, n) for p in mined_p for n in mined_n]
    assert case.mined(MultiSimilarity(margin=margin)) == expected


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("against_references", [False, True])
def test_they_take_what_pytorch_metric_learning_takes(seed, against_references):
    """With plain Euclidean distances in hard mining, and for the anchors with a positive.

    Their multi-similarity miner returns pairs: an anchor's are in our triplets, each with each.
    """
    case = Case(seed, against_references, length=3.0)
    beside = () if case.references is None else case.references
    plain = pml_distances.LpDistance(normalize_embeddings=False)
    theirs = pml_miners.BatchHardMiner(distance=plain)(case.embeds, case.labels, *beside)
    assert case.mined(Hard()) == rows(theirs)
    every = pml_utils.get_all_triplets_indices(case.labels, *beside[1:])
    assert set(case.mined(Lifted())) == set(rows(every))

    a1, p, a2, n = pml_miners.MultiSimilarityMiner(epsilon=0.1)(case.embeds, case.labels, *beside)
    mined = case.mined(MultiSimilarity(margin=0.1))
    alone = {a for a in case.batch if not case.positives[a]}  # they keep its negatives
    assert {x[:2] for x in mined} == set(rows((a1, p)))
    assert {x[::2] for x in mined} == {x for x in rows((a2, n)) if x[0] not in alone}
    assert len(mined) > 5
