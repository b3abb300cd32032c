import math

import pytest
import torch
from pytorch_metric_learning.losses import AngularLoss

from criteria.angular import Angular
from criteria.npair import NPair
from tests.criteria.pair_losses import LABELS, PairLossTests, along_the_sphere, batch, dot, pairs_of


def unit(row):
    length = math.sqrt(dot(row, row))
    return [x / length for x in row]


def oracle(embeds, labels, references=None, alpha=45.0, weight=2.0, l2=0.005):
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
    squares = [dot(x, x) for x in embeds.tolist()]
    n_pairs = max(len(angular), 1)
    length = l2 * sum(squares) / len(squares)
    return sum(n_pair) / n_pairs + weight * sum(angular) / n_pairs + length


class TestAngular(PairLossTests):
    make = Angular
    equation = staticmethod(oracle)
    length = 1.5


@pytest.mark.parametrize("alpha", [10.0, 36.0, 70.0])
def test_hyperparameters_enter_where_the_equation_has_them(alpha):
    embeds, labels = batch(LABELS[0], length=2.0)
    criterion = Angular(alpha=alpha, npair_ang_weight=0.5, npair_l2=0.1)
    expected = oracle(embeds, labels, alpha=alpha, weight=0.5, l2=0.1)
    # torch's softplus is x itself above 20, and so off by up to exp(-20).
    assert criterion(embeds, labels).item() == pytest.approx(expected, abs=math.exp(-20))


@pytest.mark.parametrize("labels", LABELS)
def test_equals_pytorch_metric_learning(labels):
    """Coincides in the angular term, which is all that theirs has, and for unit rows: theirs
    normalises the anchors and the positives alone."""
    embeds, labels = batch(labels)
    theirs = AngularLoss(alpha=45)(embeds, labels)
    with_term = Angular(npair_ang_weight=1.0)(embeds, labels)
    ours = with_term - Angular(npair_ang_weight=0.0)(embeds, labels)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-9)
    (their_grad,) = torch.autograd.grad(theirs, embeds)
    (our_grad,) = torch.autograd.grad(ours, embeds)
    assert torch.allclose(our_grad, along_the_sphere(their_grad, embeds), atol=1e-9)


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
    assert loss.item() == pytest.approx(oracle(embeds, labels, alpha=alpha), rel=1e-6)
    assert grad.isfinite().all()


def test_an_image_of_length_zero_has_a_finite_gradient():
    embeds, labels = batch(LABELS[0])
    embeds = torch.cat([embeds.detach()[:-1], torch.zeros(1, 4)]).requires_grad_()
    (grad,) = torch.autograd.grad(Angular()(embeds, labels), embeds)
    assert grad.isfinite().all()


def test_hyperparameters_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"alpha must be in \(0, 70\] .*got 0"):
        Angular(alpha=0)
    with pytest.raises(ValueError, match=r"alpha must be in \(0, 70\] .*got 80"):
        Angular(alpha=80)
    with pytest.raises(ValueError, match="npair_ang_weight must be finite and >= 0; got -1"):
        Angular(npair_ang_weight=-1)
    with pytest.raises(ValueError, match="npair_l2 must be finite and >= 0; got -1"):
        Angular(npair_l2=-1)
