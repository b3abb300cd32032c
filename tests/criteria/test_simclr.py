import math

import pytest
import torch
from torch import nn

from criteria import SimCLR
from tests.criteria.scalars import cosine, cross_entropy, two_views


def make(temperature, projector=None):
    torch.manual_seed(0)
    criterion = SimCLR(4, temperature=temperature, hidden_dim=6, proj_dim=3)
    criterion.projector = projector or criterion.projector
    return criterion.double()


def equation(first, second, temperature):
    """Eq. 1, term by term."""
    rows, n, total = [*first.tolist(), *second.tolist()], len(first), 0.0
    for i, row in enumerate(rows):
        j = (i + n) % (2 * n)
        others = [other for k, other in enumerate(rows) if k not in (i, j)]
        logits = [cosine(row, other) / temperature for other in (rows[j], *others)]
        total += cross_entropy(logits, 0)
    return total / (2 * n)


@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
@pytest.mark.parametrize("n", [2, 5, 8])
def test_equals_the_equation_of_its_projections(n, temperature):
    criterion, views = make(temperature), two_views(n)
    expected = equation(*(criterion.projector(x).detach() for x in views), temperature)
    assert criterion(*views).item() == pytest.approx(expected, rel=1e-11)


def test_gradient():
    given = [x.requires_grad_() for x in two_views(3)]
    assert torch.autograd.gradcheck(make(0.3, nn.Identity()), given)


def test_hand_placed():
    """Two images at right angles, equal views: each positive is e^(1/τ) against two of e^0."""
    first = torch.eye(2, dtype=torch.float64)
    expected = math.log(1 + 2 * math.exp(-2))
    assert make(0.5, nn.Identity())(first, 3 * first).item() == pytest.approx(expected)


def test_a_single_image_has_no_negatives_and_no_loss():
    first, second = (x.requires_grad_() for x in two_views(1))
    loss = make(0.1, nn.Identity())(first, second)
    (grad,) = torch.autograd.grad(loss, first)
    assert loss.item() == 0
    assert grad.eq(0).all()


def test_low_temperatures_do_not_overflow():
    first, second = (x.float().requires_grad_() for x in two_views(5))
    loss = make(1e-3, nn.Identity())(first, -first + 0 * second)
    (grad,) = torch.autograd.grad(loss, first)
    assert 1000 < loss.item() < 2000 + math.log(9)
    assert grad.isfinite().all()


def test_every_parameter_and_both_views_learn():
    criterion, views = make(0.1), [x.requires_grad_() for x in two_views(5)]
    criterion(*views).backward()
    held = [*views, *criterion.projector.parameters()]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in held if p.ndim == 2)


def test_the_diagonal_is_left_out_without_a_mask_in_the_graph():
    """Autograd keeps at most two (N, N) matrices of N views."""
    n, saved = 32, []
    views = [x.requires_grad_() for x in two_views(n)]
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: saved.append(t.untyped_storage().nbytes()) or t, lambda t: t
    ):
        make(0.1, nn.Identity())(*views)
    assert sum(size >= (2 * n) ** 2 for size in saved) >= 1
    assert sum(size >= 8 * (2 * n) ** 2 for size in saved) <= 2
