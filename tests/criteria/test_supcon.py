import math

import pytest
import torch
from pytorch_metric_learning.losses import SupConLoss

from criteria.supcon import SupCon
from tests.criteria.pair_losses import (
    LABELS,
    PairLossTests,
    along_the_sphere,
    batch,
    dot,
    memory,
    pairs_of,
)


def oracle(embeds, labels, references=None, temperature=0.1):
    """The paper's equation, one pair at a time."""
    losses = []
    for x, positives, negatives in pairs_of(embeds, labels, references):
        total = sum(math.exp(dot(x, y) / temperature) for y in positives + negatives)
        terms = [-math.log(math.exp(dot(x, p) / temperature) / total) for p in positives]
        if terms:
            losses.append(sum(terms) / len(terms))
    return sum(losses) / max(len(losses), 1)


class TestSupCon(PairLossTests):
    make = SupCon
    equation = staticmethod(oracle)


def test_temperature_enters_where_the_equation_has_it():
    embeds, labels = batch(LABELS[0])
    loss = SupCon(temperature=0.5)(embeds, labels)
    assert loss.item() == pytest.approx(oracle(embeds, labels, temperature=0.5), abs=1e-10)


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("references", [None, memory()])
def test_equals_pytorch_metric_learning(labels, references):
    """Coincides for unit rows: it averages over the losses above zero, which are the anchors that
    have positives."""
    embeds, labels = batch(labels)
    ref = (None, None) if references is None else references
    theirs = SupConLoss(temperature=0.1)(embeds, labels, None, *ref)
    ours = SupCon()(embeds, labels, references)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-9)
    (their_grad,) = torch.autograd.grad(theirs, embeds)
    (our_grad,) = torch.autograd.grad(ours, embeds)
    assert torch.allclose(along_the_sphere(our_grad, embeds), their_grad, atol=1e-9)


def test_anchors_without_positives_are_left_out_of_the_mean():
    """They are still among the others' negatives."""
    embeds, labels = batch([0, 0, 1])
    a, b, c = embeds.tolist()
    ab, ac, bc = (math.exp(dot(x, y) / 0.1) for x, y in ((a, b), (a, c), (b, c)))
    expected = -(math.log(ab / (ab + ac)) + math.log(ab / (ab + bc))) / 2
    assert SupCon()(embeds, labels).item() == pytest.approx(expected, abs=1e-10)


def test_a_low_temperature_does_not_overflow():
    embeds, labels = batch(LABELS[0])
    embeds = embeds.detach().float().requires_grad_()
    loss = SupCon(temperature=1e-3)(embeds, labels)
    (grad,) = torch.autograd.grad(loss, embeds)
    assert loss.isfinite()
    assert grad.isfinite().all()


@pytest.mark.parametrize("temperature", [0.0, -0.1])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature must be finite and > 0; got"):
        SupCon(temperature=temperature)
