import math
from typing import ClassVar

import pytest
import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import ContrastiveLoss

from criteria import Contrastive
from tests.criteria.mined_losses import TRIPLETS, WHOLE, Given, MinedLossTests, batch
from tests.criteria.scalars import assert_same, mean_above_zero, unit_rows
from utilities.structures import References


def equation(embeds, labels, triplets, others, pos_margin=0.0, neg_margin=1.0):
    """The equation, one pair at a time."""
    pulls = [math.dist(embeds[a], others[p]) - pos_margin for a, p, _ in triplets]
    pushes = [neg_margin - math.dist(embeds[a], others[n]) for a, _, n in triplets]
    return mean_above_zero(pulls) + mean_above_zero(pushes)


class TestContrastive(MinedLossTests):
    loss, equation = Contrastive, staticmethod(equation)
    settings: ClassVar[tuple] = ({}, {"pos_margin": 0.4, "neg_margin": 1.3})


def test_each_side_is_averaged_over_its_own_active_pairs():
    # Distances 2 and 0.6 of the positives, 0.5 and 2.5 of the negatives; of these one is active.
    embeds = torch.tensor([[0.0], [2.0], [0.6], [-0.5], [-2.5]])
    loss = Contrastive(Given([(0, 1, 3), (0, 2, 4)]))(embeds, torch.tensor([0, 0, 0, 1, 1]))
    assert loss.item() == pytest.approx((2 + 0.6) / 2 + 0.5, abs=1e-6)


@pytest.mark.parametrize("triplets", [TRIPLETS, WHOLE], ids=["mined", "whole"])
@pytest.mark.parametrize("beside", [False, True])
def test_equals_pytorch_metric_learning(triplets, beside):
    """Equal with a Euclidean LpDistance and their default average over non-zero losses."""
    embeds, labels = batch()
    references = References(unit_rows(8, 3, seed=1), labels) if beside else None
    given = Given(triplets)
    theirs = ContrastiveLoss(distance=LpDistance(normalize_embeddings=False))
    their_loss = theirs(embeds, labels, tuple(given.triplets), *(references or ()))
    assert_same(Contrastive(given)(embeds, labels, references), their_loss, [embeds])
