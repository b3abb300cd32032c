import statistics
from typing import ClassVar

import pytest
import torch
from pytorch_metric_learning.distances import SNRDistance
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.reducers import AvgNonZeroReducer, MeanReducer, MultipleReducers
from pytorch_metric_learning.regularizers import ZeroMeanRegularizer

from batchminer import Distance
from criteria import SNR
from tests.criteria.mined_losses import TRIPLETS, WHOLE, Given, MinedLossTests, batch
from tests.criteria.scalars import assert_same, mean_above_zero, unit_rows


def equation(embeds, labels, triplets, others, margin=0.2, reg_lambda=0.005):
    """The equation, one triplet at a time, with the unbiased variance."""

    def noise(a, other):
        difference = [p - q for p, q in zip(embeds[a], other, strict=True)]
        return statistics.variance(difference) / statistics.variance(embeds[a])

    loss = mean_above_zero(
        noise(a, others[p]) - noise(a, others[n]) + margin for a, p, n in triplets
    )
    return loss + reg_lambda * sum(abs(sum(row)) for row in embeds) / len(embeds)


class TestSNR(MinedLossTests):
    loss, equation = SNR, staticmethod(equation)
    settings: ClassVar[tuple] = ({}, {"margin": 0.7, "reg_lambda": 0.3})
    hinges: ClassVar = {"reg_lambda": 0.0}
    length = 5.0


def test_an_offset_of_an_image_changes_the_regulariser_alone():
    embeds, labels = batch()
    moved = embeds + torch.arange(8.0, dtype=torch.float64)[:, None]
    criterion = SNR(Given(TRIPLETS), reg_lambda=0)
    assert torch.allclose(criterion(embeds, labels), criterion(moved, labels), atol=1e-10)
    criterion = SNR(Given(TRIPLETS), reg_lambda=1)
    assert criterion(moved, labels) > criterion(embeds, labels) + 8


@pytest.mark.parametrize("triplets", [TRIPLETS, WHOLE], ids=["mined", "whole"])
def test_equals_pytorch_metric_learning(triplets):
    """Equal with SNRDistance of embeddings that are not normalised and ZeroMeanRegularizer.

    The triplets are averaged over those that are not zero, the regulariser over the batch.
    """
    embeds, labels = batch(dim=6, length=2.0)
    given = Given(triplets)
    theirs = TripletMarginLoss(
        margin=0.2,
        distance=SNRDistance(normalize_embeddings=False),
        embedding_regularizer=ZeroMeanRegularizer(),
        embedding_reg_weight=0.005,
        reducer=MultipleReducers({"embedding_reg_loss": MeanReducer()}, AvgNonZeroReducer()),
    )
    assert_same(SNR(given)(embeds, labels), theirs(embeds, labels, tuple(given.triplets)), [embeds])


def test_without_a_triplet_the_regulariser_still_has_its_gradient():
    embeds = unit_rows(2).requires_grad_()
    (grad,) = torch.autograd.grad(SNR(Distance(0))(embeds, torch.tensor([0, 1])), embeds)
    signs = embeds.sum(dim=1, keepdim=True).sign().expand_as(embeds)
    assert torch.allclose(grad, 0.005 / 2 * signs)


@pytest.mark.parametrize("anchor", [[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]])
def test_an_anchor_without_a_signal_has_a_finite_loss_and_gradient(anchor):
    embeds = torch.tensor([anchor, [1.0, 0.0, 0.0], [0.0, 0.6, 0.8]], requires_grad=True)
    for triplet in [(0, 1, 2), (0, 2, 1)]:
        loss = SNR(Given([triplet]))(embeds, torch.tensor([0, 0, 1]))
        (grad,) = torch.autograd.grad(loss, embeds)
        assert loss.isfinite()
        assert grad.isfinite().all()
