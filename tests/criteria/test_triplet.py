from typing import ClassVar

from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import TripletMarginLoss

from criteria import Triplet
from tests.criteria.mined_losses import TRIPLETS, Given, MinedLossTests, batch, squared_distance
from tests.criteria.scalars import assert_same, mean_above_zero


def equation(embeds, labels, triplets, others, margin=0.2):
    """The equation, one triplet at a time."""
    return mean_above_zero(
        squared_distance(embeds[a], others[p]) - squared_distance(embeds[a], others[n]) + margin
        for a, p, n in triplets
    )


class TestTriplet(MinedLossTests):
    loss, equation = Triplet, staticmethod(equation)
    settings: ClassVar[tuple] = ({"margin": 0.7}, {})


def test_equals_pytorch_metric_learning():
    """Equal with a squared LpDistance and their default average over non-zero losses."""
    embeds, labels = batch()
    squared = LpDistance(power=2, normalize_embeddings=False)
    theirs = TripletMarginLoss(margin=0.2, distance=squared)
    their_loss = theirs(embeds, labels, tuple(Given(TRIPLETS).triplets))
    assert_same(Triplet(Given(TRIPLETS))(embeds, labels), their_loss, [embeds])
