"""Votes by brute force."""

import math

import pytest
import torch

from evaluation.knn_classifier import classify


def brute_force(train, labels, test, k, temperature):
    """One pair of images at a time; of equally near ones the first come first."""
    predicted = []
    for query in test:
        cosines = [float(torch.cosine_similarity(query, image, dim=0)) for image in train]
        order = sorted(range(len(train)), key=lambda row: -cosines[row])[:k]
        votes = [0.0] * (int(labels.max()) + 1)
        for row in order:
            votes[int(labels[row])] += math.exp(cosines[row] / temperature)
        predicted.append(votes.index(max(votes)))
    return predicted


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_equals_brute_force(temperature, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    train, test = torch.randn(60, 5, generator=generator), torch.randn(40, 5, generator=generator)
    labels = torch.randint(7, (60,), generator=generator)
    found = classify(train, labels, test, (1, 5, 20, 200), temperature=temperature)
    for k in (1, 5, 20, 200):
        assert found[k].tolist() == brute_force(train, labels, test, k, temperature)
    assert found[1].tolist() != found[20].tolist()
    monkeypatch.setattr("evaluation.knn_classifier.BLOCK", 100)  # a query at a time
    blocks = classify(train, labels, test, (20, 5), temperature=temperature)
    assert blocks[5].equal(found[5]) and blocks[20].equal(found[20])


def test_ties():
    """Copies of an image all vote, and of equal votes the lower class wins."""
    one, two = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    train = torch.stack([one, one, one, two, two, two])
    labels = torch.tensor([4, 4, 4, 2, 2, 2])
    query = torch.stack([one, two, (one + two)])
    assert classify(train, labels, query, (6,))[6].tolist() == [4, 2, 2]
    assert classify(train, labels, 5 * query[:2], (3,))[3].tolist() == [4, 2]  # length is nothing


def test_the_nearest_outvote_the_many_at_low_temperature():
    angles = torch.tensor([0.0, 0.6, 0.6, 0.6, 0.6])
    train = torch.stack([angles.cos(), angles.sin()], dim=1)
    labels = torch.tensor([1, 0, 0, 0, 0])
    query = torch.tensor([[1.0, 0.0]])
    assert classify(train, labels, query, (5,), temperature=0.07)[5].tolist() == [1]
    assert classify(train, labels, query, (5,), temperature=1.0)[5].tolist() == [0]


def test_weights_do_not_overflow():
    train = torch.eye(3)
    found = classify(train, torch.arange(3), train, (3,), temperature=1e-4)
    assert found[3].tolist() == [0, 1, 2]
