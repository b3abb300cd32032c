import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.losses import HistogramLoss

from criteria.histogram import Histogram
from tests.rounding import rounding
from utilities.structures import References

# Uneven classes, a singleton, neither ordered nor contiguous.
LABELS = torch.tensor([7, 3, 7, 40, 3, 7, 3, 12, 12, 7, 3])
REFERENCE_LABELS = torch.tensor([12, 7, 5, 3, 3, 40, 7])


def rows(n, dim=4, seed=0):
    """Of various lengths."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dim, generator=generator, dtype=torch.float64)


def cosine(x, y):
    dot = sum(a * b for a, b in zip(x, y, strict=True))
    return dot / math.sqrt(sum(a * a for a in x) * sum(b * b for b in y))


def histogram(cosines, nbins):
    """Equations 1 and 2, node by node."""
    width = 2 / (nbins - 1)
    nodes = [-1 + r * width for r in range(nbins)]
    shares = [sum(max(0.0, 1 - abs(s - node) / width) for s in cosines) for node in nodes]
    return [share / len(cosines) for share in shares]


def oracle(embeds, labels, nbins, references=None):
    """Equation 5, one pair and one node at a time."""
    others, other_labels = (embeds, labels) if references is None else references
    cosines = {True: [], False: []}
    for i in range(len(embeds)):
        for j in range(len(others)):
            if references is None and i == j:
                continue
            same = bool(labels[i] == other_labels[j])
            cosines[same].append(cosine(embeds[i].tolist(), others[j].tolist()))
    h_pos, h_neg = histogram(cosines[True], nbins), histogram(cosines[False], nbins)
    return sum(h_neg[r] * h_pos[q] for r in range(nbins) for q in range(r + 1))


@pytest.mark.parametrize("nbins", [3, 11, 65])
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_equation(nbins, seed):
    embeds = rows(11, seed=seed)
    loss = Histogram(nbins=nbins)(embeds, LABELS)
    assert loss.item() == pytest.approx(oracle(embeds, LABELS, nbins), abs=1e-10)


@pytest.mark.parametrize("nbins", [3, 11, 65])
def test_equals_the_equation_against_references(nbins):
    embeds, references = rows(11), References(rows(7, seed=1), REFERENCE_LABELS)
    loss = Histogram(nbins=nbins)(embeds, LABELS, references)
    assert loss.item() == pytest.approx(oracle(embeds, LABELS, nbins, references), abs=1e-10)


def test_the_batch_as_references_differs_by_the_pairs_of_an_image_with_itself():
    """These are n positive pairs of cosine 1: the loss of a pair at the last node is h⁻ there."""
    embeds, nbins = rows(11), 11
    inside = Histogram(nbins=nbins)(embeds, LABELS)
    beside = Histogram(nbins=nbins)(embeds, LABELS, References(embeds, LABELS))
    n_pos = int((LABELS[:, None] == LABELS).sum()) - 11
    negatives = [
        cosine(embeds[i].tolist(), embeds[j].tolist())
        for i in range(11)
        for j in range(11)
        if LABELS[i] != LABELS[j]
    ]
    of_itself = histogram(negatives, nbins)[-1]
    expected = (n_pos * inside.item() + 11 * of_itself) / (n_pos + 11)
    assert beside.item() == pytest.approx(expected, abs=1e-10)


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
@pytest.mark.parametrize("seed", range(3))
def test_equals_pytorch_metric_learning(seed):
    """Coincides where theirs has as many intervals, and every image a positive and a negative.

    Theirs leaves out the pairs of an anchor that is in no triplet.
    """
    labels = LABELS[LABELS != 40]
    embeds = rows(10, seed=seed).float().requires_grad_()
    theirs = HistogramLoss(n_bins=64)(embeds, labels)
    ours = Histogram(nbins=65)(embeds, labels)
    assert ours.item() == pytest.approx(theirs.item(), abs=rounding(65))  # of 65 nodes
    (their_grad,) = torch.autograd.grad(theirs, embeds)
    (our_grad,) = torch.autograd.grad(ours, embeds)
    assert torch.allclose(our_grad, their_grad, atol=1e-5)


@pytest.mark.parametrize("references", [None, References(rows(7, seed=1), REFERENCE_LABELS)])
def test_gradient(references):
    criterion, embeds = Histogram(nbins=9), rows(11).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: criterion(x, LABELS, references), (embeds,))
    # With 65 nodes a finite difference of the usual 1e-6 more easily steps over one.
    fine = Histogram()
    assert torch.autograd.gradcheck(lambda x: fine(x, LABELS, references), (embeds,), eps=1e-7)


def test_batch_order_and_length_do_not_matter():
    embeds = rows(11)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(1))
    loss = Histogram()(embeds, LABELS)
    assert torch.allclose(loss, Histogram()(embeds[order], LABELS[order]))
    assert torch.allclose(loss, Histogram()(F.normalize(embeds, dim=1), LABELS))


def test_separated_and_swapped_classes_are_the_two_ends():
    embeds = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]])
    assert Histogram()(embeds, torch.tensor([0, 0, 1, 1])).item() == 0
    # Each class at both poles: all its positives are opposite, half its negatives alike.
    assert Histogram()(embeds, torch.tensor([0, 1, 0, 1])).item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("labels", [[5], [5, 5], [5, 9], [5, 9, 2], [5, 5, 5]])
@pytest.mark.parametrize("references", [None, References(torch.ones(1, 2), torch.tensor([5]))])
def test_without_positives_or_negatives_a_differentiable_zero(labels, references):
    embeds = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.6, 0.8]])[: len(labels)].requires_grad_()
    labels = torch.tensor(labels)
    if references is not None:
        labels = torch.full_like(labels, 5)
    loss = Histogram()(embeds, labels, references)
    (grad,) = torch.autograd.grad(loss, embeds)
    assert loss.item() == 0
    assert torch.equal(grad, torch.zeros_like(embeds))


def test_a_collapsed_batch_has_a_finite_gradient():
    embeds = torch.full((6, 4), 0.5, requires_grad=True)
    loss = Histogram()(embeds, torch.tensor([0, 0, 1, 1, 2, 2]))
    (grad,) = torch.autograd.grad(loss, embeds)
    assert 0.99 < loss.item() <= 1 + 1e-6  # negatives are as similar as positives
    assert grad.isfinite().all()


@pytest.mark.parametrize("nbins", [64, 1, 0, -3])
def test_a_wrong_number_of_nodes_is_named(nbins):
    with pytest.raises(ValueError, match=f"nbins must be odd .*got {nbins}"):
        Histogram(nbins=nbins)
