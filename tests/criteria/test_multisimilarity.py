import math
from typing import ClassVar

import pytest
import torch
from pytorch_metric_learning.losses import MultiSimilarityLoss
from pytorch_metric_learning.miners import MultiSimilarityMiner

from criteria import MultiSimilarity
from tests.criteria.pair_losses import PairLossTests, batch, pairs_of
from tests.criteria.scalars import assert_same, dot


def equation(
    embeds,
    labels,
    references=None,
    pos_weight=2.0,
    neg_weight=40.0,
    margin=0.1,
    pos_thresh=0.5,
    neg_thresh=0.5,
    released=False,
    dim=0,
):
    """The paper's equations, one pair at a time."""
    pull = push = 0.0
    for x, positives, negatives in pairs_of(embeds, labels, references):
        pos, neg = [dot(x, p) for p in positives], [dot(x, n) for n in negatives]
        hard_pos = [s for s in pos if neg and s < max(neg) + margin]
        hard_neg = [s for s in neg if pos and s > min(pos) - margin]
        pull += math.log(1 + sum(math.exp(-pos_weight * (s - pos_thresh)) for s in hard_pos))
        push += math.log(1 + sum(math.exp(neg_weight * (s - neg_thresh)) for s in hard_neg))
    pull, push = pull / len(embeds), push / len(embeds)
    if released:
        pull, push = math.log(1 + math.exp(pull)), math.log(1 + math.exp(push))
    return pull / pos_weight + push / neg_weight


class TestMultiSimilarity(PairLossTests):
    loss, equation = MultiSimilarity, staticmethod(equation)
    settings: ClassVar[tuple] = (
        {},
        {"dim": 1, "pos_weight": 3.0, "neg_weight": 20.0, "margin": 0.3},
        {"pos_thresh": 0.6, "neg_thresh": 0.2},
        {"released": True, "dim": 1},
        {"released": True},
    )
    extreme = {"pos_weight": 1e4, "neg_weight": 1e4}, 1.0


@pytest.mark.parametrize("labels", [[8], [0, 1], [4, 4, 4, 4], [0, 0, 1, 1, 2, 2]])
def test_no_active_pair_gives_a_differentiable_zero_and_the_released_floor(labels):
    """Classes at right angles, without a margin to violate."""
    embeds = torch.eye(3)[torch.tensor(labels) % 3].requires_grad_()
    labels = torch.tensor(labels)
    loss = MultiSimilarity()(embeds, labels)
    (grad,) = torch.autograd.grad(loss, embeds)
    assert loss.item() == 0
    assert torch.equal(grad, torch.zeros_like(embeds))
    floor = MultiSimilarity(released=True)(embeds, labels)
    assert floor.item() == pytest.approx(math.log(2) / 2 + math.log(2) / 40, abs=1e-6)


def test_the_default_gradient():
    embeds, labels = batch([7, 3, 7, 50, 3, 7, 11, 3])
    assert torch.autograd.gradcheck(lambda x: MultiSimilarity()(x, labels), (embeds,))


@pytest.mark.parametrize("seed", range(3))
def test_equals_pytorch_metric_learning(seed):
    """Equal with alpha, beta = the weights, base = both thresholds, epsilon = the margin."""
    embeds, labels = batch([0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7], 16, seed)
    pairs = MultiSimilarityMiner(epsilon=0.1)(embeds.detach(), labels)
    theirs = MultiSimilarityLoss(alpha=2, beta=40, base=0.5)(embeds, labels, pairs)
    assert_same(MultiSimilarity()(embeds, labels), theirs, [embeds], sphere=True)


def test_a_duplicate_is_a_positive_and_the_image_itself_is_none():
    """Two equal images of one class and a near negative: each has one positive, the other."""
    embeds = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.995, 0.0998749]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1])
    expected = equation(embeds, labels)
    assert MultiSimilarity()(embeds, labels).item() == pytest.approx(expected, abs=1e-10)
    assert expected > 0.1
