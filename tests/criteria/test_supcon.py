import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.losses import SupConLoss

from criteria.supcon import SupCon
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


def oracle(embeds, labels, references=None, temperature=0.1):
    """The paper's equation, one pair at a time."""
    losses = []
    for x, positives, negatives in pairs_of(embeds, labels, references):
        total = sum(math.exp(dot(x, y) / temperature) for y in positives + negatives)
        terms = [-math.log(math.exp(dot(x, p) / temperature) / total) for p in positives]
        if terms:
            losses.append(sum(terms) / len(terms))
    return sum(losses) / max(len(losses), 1)


@pytest.mark.parametrize("labels", LABELS)
def test_equals_the_equation(labels):
    embeds, labels = batch(labels)
    assert SupCon()(embeds, labels).item() == pytest.approx(oracle(embeds, labels), abs=1e-10)


@pytest.mark.parametrize("labels", LABELS)
def test_against_references_equals_the_equation(labels):
    embeds, labels = batch(labels)
    loss = SupCon()(embeds, labels, memory())
    assert loss.item() == pytest.approx(oracle(embeds, labels, memory()), abs=1e-10)


def test_as_its_own_references_a_batch_has_the_self_pairs_too():
    """Each image is then a positive of its own."""
    embeds, labels = batch(LABELS[0])
    own = References(embeds.detach(), labels)
    loss = SupCon()(embeds, labels, own)
    assert loss.item() == pytest.approx(oracle(embeds, labels, own), abs=1e-10)
    assert abs(loss.item() - SupCon()(embeds, labels).item()) > 1e-4


def test_temperature_enters_where_the_equation_has_it():
    embeds, labels = batch(LABELS[0])
    loss = SupCon(temperature=0.5)(embeds, labels)
    assert loss.item() == pytest.approx(oracle(embeds, labels, temperature=0.5), abs=1e-10)


@pytest.mark.parametrize("references", [None, memory()])
@pytest.mark.parametrize("labels", LABELS)
def test_gradient(labels, references):
    embeds, labels = batch(labels)
    criterion = SupCon()
    assert torch.autograd.gradcheck(lambda x: criterion(x, labels, references), (embeds,))


def test_batch_order_does_not_matter():
    embeds, labels = batch(LABELS[0])
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(3))
    criterion = SupCon()
    assert torch.allclose(criterion(embeds, labels), criterion(embeds[order], labels[order]))


@pytest.mark.parametrize("labels", [[8], [0, 1], [0, 0], [3, 3, 3], [0, 1, 2]])
@pytest.mark.parametrize("collapsed", [False, True])
def test_few_images_or_classes_at_one_place_or_apart(labels, collapsed):
    """Equals the equation, whose sums may be empty, with a finite gradient."""
    embeds, labels = batch(labels)
    if collapsed:
        embeds = embeds[:1].detach().repeat(len(labels), 1).requires_grad_()
    loss = SupCon()(embeds, labels)
    (grad,) = torch.autograd.grad(loss, embeds)
    assert loss.item() == pytest.approx(oracle(embeds, labels), abs=1e-10)
    assert grad.isfinite().all()


def test_an_anchor_without_any_pair_among_the_references_is_no_trouble():
    embeds, labels = batch([0, 1, 2])
    references = References(embeds.detach()[:1], torch.tensor([9]))
    loss = SupCon()(embeds, labels, references)
    (grad,) = torch.autograd.grad(loss, embeds)
    assert loss.item() == pytest.approx(oracle(embeds, labels, references), abs=1e-10)
    assert grad.isfinite().all()


def along_the_sphere(gradient, embeds):
    """Without the part along each unit row, which a normalisation inside the loss takes off."""
    return gradient - (gradient * embeds).sum(dim=1, keepdim=True) * embeds


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
    with pytest.raises(ValueError, match=f"--loss_supcon_temperature {temperature} .* above 0"):
        SupCon(temperature=temperature)
