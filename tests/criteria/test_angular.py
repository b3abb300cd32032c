import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.losses import AngularLoss

from criteria.angular import Angular
from criteria.npair import NPair
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


@pytest.mark.parametrize("labels", LABELS)
def test_equals_the_equation(labels):
    embeds, labels = batch(labels, length=1.5)
    assert Angular()(embeds, labels).item() == pytest.approx(oracle(embeds, labels), abs=1e-10)


@pytest.mark.parametrize("labels", LABELS)
def test_against_references_equals_the_equation(labels):
    embeds, labels = batch(labels, length=1.5)
    loss = Angular()(embeds, labels, memory())
    assert loss.item() == pytest.approx(oracle(embeds, labels, memory()), abs=1e-10)


def test_as_its_own_references_a_batch_has_the_self_pairs_too():
    """Each image is then a positive of its own."""
    embeds, labels = batch(LABELS[0], length=1.5)
    own = References(embeds.detach(), labels)
    loss = Angular()(embeds, labels, own)
    assert loss.item() == pytest.approx(oracle(embeds, labels, own), abs=1e-10)
    assert abs(loss.item() - Angular()(embeds, labels).item()) > 1e-4


@pytest.mark.parametrize("alpha", [10.0, 36.0, 70.0])
def test_hyperparameters_enter_where_the_equation_has_them(alpha):
    embeds, labels = batch(LABELS[0], length=2.0)
    criterion = Angular(alpha=alpha, npair_ang_weight=0.5, npair_l2=0.1)
    expected = oracle(embeds, labels, alpha=alpha, weight=0.5, l2=0.1)
    assert criterion(embeds, labels).item() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("references", [None, memory()])
@pytest.mark.parametrize("labels", LABELS)
def test_gradient(labels, references):
    embeds, labels = batch(labels, length=1.5)
    criterion = Angular()
    assert torch.autograd.gradcheck(lambda x: criterion(x, labels, references), (embeds,))


def test_batch_order_does_not_matter():
    embeds, labels = batch(LABELS[0])
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(3))
    criterion = Angular()
    assert torch.allclose(criterion(embeds, labels), criterion(embeds[order], labels[order]))


@pytest.mark.parametrize("labels", [[8], [0, 1], [0, 0], [3, 3, 3], [0, 1, 2]])
@pytest.mark.parametrize("collapsed", [False, True])
def test_few_images_or_classes_at_one_place_or_apart(labels, collapsed):
    """Equals the equation, whose sums may be empty, with a finite gradient."""
    embeds, labels = batch(labels)
    if collapsed:
        embeds = embeds[:1].detach().repeat(len(labels), 1).requires_grad_()
    loss = Angular()(embeds, labels)
    (grad,) = torch.autograd.grad(loss, embeds)
    assert loss.item() == pytest.approx(oracle(embeds, labels), abs=1e-10)
    assert grad.isfinite().all()


def test_an_anchor_without_any_pair_among_the_references_is_no_trouble():
    embeds, labels = batch([0, 1, 2])
    references = References(embeds.detach()[:1], torch.tensor([9]))
    loss = Angular()(embeds, labels, references)
    (grad,) = torch.autograd.grad(loss, embeds)
    assert loss.item() == pytest.approx(oracle(embeds, labels, references), abs=1e-10)
    assert grad.isfinite().all()


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
    # The part along each row differs: ours has none.
    along = their_grad - (their_grad * embeds).sum(dim=1, keepdim=True) * embeds
    assert torch.allclose(our_grad, along, atol=1e-9)


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
    with pytest.raises(ValueError, match=r"--loss_angular_alpha 0 is no angle .* \(0, 70\]"):
        Angular(alpha=0)
    with pytest.raises(ValueError, match=r"--loss_angular_alpha 80 is no angle .* \(0, 70\]"):
        Angular(alpha=80)
    with pytest.raises(ValueError, match=r"--loss_angular_npair_ang_weight -1 .* use 0 or"):
        Angular(npair_ang_weight=-1)
    with pytest.raises(ValueError, match=r"--loss_angular_npair_l2 -1 .* use 0 or"):
        Angular(npair_l2=-1)
