from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.losses import HistogramLoss

from criteria import Histogram
from tests.criteria.pair_losses import LABELS, PairLossTests, batch, each_batch, each_way, pairs_of
from tests.criteria.scalars import assert_same, cosine, normal
from tests.rounding import rounding


def histogram(cosines, nbins):
    """Equations 1 and 2, node by node."""
    width = 2 / (nbins - 1)
    nodes = [-1 + r * width for r in range(nbins)]
    shares = [sum(max(0.0, 1 - abs(s - node) / width) for s in cosines) for node in nodes]
    return [share / len(cosines) for share in shares]


def equation(embeds, labels, references=None, nbins=65):
    """Equation 5, one pair and one node at a time."""
    alike, unlike = [], []
    for x, positives, negatives in pairs_of(embeds, labels, references):
        alike += [cosine(x, p) for p in positives]
        unlike += [cosine(x, n) for n in negatives]
    if not alike or not unlike:
        return 0.0
    h_pos, h_neg = histogram(alike, nbins), histogram(unlike, nbins)
    return sum(h_neg[r] * h_pos[q] for r in range(nbins) for q in range(r + 1))


class TestHistogram(PairLossTests):
    loss, equation = Histogram, staticmethod(equation)
    settings: ClassVar[tuple] = ({}, {"nbins": 3}, {"nbins": 11})
    length = 1.5
    extreme = {}, 1e4

    @each_way
    @each_batch
    def test_gradient(self, labels, references):
        """It jumps at the nodes, and a small step seldom crosses one."""
        embeds, labels = self.batch(labels)
        for nbins in (9, 65):
            loss = Histogram(nbins=nbins)
            check = torch.autograd.gradcheck
            assert check(lambda x, f=loss: f(x, labels, references), (embeds,), eps=1e-7)


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
@pytest.mark.parametrize("seed", range(3))
def test_equals_pytorch_metric_learning(seed):
    """Equal where theirs has as many intervals, and every image a positive and a negative: theirs
    leaves out the pairs of an anchor that is in no triplet."""
    labels = torch.tensor([7, 3, 7, 3, 7, 3, 12, 12, 7, 3])
    embeds = normal(10, 4, seed=seed, dtype=torch.float32).requires_grad_()
    theirs = HistogramLoss(n_bins=64)(embeds, labels)
    assert_same(Histogram(nbins=65)(embeds, labels), theirs, [embeds], close=rounding(65))


def test_length_does_not_matter():
    embeds, labels = normal(8, 4), torch.tensor(LABELS[0])
    unit = F.normalize(embeds, dim=1)
    assert torch.allclose(Histogram()(embeds, labels), Histogram()(unit, labels))


def test_separated_and_swapped_classes_are_the_two_ends():
    embeds = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]])
    assert Histogram()(embeds, torch.tensor([0, 0, 1, 1])).item() == 0
    # Each class at both poles: all its positives are opposite, half its negatives alike.
    assert Histogram()(embeds, torch.tensor([0, 1, 0, 1])).item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("labels", [[5], [5, 5], [5, 9, 2]])
def test_no_positive_or_no_negative_gives_a_differentiable_zero(labels):
    embeds, labels = batch(labels)
    (grad,) = torch.autograd.grad(Histogram()(embeds, labels), embeds)
    assert torch.equal(grad, torch.zeros_like(embeds))
