import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from criteria.swav import SwAV, sinkhorn

DIM = 4


def build(**changes):
    torch.manual_seed(0)
    small = {"hidden_dim": 6, "proj_dim": DIM, "n_prototypes": 3, "freeze_steps": 0}
    return SwAV(5, **{**small, "queue_size": 0, "queue_start": 0, **changes}).double()


def views(n=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 5, generator=generator, dtype=torch.float64) for _ in range(2)]


def unit(x):
    norm = math.sqrt(sum(a * a for a in x))
    return [a / norm for a in x]


def products(rows, prototypes):
    return [[sum(a * b for a, b in zip(unit(r), c, strict=True)) for c in prototypes] for r in rows]


def sinkhorn_by_loops(scores, epsilon, iterations):
    """As published: a matrix of sum 1, prototypes to 1 / K and images to 1 / N in turn."""
    q = [[math.exp(s / epsilon) for s in row] for row in scores]
    n, k = len(q), len(q[0])
    total = sum(map(sum, q))
    q = [[x / total for x in row] for row in q]
    for _ in range(iterations):
        of_prototype = [sum(row[c] for row in q) for c in range(k)]
        q = [[row[c] / of_prototype[c] / k for c in range(k)] for row in q]
        q = [[x / sum(row) / n for x in row] for row in q]
    return [[x * n for x in row] for row in q]


def by_loops(criterion, z1, z2, queue=((), ())):
    """Eq. 1-2 with assignments among the images of the queue and of the batch."""
    prototypes = criterion.prototypes.tolist()
    scores = [products(z.tolist(), prototypes) for z in (z1, z2)]
    total, n = 0.0, len(z1)
    for own, other in ((0, 1), (1, 0)):
        everyone = products(queue[own], prototypes) + scores[own]
        q = sinkhorn_by_loops(everyone, criterion.epsilon, criterion.sinkhorn_iterations)[-n:]
        for i in range(n):
            logits = [s / criterion.temperature for s in scores[other][i]]
            below = sum(map(math.exp, logits))
            total -= sum(a * math.log(math.exp(x) / below) for a, x in zip(q[i], logits))  # noqa: B905
    return total / (2 * n)


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("epsilon", [0.05, 0.5])
def test_equals_the_equation(epsilon, iterations):
    criterion = build(epsilon=epsilon, sinkhorn_iterations=iterations)
    first, second = views()
    z = [criterion.projector(x) for x in (first, second)]
    expected = by_loops(criterion, *z)
    assert criterion(first, second).item() == pytest.approx(expected, rel=1e-11)


def test_equals_the_equation_with_a_queue():
    """Filled from ``queue_start`` on, used once full, with the images that were the last then."""
    criterion = build(queue_size=8, queue_start=2)
    past = []
    for step in range(7):
        first, second = views(3, seed=step)
        z = [criterion.projector(x) for x in (first, second)]
        used = [
            [row for pair in past for row in pair[view].tolist()][-8:] if len(past) * 3 >= 8 else []
            for view in (0, 1)
        ]
        expected = by_loops(criterion, *z, used)
        assert criterion(first, second).item() == pytest.approx(expected, rel=1e-11)
        assert bool(used[0]) == (step >= 5)
        if step >= 2:
            past.append([x.detach() for x in z])
        criterion.after_step(nn.Identity())


@pytest.mark.parametrize("n", [1, 4, 50])
def test_sinkhorn_equals_loops(n):
    scores = 2 * torch.rand(n, 5, dtype=torch.float64) - 1
    expected = torch.tensor(sinkhorn_by_loops(scores.tolist(), 0.05, 3), dtype=torch.float64)
    assert torch.allclose(sinkhorn(scores, 0.05, 3), expected, rtol=1e-10, atol=1e-14)


def test_sinkhorn_shares_out_evenly():
    q = sinkhorn(torch.rand(30, 6, dtype=torch.float64), 0.05, 500)
    assert torch.allclose(q.sum(dim=1), torch.ones(30, dtype=torch.float64))
    assert torch.allclose(q.sum(dim=0), torch.full((6,), 5.0, dtype=torch.float64), atol=1e-6)


@pytest.mark.parametrize("epsilon", [1e-5, 0.05])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_sinkhorn_does_not_overflow(epsilon, scale):
    scores = scale * (2 * torch.rand(20, 6, generator=torch.Generator().manual_seed(0)) - 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        q = sinkhorn(scores, epsilon, 3)
    assert q.isfinite().all()
    assert torch.allclose(q.sum(dim=1), torch.ones(20))


def test_assignments_have_no_gradient():
    """The gradient is that of a cross-entropy with the assignments as constants."""
    criterion = build()
    criterion.projector = nn.Identity()
    first, second = (x[:, :DIM].clone().requires_grad_() for x in views())
    z1, z2 = (F.normalize(x, dim=1) for x in (first, second))
    q1, q2 = (sinkhorn(z @ criterion.prototypes.T, 0.05, 3).detach() for z in (z1, z2))
    expected = sum(
        -(q * (z @ criterion.prototypes.T / 0.1).log_softmax(dim=1)).sum(dim=1).mean() / 2
        for q, z in ((q1, z2), (q2, z1))
    )
    wanted = torch.autograd.grad(expected, [first, second, criterion.prototypes])
    grads = torch.autograd.grad(criterion(first, second), [first, second, criterion.prototypes])
    for grad, other in zip(grads, wanted, strict=True):
        assert torch.allclose(grad, other, atol=1e-12)


def test_the_softmax_is_over_prototypes():
    """One image apart from the others changes no other image's prediction."""
    criterion = build(n_prototypes=4)
    criterion.projector = nn.Identity()
    criterion._assign = lambda z: [torch.eye(4, dtype=torch.float64)] * 2
    first, second = (x[:4, :DIM] for x in views())
    moved = second.clone()
    moved[3] = -moved[3]
    terms = []
    for other in (second, moved):
        x = other.clone().requires_grad_()
        (grad,) = torch.autograd.grad(criterion(first, x), x)
        terms.append(grad[:3])
    assert torch.equal(*terms)


def test_prototypes_are_frozen_first_and_unit_rows_always():
    criterion = build(freeze_steps=3)
    start = criterion.prototypes.detach().clone()
    optimizer = torch.optim.AdamW(criterion.param_groups(0.1), lr=0.1, weight_decay=0.5)
    for step in range(6):
        optimizer.zero_grad()
        criterion(*views(seed=step)).backward()
        optimizer.step()
        criterion.after_step(nn.Identity())
        assert torch.equal(criterion.prototypes, start) == (step < 3)
        norms = criterion.prototypes.norm(dim=1)
        assert torch.allclose(norms, torch.ones(3, dtype=torch.float64), atol=1e-12)


def test_a_frozen_prototype_has_no_gradient():
    criterion = build(freeze_steps=1)
    criterion(*views()).backward()
    assert criterion.prototypes.grad is None
    criterion.after_step(nn.Identity())
    criterion(*views()).backward()
    assert criterion.prototypes.grad.abs().sum() > 0


def test_the_step_and_the_queue_are_in_the_state():
    criterion = build(queue_size=4, freeze_steps=2)
    criterion(*views(3))
    criterion.after_step(nn.Identity())
    other = build(queue_size=4, freeze_steps=2)
    other.load_state_dict(criterion.state_dict())
    assert other.steps == 1
    assert other.queue.filled == 3
    assert torch.equal(other.queue.rows, criterion.queue.rows)
