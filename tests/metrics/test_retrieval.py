"""Every ranking metric against plain loops, on galleries made to be awkward."""

import math
from statistics import fmean

import pytest
import torch
import torch.nn.functional as F

import metrics
from metrics import Gallery

NAMES = ["recall@1", "recall@3", "recall@50", "mAP", "mAP@R", "mAP_1000", "R_precision"]


def ranked_hits(embeds, labels, query):
    """Whether the 1st, 2nd, ... nearest other image is of the query's class; ties count against."""
    others = [row for row in range(len(labels)) if row != query]

    def key(row):
        distance = sum((a - b) ** 2 for a, b in zip(embeds[query], embeds[row], strict=True))
        return distance, labels[row] == labels[query]

    return [labels[row] == labels[query] for row in sorted(others, key=key)]


def oracle(name, embeds, labels):
    """One metric of a whole gallery, written as loops over lists."""
    embeds, labels = embeds.double().tolist(), labels.tolist()
    values = []
    for query in range(len(labels)):
        hits = ranked_hits(embeds, labels, query)
        n_positives = sum(hits)
        if not n_positives:
            continue
        precisions = [sum(hits[: r + 1]) / (r + 1) if hits[r] else 0.0 for r in range(len(hits))]
        if name.startswith("recall"):
            values.append(float(any(hits[: int(name.split("@")[1])])))
        else:
            values.append(
                {
                    "mAP": sum(precisions) / n_positives,
                    "mAP@R": sum(precisions[:n_positives]) / n_positives,
                    "mAP_1000": sum(precisions[:1000]) / (n_positives + 1),
                    "R_precision": sum(hits[:n_positives]) / n_positives,
                }[name]
            )
    return fmean(values) if values else math.nan


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


@pytest.mark.parametrize("case", GALLERIES)
def test_equals_plain_loops(case):
    embeds, labels = GALLERIES[case]
    found = metrics.compute(NAMES, Gallery(embeds, labels))
    assert list(found) == NAMES
    for name, value in found.items():
        assert value == pytest.approx(oracle(name, embeds, labels), abs=1e-12, nan_ok=True), name


def test_cosine_is_euclidean_of_unit_rows():
    embeds, labels = awkward(3, 50, 5, d=8, span=30)
    embeds = embeds * torch.arange(1, 51)[:, None]  # lengths that change the euclidean order
    found = metrics.compute([f"c_{name}" for name in NAMES], Gallery(embeds, labels))
    unit = F.normalize(embeds, dim=1)
    for name in NAMES:
        assert found[f"c_{name}"] == pytest.approx(oracle(name, unit, labels), abs=1e-12), name
    euclidean = metrics.compute(["e_mAP"], Gallery(embeds, labels))
    assert abs(euclidean["e_mAP"] - found["c_mAP"]) > 0.001


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
    names = [*NAMES, "wrong_word_similarity@5", "wrong_group_share@5"]
    whole = metrics.compute(names, gallery)
    assert metrics.compute(names, gallery, block_bytes=block_bytes) == pytest.approx(whole)
    blocks = list(gallery.search(block_bytes=block_bytes))
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


def test_legacy_map_cuts_at_1000():
    """One far positive: rank 1200 counts for mAP and not for mAP_1000."""
    embeds = torch.arange(1202).float()[:, None]
    labels = torch.ones(1202, dtype=torch.int64)
    labels[0] = labels[1200] = 0
    row_0 = {
        n: v[0] for n, v in metrics.per_query(["mAP", "mAP_1000"], Gallery(embeds, labels)).items()
    }
    assert row_0["mAP"] == pytest.approx(1 / 1200)
    assert row_0["mAP_1000"] == 0


def test_agrees_with_pytorch_metric_learning():
    calculator = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator")
    generator = torch.Generator().manual_seed(0)
    embeds = F.normalize(torch.randn(300, 16, generator=generator), dim=1)
    labels = torch.randint(0, 25, (300,), generator=generator)
    ours = {
        "precision_at_1": "recall@1",
        "r_precision": "R_precision",
        "mean_average_precision_at_r": "mAP@R",
    }
    theirs = calculator.AccuracyCalculator(include=tuple(ours), k="max_bin_count").get_accuracy(
        embeds, labels
    )
    found = metrics.compute(ours.values(), Gallery(embeds, labels))
    for name, value in theirs.items():
        assert found[ours[name]] == pytest.approx(value, abs=1e-6), name


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
