import math

import pytest
import torch
from torch import nn

from criteria.barlowtwins import EPS, BarlowTwins, redundancy_reduction


def views(n, dim, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, dim, generator=generator, dtype=torch.float64) for _ in range(2)]


def standardised(z):
    n = len(z)
    columns = []
    for column in z.T.tolist():
        mean = sum(column) / n
        var = sum((x - mean) ** 2 for x in column) / n
        columns.append([(x - mean) / math.sqrt(var + EPS) for x in column])
    return columns


def by_loops(first, second, weight):
    """Eq. 1 with the correlations of eq. 2, term by term."""
    a, b = standardised(first), standardised(second)
    n, dim = first.shape
    total = 0.0
    for d in range(dim):
        for e in range(dim):
            c = sum(a[d][i] * b[e][i] for i in range(n)) / n
            total += (1 - c) ** 2 if d == e else weight * c**2
    return total


@pytest.mark.parametrize(("n", "dim"), [(2, 3), (4, 9), (9, 4), (5, 5)])
@pytest.mark.parametrize("weight", [0.0, 0.0051, 1.0])
def test_equals_the_equation(n, dim, weight):
    """With fewer images than dimensions and with more, which are computed differently."""
    first, second = views(n, dim)
    expected = by_loops(first, second, weight)
    assert redundancy_reduction(first, second, weight).item() == pytest.approx(expected, rel=1e-11)


def test_the_criterion_is_the_loss_of_its_projections():
    torch.manual_seed(0)
    criterion = BarlowTwins(4, redundancy_weight=0.1, hidden_dim=6, proj_dim=5).double()
    first, second = views(7, 4)
    z1, z2 = (criterion.projector(x).detach() for x in (first, second))
    expected = by_loops(z1, z2, 0.1)
    assert criterion(first, second).item() == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("n", [3, 6])
def test_gradient(n):
    first, second = (x.requires_grad_() for x in views(n, 4))
    assert torch.autograd.gradcheck(lambda x, y: redundancy_reduction(x, y, 0.3), (first, second))


def test_equal_views_of_independent_dimensions_cost_nothing():
    z = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    assert redundancy_reduction(z, z, 1.0).item() == pytest.approx(0, abs=1e-8)
    doubled = z[:, [0, 0]]
    assert redundancy_reduction(doubled, doubled, 1.0).item() == pytest.approx(2, rel=1e-4)


@pytest.mark.parametrize("n", [16, 600])
def test_float32_is_close_to_float64(n):
    """The sum over all pairs, less the diagonal, keeps its digits."""
    first, second = views(n, 128)
    second = first + 0.05 * second
    exact = redundancy_reduction(first, second, 0.0051).item()
    single = redundancy_reduction(first.float(), second.float(), 0.0051).item()
    assert single == pytest.approx(exact, rel=1e-4)


def test_one_image_is_refused():
    criterion = BarlowTwins(4, hidden_dim=6, proj_dim=5)
    criterion.projector = nn.Identity()
    with pytest.raises(ValueError, match="use 2 images or more, got 1"):
        criterion(torch.ones(1, 4), torch.ones(1, 4))
