import math
from typing import ClassVar

import pytest
import torch
from pytorch_metric_learning.losses import CircleLoss

from criteria import Circle
from tests.criteria.pair_losses import PairLossTests, batch, each_batch, each_way, pairs_of
from tests.criteria.scalars import assert_same, dot
from utilities.pairs import pair_masks


def equation(embeds, labels, references=None, margin=0.25, gamma=80.0):
    """The paper's equations 6 to 8, one pair at a time."""
    losses = []
    for x, positives, negatives in pairs_of(embeds, labels, references):
        if positives and negatives:
            pull = push = 0.0
            for p in positives:
                alpha = max(0.0, 1 + margin - dot(x, p))
                pull += math.exp(-gamma * alpha * (dot(x, p) - (1 - margin)))
            for n in negatives:
                alpha = max(0.0, dot(x, n) + margin)
                push += math.exp(gamma * alpha * (dot(x, n) - margin))
            losses.append(math.log(1 + push * pull))
    return sum(losses) / max(len(losses), 1)


def with_constant_factors(embeds, labels, references, m=0.25, gamma=80.0):
    """The loss with its weighting factors as constants, by autograd."""
    others, other_labels = references or (embeds, None)
    sims = embeds @ others.T
    alpha_p, alpha_n = (1 + m - sims.detach()).relu(), (sims.detach() + m).relu()
    losses = []
    for i, (positive, negative) in enumerate(zip(*pair_masks(labels, other_labels), strict=True)):
        if positive.any() and negative.any():
            pull = (-gamma * alpha_p[i] * (sims[i] - 1 + m))[positive].exp().sum()
            push = (gamma * alpha_n[i] * (sims[i] - m))[negative].exp().sum()
            losses.append((1 + push * pull).log())
    return torch.stack(losses).mean()


class TestCircle(PairLossTests):
    loss, equation = Circle, staticmethod(equation)
    settings: ClassVar[tuple] = ({}, {"margin": 0.4, "gamma": 16.0})
    extreme = {"gamma": 1e4}, 1.0

    @each_way
    @each_batch
    def test_gradient(self, labels, references):
        """The weighting factors have none."""
        embeds, labels = batch(labels)
        expected = with_constant_factors(embeds, labels, references)
        assert_same(Circle()(embeds, labels, references), expected, [embeds], close=1e-11)


@each_way
@each_batch
def test_equals_pytorch_metric_learning(labels, references):
    """Equal for unit rows: theirs averages over the losses above zero, which are the anchors that
    have positives and negatives."""
    embeds, labels = batch(labels)
    theirs = CircleLoss(m=0.25, gamma=80)(embeds, labels, None, *(references or (None, None)))
    assert_same(Circle()(embeds, labels, references), theirs, [embeds], sphere=True)


def test_similarities_beyond_their_optimum_have_no_weight():
    """A negative below -m, a positive above 1 + m: the factors are cut at zero."""
    embeds = torch.tensor([[1.2, 0.0], [1.2, 0.0], [-1.0, 0.0]], requires_grad=True)
    loss = Circle()(embeds, torch.tensor([0, 0, 1]))
    (grad,) = torch.autograd.grad(loss, embeds)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)  # exp(0) each
    assert torch.equal(grad, torch.zeros_like(embeds))
