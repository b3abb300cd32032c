import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import ContrastiveLoss

from batchminer import Distance
from criteria.contrastive import Contrastive
from utilities.structures import References, Triplets

# Uneven classes, a singleton, neither ordered nor contiguous.
LABELS = torch.tensor([7, 3, 7, 40, 3, 7, 12, 12])
TRIPLETS = [(0, 2, 1), (2, 5, 3), (5, 0, 6), (1, 4, 0), (4, 1, 7), (6, 7, 3), (7, 6, 1), (0, 5, 1)]
INTRA = [(0, 2, 5), (2, 5, 0), (1, 4, 4)]  # a miner may give negatives of the anchor's class
WHOLE = [
    (a, p, n)
    for a in range(8)
    for p in range(8)
    for n in range(8)
    if a != p and LABELS[a] == LABELS[p] != LABELS[n]
]


class Given:
    """A miner that returns the triplets it was made with."""

    def __init__(self, triplets):
        self.triplets = Triplets(
            *torch.tensor(triplets, dtype=torch.long).reshape(-1, 3).unbind(dim=1)
        )

    def __call__(self, embeds, labels, references=None):
        return self.triplets


def rows(n=8, dim=3, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, dim, generator=generator, dtype=dtype), dim=1)


def distance(x, y):
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(x.tolist(), y.tolist(), strict=True)))


def oracle(embeds, triplets, pos_margin=0.0, neg_margin=1.0, others=None):
    """The equation, one pair at a time."""
    others = embeds if others is None else others
    pulls = [max(0.0, distance(embeds[a], others[p]) - pos_margin) for a, p, _ in triplets]
    pushes = [max(0.0, neg_margin - distance(embeds[a], others[n])) for a, _, n in triplets]
    return sum(
        sum(hinges) / max(1, sum(hinge > 0 for hinge in hinges)) for hinges in (pulls, pushes)
    )


@pytest.mark.parametrize("triplets", [TRIPLETS, INTRA, WHOLE], ids=["mined", "intra", "whole"])
@pytest.mark.parametrize("margins", [(0.0, 1.0), (0.4, 1.3)])
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_equation(triplets, margins, seed):
    embeds = rows(seed=seed)
    pos_margin, neg_margin = margins
    criterion = Contrastive(Given(triplets), pos_margin=pos_margin, neg_margin=neg_margin)
    expected = oracle(embeds, triplets, pos_margin, neg_margin)
    assert criterion(embeds, LABELS).item() == pytest.approx(expected, abs=1e-10)


def test_each_side_is_averaged_over_its_own_active_pairs():
    # Distances 2 and 0.6 of the positives, 0.5 and 2.5 of the negatives; of these one is active.
    embeds = torch.tensor([[0.0], [2.0], [0.6], [-0.5], [-2.5]])
    loss = Contrastive(Given([(0, 1, 3), (0, 2, 4)]))(embeds, torch.tensor([0, 0, 0, 1, 1]))
    assert loss.item() == pytest.approx((2 + 0.6) / 2 + 0.5, abs=1e-6)


def test_against_references_equals_the_equation():
    embeds, others = rows(), rows(6, seed=1)
    triplets = [(0, 5, 4), (1, 5, 0), (7, 3, 2), (7, 3, 2)]
    references = References(others, torch.tensor([3, 40, 3, 12, 12, 7]))
    loss = Contrastive(Given(triplets))(embeds, LABELS, references)
    assert loss.item() == pytest.approx(oracle(embeds, triplets, others=others), abs=1e-10)


def test_the_batch_as_references_differs_by_the_gradient_of_positives_and_negatives():
    embeds = rows().requires_grad_()
    criterion = Contrastive(Given(TRIPLETS))
    inside = criterion(embeds, LABELS)
    beside = criterion(embeds, LABELS, References(embeds.detach(), LABELS))
    assert inside.item() == pytest.approx(beside.item(), abs=1e-12)
    (one_end,) = torch.autograd.grad(beside, embeds)
    (both_ends,) = torch.autograd.grad(inside, embeds)
    assert both_ends.sum(dim=0).abs().max() < 1e-12  # what one image gets the other one gives
    assert not torch.allclose(one_end, both_ends)


@pytest.mark.parametrize("triplets", [TRIPLETS, WHOLE], ids=["mined", "whole"])
@pytest.mark.parametrize("references", [None, References(rows(seed=1), LABELS)])
def test_equals_pytorch_metric_learning(triplets, references):
    """Coincides with a Euclidean LpDistance and their default average over non-zero losses."""
    embeds = rows().requires_grad_()
    given = Given(triplets)
    theirs = ContrastiveLoss(distance=LpDistance(normalize_embeddings=False))
    beside = () if references is None else references
    their_loss = theirs(embeds, LABELS, tuple(given.triplets), *beside)
    our_loss = Contrastive(given)(embeds, LABELS, references)
    assert our_loss.item() == pytest.approx(their_loss.item(), abs=1e-9)
    (x,), (y,) = torch.autograd.grad(our_loss, embeds), torch.autograd.grad(their_loss, embeds)
    assert torch.allclose(x, y, atol=1e-9)


def test_batch_order_does_not_matter():
    embeds = rows()
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    place = order.argsort()
    moved = [tuple(place[list(t)].tolist()) for t in TRIPLETS]
    loss = Contrastive(Given(TRIPLETS))(embeds, LABELS)
    assert torch.allclose(loss, Contrastive(Given(moved))(embeds[order], LABELS[order]))


@pytest.mark.parametrize("triplets", [TRIPLETS, INTRA, WHOLE], ids=["mined", "intra", "whole"])
@pytest.mark.parametrize("references", [None, References(rows(seed=1), LABELS)])
def test_gradient(triplets, references):
    criterion = Contrastive(Given(triplets), pos_margin=0.3, neg_margin=1.4)
    embeds = rows().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: criterion(x, LABELS, references), (embeds,))


@pytest.mark.parametrize("labels", [[0, 0], [0, 1], [2, 2, 2, 2], [5]])
def test_no_triplet_gives_a_differentiable_zero(labels):
    embeds = rows(len(labels)).requires_grad_()
    loss = Contrastive(Distance(0))(embeds, torch.tensor(labels))
    (grad,) = torch.autograd.grad(loss, embeds)
    assert loss.item() == 0
    assert torch.equal(grad, torch.zeros_like(embeds))


def test_no_active_pair_gives_a_differentiable_zero():
    embeds = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]], requires_grad=True)
    loss = Contrastive(Given([(0, 1, 2)]))(embeds, torch.tensor([0, 0, 1]))
    (grad,) = torch.autograd.grad(loss, embeds)
    assert loss.item() == 0
    assert torch.equal(grad, torch.zeros_like(embeds))


def test_a_collapsed_batch_has_a_loss_without_direction():
    """All distances are 0: the positives are content, and no negative has a side to go to."""
    embeds = rows(1, dtype=torch.float32).repeat(8, 1).requires_grad_()
    loss = Contrastive(Given(TRIPLETS))(embeds, LABELS)
    (grad,) = torch.autograd.grad(loss, embeds)
    assert loss.item() == pytest.approx(1)
    assert torch.equal(grad, torch.zeros_like(embeds))
