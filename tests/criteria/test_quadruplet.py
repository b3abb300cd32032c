from typing import ClassVar

import pytest
import torch

from criteria import Quadruplet
from tests.criteria import mined_losses
from tests.criteria.mined_losses import Given, MinedLossTests, squared_distance
from tests.criteria.scalars import mean_above_zero, unit_rows
from utilities.structures import References


def equation(
    embeds,
    labels,
    triplets,
    others,
    margin_alpha_1=0.2,
    margin_alpha_2=0.2,
    seconds=None,
):
    """Equation 5, one quadruplet at a time, each sum over the number of its terms that count.

    Args:
        seconds: for each triplet the second negative, None where there is no third class.
    """
    near, far = [], []
    for (a, p, n), m in zip(triplets, seconds or [None] * len(triplets), strict=True):
        pull = squared_distance(embeds[a], others[p])
        near.append(pull - squared_distance(embeds[a], others[n]) + margin_alpha_1)
        if m is not None:
            far.append(pull - squared_distance(others[n], others[m]) + margin_alpha_2)
    return mean_above_zero(near) + mean_above_zero(far)


class FirstTerm(Quadruplet):
    """The loss without its second term, which a random image enters."""

    def __init__(self, miner, *, margin_alpha_1=0.2):
        super().__init__(miner, margin_alpha_1=margin_alpha_1)
        self.margin_alpha_2 = -1e3


class TestFirstTerm(MinedLossTests):
    loss, equation = FirstTerm, staticmethod(equation)
    settings: ClassVar[tuple] = ({}, {"margin_alpha_1": 0.9})


# Three classes, two of them of one image: the second negative is the image of the third class.
LABELS = torch.tensor([7, 7, 7, 3, 40])
TRIPLETS = [(a, p, n) for a in range(3) for p in range(3) for n in (3, 4) if a != p]
SECONDS = [7 - n for _, _, n in TRIPLETS]
BESIDE = References(unit_rows(3, 3, seed=1), torch.tensor([40, 7, 3]))
AGAINST, SECONDS_AGAINST = [(0, 1, 0), (1, 1, 2), (3, 2, 0), (4, 0, 1)], [2, 0, 1, 2]
WAYS = [(None, TRIPLETS, SECONDS), (BESIDE, AGAINST, SECONDS_AGAINST)]
each_way = pytest.mark.parametrize(("references", "triplets", "seconds"), WAYS)


@each_way
@pytest.mark.parametrize("margins", [{}, {"margin_alpha_1": 0.9, "margin_alpha_2": 0.4}])
def test_both_terms_equal_the_equation(references, triplets, seconds, margins):
    n_active = 0
    for seed in range(3):
        embeds = unit_rows(5, 3, seed)
        others = embeds if references is None else references.embeds
        loss = Quadruplet(Given(triplets), **margins)(embeds, LABELS, references)
        args = embeds.tolist(), LABELS.tolist(), triplets, others.tolist()
        expected = equation(*args, seconds=seconds, **margins)
        assert loss.item() == pytest.approx(expected, abs=1e-10)
        n_active += expected > equation(*args, **margins)
    assert n_active


@each_way
def test_gradient_of_both_terms(references, triplets, seconds):
    """Within a batch that of all four images; two negatives among references stay in place."""
    criterion = Quadruplet(Given(triplets), margin_alpha_1=0.5, margin_alpha_2=0.7)
    embeds = unit_rows(5, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: criterion(x, LABELS, references), (embeds,))


MANY = torch.tensor(mined_losses.LABELS)


@pytest.mark.parametrize(("a", "p", "n"), [(0, 2, 1), (1, 4, 6), (6, 7, 3), (2, 5, 0)])
def test_second_negatives_are_all_images_of_third_classes_alike_often(a, p, n):
    """Read from the gradient, in which an image has as large a share as it was drawn often."""
    embeds = unit_rows(8, 3).requires_grad_()
    n_draws = 20_000
    miner = Given([(a, p, n)] * n_draws, seed=1)
    criterion = Quadruplet(miner, margin_alpha_2=100)
    criterion.margin_alpha_1 = -100  # without the first term
    (grad,) = torch.autograd.grad(criterion(embeds, MANY), embeds)
    x = embeds.detach()
    others = [m for m in range(8) if m not in (a, p, n)]
    shares = [(grad[m] / (2 * (x[n] - x[m]))).mean().item() for m in others]
    allowed = [int(MANY[m] not in (MANY[a], MANY[n])) for m in others]
    for share, able in zip(shares, allowed, strict=True):
        # Five standard deviations of a share are at most 5 sqrt(0.25 / n).
        assert share == pytest.approx(able / sum(allowed), abs=5 * (0.25 / n_draws) ** 0.5)
        assert able or abs(share) < 1e-12


def test_the_anchors_class_may_be_missing_among_the_references():
    """As under a miner that shuffles labels: all classes but the negative's are third ones."""
    embeds, n_draws = unit_rows(1, 3, seed=2), 20_000
    references = References(unit_rows(8, 3), MANY)
    criterion = Quadruplet(Given([(0, 0, 1)] * n_draws), margin_alpha_2=100)
    criterion.margin_alpha_1 = -100  # without the first term
    z = references.embeds.tolist()
    far = [squared_distance(z[1], z[m]) for m in range(8) if MANY[m] != MANY[1]]
    pull = squared_distance(embeds[0].tolist(), z[0])
    loss = criterion(embeds, torch.tensor([5]), references).item()
    assert loss == pytest.approx(100 + pull - sum(far) / len(far), abs=5 * 4 / n_draws**0.5)


@pytest.mark.parametrize(
    ("labels", "triplets"), [([1, 1, 4, 4], [(2, 3, 1), (3, 2, 0)]), ([4, 4, 1, 4], [(0, 1, 2)])]
)
def test_without_third_classes_there_is_the_first_term_alone(labels, triplets):
    embeds = unit_rows(4, 3)
    loss = Quadruplet(Given(triplets), margin_alpha_2=9.0)(embeds, torch.tensor(labels))
    expected = equation(embeds.tolist(), labels, triplets, embeds.tolist())
    assert loss.item() == pytest.approx(expected, abs=1e-10)


def test_the_miners_generator_draws():
    embeds, triplets = unit_rows(8), mined_losses.TRIPLETS * 4
    one, same, other = (Quadruplet(Given(triplets, seed)) for seed in (0, 0, 1))
    drawn = [criterion(embeds, MANY).item() for criterion in (one, same, other)]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]
    assert one(embeds, MANY).item() != drawn[0]
    resumed = Quadruplet(Given(triplets, 5))
    resumed.load_state_dict(same.state_dict())
    assert resumed(embeds, MANY).item() == same(embeds, MANY).item()


def test_a_collapsed_batch_has_both_margins_and_no_direction():
    embeds = unit_rows(1, 3).repeat(8, 1).requires_grad_()
    miner = Given(mined_losses.TRIPLETS)
    loss = Quadruplet(miner, margin_alpha_1=0.2, margin_alpha_2=0.1)(embeds, MANY)
    (grad,) = torch.autograd.grad(loss, embeds)
    assert loss.item() == pytest.approx(0.3)
    assert torch.allclose(grad, torch.zeros_like(embeds), atol=1e-7)
