"""All protocols score one extraction, and say how."""

import numpy as np
import pytest
import torch
from torch import nn

import metrics
from datasets.downstream import Downstream, build
from datasets.library_sets import Wrapped
from evaluation import extract
from evaluation.downstream import PROTOCOLS, evaluate_downstream
from evaluation.fewshot import draw_episodes, score_episodes
from evaluation.knn_classifier import classify
from evaluation.linear_probe import LabelledFeatures, linear_probe
from tests.evaluation.conftest import to_tensor
from utilities.structures import Embedding


class Pixels(nn.Module):
    """Embeds an image as its pixels of the first channel; counts the images it saw."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.1))
        self.gain = 1.0
        self.seen = 0

    def forward(self, images):
        self.seen += len(images)
        features = images[:, 0].flatten(1)
        return Embedding(self.gain * self.scale * features[:, :16], features, images)


def some(images, rows, name=None):
    """The images of ``rows`` of a set."""
    return Wrapped(name or images.name, images.items, images.labels[rows], images.rows[rows])


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The handwritten digits, a third of them."""
    whole = build("digits", tmp_path_factory.mktemp("none"))
    train, test = (some(images, slice(0, None, 3)) for images in (whole.train, whole.test))
    return Downstream("digits", train, None, test, whole.class_names)


def evaluate(names, downstream, embedder=None, **options):
    options = {"workers": 0, "episodes": 200, **options}
    return evaluate_downstream(names, embedder or Pixels(), downstream, to_tensor, **options)


def test_each_protocol_scores_the_same_features(digits):
    scores = evaluate(list(PROTOCOLS), digits, knn_k=(5, 20))
    extracted = [
        extract(Pixels(), images, to_tensor, workers=0) for images in (digits.train, digits.test)
    ]
    train, test = (LabelledFeatures(found.features, found.labels) for found in extracted)
    probe = linear_probe(train, None, test)
    assert scores["digits/linear_probe"] == probe.accuracy > 0.9
    episodes = draw_episodes(test.labels, episodes=200)
    few = score_episodes(test.features, episodes, centre=train.features.mean(dim=0))
    assert scores["digits/fewshot_5w5s"] == few.accuracy
    assert scores.intervals["digits/fewshot_5w5s"] == few.interval
    assert few.interval.low < few.accuracy < few.interval.high
    voted = classify(*train, test.features, (5, 20))
    for k in (5, 20):
        assert scores[f"digits/knn@{k}"] == (voted[k] == test.labels).double().mean()
    gallery = metrics.Gallery(test.features, test.labels)
    found = metrics.compute(["recall@1", "mAP@R"], gallery)
    assert scores["digits/features/recall@1"] == pytest.approx(found["recall@1"])
    assert scores["digits/features/mAP@R"] == pytest.approx(found["mAP@R"])
    assert set(scores) == set(scores.protocols) and len(scores) == 6
    by_class = scores.by_class["digits/linear_probe"]
    sizes = test.labels.bincount()
    assert float((by_class * sizes).sum() / sizes.sum()) == pytest.approx(probe.accuracy)


def test_protocols_say_what_was_measured(digits):
    scores = evaluate(["linear_probe", "fewshot", "knn"], digits)
    n_train, n_test = len(digits.train), len(digits.test)
    probe = scores.protocols["digits/linear_probe"]
    assert probe.startswith(
        f"digits.downstream n_train={n_train} n_test={n_test} classes=10 accuracy cost="
    )
    assert probe.endswith("chosen on a drawn fifth of train features d=64 seed=0")
    few = scores.protocols["digits/fewshot_5w5s"]
    assert few == (
        f"digits.downstream 5-way 5-shot 6 queries episodes=200 of test n={n_test} classes=10 "
        "centred by train features d=64 seed=0"
    )
    assert scores.protocols["digits/knn@20"] == (
        f"digits.downstream n_train={n_train} n_test={n_test} classes=10 accuracy cosine exact "
        "T=0.07 features d=64 seed=0"
    )


def test_validation_images_choose_and_then_train(digits):
    val = some(digits.test, slice(0, None, 2), "digits.val")
    with_val = Downstream("digits", digits.train, val, digits.test, digits.class_names)
    scores = evaluate(["linear_probe", "knn"], with_val)
    protocol = scores.protocols["digits/linear_probe"]
    assert f"n_train={len(digits.train) + len(val)}" in protocol and "drawn" not in protocol
    without = evaluate(["linear_probe", "knn"], digits)
    assert scores["digits/linear_probe"] > without["digits/linear_probe"]  # it learnt from test
    assert scores["digits/knn@20"] >= without["digits/knn@20"]


def test_mean_class_accuracy_where_the_dataset_asks_for_it(digits):
    rows = (digits.test.labels != 8) | (np.arange(len(digits.test)) < 30)
    test = some(digits.test, rows, "uneven.test")
    uneven = Downstream("uneven", digits.train, None, test, digits.class_names, per_class=True)
    scores = evaluate(["linear_probe", "knn"], uneven)
    for name in ("uneven/linear_probe", "uneven/knn@20"):
        assert "mean class accuracy" in scores.protocols[name]
        assert scores[name] == pytest.approx(float(scores.by_class[name].nanmean()))


def test_embeds_can_be_judged_too(digits):
    scores = evaluate(["knn", "retrieval"], digits, which="embeds")
    assert "embeds d=16" in scores.protocols["digits/knn@20"]
    assert "digits/embeds/recall@1" in scores


def test_few_images_of_each_class_take_episodes_from_all(digits):
    train, test = (
        some(
            images,
            np.concatenate([np.flatnonzero(images.labels == label)[:6] for label in range(10)]),
        )
        for images in (digits.train, digits.test)
    )
    few = Downstream("few", train, None, test, digits.class_names)
    scores = evaluate(["fewshot"], few)
    assert "6 queries episodes=200 of all n=120 classes=10" in scores.protocols["few/fewshot_5w5s"]


def test_wrong_names_are_refused_before_anything_is_embedded(digits):
    embedder = Pixels()
    with pytest.raises(ValueError, match=r"protocol linear_prob is unknown.*linear_probe"):
        evaluate(["knn", "linear_prob"], digits, embedder)
    with pytest.raises(ValueError, match="evaltypes must be among embeds, features; got pixels"):
        evaluate(["knn"], digits, embedder, which="pixels")
    with pytest.raises(ValueError, match="needs groups"):
        options = {"retrieval_metrics": ["group_recall@1"]}
        evaluate(["retrieval"], digits, embedder, **options)
    assert not embedder.seen


def test_features_are_extracted_once(digits, tmp_path):
    embedder = Pixels()
    first = evaluate(["linear_probe"], digits, embedder, cache=tmp_path)
    assert embedder.seen == len(digits.train) + len(digits.test)
    embedder.seen = 0
    second = evaluate(["linear_probe", "knn", "fewshot"], digits, cache=tmp_path)
    assert second["digits/linear_probe"] == first["digits/linear_probe"]
    assert len(list(tmp_path.glob("*/"))) == 2
