import math

import pytest
import torch
from pytorch_metric_learning.distances import DotProductSimilarity
from pytorch_metric_learning.losses import NPairsLoss

from criteria.npair import NPair
from tests.criteria.pair_losses import LABELS, PairLossTests, batch, dot, pairs_of
from utilities.structures import References


def oracle(embeds, labels, references=None, l2=0.005):
    """The paper's equation, one triplet at a time, over all ordered positive pairs."""
    losses = []
    for x, positives, negatives in pairs_of(embeds, labels, references):
        for p in positives:
            total = sum(math.exp(dot(x, n) - dot(x, p)) for n in negatives)
            losses.append(math.log(1 + total))
    squares = [dot(x, x) for x in embeds.tolist()]
    return sum(losses) / max(len(losses), 1) + l2 * sum(squares) / len(squares)


class TestNPair(PairLossTests):
    make = NPair
    equation = staticmethod(oracle)
    length = 1.5


def test_length_is_regularised_by_its_weight():
    embeds, labels = batch(LABELS[0], length=3.0)
    loss = NPair(l2=0.5)(embeds, labels)
    assert loss.item() == pytest.approx(oracle(embeds, labels, l2=0.5), abs=1e-10)
    assert loss.item() - NPair(l2=0.0)(embeds, labels).item() == pytest.approx(0.5 * 9)


def test_equals_pytorch_metric_learning():
    """Coincides for two images per class where the anchors' negatives are the second images alone:
    the batch is the first images, the references are the second ones."""
    first, labels = batch([4, 0, 9, 2], length=3.0)
    second, _ = batch([4, 0, 9, 2], seed=1, length=3.0)
    distance = DotProductSimilarity(normalize_embeddings=False)
    loss = NPairsLoss(distance=distance)
    theirs = loss(torch.cat([first, second]), labels.repeat(2), pairs_to(first))
    ours = NPair(l2=0.0)(first, labels, References(second.detach(), labels))
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-9)
    (their_grad,) = torch.autograd.grad(theirs, first)
    (our_grad,) = torch.autograd.grad(ours, first)
    assert torch.allclose(our_grad, their_grad, atol=1e-9)


def pairs_to(first):
    """The pairs (i, i + n) in their notation, with any negative, which that loss does not read."""
    rows = torch.arange(len(first))
    return rows, rows + len(first), rows, rows.flip(0)


def test_long_embeddings_do_not_overflow():
    embeds, labels = batch(LABELS[0], length=40.0)
    embeds = embeds.detach().float().requires_grad_()
    loss = NPair()(embeds, labels)
    (grad,) = torch.autograd.grad(loss, embeds)
    assert loss.isfinite()
    assert grad.isfinite().all()


def test_a_negative_weight_of_the_length_is_refused():
    with pytest.raises(ValueError, match="l2 must be finite and >= 0; got -1"):
        NPair(l2=-1)
