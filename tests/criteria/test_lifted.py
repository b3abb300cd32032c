import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import GeneralizedLiftedStructureLoss

from criteria.lifted import Lifted
from utilities.structures import References

LABELS = [
    [7, 3, 7, 50, 3, 7, 11, 3],  # uneven, singletons, unordered, not contiguous
    [5, 2, 9, 9, 2, 5],
    [4, 1, 4, 4, 4, 9],
]


def batch(labels, dim=4, seed=0, length=1.0):
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randn(len(labels), dim, generator=generator, dtype=torch.float64)
    embeds = F.normalize(embeds, dim=1) * length
    return embeds.requires_grad_(), torch.tensor(labels)


def memory(seed=5):
    embeds, labels = batch([3, 50, 7, 7, 2, 3, 4, 4, 9, 11, 5], seed=seed)
    return References(embeds.detach(), labels)


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def pairs_of(embeds, labels, references):
    """Per anchor the rows of its positives and of its negatives, as lists of floats."""
    itself = references is None
    others, other_labels = (embeds, labels) if itself else references
    others = others.tolist()
    for i, row in enumerate(embeds.tolist()):
        same = [k for k in range(len(others)) if other_labels[k] == labels[i]]
        positives = [others[k] for k in same if not (itself and k == i)]
        negatives = [others[k] for k in range(len(others)) if other_labels[k] != labels[i]]
        yield row, positives, negatives


def oracle(embeds, labels, references=None, margin=1.0, l2=0.005):
    """The equation, one pair at a time."""
    losses = []
    for x, positives, negatives in pairs_of(embeds, labels, references):
        if positives and negatives:
            pull = math.log(sum(math.exp(math.dist(x, p)) for p in positives))
            push = math.log(sum(math.exp(margin - math.dist(x, n)) for n in negatives))
            losses.append(max(0.0, pull + push))
    squares = [dot(x, x) for x in embeds.tolist()]
    return sum(losses) / max(len(losses), 1) + l2 * sum(squares) / len(squares)


@pytest.mark.parametrize("labels", LABELS)
def test_equals_the_equation(labels):
    embeds, labels = batch(labels, length=1.5)
    assert Lifted()(embeds, labels).item() == pytest.approx(oracle(embeds, labels), abs=1e-10)


@pytest.mark.parametrize("labels", LABELS)
def test_against_references_equals_the_equation(labels):
    embeds, labels = batch(labels, length=1.5)
    loss = Lifted()(embeds, labels, memory())
    assert loss.item() == pytest.approx(oracle(embeds, labels, memory()), abs=1e-10)


def test_as_its_own_references_a_batch_has_the_self_pairs_too():
    """Each image is then a positive of its own, at distance 0 up to the roots of roundings."""
    embeds, labels = batch(LABELS[0], length=1.5)
    own = References(embeds.detach(), labels)
    loss = Lifted()(embeds, labels, own)
    assert loss.item() == pytest.approx(oracle(embeds, labels, own), abs=1e-7)
    assert abs(loss.item() - Lifted()(embeds, labels).item()) > 1e-4


def test_hyperparameters_enter_where_the_equation_has_them():
    embeds, labels = batch(LABELS[0], length=2.0)
    loss = Lifted(neg_margin=0.3, l2=0.1)(embeds, labels)
    assert loss.item() == pytest.approx(oracle(embeds, labels, margin=0.3, l2=0.1), abs=1e-10)


@pytest.mark.parametrize("references", [None, memory()])
@pytest.mark.parametrize("labels", LABELS)
def test_gradient(labels, references):
    embeds, labels = batch(labels, length=1.5)
    criterion = Lifted()
    assert torch.autograd.gradcheck(lambda x: criterion(x, labels, references), (embeds,))


def test_batch_order_does_not_matter():
    embeds, labels = batch(LABELS[0])
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(3))
    criterion = Lifted()
    assert torch.allclose(criterion(embeds, labels), criterion(embeds[order], labels[order]))


@pytest.mark.parametrize("labels", [[8], [0, 1], [0, 0], [3, 3, 3], [0, 1, 2]])
@pytest.mark.parametrize("collapsed", [False, True])
def test_few_images_or_classes_at_one_place_or_apart(labels, collapsed):
    """Equals the equation, whose sums may be empty, with a finite gradient."""
    embeds, labels = batch(labels)
    if collapsed:
        embeds = embeds[:1].detach().repeat(len(labels), 1).requires_grad_()
    loss = Lifted()(embeds, labels)
    (grad,) = torch.autograd.grad(loss, embeds)
    assert loss.item() == pytest.approx(oracle(embeds, labels), abs=1e-6)
    assert grad.isfinite().all()


def test_an_anchor_without_any_pair_among_the_references_is_no_trouble():
    embeds, labels = batch([0, 1, 2])
    references = References(embeds.detach()[:1], torch.tensor([9]))
    loss = Lifted()(embeds, labels, references)
    (grad,) = torch.autograd.grad(loss, embeds)
    assert loss.item() == pytest.approx(oracle(embeds, labels, references), abs=1e-10)
    assert grad.isfinite().all()


@pytest.mark.parametrize("labels", [[5, 2, 9, 9, 2, 5], [1, 1, 3, 3, 3, 3, 3]])
def test_equals_pytorch_metric_learning(labels):
    """Coincides where each anchor has positives: theirs is zero at one without, and in the mean."""
    embeds, labels = batch(labels, length=1.5)
    distance = LpDistance(normalize_embeddings=False)
    theirs = GeneralizedLiftedStructureLoss(neg_margin=1, distance=distance)(embeds, labels)
    ours = Lifted(l2=0.0)(embeds, labels)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-9)
    (their_grad,) = torch.autograd.grad(theirs, embeds)
    (our_grad,) = torch.autograd.grad(ours, embeds)
    assert torch.allclose(our_grad, their_grad, atol=1e-9)


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
    assert loss.item() == pytest.approx(oracle(embeds, [0, 0, 0, 1], l2=0.0), abs=1e-10)
    assert grad.isfinite().all()
    assert torch.equal(grad[0], grad[1])
    assert grad[0].abs().sum() > 0


def test_long_embeddings_do_not_overflow():
    embeds, labels = batch(LABELS[0], length=1e4)
    embeds = embeds.detach().float().requires_grad_()
    loss = Lifted()(embeds, labels)
    (grad,) = torch.autograd.grad(loss, embeds)
    assert loss.isfinite()
    assert grad.isfinite().all()


def test_a_negative_weight_of_the_length_is_refused():
    with pytest.raises(ValueError, match=r"--loss_lifted_l2 -1 .* use 0 or a positive"):
        Lifted(l2=-1)
