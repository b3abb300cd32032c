import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from criteria.nnclr import NNCLR, find, nearest

DIM = 4


def build(temperature=0.2, queue_size=9):
    torch.manual_seed(0)
    return NNCLR(
        6,
        temperature=temperature,
        queue_size=queue_size,
        hidden_dim=7,
        proj_dim=DIM,
        pred_dim=5,
    ).double()


def views(n=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 6, generator=generator, dtype=torch.float64) for _ in range(2)]


def dot(x, y):
    return sum(a * b for a, b in zip(x, y, strict=True))


def unit(x):
    return [a / math.sqrt(dot(x, x)) for a in x]


def by_loops(z1, z2, p1, p2, queue, temperature):
    """Eq. 4 both ways, term by term."""
    total = 0.0
    for z, p in ((z1, p2), (z2, p1)):
        p = [unit(x) for x in p.tolist()]
        for i, anchor in enumerate(z.tolist()):
            neighbour = max(queue.tolist(), key=lambda row: dot(unit(anchor), row))
            logits = [dot(neighbour, x) / temperature for x in p]
            total -= math.log(math.exp(logits[i]) / sum(map(math.exp, logits)))
    return total / (2 * len(z1))


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_equals_the_equation_over_several_batches(temperature):
    criterion = build(temperature)
    for seed in range(4):
        first, second = views(seed=seed)
        z = [criterion.projector(x) for x in (first, second)]
        p = [criterion.predictor(x) for x in z]
        expected = by_loops(*z, *p, criterion.queue.rows, temperature)
        assert criterion(first, second).item() == pytest.approx(expected, rel=1e-12)


def test_the_queue_holds_the_first_views_of_earlier_batches():
    criterion = build(queue_size=9)
    start = criterion.queue.rows.clone()
    pushed = []
    for seed in range(3):
        first, second = views(seed=seed)
        pushed.append(F.normalize(criterion.projector(first), dim=1).detach())
        criterion(first, second)
        kept = torch.cat([start, *pushed])[-9:]
        assert torch.allclose(criterion.queue.rows, kept, atol=1e-12)


def test_a_batch_does_not_meet_itself():
    """The loss is that of the queue as it was; afterwards each image would find itself."""
    criterion = build()
    criterion.projector.eval()  # the same projections in each pass
    first, second = views()
    before = criterion.queue.rows.clone()
    z1 = criterion.projector(first)
    criterion(first, second)
    own = F.normalize(z1, dim=1)
    assert torch.allclose(nearest(z1, criterion.queue.rows), own)
    assert not any((row == old).all() for row in own for old in before)


def test_the_queue_starts_full_of_unit_rows():
    criterion = NNCLR(6, queue_size=30, hidden_dim=4, proj_dim=4, pred_dim=4)
    assert criterion.queue.rows.shape == (30, 4)
    assert torch.allclose(criterion.queue.rows.norm(dim=1), torch.ones(30))
    assert "queue.rows" in criterion.state_dict()


def test_batches_above_the_queue():
    criterion = build(queue_size=3)
    first, second = views(5)
    z1 = criterion.projector(first)
    criterion(first, second)
    assert torch.allclose(criterion.queue.rows, F.normalize(z1, dim=1)[-3:], atol=1e-12)


def test_neighbours_have_no_gradient_and_predictions_do():
    criterion = build()
    criterion.predictor = nn.Identity()
    criterion.projector = nn.Linear(6, DIM).double()
    first, second = (x.requires_grad_() for x in views())
    loss = criterion(first, second)
    constants = [nearest(criterion.projector(x), build().queue.rows) for x in (first, second)]
    n1, n2 = constants
    z1, z2 = (criterion.projector(x) for x in (first, second))
    expected = (find(n1, z2, 0.2) + find(n2, z1, 0.2)) / 2
    assert loss.item() == pytest.approx(expected.item())
    (grad,) = torch.autograd.grad(loss, first)
    (wanted,) = torch.autograd.grad(expected, first)
    assert torch.allclose(grad, wanted)
    assert not n1.requires_grad


def test_gradient():
    n = F.normalize(torch.randn(3, DIM, dtype=torch.float64), dim=1)
    p = torch.randn(3, DIM, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: find(n, x, 0.3), p)


def test_eval_mode_leaves_the_queue():
    criterion = build().eval()
    before = criterion.queue.rows
    criterion(*views())
    assert criterion.queue.rows is before
