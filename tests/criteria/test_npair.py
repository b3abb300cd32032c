import math
from typing import ClassVar

import torch
from pytorch_metric_learning.distances import DotProductSimilarity
from pytorch_metric_learning.losses import NPairsLoss

from criteria import NPair
from tests.criteria.pair_losses import PairLossTests, batch, pairs_of
from tests.criteria.scalars import assert_same, dot
from utilities.structures import References


def equation(embeds, labels, references=None, l2=0.005):
    """The paper's equation, one triplet at a time, over all ordered positive pairs."""
    losses = []
    for x, positives, negatives in pairs_of(embeds, labels, references):
        for p in positives:
            total = sum(math.exp(dot(x, n) - dot(x, p)) for n in negatives)
            losses.append(math.log(1 + total))
    length = l2 * sum(dot(x, x) for x in embeds.tolist()) / len(embeds)
    return sum(losses) / max(len(losses), 1) + length


class TestNPair(PairLossTests):
    loss, equation = NPair, staticmethod(equation)
    settings: ClassVar[tuple] = ({"l2": 0.5}, {})
    length = 1.5
    extreme = {}, 40.0


def test_equals_pytorch_metric_learning():
    """Equal for two images per class where the anchors' negatives are the second images alone: the
    batch is the first images, the references are the second ones."""
    first, labels = batch([4, 0, 9, 2], length=3.0)
    second, _ = batch([4, 0, 9, 2], seed=1, length=3.0)
    anchors = torch.arange(4)
    pairs = anchors, anchors + 4, anchors, anchors.flip(0)  # that loss does not read the negatives
    loss = NPairsLoss(distance=DotProductSimilarity(normalize_embeddings=False))
    theirs = loss(torch.cat([first, second]), labels.repeat(2), pairs)
    ours = NPair(l2=0.0)(first, labels, References(second.detach(), labels))
    assert_same(ours, theirs, [first])
