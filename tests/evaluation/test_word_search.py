"""Names of classes that look for their images, and images for their names."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from datasets.image_set import ImageSet
from evaluation.word_map import fit
from evaluation.word_search import WordSearch, by_words, can_fit


def image_set(name, labels, names):
    paths = tuple(f"{row}.png" for row in range(len(labels)))
    return ImageSet(name, paths, np.array(labels), tuple(names))


def planted(n=60, d_text=8, d=6, per_class=3, seed=0, noise=0.05):
    """Names whose embeddings say where their images lie, a linear map away."""
    rng = torch.Generator().manual_seed(seed)
    texts = F.normalize(torch.randn(n, d_text, generator=rng), dim=1)
    centres = texts @ torch.randn(d_text, d, generator=torch.Generator().manual_seed(7))
    labels = torch.arange(n).repeat_interleave(per_class)
    embeds = centres[labels] + noise * torch.randn(len(labels), d, generator=rng)
    return texts, F.normalize(embeds, dim=1), labels


METRICS = ["word_recall@1", "word_recall@5", "word_mAP", "named@1", "named@3"]


def brute_force(texts, embeds, labels):
    """The scores by loops; embeddings without ties."""
    sims = texts @ embeds.T
    n_classes, found = len(texts), {}
    order = sims.argsort(dim=1, descending=True)
    hits = labels[order] == torch.arange(n_classes)[:, None]
    for k in (1, 5):
        found[f"word_recall@{k}"] = sum(bool(row[:k].any()) for row in hits) / n_classes
    precisions = []
    for row in hits:
        places = [place + 1 for place, hit in enumerate(row.tolist()) if hit]
        precisions.append(sum((j + 1) / r for j, r in enumerate(places)) / len(places))
    found["word_mAP"] = sum(precisions) / n_classes
    for k in (1, 3):
        nearest = sims.T.topk(k).indices
        found[f"named@{k}"] = float((nearest == labels[:, None]).any(dim=1).double().mean())
    return found


def test_scores_equal_brute_force():
    texts, embeds, labels = planted(n=12, noise=1.0, d_text=6)
    images = image_set("made.test", labels.tolist(), [f"class {c}" for c in range(12)])
    rows = torch.arange(len(labels))
    scores = by_words(images, embeds, rows, [texts], METRICS)
    assert dict(scores) == pytest.approx(brute_force(texts, embeds, labels), abs=1e-9)
    assert set(scores.intervals) == set(METRICS)
    assert len(scores.by_class["word_mAP"]) == len(scores.by_class["named@1"]) == 12


def test_unread_images_are_left_out():
    texts, embeds, labels = planted(n=12, noise=1.0, d_text=6)
    images = image_set("made.test", labels.tolist(), [f"class {c}" for c in range(12)])
    rows = torch.arange(1, len(labels))  # without the first
    scores = by_words(images, embeds[1:], rows, [texts], METRICS)
    assert dict(scores) == pytest.approx(brute_force(texts, embeds[1:], labels[1:]), abs=1e-9)


def test_classes_of_one_name_are_one_class():
    texts, embeds, labels = planted(n=12, noise=1.0, d_text=6)
    names = ["dog", "cat", "dog", *(f"class {c}" for c in range(3, 12))]
    texts[2] = texts[0]
    merged = torch.tensor([0, 1, 0, *range(2, 11)])[labels]
    expected = brute_force(texts[[0, 1, *range(3, 12)]], embeds, merged)
    rows = torch.arange(len(labels))
    images = image_set("made.test", labels.tolist(), names)
    scores = by_words(images, embeds, rows, [texts], METRICS)
    assert dict(scores) == pytest.approx(expected, abs=1e-9)
    for values in scores.by_class.values():
        assert len(values) == 12 and values[0] == values[2]


def test_words_find_unseen_classes_and_permuted_words_do_not():
    n = 200
    names = [f"class {c}" for c in range(n)]
    train_texts, train_embeds, train_labels = planted(n)
    texts, embeds, labels = planted(n, seed=1)
    train = image_set("made.train", train_labels.tolist(), names)
    test = image_set("made.test", labels.tolist(), names)
    search = WordSearch(train, {"train": train_texts, "test": texts}, ["word_recall@1", "word_mAP"])
    search.fit(train_embeds, torch.arange(len(train_labels)))
    scores = search.scores("test", test, embeds, torch.arange(len(labels)))
    assert scores["words/word_recall@1"] > 0.5
    # By chance a name finds one of its 3 images of 600 first with 0.5 %, give or take 0.5 %.
    assert scores["permuted_words/word_recall@1"] < 0.03
    low, _ = scores.intervals["words/word_mAP"]
    assert low > 10 * scores["permuted_words/word_mAP"]


def test_scores_of_several_maps_are_averaged():
    texts, embeds, labels = planted(n=12, noise=1.0, d_text=6)
    images = image_set("made.test", labels.tolist(), [f"class {c}" for c in range(12)])
    maps = [texts, texts.flip(0)]
    rows = torch.arange(len(labels))
    each = [by_words(images, embeds, rows, [queries], METRICS) for queries in maps]
    both = by_words(images, embeds, rows, maps, METRICS)
    for name in METRICS:
        assert both[name] == pytest.approx((each[0][name] + each[1][name]) / 2)
        expected = (each[0].by_class[name] + each[1].by_class[name]) / 2
        torch.testing.assert_close(both.by_class[name], expected)


def test_no_class_keeps_its_words_in_a_control():
    texts, _, labels = planted(11)
    train = image_set("made.train", labels.tolist(), [f"class {c}" for c in range(11)])
    search = WordSearch(train, {"train": texts}, [])
    for permutation in search.permutations:
        assert sorted(permutation.tolist()) == [*range(11)]
        assert not (permutation == torch.arange(11)).any()
    assert len({tuple(permutation.tolist()) for permutation in search.permutations}) > 1


def test_classes_of_one_name_are_fitted_as_one_and_never_get_it_back_in_a_control():
    texts, embeds, labels = planted(24, per_class=2)
    names = [f"name {c // 2}" for c in range(24)]  # twelve names, each of two classes
    texts = texts[::2].repeat_interleave(2, dim=0)
    train = image_set("made.train", labels.tolist(), names)
    search = WordSearch(train, {"train": texts}, [])
    search.fit(embeds, torch.arange(len(labels)))
    expected = fit(texts[::2], embeds, labels // 2)
    assert search.n_classes == 12 and search.map.penalties == expected.penalties
    torch.testing.assert_close(search.map.weight, expected.weight)
    assert all(len(permutation) == 12 for permutation in search.permutations)


def test_too_few_readable_classes_give_no_scores(caplog):
    texts, embeds, labels = planted(12)
    train = image_set("made.train", labels.tolist(), [f"class {c}" for c in range(12)])
    search = WordSearch(train, {"train": texts, "test": texts}, ["word_mAP"])
    few = labels < 9
    search.fit(embeds[few], torch.arange(len(labels))[few])
    assert search.map is None and "only 9 training classes" in caplog.text
    assert search.scores("test", train, embeds, torch.arange(len(labels))) == {}


def test_a_map_needs_differently_named_classes():
    labels = [*range(10)]
    assert can_fit(image_set("a", labels, "abcdefghij"))
    assert not can_fit(image_set("a", labels, "abcdefghii"))
