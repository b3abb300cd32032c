import statistics

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.distances import SNRDistance
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.reducers import AvgNonZeroReducer, MeanReducer, MultipleReducers
from pytorch_metric_learning.regularizers import ZeroMeanRegularizer

from batchminer import Distance
from criteria.snr import SNR
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


def rows(n=8, dim=6, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, dim, generator=generator, dtype=dtype), dim=1)


def oracle(embeds, triplets, margin=0.2, reg_lambda=0.005, others=None):
    """The equation, one triplet at a time, with the unbiased variance."""
    x = embeds.tolist()
    z = x if others is None else others.tolist()

    def noise(a, other):
        difference = [p - q for p, q in zip(x[a], other, strict=True)]
        return statistics.variance(difference) / statistics.variance(x[a])

    losses = [max(0.0, noise(a, z[p]) - noise(a, z[n]) + margin) for a, p, n in triplets]
    loss = sum(losses) / max(1, sum(hinge > 0 for hinge in losses))
    return loss + reg_lambda * sum(abs(sum(row)) for row in x) / len(x)


@pytest.mark.parametrize("triplets", [TRIPLETS, INTRA, WHOLE], ids=["mined", "intra", "whole"])
@pytest.mark.parametrize("length", [1.0, 5.0])
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_equation(triplets, length, seed):
    embeds = length * rows(seed=seed)
    loss = SNR(Given(triplets))(embeds, LABELS)
    assert loss.item() == pytest.approx(oracle(embeds, triplets), abs=1e-9)


def test_hyperparameters_enter_where_the_equation_has_them():
    loss = SNR(Given(TRIPLETS), margin=0.7, reg_lambda=0.3)(rows(), LABELS)
    assert loss.item() == pytest.approx(oracle(rows(), TRIPLETS, 0.7, 0.3), abs=1e-9)


def test_an_offset_of_an_image_changes_the_regulariser_alone():
    embeds = rows()
    moved = embeds + torch.arange(8.0, dtype=torch.float64)[:, None]
    criterion = SNR(Given(TRIPLETS), reg_lambda=0)
    assert torch.allclose(criterion(embeds, LABELS), criterion(moved, LABELS), atol=1e-10)
    criterion = SNR(Given(TRIPLETS), reg_lambda=1)
    assert criterion(moved, LABELS) > criterion(embeds, LABELS) + 10


def test_against_references_equals_the_equation():
    embeds, others = rows(), rows(6, seed=1)
    triplets = [(0, 5, 4), (1, 5, 0), (7, 3, 2), (7, 3, 2)]
    references = References(others, torch.tensor([3, 40, 3, 12, 12, 7]))
    loss = SNR(Given(triplets))(embeds, LABELS, references)
    assert loss.item() == pytest.approx(oracle(embeds, triplets, others=others), abs=1e-9)


def test_the_batch_as_references_differs_by_the_gradient_of_positives_and_negatives():
    embeds = rows().requires_grad_()
    criterion = SNR(Given(TRIPLETS))
    inside = criterion(embeds, LABELS)
    beside = criterion(embeds, LABELS, References(embeds.detach(), LABELS))
    assert inside.item() == pytest.approx(beside.item(), abs=1e-12)
    (one_end,) = torch.autograd.grad(beside, embeds)
    (both_ends,) = torch.autograd.grad(inside, embeds)
    unlike = (one_end - both_ends).abs().amax(dim=1) > 1e-9
    assert unlike[3]  # it is no anchor: as a reference it only gets the regulariser's
    assert unlike.sum() > 1


@pytest.mark.parametrize("triplets", [TRIPLETS, WHOLE], ids=["mined", "whole"])
def test_equals_pytorch_metric_learning(triplets):
    """Coincides with SNRDistance of embeddings that are not normalised and ZeroMeanRegularizer.

    The triplets are averaged over those that are not zero, the regulariser over the batch.
    """
    embeds = (2 * rows()).requires_grad_()
    given = Given(triplets)
    theirs = TripletMarginLoss(
        margin=0.2,
        distance=SNRDistance(normalize_embeddings=False),
        embedding_regularizer=ZeroMeanRegularizer(),
        embedding_reg_weight=0.005,
        reducer=MultipleReducers({"embedding_reg_loss": MeanReducer()}, AvgNonZeroReducer()),
    )
    their_loss = theirs(embeds, LABELS, tuple(given.triplets))
    our_loss = SNR(given)(embeds, LABELS)
    assert our_loss.item() == pytest.approx(their_loss.item(), abs=1e-9)
    (x,), (y,) = torch.autograd.grad(our_loss, embeds), torch.autograd.grad(their_loss, embeds)
    assert torch.allclose(x, y, atol=1e-9)


def test_batch_order_does_not_matter():
    embeds = rows()
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    place = order.argsort()
    moved = [tuple(place[list(t)].tolist()) for t in TRIPLETS]
    loss = SNR(Given(TRIPLETS))(embeds, LABELS)
    assert torch.allclose(loss, SNR(Given(moved))(embeds[order], LABELS[order]))


@pytest.mark.parametrize("triplets", [TRIPLETS, INTRA, WHOLE], ids=["mined", "intra", "whole"])
@pytest.mark.parametrize("references", [None, References(rows(seed=1), LABELS)])
def test_gradient(triplets, references):
    criterion = SNR(Given(triplets), margin=0.3, reg_lambda=0.1)
    embeds = (1.5 * rows()).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: criterion(x, LABELS, references), (embeds,))


@pytest.mark.parametrize("labels", [[0, 0], [0, 1], [2, 2, 2, 2], [5]])
def test_no_triplet_leaves_the_regulariser(labels):
    embeds = rows(len(labels)).requires_grad_()
    loss = SNR(Distance(0))(embeds, torch.tensor(labels))
    (grad,) = torch.autograd.grad(loss, embeds)
    assert loss.item() == pytest.approx(oracle(embeds, []), abs=1e-12)
    signs = embeds.sum(dim=1, keepdim=True).sign().expand_as(embeds)
    assert torch.allclose(grad, 0.005 / len(labels) * signs)


def test_no_active_triplet_gives_a_differentiable_zero():
    embeds = torch.tensor([[1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]], requires_grad=True)
    loss = SNR(Given([(0, 1, 2)]))(embeds, torch.tensor([0, 0, 1]))
    (grad,) = torch.autograd.grad(loss, embeds)
    assert loss.item() == 0
    assert torch.equal(grad, torch.zeros_like(embeds))


@pytest.mark.parametrize("anchor", [[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]])
def test_an_anchor_without_a_signal_has_a_finite_loss_and_gradient(anchor):
    embeds = torch.tensor([anchor, [1.0, 0.0, 0.0], [0.0, 0.6, 0.8]], requires_grad=True)
    for triplet in [(0, 1, 2), (0, 2, 1)]:
        loss = SNR(Given([triplet]))(embeds, torch.tensor([0, 0, 1]))
        (grad,) = torch.autograd.grad(loss, embeds)
        assert loss.isfinite()
        assert grad.isfinite().all()


def test_a_collapsed_batch_has_the_margin_and_no_direction():
    embeds = rows(1, dtype=torch.float32).repeat(8, 1).requires_grad_()
    loss = SNR(Given(TRIPLETS), reg_lambda=0)(embeds, LABELS)
    (grad,) = torch.autograd.grad(loss, embeds)
    assert loss.item() == pytest.approx(0.2)
    assert torch.allclose(grad, torch.zeros_like(embeds), atol=1e-7)
