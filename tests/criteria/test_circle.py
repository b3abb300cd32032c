import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.losses import CircleLoss

from criteria.circle import Circle
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


def frozen(embeds, labels, at, m=0.25, gamma=80.0):
    """The loss with its weighting factors held at those of the embeddings ``at``; by autograd."""
    sims, held = embeds @ embeds.T, (at @ at.T).detach()
    losses = []
    for i in range(len(labels)):
        positives = [k for k in range(len(labels)) if k != i and labels[k] == labels[i]]
        negatives = [k for k in range(len(labels)) if labels[k] != labels[i]]
        if positives and negatives:
            alpha_p, alpha_n = (1 + m - held[i]).relu(), (held[i] + m).relu()
            pull = (-gamma * alpha_p * (sims[i] - 1 + m))[positives].exp().sum()
            push = (gamma * alpha_n * (sims[i] - m))[negatives].exp().sum()
            losses.append((1 + push * pull).log())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("labels", LABELS)
def test_equals_the_equation(labels):
    embeds, labels = batch(labels)
    assert Circle()(embeds, labels).item() == pytest.approx(oracle(embeds, labels), abs=1e-10)


@pytest.mark.parametrize("labels", LABELS)
def test_against_references_equals_the_equation(labels):
    embeds, labels = batch(labels)
    loss = Circle()(embeds, labels, memory())
    assert loss.item() == pytest.approx(oracle(embeds, labels, memory()), abs=1e-10)


def test_as_its_own_references_a_batch_has_the_self_pairs_too():
    """Each image is then a positive of its own."""
    embeds, labels = batch(LABELS[0])
    own = References(embeds.detach(), labels)
    loss = Circle()(embeds, labels, own)
    assert loss.item() == pytest.approx(oracle(embeds, labels, own), abs=1e-10)
    assert abs(loss.item() - Circle()(embeds, labels).item()) > 1e-4


def test_hyperparameters_enter_where_the_equation_has_them():
    embeds, labels = batch(LABELS[0])
    loss = Circle(margin=0.4, gamma=16.0)(embeds, labels)
    assert loss.item() == pytest.approx(oracle(embeds, labels, m=0.4, gamma=16.0), abs=1e-10)


@pytest.mark.parametrize("labels", LABELS)
def test_gradient_holds_the_weighting_factors(labels):
    embeds, labels = batch(labels)
    (expected,) = torch.autograd.grad(frozen(embeds, labels, embeds), embeds)
    (grad,) = torch.autograd.grad(Circle()(embeds, labels), embeds)
    assert torch.allclose(grad, expected, atol=1e-10)


def test_batch_order_does_not_matter():
    embeds, labels = batch(LABELS[0])
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(3))
    criterion = Circle()
    assert torch.allclose(criterion(embeds, labels), criterion(embeds[order], labels[order]))


@pytest.mark.parametrize("labels", [[8], [0, 1], [0, 0], [3, 3, 3], [0, 1, 2]])
@pytest.mark.parametrize("collapsed", [False, True])
def test_few_images_or_classes_at_one_place_or_apart(labels, collapsed):
    """Equals the equation, whose sums may be empty, with a finite gradient."""
    embeds, labels = batch(labels)
    if collapsed:
        embeds = embeds[:1].detach().repeat(len(labels), 1).requires_grad_()
    loss = Circle()(embeds, labels)
    (grad,) = torch.autograd.grad(loss, embeds)
    assert loss.item() == pytest.approx(oracle(embeds, labels), abs=1e-10)
    assert grad.isfinite().all()


def test_an_anchor_without_any_pair_among_the_references_is_no_trouble():
    embeds, labels = batch([0, 1, 2])
    references = References(embeds.detach()[:1], torch.tensor([9]))
    loss = Circle()(embeds, labels, references)
    (grad,) = torch.autograd.grad(loss, embeds)
    assert loss.item() == pytest.approx(oracle(embeds, labels, references), abs=1e-10)
    assert grad.isfinite().all()


def along_the_sphere(gradient, embeds):
    """Without the part along each unit row, which a normalisation inside the loss takes off."""
    return gradient - (gradient * embeds).sum(dim=1, keepdim=True) * embeds


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
    with pytest.raises(ValueError, match=r"--loss_circle_gamma 0 .* above 0"):
        Circle(gamma=0)
