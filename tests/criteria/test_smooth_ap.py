import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.losses import SmoothAPLoss

from criteria.smooth_ap import SmoothAP
from utilities.structures import References

# Uneven classes, a singleton, neither ordered nor contiguous.
LABELS = torch.tensor([7, 3, 7, 40, 3, 7, 3, 12, 12, 7, 3])
REFERENCE_LABELS = torch.tensor([12, 7, 5, 3, 3, 40, 7])


def rows(n, dim=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, dim, generator=generator, dtype=torch.float64), dim=1)


def oracle(embeds, labels, tau, references=None):
    """Equations 7 and 8, one query, one positive and one reference at a time."""
    others, other_labels = (embeds, labels) if references is None else references
    losses = []
    for a in range(len(embeds)):
        ranked = [j for j in range(len(others)) if references is not None or j != a]
        sims = {
            j: sum(x * y for x, y in zip(embeds[a].tolist(), others[j].tolist(), strict=True))
            for j in ranked
        }
        positives = [j for j in ranked if other_labels[j] == labels[a]]
        precisions = []
        for p in positives:
            steps = {j: 1 / (1 + math.exp(-(sims[j] - sims[p]) / tau)) for j in ranked if j != p}
            of_positives = sum(step for j, step in steps.items() if j in positives)
            precisions.append((1 + of_positives) / (1 + sum(steps.values())))
        if positives:
            losses.append(1 - sum(precisions) / len(precisions))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("tau", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_equation(tau, seed):
    embeds = rows(11, seed=seed)
    loss = SmoothAP(temperature=tau)(embeds, LABELS)
    assert loss.item() == pytest.approx(oracle(embeds, LABELS, tau), abs=1e-10)


@pytest.mark.parametrize("tau", [0.01, 0.1, 1.0])
def test_equals_the_equation_against_references(tau):
    embeds, references = rows(11), References(rows(7, seed=1), REFERENCE_LABELS)
    loss = SmoothAP(temperature=tau)(embeds, LABELS, references)
    assert loss.item() == pytest.approx(oracle(embeds, LABELS, tau, references), abs=1e-10)


def test_the_batch_as_references_differs_by_the_image_itself():
    """It is then in its own ranking, and as a positive: the first, a rank too low for the rest."""
    embeds = rows(11)
    beside = SmoothAP()(embeds, LABELS, References(embeds, LABELS))
    expected = oracle(embeds, LABELS, 0.01, References(embeds, LABELS))
    assert beside.item() == pytest.approx(expected, abs=1e-10)
    assert abs(expected - SmoothAP()(embeds, LABELS).item()) > 0.01


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("tau", [0.01, 0.1])
def test_equals_pytorch_metric_learning(n, tau):
    """Coincides with the batch as its own references: theirs counts an image as its positive.

    Theirs needs sorted classes of one size and, as of 2.9, as many of them as each has images.
    Gradients do not coincide: theirs goes through both sides of a pair, ours not through
    references.
    """
    embeds, labels = rows(n * n).float(), torch.arange(n).repeat_interleave(n)
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


@pytest.mark.parametrize("tau", [0.05, 0.3])
@pytest.mark.parametrize("references", [None, References(rows(7, seed=1), REFERENCE_LABELS)])
def test_gradient(references, tau):
    criterion, embeds = SmoothAP(temperature=tau), rows(11).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: criterion(x, LABELS, references), (embeds,))


def test_batch_order_does_not_matter():
    embeds = rows(11)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(1))
    moved = SmoothAP()(embeds[order], LABELS[order])
    assert torch.allclose(SmoothAP()(embeds, LABELS), moved)


def test_images_without_positives_are_negatives_and_no_queries():
    embeds, labels = rows(6).requires_grad_(), torch.tensor([3, 8, 3, 5, 2, 3])
    loss = SmoothAP(temperature=0.1)(embeds, labels)
    assert loss.item() == pytest.approx(oracle(embeds, labels, 0.1), abs=1e-10)
    (grad,) = torch.autograd.grad(loss, embeds)
    assert (grad.abs().sum(dim=1) > 0).all()


@pytest.mark.parametrize("labels", [[5], [5, 9], [5, 9, 2]])
@pytest.mark.parametrize("references", [None, References(torch.ones(2, 2), torch.tensor([6, 6]))])
def test_without_positives_a_differentiable_zero(labels, references):
    embeds = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.6, 0.8]])[: len(labels)].requires_grad_()
    loss = SmoothAP()(embeds, torch.tensor(labels), references)
    (grad,) = torch.autograd.grad(loss, embeds)
    assert loss.item() == 0
    assert torch.equal(grad, torch.zeros_like(embeds))


def test_positives_alone_are_ranked_perfectly():
    embeds = rows(5).requires_grad_()
    loss = SmoothAP()(embeds, torch.tensor([4] * 5))
    (grad,) = torch.autograd.grad(loss, embeds)
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert torch.allclose(grad, torch.zeros_like(grad), atol=1e-9)


def test_a_collapsed_batch_and_long_rows_have_finite_gradients():
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    for embeds in (torch.full((6, 4), 0.5), rows(6).float() * 50):
        embeds.requires_grad_()
        loss = SmoothAP()(embeds, labels)
        (grad,) = torch.autograd.grad(loss, embeds)
        assert 0 <= loss.item() < 1
        assert grad.isfinite().all()


@pytest.mark.parametrize("temperature", [0, -0.1])
def test_a_wrong_temperature_is_named(temperature):
    with pytest.raises(ValueError, match="temperature must be finite and > 0; got"):
        SmoothAP(temperature=temperature)
