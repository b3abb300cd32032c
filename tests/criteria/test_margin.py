import math
from typing import ClassVar

import pytest
import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import MarginLoss

from criteria import Margin
from tests.criteria.mined_losses import TRIPLETS, Given, MinedLossTests, batch
from tests.criteria.scalars import assert_same

CLASSES = 80


def make(miner, **setting):
    return Margin(CLASSES, miner, **setting).double()


def equation(embeds, labels, triplets, others, margin=0.2, beta=1.2, nu=0.0, **_):
    """The equation, one triplet at a time; ``beta`` may be a list of each class's."""
    beta = [beta] * CLASSES if isinstance(beta, float) else beta
    hinges = []
    for a, p, n in triplets:
        boundary = beta[labels[a]]
        hinges.append(math.dist(embeds[a], others[p]) - boundary + margin)
        hinges.append(boundary - math.dist(embeds[a], others[n]) + margin)
    active = [hinge for hinge in hinges if hinge > 0]
    return sum(active) / max(len(active), 1) + nu * sum(beta[c] for c in set(labels))


class TestMargin(MinedLossTests):
    loss, equation = staticmethod(make), staticmethod(equation)
    settings: ClassVar[tuple] = (
        {},
        {"margin": 0.4, "beta": 0.9, "nu": 0.3},
        {"beta": 1.3, "beta_constant": True},
    )
    within = 1e-6  # the boundaries start as float32


def test_each_class_has_its_boundary():
    embeds, labels = batch()
    criterion = make(Given(TRIPLETS), nu=0.3)
    with torch.no_grad():
        criterion.beta += torch.linspace(-0.4, 0.4, CLASSES)
    args = embeds.tolist(), labels.tolist(), TRIPLETS, embeds.tolist()
    expected = equation(*args, beta=criterion.beta.tolist(), nu=0.3)
    assert criterion(embeds, labels).item() == pytest.approx(expected, abs=1e-9)


def test_positive_and_negative_actives_count_each():
    # d_ap = 2, d_an = sqrt(2): at beta 1.7 and alpha 0.4 both sides of the one triplet are active.
    embeds = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    criterion = Margin(2, Given([(0, 1, 2)]), beta=1.7, margin=0.4, beta_constant=True)
    loss = criterion(embeds, torch.tensor([0, 0, 1]))
    assert loss.item() == pytest.approx((0.7 + 1.7 - math.sqrt(2) + 0.4) / 2, abs=1e-6)


def test_equals_pytorch_metric_learning():
    """Equal with a Euclidean LpDistance, a boundary per class and given triplets, at nu 0.

    With nu > 0 theirs weighs a class by its share of the active triplets.
    """
    embeds, labels = batch()
    plain = LpDistance(normalize_embeddings=False)
    theirs = MarginLoss(margin=0.2, beta=1.2, learn_beta=True, num_classes=CLASSES, distance=plain)
    ours, theirs = make(Given(TRIPLETS)), theirs.double()
    their_loss = theirs(embeds, labels, tuple(Given(TRIPLETS).triplets))
    tensors = [embeds, ours.beta], [embeds, theirs.beta]
    assert_same(ours(embeds, labels), their_loss, *tensors, close=1e-7)


def test_gradient_of_the_boundaries():
    embeds, labels = batch()
    criterion = make(Given(TRIPLETS), nu=0.1)

    def loss(beta):
        return torch.func.functional_call(criterion, {"beta": beta}, (embeds.detach(), labels))

    beta = torch.full((CLASSES,), 1.23, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (beta,))


def test_boundaries_have_their_own_rate_and_no_decay():
    (group,) = Margin(4, Given([]), beta_lr=1e-3).param_groups(lr=1e-5)
    assert group["lr"] == 1e-3
    assert group["weight_decay"] == 0.0
    assert [p.shape for p in group["params"]] == [(4,)]


def test_a_constant_boundary_is_no_parameter_but_is_saved():
    criterion = Margin(4, Given([]), beta=0.9, beta_constant=True)
    assert criterion.param_groups(lr=1e-5) == []
    assert torch.equal(criterion.state_dict()["beta"], torch.full((4,), 0.9))


@pytest.mark.parametrize("label", [4, -1])
def test_a_label_out_of_range_is_named(label):
    with pytest.raises(ValueError, match=rf"label {label} is not in \[0, 4\)"):
        Margin(4, Given([]))(torch.eye(2), torch.tensor([0, label]))
