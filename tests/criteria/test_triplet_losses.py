"""Margin and triplet loss on given triplets, and on those of a miner."""

import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import MarginLoss, TripletMarginLoss

from batchminer import Distance
from criteria import primitives
from criteria.margin import Margin
from criteria.triplet import Triplet
from utilities.structures import References, Triplets


class Given:
    """A miner that returns the triplets it was made with."""

    def __init__(self, *triplets):
        self.triplets = Triplets(
            *torch.tensor(triplets, dtype=torch.long).reshape(-1, 3).unbind(dim=1)
        )

    def __call__(self, embeds, labels, references=None):
        return self.triplets


@pytest.fixture(autouse=True, params=["rows", "matrix"])
def way(request, monkeypatch):
    """Every test runs with the distances of rows, and with those read from the matrix."""
    monkeypatch.setattr(primitives, "MATRIX_SHARE", math.inf if request.param == "rows" else 0)


def batch(n=8, dim=6, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randn(n, dim, generator=generator, dtype=dtype)
    labels = torch.arange(n // 2).repeat_interleave(2)
    return F.normalize(embeds, dim=1).requires_grad_(), labels


ALL = [(0, 1, 2), (1, 0, 5), (2, 3, 0), (3, 2, 7), (4, 5, 1), (5, 4, 6), (6, 7, 3), (7, 6, 4)]


def distance(x, y):
    pairs = zip(x.tolist(), y.tolist(), strict=True)
    return math.sqrt(sum((a - b) ** 2 for a, b in pairs))


def margin_oracle(embeds, labels, triplets, beta, alpha=0.2, nu=0.0, others=None):
    others, total, active = embeds if others is None else others, 0.0, 0
    for a, p, n in triplets:
        boundary = beta[int(labels[a])]
        pos = max(0.0, distance(embeds[a], others[p]) - boundary + alpha)
        neg = max(0.0, boundary - distance(embeds[a], others[n]) + alpha)
        total += pos + neg
        active += (pos > 0) + (neg > 0)
    return total / max(active, 1) + nu * sum(beta[c] for c in {int(y) for y in labels})


@pytest.mark.parametrize("nu", [0.0, 0.3])
def test_margin_equals_the_equation(nu):
    embeds, labels = batch()
    criterion = Margin(6, Given(*ALL), nu=nu)  # two of six classes are not in the batch
    with torch.no_grad():
        criterion.beta += torch.linspace(-0.2, 0.2, 6)
    expected = margin_oracle(embeds, labels, ALL, criterion.beta.tolist(), nu=nu)
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


def triplet_oracle(embeds, triplets, margin=0.2, others=None):
    others = embeds if others is None else others
    losses = [
        distance(embeds[a], others[p]) ** 2 - distance(embeds[a], others[n]) ** 2 + margin
        for a, p, n in triplets
    ]
    active = [x for x in losses if x > 0]
    assert 0 < len(active) < len(losses)
    return sum(active) / len(active)


def test_triplet_equals_the_equation():
    embeds, labels = batch()
    loss = Triplet(Given(*ALL))(embeds, labels)
    assert loss.item() == pytest.approx(triplet_oracle(embeds, ALL), abs=1e-10)


# A whole batch, (anchor, positive, negative) among eight images of uneven classes.
UNEVEN = torch.tensor([3, 0, 3, 1, 3, 0, 2, 0])  # neither ordered nor of equal size, one singleton
WHOLE = [
    (a, p, n)
    for a in range(8)
    for p in range(8)
    for n in range(8)
    if a != p and UNEVEN[a] == UNEVEN[p] != UNEVEN[n]
]
# A miner may also give a negative of the anchor's class.
INTRA = [(0, 2, 4), (2, 4, 0), (4, 0, 2), (1, 5, 7), (1, 5, 3), (7, 1, 5)]


@pytest.mark.parametrize("triplets", [WHOLE, INTRA])
def test_equals_the_equation_whatever_a_miner_gives(triplets):
    embeds, _ = batch(seed=1)
    loss = Triplet(Given(*triplets))(embeds, UNEVEN)
    assert loss.item() == pytest.approx(triplet_oracle(embeds, triplets), abs=1e-10)
    loss = Margin(4, Given(*triplets), beta=1.3)(embeds, UNEVEN)
    expected = margin_oracle(embeds, UNEVEN, triplets, [1.3] * 4)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


BESIDE = [(0, 2, 4), (1, 2, 0), (6, 1, 3), (7, 4, 4), (5, 0, 1), (0, 2, 3)]


def test_against_references_equals_the_equation():
    embeds, labels = batch()
    others, _ = batch(6, seed=1)
    references = References(others.detach(), torch.tensor([3, 3, 0, 1, 2, 2]))
    loss = Triplet(Given(*BESIDE))(embeds, labels, references)
    assert loss.item() == pytest.approx(triplet_oracle(embeds, BESIDE, others=others), abs=1e-10)
    loss = Margin(4, Given(*BESIDE))(embeds, labels, references)
    expected = margin_oracle(embeds, labels, BESIDE, [1.2] * 4, others=others)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("make", [lambda m: Margin(4, m), Triplet])
def test_the_batch_as_references_differs_by_the_gradient_of_positives_and_negatives(make):
    embeds, labels = batch()
    criterion = make(Given(*ALL))
    inside = criterion(embeds, labels)
    beside = criterion(embeds, labels, References(embeds.detach(), labels))
    assert inside.item() == pytest.approx(beside.item(), abs=1e-12)
    (one_end,) = torch.autograd.grad(beside, embeds)
    (both_ends,) = torch.autograd.grad(inside, embeds)
    assert both_ends.sum(dim=0).abs().max() < 1e-12  # what one image gets the other one gives
    assert not torch.allclose(one_end, both_ends)


@pytest.mark.parametrize("make", [lambda m: Margin(4, m), Triplet])
def test_the_references_reach_the_miner(make):
    embeds, labels = batch()
    references = References(embeds.detach()[[0, 6]], labels[[0, 6]])
    seen = []

    class Recording(Distance):
        def forward(self, embeds, labels, references=None):
            triplets = super().forward(embeds, labels, references)
            seen.append(triplets)
            return triplets

    make(Recording(0))(embeds, labels, references)
    (triplets,) = seen
    # Image 0 is its own positive here and image 6 its negative, and the other way round.
    assert [t.tolist() for t in triplets] == [[0, 1, 6, 7], [0, 0, 1, 1], [1, 1, 0, 0]]


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
@pytest.mark.parametrize("beside", [False, True])
def test_gradient(make, beside):
    embeds, labels = batch()
    references = References(batch(seed=1)[0].detach(), labels) if beside else None
    criterion = make(Given(*ALL, *ALL[:3], *INTRA)).double()
    assert torch.autograd.gradcheck(lambda x: criterion(x, labels, references), (embeds,))


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
    with pytest.raises(ValueError, match=r"nu must be 0 with a constant boundary; got 0\.1"):
        Margin(4, Given(), nu=0.1, beta_constant=True)


@pytest.mark.parametrize("label", [4, -1])
def test_margin_names_a_label_out_of_range(label):
    embeds, _ = batch(2)
    with pytest.raises(ValueError, match=rf"label {label} is not in \[0, 4\)"):
        Margin(4, Given())(embeds, torch.tensor([0, label]))
