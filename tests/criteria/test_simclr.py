import math

import pytest
import torch
from torch import nn

from criteria.simclr import SimCLR, nt_xent


def views(n=5, dim=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, dim, generator=generator, dtype=torch.float64) for _ in range(2)]


def cosine(x, y):
    dot = sum(a * b for a, b in zip(x, y, strict=True))
    return dot / math.sqrt(sum(a * a for a in x)) / math.sqrt(sum(b * b for b in y))


def by_loops(first, second, temperature):
    """Eq. 1, term by term."""
    rows = [*first.tolist(), *second.tolist()]
    n = len(first)
    total = 0.0
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        below = sum(
            math.exp(cosine(rows[i], rows[k]) / temperature) for k in range(2 * n) if k != i
        )
        total -= math.log(math.exp(cosine(rows[i], rows[j]) / temperature) / below)
    return total / (2 * n)


@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
@pytest.mark.parametrize("n", [2, 5, 8])
def test_equals_the_equation(n, temperature):
    first, second = views(n)
    expected = by_loops(first, second, temperature)
    assert nt_xent(first, second, temperature).item() == pytest.approx(expected, rel=1e-12)


def test_the_criterion_is_the_loss_of_its_projections():
    torch.manual_seed(0)
    criterion = SimCLR(4, temperature=0.2, hidden_dim=6, proj_dim=3).double()
    first, second = views()
    z1, z2 = (criterion.projector(x) for x in (first, second))
    expected = by_loops(z1.detach(), z2.detach(), 0.2)
    assert criterion(first, second).item() == pytest.approx(expected, rel=1e-12)


def test_gradient():
    first, second = (x.requires_grad_() for x in views(3))
    assert torch.autograd.gradcheck(lambda x, y: nt_xent(x, y, 0.3), (first, second))


def test_hand_placed():
    """Two images at right angles, equal views: each positive is e^(1/τ) against two of e^0."""
    first = torch.eye(2, dtype=torch.float64)
    expected = math.log(1 + 2 * math.exp(-2))
    assert nt_xent(first, 3 * first, 0.5).item() == pytest.approx(expected)


def test_an_image_alone_has_nothing_to_be_told_from():
    first, second = (x.requires_grad_() for x in views(1))
    loss = nt_xent(first, second, 0.1)
    (grad,) = torch.autograd.grad(loss, first)
    assert loss.item() == 0
    assert grad.eq(0).all()


def test_low_temperatures_do_not_overflow():
    first, second = (x.float().requires_grad_() for x in views())
    loss = nt_xent(first, -first + 0 * second, 1e-3)
    (grad,) = torch.autograd.grad(loss, first)
    assert 1000 < loss.item() < 2000 + math.log(9)
    assert grad.isfinite().all()


def test_every_parameter_and_both_views_learn():
    criterion = SimCLR(4, hidden_dim=6, proj_dim=3).double()
    first, second = (x.requires_grad_() for x in views())
    criterion(first, second).backward()
    held = [first, second, *criterion.projector.parameters()]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in held if p.ndim == 2)


def test_the_diagonal_is_left_out_without_a_mask_in_the_graph():
    """What autograd keeps of N views is two (N, N) matrices at most."""
    n = 32
    saved = []
    first, second = (x.requires_grad_() for x in views(n))
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: saved.append(t.untyped_storage().nbytes()) or t, lambda t: t
    ):
        nt_xent(first, second, 0.1)
    assert sum(size >= (2 * n) ** 2 for size in saved) >= 1
    assert sum(size >= 8 * (2 * n) ** 2 for size in saved) <= 2


def test_the_head_may_be_replaced():
    criterion = SimCLR(4, temperature=0.5)
    criterion.projector = nn.Identity()
    first, second = views()
    assert criterion(first, second).item() == pytest.approx(by_loops(first, second, 0.5))
