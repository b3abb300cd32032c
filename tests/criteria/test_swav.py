import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from criteria.swav import SwAV, sinkhorn
from tests.criteria.scalars import assert_same, cross_entropy, dot, two_views, unit

DIM = 4


def make(projector=None, **changes):
    torch.manual_seed(0)
    small = {"hidden_dim": 6, "proj_dim": DIM, "n_prototypes": 3, "freeze_steps": 0}
    criterion = SwAV(5, **{**small, "queue_size": 0, "queue_start": 0, **changes})
    criterion.projector = projector or criterion.projector
    return criterion.double()


def views(n=6, seed=0):
    return two_views(n, 5, seed)


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


def equation(criterion, z1, z2, queue=((), ())):
    """Eq. 1-2 with assignments among the images of the queue and of the batch."""
    prototypes, n, total = criterion.prototypes.tolist(), len(z1), 0.0

    def scores(rows):
        return [[dot(unit(row), c) for c in prototypes] for row in rows]

    of_views = [scores(z.tolist()) for z in (z1, z2)]
    for own, other in ((0, 1), (1, 0)):
        everyone = scores(queue[own]) + of_views[own]
        q = sinkhorn_by_loops(everyone, criterion.epsilon, criterion.sinkhorn_iterations)[-n:]
        for assigned, row in zip(q, of_views[other], strict=True):
            logits = [s / criterion.temperature for s in row]
            total += sum(a * cross_entropy(logits, c) for c, a in enumerate(assigned))
    return total / (2 * n)


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("epsilon", [0.05, 0.5])
def test_equals_the_equation(epsilon, iterations):
    criterion = make(epsilon=epsilon, sinkhorn_iterations=iterations)
    z = [criterion.projector(x) for x in views()]
    assert criterion(*views()).item() == pytest.approx(equation(criterion, *z), rel=1e-11)


def test_equals_the_equation_with_a_queue():
    """Filled from ``queue_start`` on, used once full, with the latest images."""
    criterion, past = make(queue_size=8, queue_start=2), []
    for step in range(7):
        given = views(3, step)
        z = [criterion.projector(x) for x in given]
        used = [
            [row for pair in past for row in pair[view].tolist()][-8:] if len(past) * 3 >= 8 else []
            for view in (0, 1)
        ]
        expected = equation(criterion, *z, used)
        assert criterion(*given).item() == pytest.approx(expected, rel=1e-11)
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
    criterion = make(nn.Identity())
    given = [x[:, :DIM].clone().requires_grad_() for x in views()]
    scores = [F.normalize(x, dim=1) @ criterion.prototypes.T for x in given]
    q1, q2 = (sinkhorn(s, 0.05, 3).detach() for s in scores)
    expected = sum(F.cross_entropy(s / 0.1, q) / 2 for q, s in ((q1, scores[1]), (q2, scores[0])))
    assert_same(criterion(*given), expected, [*given, criterion.prototypes], close=1e-13)


def test_prototypes_are_frozen_first_and_unit_rows_always():
    criterion = make(freeze_steps=3)
    start = criterion.prototypes.detach().clone()
    optimizer = torch.optim.AdamW(criterion.param_groups(0.1), lr=0.1, weight_decay=0.5)
    for step in range(6):
        optimizer.zero_grad()
        criterion(*views(seed=step)).backward()
        assert (criterion.prototypes.grad is None) == (step < 3)
        optimizer.step()
        criterion.after_step(nn.Identity())
        assert torch.equal(criterion.prototypes, start) == (step < 3)
        norms = criterion.prototypes.norm(dim=1)
        assert torch.allclose(norms, torch.ones(3, dtype=torch.float64), atol=1e-12)
