import math

import pytest
import torch
from torch import nn

from criteria.vicreg import EPS, VICReg, variance_invariance_covariance


def views(n, dim, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, dim, generator=generator, dtype=torch.float64) for _ in range(2)]


def covariance(z, d, e):
    n = len(z)
    mean_d, mean_e = (sum(row[k] for row in z) / n for k in (d, e))
    return sum((row[d] - mean_d) * (row[e] - mean_e) for row in z) / (n - 1)


def by_loops(first, second):
    """s, v and c, term by term."""
    n, dim = first.shape
    z1, z2 = first.tolist(), second.tolist()
    s = sum((z1[i][d] - z2[i][d]) ** 2 for i in range(n) for d in range(dim)) / (n * dim)
    v = c = 0.0
    for z in (z1, z2):
        for d in range(dim):
            v += max(0.0, 1 - math.sqrt(covariance(z, d, d) + EPS)) / dim / 2
            c += sum(covariance(z, d, e) ** 2 for e in range(dim) if e != d) / dim
    return [s, v, c]


@pytest.mark.parametrize(("n", "dim"), [(2, 3), (4, 9), (9, 4), (5, 5)])
@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_equals_the_equations(n, dim, scale):
    """With fewer images than dimensions and with more, which are computed differently."""
    first, second = (scale * x for x in views(n, dim))
    expected = by_loops(first, second)
    assert variance_invariance_covariance(first, second).tolist() == pytest.approx(
        expected, rel=1e-10
    )


def test_the_criterion_weighs_the_terms_of_its_projections():
    torch.manual_seed(0)
    criterion = VICReg(
        4,
        invariance_weight=2.0,
        variance_weight=3.0,
        covariance_weight=5.0,
        hidden_dim=6,
        proj_dim=5,
    ).double()
    first, second = views(7, 4)
    z1, z2 = (criterion.projector(x).detach() for x in (first, second))
    s, v, c = by_loops(z1, z2)
    expected = 2 * s + 3 * v + 5 * c
    assert criterion(first, second).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("n", [3, 6])
def test_gradient(n):
    first, second = (0.5 * x for x in views(n, 4))
    given = (first.requires_grad_(), second.requires_grad_())
    assert torch.autograd.gradcheck(variance_invariance_covariance, given)


def test_collapse_is_paid_for_and_has_a_gradient():
    first = torch.ones(4, 3, requires_grad=True)
    second = torch.ones(4, 3)
    s, v, c = variance_invariance_covariance(first, second)
    assert (s.item(), c.item()) == (0, 0)
    assert v.item() == pytest.approx(1 - math.sqrt(EPS))
    (grad,) = torch.autograd.grad(v, first)
    assert grad.isfinite().all()


def test_spread_and_uncorrelated_dimensions_cost_nothing():
    z = 2 * torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    assert variance_invariance_covariance(z, z).tolist() == pytest.approx([0, 0, 0], abs=1e-12)


def test_one_image_is_refused():
    criterion = VICReg(4, hidden_dim=6, proj_dim=5)
    criterion.projector = nn.Identity()
    with pytest.raises(ValueError, match="use 2 images or more, got 1"):
        criterion(torch.ones(1, 4), torch.ones(1, 4))
