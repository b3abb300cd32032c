"""Names of metrics, and what is said of a name that is none."""

import pytest
import torch

import metrics
from metrics import METRICS


@pytest.mark.parametrize(
    ("name", "pattern", "k", "cosine"),
    [
        ("e_recall@1", "recall@k", 1, False),
        ("c_recall@1000", "recall@k", 1000, True),
        ("recall@4", "recall@k", 4, False),
        ("mAP@R", "mAP@R", 0, False),
        ("c_mAP_1000", "mAP_1000", 0, True),
        ("c_nmi", "nmi", 0, True),
        ("wrong_group_share@10", "wrong_group_share@k", 10, False),
        ("rho_spectrum@-1", "rho_spectrum@k", -1, False),
        ("c_rho_spectrum@2", "rho_spectrum@k", 2, True),
        ("dists@intra_over_inter", "dists@intra_over_inter", 0, True),
        ("e_uniformity", "uniformity", 0, True),
    ],
)
def test_names_are_read(name, pattern, k, cosine):
    metric = metrics.parse(name)
    assert (metric.k, metric.cosine) == (k, cosine)
    assert (metric.score, metric.compare) == (METRICS[pattern].score, METRICS[pattern].compare)


def test_every_metric_has_a_name_that_is_read():
    for pattern, entry in METRICS.items():
        assert metrics.parse(pattern.replace("@k", "@2")).score is entry.score
        assert [entry.score, entry.compare, entry.describe].count(None) == 2


@pytest.mark.parametrize(
    "name",
    ["", "e_", "recall", "recall@", "recall@0", "recall@k", "recall@-1", "recall@1.5", "d_mAP",
     "nmi@3", "mAP@5", "e_c_mAP", "e_recall@1 ", "recall@01", "precision", "rho_spectrum",
     "rho_spectrum@0", "dists@1", "mAP_lim@5"],
)  # fmt: skip
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match="is unknown; known, closest first: "):
        metrics.parse(name)


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("e_recal@1", "recall@k"),
        ("map@r", "mAP@R"),
        ("MAP@R", "mAP@R"),
        ("c_map_1000", "mAP_1000"),
        ("r_precision", "R_precision"),
        ("NMI", "nmi"),
        ("mrr", "MRR"),
        ("Recall@1", "recall@k"),
    ],
)
def test_the_closest_name_comes_first(name, first):
    with pytest.raises(ValueError, match=rf"^metric {name} .* first: {first}, "):
        metrics.parse(name)


def test_refused_before_the_search():
    with pytest.raises(ValueError, match="e_precison of --evaluation_metrics"):
        metrics.validate(["mAP", "e_precison"])
    metrics.validate(["wrong_word_similarity@1"], class_words=torch.eye(2))
