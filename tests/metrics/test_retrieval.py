"""Every ranking metric against plain loops, on galleries made to be awkward."""

import math
from statistics import fmean

import pytest
import torch
import torch.nn.functional as F

import metrics
import metrics.search as search_module
from metrics import Gallery, Queries
from metrics.search import rank

NAMES = [
    *("recall@1", "recall@3", "recall@50", "precision@1", "precision@5", "precision@90", "MRR"),
    *("R_precision", "mAP", "mAP@R", "mAP_1000", "mAP_lim", "mAP_c"),
]


def ranked_hits(embeds, labels, query, asked=None):
    """Whether the 1st, 2nd, ... nearest image is of the query's class; ties count against.

    The query is a row of the gallery, which is left out, or of ``asked``, its embeds and labels.
    """
    point, label = (part[query] for part in (asked or (embeds, labels)))
    others = [row for row in range(len(labels)) if asked or row != query]

    def key(row):
        distance = sum((a - b) ** 2 for a, b in zip(point, embeds[row], strict=True))
        return distance, labels[row] == label

    return [labels[row] == label for row in sorted(others, key=key)]


def score(name, hits, itself):
    """One metric of one query, from its hits in the order of the ranking."""
    n_positives = sum(hits)
    precisions = [sum(hits[: r + 1]) / (r + 1) if hits[r] else 0.0 for r in range(len(hits))]
    base, _, k = name.partition("@")
    if base == "recall":
        return float(any(hits[: int(k)]))
    if base == "precision":
        return sum(hits[: int(k)]) / int(k)
    size = n_positives + itself
    return {
        "MRR": 1 / (hits.index(True) + 1),
        "R_precision": sum(hits[:n_positives]) / n_positives,
        "mAP": sum(precisions) / n_positives,
        "mAP@R": sum(precisions[:n_positives]) / n_positives,
        "mAP_1000": sum(precisions[:1000]) / size,
        "mAP_lim": sum(precisions[:1023]) / size,
        "mAP_c": sum(precisions[:size]) / size,
    }[name]


def oracle(embeds, labels, asked=None):
    """Every metric of a whole gallery, written as loops over lists."""
    embeds, labels = embeds.double().tolist(), labels.tolist()
    asked = asked and (asked[0].double().tolist(), asked[1].tolist())
    n_queries = len(asked[1] if asked else labels)
    rankings = [ranked_hits(embeds, labels, query, asked) for query in range(n_queries)]
    rankings = [hits for hits in rankings if any(hits)]
    return {
        name: fmean(score(name, hits, not asked) for hits in rankings) if rankings else math.nan
        for name in NAMES
    }


def awkward(seed, n, n_classes, d=3, span=2):
    """Small whole numbers, so that distances are exact, many are equal and many images are copies.

    Class sizes fall off, so that some classes are large and some have one image.
    """
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randint(-span, span + 1, (n, d), generator=generator).float()
    weights = 0.6 ** torch.arange(n_classes).float()
    labels = torch.multinomial(weights, n, replacement=True, generator=generator)
    return embeds, labels


GALLERIES = {
    **{f"awkward {seed}": awkward(seed, 60, 8) for seed in range(5)},
    "spread out": awkward(5, 80, 6, d=16, span=50),
    "one image": awkward(6, 1, 1),
    "two images": (torch.tensor([[0.0], [1.0]]), torch.tensor([4, 4])),
    "one class": awkward(7, 20, 1),
    "all singletons": (awkward(8, 12, 1)[0], torch.arange(12)),
    "collapsed": (torch.ones(20, 3), torch.arange(20) % 4),
    "a label that skips numbers": (awkward(9, 30, 3)[0], awkward(9, 30, 3)[1] * 7 + 2),
}


SEPARATE = {
    **{f"awkward {seed}": (awkward(seed, 50, 8), awkward(seed + 50, 23, 6)) for seed in range(4)},
    "copies of the gallery": (awkward(0, 30, 5), awkward(0, 30, 5)),
    "more queries than images": (awkward(1, 5, 2), awkward(2, 40, 4)),
    "one image": (awkward(3, 1, 1), awkward(4, 6, 3)),
    "one query": (awkward(3, 20, 3), awkward(4, 1, 1)),
    "classes that the gallery lacks": (awkward(5, 20, 2), (awkward(6, 9, 1)[0], torch.arange(9))),
    "no class in common": (awkward(5, 20, 2), (awkward(6, 9, 1)[0], torch.full((9,), 5))),
    "collapsed": ((torch.ones(12, 3), torch.arange(12) % 3), (torch.ones(6, 3), torch.arange(6))),
}


CASES = {
    **{name: (gallery, None) for name, gallery in GALLERIES.items()},
    **{f"separate queries, {name}": case for name, case in SEPARATE.items()},
}


@pytest.mark.parametrize("few", [search_module.FEW, 0, 1000])
@pytest.mark.parametrize("case", CASES)
def test_equals_plain_loops(case, few, monkeypatch):
    """However many positives are few enough to be counted one by one."""
    monkeypatch.setattr(search_module, "FEW", few)
    (embeds, labels), asked = CASES[case]
    gallery = Gallery(embeds, labels, queries=asked and Queries(*asked))
    expected = pytest.approx(oracle(embeds, labels, asked), abs=1e-12, nan_ok=True)
    found = metrics.compute(NAMES, gallery)
    assert found == expected and list(found) == NAMES
    assert metrics.compute(NAMES, gallery, block_bytes=1) == expected


@pytest.mark.parametrize("separate", [False, True])
def test_cosine_is_euclidean_of_unit_rows(separate):
    embeds, labels = awkward(3, 50, 5, d=8, span=30)
    embeds = embeds * torch.arange(1, 51)[:, None]  # lengths that change the euclidean order
    points, classes = awkward(2, 15, 5, d=8, span=30)
    asked = (points * torch.arange(1, 16)[:, None], classes) if separate else None
    gallery = Gallery(embeds, labels, queries=asked and Queries(*asked))
    found = metrics.compute([f"c_{name}" for name in NAMES], gallery)
    unit = asked and (F.normalize(points, dim=1), classes)
    expected = oracle(F.normalize(embeds, dim=1), labels, unit)
    assert list(found.values()) == pytest.approx(list(expected.values()), abs=1e-12)
    assert abs(metrics.compute(["e_mAP"], gallery)["e_mAP"] - found["c_mAP"]) > 0.001


def test_e_is_the_default_and_unit_rows_have_one_answer():
    embeds, labels = awkward(2, 40, 5, d=8, span=9)
    gallery = Gallery(F.normalize(embeds, dim=1), labels)
    found = metrics.compute(["mAP", "e_mAP", "c_mAP"], gallery)
    assert found["mAP"] == found["e_mAP"] == found["c_mAP"]
    assert gallery.unit is gallery


@pytest.mark.parametrize("block_bytes", [1, 5_000, 20_000, 1 << 30])
def test_block_size_changes_nothing(block_bytes):
    embeds, labels = awkward(1, 70, 8)
    gallery = Gallery(embeds, labels, torch.eye(8), tuple("aabbccdd"))
    names = [
        *NAMES,
        "wrong_word_similarity@5",
        "wrong_group_share@5",
        "group_recall@2",
        "uniformity",
    ]
    whole = metrics.compute(names, gallery)
    assert metrics.compute(names, gallery, block_bytes=block_bytes) == pytest.approx(whole)
    blocks = list(rank(gallery, block_bytes=block_bytes))
    assert sorted(torch.cat([block.rows for block in blocks]).tolist()) == list(range(70))
    assert (len(blocks) > 1) == (block_bytes < 1 << 30)


def test_order_of_images_changes_nothing():
    embeds, labels = awkward(4, 60, 8)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    found = metrics.compute(NAMES, Gallery(embeds, labels))
    assert metrics.compute(NAMES, Gallery(embeds[order], labels[order])) == pytest.approx(found)


def test_a_copy_is_the_nearest_neighbour_and_the_query_is_not():
    """Dropping the first column instead of the query would miss that row 0's copy is wrong."""
    embeds = torch.tensor([[0.0], [0.0], [1.0], [5.0]])
    labels = torch.tensor([0, 1, 0, 1])
    recalls = metrics.per_query(["recall@1", "recall@2"], Gallery(embeds, labels))
    assert recalls["recall@1"].tolist() == [0, 0, 0, 0]
    # Row 2 has a right and a wrong image at distance 1: the wrong one is first.
    assert recalls["recall@2"].tolist() == [1, 0, 1, 0]


def test_collapse_scores_the_least():
    gallery = Gallery(torch.ones(20, 3), torch.arange(20) % 4)  # 15 wrong images, then 4 right
    found = metrics.compute(["recall@15", "recall@16", "mAP"], gallery)
    assert found["recall@15"] == 0
    assert found["recall@16"] == 1
    assert found["mAP"] == pytest.approx(fmean(j / (15 + j) for j in range(1, 5)))


def test_per_query_values_stand_at_their_rows():
    embeds, labels = awkward(0, 40, 8)
    gallery = Gallery(embeds, labels)
    found = metrics.per_query(["mAP", "nmi"], gallery)
    assert list(found) == ["mAP"]
    lonely = labels.bincount()[labels] == 1
    assert lonely.any()
    assert found["mAP"].isnan().equal(lonely)
    for row in (0, 17, 39):
        hits = ranked_hits(embeds.tolist(), labels.tolist(), row)
        expected = sum(sum(hits[: r + 1]) / (r + 1) for r in range(39) if hits[r]) / sum(hits)
        assert found["mAP"][row] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("n", "rows", "expected"),
    [
        # one far positive, of rank 1200
        (1202, [1200], {"mAP": 1 / 1200, "mAP_1000": 0}),
        # ranks 1001 and 1023 are within 1023, rank 1024 is not
        (1100, [1001, 1023, 1024], {"mAP_1000": 0, "mAP_lim": (1 / 1001 + 2 / 1023) / 4}),
        # as far as the class is large: ranks 1 and 3 of a class of 3, and mAP@R sees only the first
        (5, [1, 3], {"mAP_c": (1 + 2 / 3) / 3, "mAP@R": 1 / 2}),
    ],
)
def test_legacy_map_cuts_at_1000(n, rows, expected):
    """Points on a line, of which row 0 has its class at some ranks; so too for 1023 and R + 1."""
    labels = torch.ones(n, dtype=torch.int64)
    labels[[0, *rows]] = 0
    found = metrics.per_query(expected, Gallery(torch.arange(n).float()[:, None], labels))
    assert {name: float(values[0]) for name, values in found.items()} == pytest.approx(expected)


@pytest.mark.parametrize("separate", [False, True])
def test_agrees_with_pytorch_metric_learning(separate):
    calculator = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator")
    generator = torch.Generator().manual_seed(0)
    embeds, points = (torch.randn(n, 16, generator=generator) for n in (300, 70))
    embeds = embeds if separate else F.normalize(embeds, dim=1)
    labels, classes = (torch.randint(0, 25, (n,), generator=generator) for n in (300, 70))
    ours = {
        "precision_at_1": "recall@1",
        "r_precision": "R_precision",
        "mean_average_precision_at_r": "mAP@R",
    }
    if separate:
        ours |= {"mean_reciprocal_rank": "MRR", "mean_average_precision": "mAP"}
    asked = (points, classes) if separate else ()
    theirs = calculator.AccuracyCalculator(
        include=tuple(ours), k=300 if separate else "max_bin_count"
    ).get_accuracy(*asked, embeds, labels)
    gallery = Gallery(embeds, labels, queries=Queries(*asked) if separate else None)
    found = metrics.compute(ours.values(), gallery)
    assert found == pytest.approx({ours[name]: theirs[name] for name in ours}, abs=1e-6)


def test_no_block_takes_more_than_it_may():
    """One class, few or none alike: the rank table is as large as the scores at worst."""
    embeds, labels = awkward(0, 400, 8)
    for case in (labels, labels * 0, torch.arange(400)):
        blocks = list(rank(Gallery(embeds, case), block_bytes=100_000))
        assert max(4 * 400 * len(block.rows) + 8 * block.ranks.numel() for block in blocks) <= 1e5
        assert len(blocks) < 400


@pytest.mark.parametrize(
    ("embeds", "labels", "message"),
    [
        (torch.ones(3, 2), torch.zeros(2), r"\(3, 2\) and \(2,\)"),
        (torch.ones(0, 2), torch.zeros(0), "empty"),
        (torch.tensor([[1.0], [torch.nan], [torch.inf]]), torch.zeros(3), "2 of 3 embeddings"),
    ],
)
def test_refuses_what_is_no_gallery(embeds, labels, message):
    with pytest.raises(ValueError, match=message):
        Gallery(embeds, labels.long())
    with pytest.raises(ValueError, match=message):
        Gallery(torch.ones(1, 2), torch.zeros(1).long(), queries=Queries(embeds, labels.long()))


def test_refuses_queries_of_another_model_or_unnamed_class():
    one = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="queries have 3 dimensions, the gallery has 2"):
        Gallery(torch.ones(1, 2), one, queries=Queries(torch.ones(1, 3), one))
    with pytest.raises(ValueError, match="class_groups describes 1 classes, labels need 3"):
        Gallery(torch.ones(1, 2), one, None, ("a",), queries=Queries(torch.ones(1, 2), one + 2))
