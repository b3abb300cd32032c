import math
from typing import ClassVar

import pytest
import torch
from pytorch_metric_learning.losses import SmoothAPLoss

from criteria import SmoothAP
from tests.criteria.pair_losses import PairLossTests, batch, pairs_of
from tests.criteria.scalars import dot, unit_rows
from utilities.structures import References


def equation(embeds, labels, references=None, temperature=0.01):
    """Equations 7 and 8, one query, one positive and one reference at a time."""
    losses = []
    for x, positives, negatives in pairs_of(embeds, labels, references):
        pos, neg = [dot(x, p) for p in positives], [dot(x, n) for n in negatives]

        def rank(p, others, x=x):
            return sum(1 / (1 + math.exp(-(s - p) / temperature)) for s in others)

        precisions = []
        for k, p in enumerate(pos):
            among_positives = 1 + rank(p, pos[:k] + pos[k + 1 :])
            precisions.append(among_positives / (among_positives + rank(p, neg)))
        if pos:
            losses.append(1 - sum(precisions) / len(precisions))
    return sum(losses) / max(len(losses), 1)


class TestSmoothAP(PairLossTests):
    loss, equation = SmoothAP, staticmethod(equation)
    settings: ClassVar[tuple] = ({}, {"temperature": 1.0}, {"temperature": 0.1})
    extreme = {}, 2.0


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("tau", [0.01, 0.1])
def test_equals_pytorch_metric_learning(n, tau):
    """Equal with the batch as its own references: theirs counts an image as its positive.

    Theirs needs sorted classes of one size and, as of 2.9, as many of them as each has images.
    Gradients differ: theirs goes through both sides of a pair, ours not through references.
    """
    embeds, labels = unit_rows(n * n).float(), torch.arange(n).repeat_interleave(n)
    theirs = SmoothAPLoss(temperature=tau)(embeds, labels)
    ours = SmoothAP(temperature=tau)(embeds, labels, References(embeds, labels))
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)


def test_at_low_temperature_it_is_one_minus_the_average_precision():
    # The two positives are the second and the fourth of four.
    angles = torch.tensor([0.0, 0.2, 0.4, 0.6, 0.8], dtype=torch.float64)
    embeds = torch.stack([angles.cos(), angles.sin()], dim=1)
    query, others = embeds[:1], References(embeds[1:], torch.tensor([9, 4, 8, 4]))
    loss = SmoothAP(temperature=1e-4)(query, torch.tensor([4]), others)
    assert loss.item() == pytest.approx(1 - (1 / 2 + 2 / 4) / 2, abs=1e-10)


def test_images_without_positives_are_negatives_and_no_queries():
    embeds, labels = batch([3, 8, 3, 5, 2, 3])
    loss = SmoothAP(temperature=0.1)(embeds, labels)
    assert loss.item() == pytest.approx(equation(embeds, labels, temperature=0.1), abs=1e-10)
    (grad,) = torch.autograd.grad(loss, embeds)
    assert (grad.abs().sum(dim=1) > 0).all()


@pytest.mark.parametrize("labels", [[5], [5, 9, 2], [4, 4, 4, 4, 4]])
@pytest.mark.parametrize("collapsed", [False, True])
def test_no_positives_or_nothing_else_gives_a_differentiable_zero(labels, collapsed):
    embeds, labels = batch(labels)
    embeds = (embeds[:1].detach().repeat(len(labels), 1) if collapsed else embeds).requires_grad_()
    loss = SmoothAP()(embeds, labels)
    (grad,) = torch.autograd.grad(loss, embeds)
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert torch.allclose(grad, torch.zeros_like(grad), atol=1e-9)
