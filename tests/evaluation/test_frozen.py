"""All protocols score one extraction, which is kept; a kept one that is damaged is never used."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import metrics
from datasets.downstream import Downstream, build
from datasets.library_sets import Wrapped
from datasets.image_set import ImageSet
from evaluation import extract
from evaluation.feature_cache import (
    cached_features,
    digest_of_embedder,
    digest_of_images,
    digest_of_transform,
)
from evaluation.fewshot import draw_episodes, score_episodes
from evaluation.frozen import PROTOCOLS, evaluate
from evaluation.knn_classifier import classify
from evaluation.linear_probe import Labelled, linear_probe
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


class Pinned(Pixels):
    """Does not count, so that only what it is asked for changes it."""

    def forward(self, images):
        features = images[:, 0].flatten(1)
        return Embedding(features[:, :3], features, images)


def to_tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


def some(images, rows, name=None):
    """The images of ``rows`` of a set."""
    return Wrapped(name or images.name, images.items, images.labels[rows], images.rows[rows])


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The handwritten digits, a third of them."""
    whole = build("digits", tmp_path_factory.mktemp("none"))
    train, test = (some(images, slice(0, None, 3)) for images in (whole.train, whole.test))
    return Downstream("digits", train, None, test, whole.class_names)


OPTIONS = {"workers": 0, "episodes": 200}


def test_each_protocol_scores_the_same_features(digits):
    scores = evaluate(list(PROTOCOLS), Pixels(), digits, to_tensor, knn_k=(5, 20), **OPTIONS)
    extracted = [
        extract(Pixels(), images, to_tensor, workers=0) for images in (digits.train, digits.test)
    ]
    train, test = (Labelled(found.features, found.labels) for found in extracted)
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
    scores = evaluate(["linear_probe", "fewshot", "knn"], Pixels(), digits, to_tensor, **OPTIONS)
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
    scores = evaluate(["linear_probe", "knn"], Pixels(), with_val, to_tensor, **OPTIONS)
    protocol = scores.protocols["digits/linear_probe"]
    assert f"n_train={len(digits.train) + len(val)}" in protocol and "drawn" not in protocol
    without = evaluate(["linear_probe", "knn"], Pixels(), digits, to_tensor, **OPTIONS)
    assert scores["digits/linear_probe"] > without["digits/linear_probe"]  # it learnt from test
    assert scores["digits/knn@20"] >= without["digits/knn@20"]


def test_mean_class_accuracy_where_the_dataset_asks_for_it(digits):
    rows = (digits.test.labels != 8) | (np.arange(len(digits.test)) < 30)
    test = some(digits.test, rows, "uneven.test")
    uneven = Downstream("uneven", digits.train, None, test, digits.class_names, per_class=True)
    scores = evaluate(["linear_probe", "knn"], Pixels(), uneven, to_tensor, **OPTIONS)
    for name in ("uneven/linear_probe", "uneven/knn@20"):
        assert "mean class accuracy" in scores.protocols[name]
        assert scores[name] == pytest.approx(float(scores.by_class[name].nanmean()))


def test_embeds_can_be_judged_too(digits):
    scores = evaluate(["knn", "retrieval"], Pixels(), digits, to_tensor, which="embeds", **OPTIONS)
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
    scores = evaluate(["fewshot"], Pixels(), few, to_tensor, **OPTIONS)
    assert "6 queries episodes=200 of all n=120 classes=10" in scores.protocols["few/fewshot_5w5s"]


def test_wrong_names_are_refused_before_anything_is_embedded(digits):
    embedder = Pixels()
    with pytest.raises(ValueError, match=r"--evaluations linear_prob is unknown.*linear_probe"):
        evaluate(["knn", "linear_prob"], embedder, digits, to_tensor)
    with pytest.raises(ValueError, match="--evaltypes pixels is unknown"):
        evaluate(["knn"], embedder, digits, to_tensor, which="pixels")
    with pytest.raises(ValueError, match="needs groups"):
        options = {"retrieval_metrics": ["group_recall@1"]}
        evaluate(["retrieval"], embedder, digits, to_tensor, **options)
    assert not embedder.seen


# ------------------------------------------------------------------------------------------- cache


def test_features_are_extracted_once(digits, tmp_path):
    embedder = Pixels()
    options = {**OPTIONS, "cache": tmp_path}
    first = evaluate(["linear_probe"], embedder, digits, to_tensor, **options)
    assert embedder.seen == len(digits.train) + len(digits.test)
    embedder.seen = 0
    second = evaluate(["linear_probe", "knn", "fewshot"], Pixels(), digits, to_tensor, **options)
    assert second["digits/linear_probe"] == first["digits/linear_probe"]
    assert len(list(tmp_path.iterdir())) == 2


def kept(embedder, images, folder, transform=to_tensor, **options):
    return cached_features(embedder, images, transform, cache=folder, workers=0, **options)


def test_a_second_call_reads_and_gives_the_same(digits, tmp_path):
    embedder = Pinned()
    first = kept(embedder, digits.test, tmp_path)
    second = kept(embedder, digits.test, tmp_path)
    assert all(one.equal(two) for one, two in zip(first, second, strict=True))
    assert len(list(tmp_path.iterdir())) == 1


def test_another_model_transform_set_or_precision_is_another_file(digits, tmp_path):
    embedder = Pinned()
    kept(embedder, digits.test, tmp_path)
    with torch.no_grad():
        embedder.scale += 1e-7
    kept(embedder, digits.test, tmp_path)
    kept(embedder, digits.train, tmp_path)
    kept(embedder, digits.test, tmp_path, lambda image: to_tensor(image) * 2)
    kept(embedder, digits.test, tmp_path, precision="bf16")
    assert len(list(tmp_path.iterdir())) == 5


@pytest.mark.parametrize("damage", ["cut", "flip", "foreign"])
def test_damage_is_noticed_and_repaired(digits, tmp_path, caplog, damage):
    embedder = Pinned()
    first = kept(embedder, digits.test, tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    if damage == "cut":
        file.write_bytes(whole[: len(whole) // 2])
    elif damage == "flip":
        value = first.features.numpy().tobytes()[64:128]
        place = whole.index(value)
        file.write_bytes(whole[:place] + bytes(64) + whole[place + 64 :])
    else:
        torch.save({"format": 1, "features": torch.zeros(3)}, file)
    with caplog.at_level(logging.WARNING):
        second = kept(embedder, digits.test, tmp_path)
    assert "damaged" in caplog.text and str(file) in caplog.text
    assert second.features.equal(first.features)
    caplog.clear()
    assert kept(embedder, digits.test, tmp_path).features.equal(first.features)
    assert not caplog.text


def test_a_folder_that_cannot_be_written_costs_a_warning(digits, tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("")
    found = kept(Pinned(), digits.test, blocked / "features")
    assert len(found.rows) == len(digits.test) and "cannot be kept" in caplog.text


def test_embedder_digest_is_of_weights_buffers_and_settings():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.1))
    plain = digest_of_embedder(model)
    assert digest_of_embedder(model.eval()) == plain  # the mode is none of its business
    model[1].running_mean += 1
    moved = digest_of_embedder(model)
    model[1].eps = 1e-3
    changed = digest_of_embedder(model)
    assert len({plain, moved, changed}) == 3
    assert digest_of_embedder(model.to(torch.bfloat16)) != changed


def test_transform_digest_is_of_what_it_does():
    def same(image):
        return to_tensor(image)

    assert digest_of_transform(same) == digest_of_transform(to_tensor)
    assert digest_of_transform(lambda i: to_tensor(i)[:, :50]) != digest_of_transform(to_tensor)


def test_images_digest_is_of_files_and_labels(tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for number, path in enumerate(paths):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(path)
    images = ImageSet("mine.test", tuple(paths), np.array([0, 1, 1]), ("a", "b"))
    first = digest_of_images(images)
    assert digest_of_images(images) == first
    swapped = ImageSet("mine.test", tuple(paths), np.array([0, 0, 1]), ("a", "b"))
    assert digest_of_images(swapped) != first
    Image.new("RGB", (5, 5), (9, 0, 0)).save(paths[1])
    assert digest_of_images(images) != first
    paths[2].unlink()
    assert digest_of_images(images) != first


def test_images_digest_without_files_is_of_pictures():
    def wrapped(shade):
        return Wrapped("x", [(Image.new("L", (2, 2), shade),)] * 5, np.arange(5))

    assert digest_of_images(wrapped(3)) == digest_of_images(wrapped(3))
    assert digest_of_images(wrapped(3)) != digest_of_images(wrapped(4))
