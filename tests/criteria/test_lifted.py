import math
from typing import ClassVar

import pytest
import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import GeneralizedLiftedStructureLoss

from criteria import Lifted
from tests.criteria.pair_losses import PairLossTests, batch, pairs_of
from tests.criteria.scalars import assert_same, dot


def equation(embeds, labels, references=None, neg_margin=1.0, l2=0.005):
    """The equation, one pair at a time."""
    losses = []
    for x, positives, negatives in pairs_of(embeds, labels, references):
        if positives and negatives:
            pull = math.log(sum(math.exp(math.dist(x, p)) for p in positives))
            push = math.log(sum(math.exp(neg_margin - math.dist(x, n)) for n in negatives))
            losses.append(max(0.0, pull + push))
    length = l2 * sum(dot(x, x) for x in embeds.tolist()) / len(embeds)
    return sum(losses) / max(len(losses), 1) + length


class TestLifted(PairLossTests):
    loss, equation = Lifted, staticmethod(equation)
    settings: ClassVar[tuple] = ({"neg_margin": 0.3, "l2": 0.1}, {})
    length = 1.5
    at_one_place = 1e-7  # a distance of 0 is the root of roundings
    extreme = {}, 1e4


@pytest.mark.parametrize("labels", [[5, 2, 9, 9, 2, 5], [1, 1, 3, 3, 3, 3, 3]])
def test_equals_pytorch_metric_learning(labels):
    """Equal where each anchor has positives: theirs is zero at one without, and in the mean."""
    embeds, labels = batch(labels, length=1.5)
    distance = LpDistance(normalize_embeddings=False)
    theirs = GeneralizedLiftedStructureLoss(neg_margin=1, distance=distance)(embeds, labels)
    assert_same(Lifted(l2=0.0)(embeds, labels), theirs, [embeds])


def test_no_active_anchor_gives_a_differentiable_zero():
    embeds = torch.tensor([[5.0, 0.0], [5.0, 1.0], [-5.0, 0.0], [-5.0, 1.0]], requires_grad=True)
    loss = Lifted(l2=0.0)(embeds, torch.tensor([0, 0, 1, 1]))
    (grad,) = torch.autograd.grad(loss, embeds)
    assert loss.item() == 0
    assert torch.equal(grad, torch.zeros_like(embeds))


def test_duplicates_do_not_move_each_other():
    """A positive at distance 0 beside one at distance 1: the gradient is that of the others."""
    embeds = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.5, 1.0]], dtype=torch.float64)
    embeds.requires_grad_()
    loss = Lifted(l2=0.0)(embeds, torch.tensor([0, 0, 0, 1]))
    (grad,) = torch.autograd.grad(loss, embeds)
    assert loss.item() == pytest.approx(equation(embeds, [0, 0, 0, 1], l2=0.0), abs=1e-10)
    assert grad.isfinite().all()
    assert torch.allclose(grad[0], grad[1], atol=1e-12)
    assert grad[0].abs().sum() > 0
