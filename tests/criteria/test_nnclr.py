import pytest
import torch
import torch.nn.functional as F
from torch import nn

from criteria import NNCLR
from tests.criteria.scalars import assert_same, cross_entropy, dot, two_views, unit

DIM = 4


def make(temperature=0.2, queue_size=9, **parts):
    torch.manual_seed(0)
    sizes = {"queue_size": queue_size, "hidden_dim": 7, "proj_dim": DIM, "pred_dim": 5}
    criterion = NNCLR(6, temperature=temperature, **sizes)
    for name, part in parts.items():
        setattr(criterion, name, part)
    return criterion.double()


def views(seed=0, n=5):
    return two_views(n, 6, seed)


def nearest_of(z, queue):
    """The nearest rows of the queue, in the order of z."""
    queue = queue.tolist()
    return [max(queue, key=lambda row: dot(unit(anchor), row)) for anchor in z.tolist()]


def equation(z1, z2, p1, p2, queue, temperature):
    """Eq. 4 both ways, term by term."""
    total = 0.0
    for z, p in ((z1, p2), (z2, p1)):
        p = [unit(x) for x in p.tolist()]
        for i, neighbour in enumerate(nearest_of(z, queue)):
            total += cross_entropy([dot(neighbour, x) / temperature for x in p], i)
    return total / (2 * len(z1))


@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("queue_size", [9, 3])
def test_equals_the_equation_over_several_batches(temperature, queue_size):
    """A batch is compared with the queue of earlier first views, and is stored afterwards."""
    criterion = make(temperature, queue_size)
    queue = criterion.queue.rows.clone()
    for seed in range(4):
        first, second = views(seed)
        z = [criterion.projector(x) for x in (first, second)]
        p = [criterion.predictor(x) for x in z]
        expected = equation(*z, *p, queue, temperature)
        assert criterion(first, second).item() == pytest.approx(expected, rel=1e-12)
        queue = torch.cat([queue, F.normalize(z[0], dim=1).detach()])[-queue_size:]
        assert torch.allclose(criterion.queue.rows, queue, atol=1e-12)


def test_the_queue_starts_full_of_unit_rows():
    criterion = make(queue_size=30)
    assert criterion.queue.rows.shape == (30, DIM)
    assert torch.allclose(criterion.queue.rows.norm(dim=1), torch.ones(30).double())
    assert "queue.rows" in criterion.state_dict()


def test_neighbours_have_no_gradient_and_predictions_do():
    """The gradient is that of cross-entropies with the neighbours as constants."""
    criterion = make(projector=nn.Linear(6, DIM), predictor=nn.Identity())
    given = [x.requires_grad_() for x in views()]
    z = [criterion.projector(x) for x in given]
    n1, n2 = (torch.tensor(nearest_of(x, criterion.queue.rows)).double() for x in z)
    p1, p2 = (F.normalize(x, dim=1) for x in z)
    own = torch.arange(5)
    expected = F.cross_entropy(n1 @ p2.T / 0.2, own) + F.cross_entropy(n2 @ p1.T / 0.2, own)
    assert_same(criterion(*given), expected / 2, given)


def test_gradient():
    """In evaluation, which leaves the queue; small steps do not change the neighbours."""
    criterion = make(0.3, projector=nn.Identity()).eval()
    criterion.predictor.eval()
    given = [x[:, :DIM].clone().requires_grad_() for x in views(n=3)]
    assert torch.autograd.gradcheck(criterion, given)


def test_eval_mode_leaves_the_queue():
    criterion = make().eval()
    before = criterion.queue.rows
    criterion(*views())
    assert criterion.queue.rows is before
