"""Margin and triplet loss on given triplets, and on those of a miner."""

import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import MarginLoss, TripletMarginLoss

from batchminer import Distance
from criteria import Margin, Triplet
from utilities.structures import Triplets


class Given:
    """A miner that returns the triplets it was made with."""

    def __init__(self, *triplets):
        self.triplets = Triplets(
            *torch.tensor(triplets, dtype=torch.long).reshape(-1, 3).unbind(dim=1)
        )

    def __call__(self, embeds, labels):
        return self.triplets


def batch(n=8, dim=6, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randn(n, dim, generator=generator, dtype=dtype)
    labels = torch.arange(n // 2).repeat_interleave(2)
    return F.normalize(embeds, dim=1).requires_grad_(), labels


ALL = [(0, 1, 2), (1, 0, 5), (2, 3, 0), (3, 2, 7), (4, 5, 1), (5, 4, 6), (6, 7, 3), (7, 6, 4)]


def distance(x, y):
    pairs = zip(x.tolist(), y.tolist(), strict=True)
    return math.sqrt(sum((a - b) ** 2 for a, b in pairs))


def margin_oracle(embeds, labels, triplets, beta, alpha, nu):
    total, active = 0.0, 0
    for a, p, n in triplets:
        boundary = beta[int(labels[a])]
        pos = max(0.0, distance(embeds[a], embeds[p]) - boundary + alpha)
        neg = max(0.0, boundary - distance(embeds[a], embeds[n]) + alpha)
        total += pos + neg
        active += (pos > 0) + (neg > 0)
    return total / max(active, 1) + nu * sum(beta[c] for c in {int(y) for y in labels})


@pytest.mark.parametrize("nu", [0.0, 0.3])
def test_margin_equals_the_equation(nu):
    embeds, labels = batch()
    criterion = Margin(6, Given(*ALL), nu=nu)  # two of six classes are not in the batch
    with torch.no_grad():
        criterion.beta += torch.linspace(-0.2, 0.2, 6)
    expected = margin_oracle(embeds, labels, ALL, criterion.beta.tolist(), 0.2, nu)
    assert criterion(embeds, labels).item() == pytest.approx(expected, abs=1e-6)


def test_margin_counts_positive_and_negative_actives_each():
    # d_ap = 2, d_an = sqrt(2): at beta 1.7 and alpha 0.4 both sides of the one triplet are active.
    embeds = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    criterion = Margin(2, Given((0, 1, 2)), beta=1.7, margin=0.4, beta_constant=True)
    loss = criterion(embeds, torch.tensor([0, 0, 1]))
    assert loss.item() == pytest.approx((0.7 + 1.7 - math.sqrt(2) + 0.4) / 2, abs=1e-6)


def test_margin_equals_pytorch_metric_learning():
    """Coincides with a Euclidean LpDistance, a boundary per class and given triplets, at nu 0.

    With nu > 0 theirs weighs a class by its share of the active triplets.
    """
    embeds, labels = batch(dtype=torch.float32)
    triplets = Given(*ALL).triplets
    theirs = MarginLoss(
        margin=0.2,
        beta=1.2,
        learn_beta=True,
        num_classes=4,
        distance=LpDistance(normalize_embeddings=False),
    )
    ours = Margin(4, Given(*ALL))
    their_loss, our_loss = theirs(embeds, labels, tuple(triplets)), ours(embeds, labels)
    assert our_loss.item() == pytest.approx(their_loss.item(), abs=1e-6)
    their_grads = torch.autograd.grad(their_loss, [embeds, theirs.beta])
    our_grads = torch.autograd.grad(our_loss, [embeds, ours.beta])
    for x, y in zip(our_grads, their_grads, strict=True):
        assert torch.allclose(x, y, atol=1e-4)


def test_triplet_equals_the_equation():
    embeds, labels = batch()
    losses = [
        distance(embeds[a], embeds[p]) ** 2 - distance(embeds[a], embeds[n]) ** 2 + 0.2
        for a, p, n in ALL
    ]
    active = [x for x in losses if x > 0]
    assert 0 < len(active) < len(ALL)
    loss = Triplet(Given(*ALL))(embeds, labels)
    assert loss.item() == pytest.approx(sum(active) / len(active), abs=1e-10)


def test_triplet_equals_pytorch_metric_learning():
    """Coincides with a squared LpDistance and their default average over non-zero losses."""
    embeds, labels = batch(dtype=torch.float32)
    squared = LpDistance(power=2, normalize_embeddings=False)
    theirs = TripletMarginLoss(margin=0.2, distance=squared)
    their_loss = theirs(embeds, labels, tuple(Given(*ALL).triplets))
    our_loss = Triplet(Given(*ALL))(embeds, labels)
    assert our_loss.item() == pytest.approx(their_loss.item(), abs=1e-6)
    (x,), (y,) = torch.autograd.grad(our_loss, embeds), torch.autograd.grad(their_loss, embeds)
    assert torch.allclose(x, y, atol=1e-4)


@pytest.mark.parametrize("make", [lambda m: Margin(4, m), Triplet])
def test_batch_order_does_not_matter(make):
    embeds, labels = batch()
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    place = order.argsort()
    moved = Given(*[tuple(place[list(t)].tolist()) for t in ALL])
    assert torch.allclose(
        make(Given(*ALL))(embeds, labels), make(moved)(embeds[order], labels[order])
    )


@pytest.mark.parametrize("make", [lambda m: Margin(4, m), Triplet])
def test_gradient(make):
    embeds, labels = batch()
    criterion = make(Given(*ALL)).double()
    assert torch.autograd.gradcheck(lambda x: criterion(x, labels), (embeds,))


def test_margin_gradient_of_the_boundaries():
    embeds, labels = batch()
    criterion = Margin(4, Given(*ALL), nu=0.1)

    def loss(beta):
        return torch.func.functional_call(criterion, {"beta": beta}, (embeds.detach(), labels))

    beta = torch.full((4,), 1.23, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (beta,))


@pytest.mark.parametrize("labels", [[0, 0], [0, 1], [2, 2, 2, 2]])
@pytest.mark.parametrize("make", [lambda m: Margin(4, m), Triplet])
def test_no_triplet_gives_a_differentiable_zero(make, labels):
    embeds = F.normalize(torch.randn(len(labels), 4), dim=1).requires_grad_()
    loss = make(Distance(0))(embeds, torch.tensor(labels))
    (grad,) = torch.autograd.grad(loss, embeds)
    assert loss.item() == 0
    assert torch.equal(grad, torch.zeros_like(embeds))


@pytest.mark.parametrize("make", [lambda m: Margin(4, m, beta=0.5), lambda m: Triplet(m, margin=0)])
def test_no_active_triplet_gives_a_differentiable_zero(make):
    embeds = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]], requires_grad=True)
    loss = make(Given((0, 1, 2)))(embeds, torch.tensor([0, 0, 1]))
    (grad,) = torch.autograd.grad(loss, embeds)
    assert loss.item() == 0
    assert torch.equal(grad, torch.zeros_like(embeds))


@pytest.mark.parametrize("make", [lambda m: Margin(4, m), Triplet])
def test_a_negative_that_equals_its_anchor_has_a_finite_gradient(make):
    embeds = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], requires_grad=True)
    loss = make(Given((0, 1, 2)))(embeds, torch.tensor([0, 0, 1]))
    (grad,) = torch.autograd.grad(loss, embeds)
    assert loss.item() > 0
    assert grad.isfinite().all()


def test_margin_boundaries_have_their_own_rate_and_no_decay():
    (group,) = Margin(4, Given(), beta_lr=1e-3).param_groups(lr=1e-5)
    assert group["lr"] == 1e-3
    assert group["weight_decay"] == 0.0
    assert [p.shape for p in group["params"]] == [(4,)]


def test_margin_constant_boundary_is_no_parameter_but_is_saved():
    criterion = Margin(4, Given(), beta=0.9, beta_constant=True)
    assert criterion.param_groups(lr=1e-5) == []
    assert torch.equal(criterion.state_dict()["beta"], torch.full((4,), 0.9))


def test_margin_refuses_nu_with_a_constant_boundary():
    with pytest.raises(ValueError, match=r"--loss_margin_nu 0.1 .*--loss_margin_beta_constant"):
        Margin(4, Given(), nu=0.1, beta_constant=True)


@pytest.mark.parametrize("label", [4, -1])
def test_margin_names_a_label_out_of_range(label):
    embeds, _ = batch(2)
    with pytest.raises(ValueError, match=rf"label {label} is not in \[0, 4\)"):
        Margin(4, Given())(embeds, torch.tensor([0, label]))
