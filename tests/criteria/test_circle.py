import math

import pytest
import torch
from pytorch_metric_learning.losses import CircleLoss

from criteria.circle import Circle
from tests.criteria.pair_losses import (
    LABELS,
    PairLossTests,
    along_the_sphere,
    batch,
    dot,
    memory,
    pairs_of,
)


def oracle(embeds, labels, references=None, m=0.25, gamma=80.0):
    """The paper's equations 6 to 8, one pair at a time."""
    losses = []
    for x, positives, negatives in pairs_of(embeds, labels, references):
        if not positives or not negatives:
            continue
        pull = push = 0.0
        for p in positives:
            alpha = max(0.0, 1 + m - dot(x, p))
            pull += math.exp(-gamma * alpha * (dot(x, p) - (1 - m)))
        for n in negatives:
            alpha = max(0.0, dot(x, n) + m)
            push += math.exp(gamma * alpha * (dot(x, n) - m))
        losses.append(math.log(1 + push * pull))
    return sum(losses) / max(len(losses), 1)


def frozen(embeds, labels, references=None, m=0.25, gamma=80.0):
    """The loss with its weighting factors held at what they are; by autograd."""
    others, other_labels = (embeds, labels) if references is None else references
    sims = embeds @ others.T
    held = sims.detach()
    losses = []
    for i in range(len(labels)):
        positives = other_labels == labels[i]
        negatives = ~positives
        if references is None:
            positives[i] = False
        if positives.any() and negatives.any():
            alpha_p, alpha_n = (1 + m - held[i]).relu(), (held[i] + m).relu()
            pull = (-gamma * alpha_p * (sims[i] - 1 + m))[positives].exp().sum()
            push = (gamma * alpha_n * (sims[i] - m))[negatives].exp().sum()
            losses.append((1 + push * pull).log())
    return torch.stack(losses).mean()


class TestCircle(PairLossTests):
    make = Circle
    equation = staticmethod(oracle)

    @pytest.mark.parametrize("references", [None, memory()])
    @pytest.mark.parametrize("labels", LABELS)
    def test_gradient(self, labels, references):
        """The weighting factors have none."""
        embeds, labels = self.batch(labels)
        (expected,) = torch.autograd.grad(frozen(embeds, labels, references), embeds)
        (grad,) = torch.autograd.grad(Circle()(embeds, labels, references), embeds)
        assert torch.allclose(grad, expected, atol=1e-10)


def test_hyperparameters_enter_where_the_equation_has_them():
    embeds, labels = batch(LABELS[0])
    loss = Circle(margin=0.4, gamma=16.0)(embeds, labels)
    assert loss.item() == pytest.approx(oracle(embeds, labels, m=0.4, gamma=16.0), abs=1e-10)


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("references", [None, memory()])
def test_equals_pytorch_metric_learning(labels, references):
    """Coincides for unit rows and m, gamma = ours: it averages over the losses above zero, which
    are the anchors that have positives and negatives."""
    embeds, labels = batch(labels)
    ref = (None, None) if references is None else references
    theirs = CircleLoss(m=0.25, gamma=80)(embeds, labels, None, *ref)
    ours = Circle()(embeds, labels, references)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-9)
    (their_grad,) = torch.autograd.grad(theirs, embeds)
    (our_grad,) = torch.autograd.grad(ours, embeds)
    assert torch.allclose(along_the_sphere(our_grad, embeds), their_grad, atol=1e-8)


def test_similarities_beyond_their_optimum_have_no_weight():
    """A negative below -m, a positive above 1 + m: the factors are cut at zero."""
    embeds = torch.tensor([[1.2, 0.0], [1.2, 0.0], [-1.0, 0.0]], requires_grad=True)
    loss = Circle()(embeds, torch.tensor([0, 0, 1]))
    (grad,) = torch.autograd.grad(loss, embeds)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)  # exp(0) each
    assert torch.equal(grad, torch.zeros_like(embeds))


def test_a_steep_scale_does_not_overflow():
    embeds, labels = batch(LABELS[0])
    embeds = embeds.detach().float().requires_grad_()
    loss = Circle(gamma=1e4)(embeds, labels)
    (grad,) = torch.autograd.grad(loss, embeds)
    assert loss.isfinite()
    assert grad.isfinite().all()
    assert grad.abs().sum() > 0


def test_a_scale_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="gamma must be finite and > 0; got 0"):
        Circle(gamma=0)
