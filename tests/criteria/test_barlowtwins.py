import math

import pytest
import torch
from torch import nn

from criteria.barlowtwins import EPS, BarlowTwins
from tests.criteria.scalars import dot, two_views


def make(weight, proj_dim=5, projector=None):
    torch.manual_seed(0)
    criterion = BarlowTwins(4, redundancy_weight=weight, hidden_dim=6, proj_dim=proj_dim)
    criterion.projector = projector or criterion.projector
    return criterion.double()


def standardised(z):
    """The columns of (N, D) with mean 0 and variance 1."""
    n, columns = len(z), []
    for column in z.T.tolist():
        mean = sum(column) / n
        var = sum((x - mean) ** 2 for x in column) / n
        columns.append([(x - mean) / math.sqrt(var + EPS) for x in column])
    return columns


def equation(first, second, weight):
    """Eq. 1 with the correlations of eq. 2, term by term."""
    a, b = standardised(first), standardised(second)
    total = 0.0
    for d, x in enumerate(a):
        for e, y in enumerate(b):
            c = dot(x, y) / len(first)
            total += (1 - c) ** 2 if d == e else weight * c**2
    return total


@pytest.mark.parametrize(("n", "dim"), [(2, 3), (4, 9), (9, 4), (5, 5)])
@pytest.mark.parametrize("weight", [0.0, 0.0051, 1.0])
def test_equals_the_equation_of_its_projections(n, dim, weight):
    """With fewer images than dimensions and with more, which are computed differently."""
    criterion, views = make(weight, dim), two_views(n)
    expected = equation(*(criterion.projector(x).detach() for x in views), weight)
    assert criterion(*views).item() == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("n", [3, 6])
def test_gradient(n):
    criterion = make(0.3, projector=nn.Identity())
    assert torch.autograd.gradcheck(criterion, [x.requires_grad_() for x in two_views(n)])


def test_equal_views_of_independent_dimensions_cost_nothing():
    criterion = make(1.0, projector=nn.Identity())
    z = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    assert criterion(z, z).item() == pytest.approx(0, abs=1e-8)
    doubled = z[:, [0, 0]]
    assert criterion(doubled, doubled).item() == pytest.approx(2, rel=1e-4)


@pytest.mark.parametrize("n", [16, 600])
def test_float32_is_close_to_float64(n):
    """The sum over all pairs, less the diagonal, keeps its digits."""
    criterion = make(0.0051, projector=nn.Identity())
    first, second = two_views(n, 128)
    second = first + 0.05 * second
    exact = criterion(first, second).item()
    assert criterion(first.float(), second.float()).item() == pytest.approx(exact, rel=1e-4)
