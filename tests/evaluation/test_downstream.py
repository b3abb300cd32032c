"""All protocols score one extraction, and say how."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import metrics
from datasets.downstream import Downstream, build
from datasets.library_sets import Wrapped
from evaluation.downstream import PROTOCOLS, check, evaluate_downstream
from evaluation.extract import extract
from evaluation.fewshot import draw_episodes, interval, score_episodes
from evaluation.knn_classifier import classify
from evaluation.linear_probe import LabelledFeatures, linear_probe
from evaluation.scores import listing
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
    episodes = draw_episodes(train.labels, test.labels, episodes=200)
    few = score_episodes(torch.cat([train.features, test.features]), episodes)
    assert scores["digits/fewshot_5w5s"] == few.accuracy
    classes = train.labels[episodes.rows[:, :, 0]]
    low, high = scores.intervals["digits/fewshot_5w5s"]
    assert (low, high) == interval(few.accuracies, classes)
    assert low < few.accuracy < high
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
        "digits.downstream 5-way 5-shot 6 queries episodes=200 shots from train, queries from test "
        f"n_train={n_train} n_test={n_test} classes=10 centred by shots, interval over classes, "
        "features d=64 seed=0"
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


def of_classes(images, n_classes, n):
    """The first ``n`` images of each of the first classes."""
    rows = [np.flatnonzero(images.labels == label)[:n] for label in range(n_classes)]
    return some(images, np.concatenate(rows))


@pytest.mark.parametrize(
    ("n_train", "n_test", "expected"),
    [
        (5, 6, "6 queries episodes=200 shots from train, queries from test n_train=50 n_test=60"),
        (5, 3, "3 queries episodes=200 shots from train, queries from test n_train=50 n_test=30"),
        (4, 4, "3 queries episodes=200 shots and queries from all n_train=40 n_test=40"),
    ],
)
def test_few_images_of_each_class_give_fewer_queries_or_are_all_drawn_from(
    digits, n_train, n_test, expected
):
    train, test = of_classes(digits.train, 10, n_train), of_classes(digits.test, 10, n_test)
    few = Downstream("few", train, None, test, digits.class_names)
    scores = evaluate(["fewshot"], few)
    assert f"{expected} classes=10 centred by shots" in scores.protocols["few/fewshot_5w5s"]


def test_of_five_classes_the_interval_is_over_images_and_says_so(digits):
    """5,000 episodes of the same five classes are not 5,000 observations."""
    train, test = of_classes(digits.train, 5, 9), of_classes(digits.test, 5, 9)
    five = Downstream("five", train, None, test, digits.class_names[:5])
    scores = evaluate(["fewshot", "knn"], five, episodes=2000)
    name = "five/fewshot_5w5s"
    assert (
        "classes=5 centred by shots, interval of the same 5 classes, over images"
        in (scores.protocols[name])
    )
    episodes = draw_episodes(
        *(torch.from_numpy(images.labels) for images in (train, test)), episodes=2000
    )
    accuracies = score_episodes(
        torch.cat([extract(Pixels(), s, to_tensor, workers=0).features for s in (train, test)]),
        episodes,
    ).accuracies
    low, high = scores.intervals[name]
    assert (low, high) == interval(accuracies, episodes.rows.flatten(1))
    assert high - low > 3 * 2 * 1.96 * float(accuracies.std()) / 2000**0.5
    shown = listing(scores).splitlines()
    assert shown[0].split("  ")[0] == (
        "in percent, with 95 % intervals over classes, few-shot over images of the same classes"
    )
    assert f"[{100 * low:.2f}, {100 * high:.2f}]" in shown[2]
    assert "over images" not in listing(evaluate(["fewshot"], digits))


def test_no_interval_where_nothing_can_be_left_out(digits):
    train, test = of_classes(digits.train, 5, 5), of_classes(digits.test, 5, 6)
    five = Downstream("five", train, None, test, digits.class_names[:5])
    line = listing(evaluate(["fewshot"], five)).splitlines()[-1]
    assert line.startswith("five/fewshot_5w5s") and "[" not in line


@pytest.mark.parametrize(
    ("names", "sizes", "message"),
    [
        (["fewshot"], (4, 30, 30), "few: episodes of 5 ways .* need 5 classes of 6 images; 4 of 4"),
        (["knn", "fewshot"], (10, 3, 2), "few: episodes of 5 .*; 0 of 10 classes have as many"),
        (["linear_probe"], (10, 1, 5), "few: the linear probe has no validation image"),
    ],
)
def test_too_few_images_are_refused_without_a_model(digits, names, sizes, message):
    n_classes, *each = sizes
    train, test = map(of_classes, (digits.train, digits.test), [n_classes] * 2, each)
    few = Downstream("few", train, None, test, digits.class_names[:n_classes])
    with pytest.raises(ValueError, match=f"--evaluations on {message}"):
        check(names, few)
    check(["retrieval", "knn"], few)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])
@pytest.mark.parametrize("name", ["knn", "fewshot", "linear_probe", "retrieval"])
def test_features_that_are_not_finite_are_refused(digits, name, value):
    class Broken(Pixels):
        def forward(self, images):
            found = super().forward(images)
            found.features[0, 0] = value
            return found

    match = r"features of \d+ of 299 images of digits\.\w+ are not finite"
    if value == 1e30:  # its square overflows in float32, where images are compared
        match = "not finite"
    with pytest.raises(ValueError, match=match):
        evaluate([name], digits, Broken())


def test_a_class_without_a_training_image_is_named(digits, caplog):
    """All of its images may have become unreadable; it counts as wrong."""
    train = some(digits.train, digits.train.labels != 3)
    odd = Downstream("odd", train, None, digits.test, digits.class_names)
    scores = evaluate(["knn", "linear_probe", "fewshot"], odd)
    assert "odd: 1 class has test images, but no readable training image: 3" in caplog.text
    for name in ("odd/knn@20", "odd/linear_probe"):
        assert scores.by_class[name][3] == 0
    assert "classes=9" in scores.protocols["odd/fewshot_5w5s"]


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


@pytest.mark.parametrize("part", ["train", "test"])
def test_unreadable_images_are_named_and_not_counted(tmp_path, caplog, part):
    """Of folders that are split already, whose images no one has opened before."""
    for name, shade in (("train", 10), ("test", 30)):
        for number in range(3 * 4):
            path = tmp_path / "split" / name / "abc"[number % 3] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), shade + 60 * (number % 3) + number).save(path)
    for number in (0, 3):
        (tmp_path / "split" / part / "a" / f"{number}.png").write_bytes(b"no image")
    scores = evaluate(["knn", "linear_probe", "fewshot"], build("split", tmp_path), ways=3, shots=2)
    counts = "n_train=10 n_test=12" if part == "train" else "n_train=12 n_test=10"
    assert all(counts in protocol for protocol in scores.protocols.values())
    assert f"{part}/a/0.png" in caplog.text
    assert scores.by_class["split/knn@20"].isfinite().all()
