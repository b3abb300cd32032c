import math
from typing import ClassVar

import pytest
from pytorch_metric_learning.losses import SupConLoss

from criteria import SupCon
from tests.criteria.pair_losses import PairLossTests, batch, each_batch, each_way, pairs_of
from tests.criteria.scalars import assert_same, dot


def equation(embeds, labels, references=None, temperature=0.1):
    """The paper's equation, one pair at a time."""
    losses = []
    for x, positives, negatives in pairs_of(embeds, labels, references):
        total = sum(math.exp(dot(x, y) / temperature) for y in positives + negatives)
        terms = [-math.log(math.exp(dot(x, p) / temperature) / total) for p in positives]
        if terms:
            losses.append(sum(terms) / len(terms))
    return sum(losses) / max(len(losses), 1)


class TestSupCon(PairLossTests):
    loss, equation = SupCon, staticmethod(equation)
    settings: ClassVar[tuple] = ({"temperature": 0.5}, {})
    extreme = {"temperature": 1e-3}, 1.0


@each_way
@each_batch
def test_equals_pytorch_metric_learning(labels, references):
    """Equal for unit rows: theirs averages over the losses above zero, which are the anchors that
    have positives."""
    embeds, labels = batch(labels)
    theirs = SupConLoss(temperature=0.1)(embeds, labels, None, *(references or (None, None)))
    assert_same(SupCon()(embeds, labels, references), theirs, [embeds], sphere=True)


def test_anchors_without_positives_are_left_out_of_the_mean():
    """They are still among the others' negatives."""
    embeds, labels = batch([0, 0, 1])
    a, b, c = embeds.tolist()
    ab, ac, bc = (math.exp(dot(x, y) / 0.1) for x, y in ((a, b), (a, c), (b, c)))
    expected = -(math.log(ab / (ab + ac)) + math.log(ab / (ab + bc))) / 2
    assert SupCon()(embeds, labels).item() == pytest.approx(expected, abs=1e-10)
