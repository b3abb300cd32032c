import math
from typing import ClassVar

import pytest
import torch
from pytorch_metric_learning.losses import AngularLoss

from criteria import Angular, NPair
from tests.criteria.pair_losses import LABELS, PairLossTests, batch, each_batch, pairs_of
from tests.criteria.scalars import assert_same, dot, unit


def equation(embeds, labels, references=None, alpha=45.0, npair_ang_weight=2.0, npair_l2=0.005):
    """The paper's two terms, one triplet at a time, over all ordered positive pairs."""
    tan2 = math.tan(math.radians(alpha)) ** 2
    n_pair, angular = [], []
    for x, positives, negatives in pairs_of(embeds, labels, references):
        a = unit(x)
        for positive in positives:
            p = unit(positive)
            between = [u + v for u, v in zip(a, p, strict=True)]
            far = 2 * (1 + tan2) * dot(a, p)
            angles = [4 * tan2 * dot(between, unit(n)) - far for n in negatives]
            angular.append(math.log(1 + sum(map(math.exp, angles))))
            gaps = [dot(x, n) - dot(x, positive) for n in negatives]
            n_pair.append(math.log(1 + sum(map(math.exp, gaps))))
    n_pairs = max(len(angular), 1)
    length = npair_l2 * sum(dot(x, x) for x in embeds.tolist()) / len(embeds)
    return sum(n_pair) / n_pairs + npair_ang_weight * sum(angular) / n_pairs + length


class TestAngular(PairLossTests):
    loss, equation = Angular, staticmethod(equation)
    settings: ClassVar[tuple] = (
        {"alpha": 36.0, "npair_ang_weight": 0.5, "npair_l2": 0.1},
        {"alpha": 10.0},
        {},
    )
    length = 1.5
    extreme = {"alpha": 70.0}, 40.0


@each_batch
def test_equals_pytorch_metric_learning(labels):
    """Theirs has the angular term alone; equal for unit rows, as theirs normalises anchors and
    positives only."""
    embeds, labels = batch(labels)
    theirs = AngularLoss(alpha=45)(embeds, labels)
    without, with_term = (Angular(npair_ang_weight=w)(embeds, labels) for w in (0.0, 1.0))
    assert_same(with_term - without, theirs, [embeds], sphere=True)


def test_without_the_angular_term_it_is_the_n_pair_loss():
    embeds, labels = batch(LABELS[0], length=2.0)
    criterion = Angular(npair_ang_weight=0.0, npair_l2=0.1)
    assert torch.equal(criterion(embeds, labels), NPair(l2=0.1)(embeds, labels))


@pytest.mark.parametrize("alpha", [45.0, 70.0])
def test_float32_keeps_the_digits_where_similarities_are_extreme(alpha):
    """Negatives on the pair and opposite to it: the largest and the smallest exponents."""
    embeds = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]])
    labels = torch.tensor([0, 0, 1, 2, 2])
    loss = Angular(alpha=alpha)(embeds.requires_grad_(), labels)
    (grad,) = torch.autograd.grad(loss, embeds)
    assert loss.item() == pytest.approx(equation(embeds, labels, alpha=alpha), rel=1e-6)
    assert grad.isfinite().all()


def test_an_image_of_length_zero_has_a_finite_gradient():
    embeds, labels = batch(LABELS[0])
    embeds = torch.cat([embeds.detach()[:-1], torch.zeros(1, 4)]).requires_grad_()
    (grad,) = torch.autograd.grad(Angular()(embeds, labels), embeds)
    assert grad.isfinite().all()
