import pytest
import torch

from criteria import SimSiam
from tests.criteria.scalars import assert_same, cosine, two_views


def make():
    torch.manual_seed(0)
    return SimSiam(4, hidden_dim=6, proj_dim=5, pred_dim=3).double()


def test_equals_the_equation():
    criterion, views = make(), two_views(7)
    z = [criterion.projector(x) for x in views]
    (z1, z2), (p1, p2) = ([x.tolist() for x in pair] for pair in (z, map(criterion.predictor, z)))
    expected = 0.0
    for i in range(7):
        expected -= (cosine(p1[i], z2[i]) + cosine(p2[i], z1[i])) / 2 / 7
    assert criterion(*views).item() == pytest.approx(expected, rel=1e-12)


def test_the_target_projection_has_no_gradient():
    """The gradient is that of the loss with the other projections given as constants."""
    criterion, (first, second) = make(), [x.requires_grad_() for x in two_views(7)]
    given = [criterion.projector(x).detach() for x in (first, second)]

    def one_way(x, z):
        p = criterion.predictor(criterion.projector(x))
        return -torch.cosine_similarity(p, z, dim=1).mean() / 2

    expected = one_way(first, given[1]) + one_way(second, given[0])
    held = [first, second, *criterion.parameters()]
    assert_same(criterion(first, second), expected, held, close=1e-12)


def test_projections_are_standardised():
    criterion = make()
    assert criterion.projector[-1].weight is None
    z = criterion.projector(two_views(200)[0])
    assert torch.allclose(z.mean(dim=0), torch.zeros(5, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(z.var(dim=0, correction=0), torch.ones(5, dtype=torch.float64), atol=1e-2)


def test_the_loss_of_a_perfect_prediction_is_minus_one():
    criterion, (first, _) = make(), two_views(7)
    criterion.predictor = torch.nn.Identity()
    assert criterion(first, first).item() == pytest.approx(-1)
    assert criterion(first, first.flip(0)).item() > -0.99
