import math

import pytest
import torch
from torch import nn

from criteria.vicreg import EPS, VICReg
from tests.criteria.scalars import two_views

TERMS = ("invariance_weight", "variance_weight", "covariance_weight")
SUM = dict(zip(TERMS, (2.0, 3.0, 5.0), strict=True))


def make(proj_dim=5, projector=None, **weights):
    torch.manual_seed(0)
    weights = {**dict.fromkeys(TERMS, 0.0), **weights}
    criterion = VICReg(4, hidden_dim=6, proj_dim=proj_dim, **weights)
    criterion.projector = projector or criterion.projector
    return criterion.double()


def covariance(z, d, e):
    n = len(z)
    mean_d, mean_e = (sum(row[k] for row in z) / n for k in (d, e))
    return sum((row[d] - mean_d) * (row[e] - mean_e) for row in z) / (n - 1)


def equation(first, second):
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
def test_equals_the_equations_of_its_projections(n, dim, scale):
    """With fewer images than dimensions and with more, which are computed differently."""
    criterion, views = make(dim, **SUM), two_views(n)
    with torch.no_grad():
        criterion.projector[-1].weight *= scale
    terms = equation(*(criterion.projector(x).detach() for x in views))
    for term, value in zip(TERMS, terms, strict=True):
        alone = make(dim, criterion.projector, **{term: 1.0})
        assert alone(*views).item() == pytest.approx(value, rel=1e-10)
    expected = sum(w * x for w, x in zip(SUM.values(), terms, strict=True))
    assert criterion(*views).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("n", [3, 6])
def test_gradient(n):
    criterion = make(projector=nn.Identity(), **SUM)
    given = [(0.5 * x).requires_grad_() for x in two_views(n)]
    assert torch.autograd.gradcheck(criterion, given)


def test_collapse_is_paid_for_and_has_a_gradient():
    first = torch.ones(4, 3, requires_grad=True)
    loss = make(projector=nn.Identity(), variance_weight=1.0)(first, torch.ones(4, 3))
    assert loss.item() == pytest.approx(1 - math.sqrt(EPS))
    (grad,) = torch.autograd.grad(loss, first)
    assert grad.isfinite().all()


def test_spread_and_uncorrelated_dimensions_cost_nothing():
    z = 2 * torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    assert make(projector=nn.Identity(), **SUM)(z, z).item() == pytest.approx(0, abs=1e-12)
