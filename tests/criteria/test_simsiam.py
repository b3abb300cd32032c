import math

import pytest
import torch

from criteria.simsiam import SimSiam


def build():
    torch.manual_seed(0)
    return SimSiam(4, hidden_dim=6, proj_dim=5, pred_dim=3).double()


def views(n=7):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, 4, generator=generator, dtype=torch.float64) for _ in range(2)]


def cosine(x, y):
    dot = sum(a * b for a, b in zip(x, y, strict=True))
    return dot / math.sqrt(sum(a * a for a in x)) / math.sqrt(sum(b * b for b in y))


def test_equals_the_equation():
    criterion, (first, second) = build(), views()
    z = [criterion.projector(x) for x in (first, second)]
    p = [criterion.predictor(x) for x in z]
    (z1, z2), (p1, p2) = ([x.tolist() for x in pair] for pair in (z, p))
    expected = 0.0
    for i in range(len(first)):
        expected -= (cosine(p1[i], z2[i]) / 2 + cosine(p2[i], z1[i]) / 2) / len(first)
    assert criterion(first, second).item() == pytest.approx(expected, rel=1e-12)


def test_the_projection_that_is_predicted_stands_still():
    """The gradient is that of the loss with the other projections given as constants."""
    criterion = build()
    first, second = (x.requires_grad_() for x in views())
    given = [criterion.projector(x).detach() for x in (first, second)]

    def one_way(x, z):
        p = criterion.predictor(criterion.projector(x))
        return -torch.cosine_similarity(p, z, dim=1).mean() / 2

    loss = one_way(first, given[1]) + one_way(second, given[0])
    held = [first, second, *criterion.parameters()]
    expected = torch.autograd.grad(loss, held)
    grads = torch.autograd.grad(criterion(first, second), held)
    for grad, wanted in zip(grads, expected, strict=True):
        assert torch.allclose(grad, wanted, rtol=1e-10, atol=1e-12)
        assert grad.abs().sum() > 0


def test_projections_are_standardised():
    criterion = build()
    assert criterion.projector[-1].weight is None
    z = criterion.projector(views(200)[0])
    assert torch.allclose(z.mean(dim=0), torch.zeros(5, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(z.var(dim=0, correction=0), torch.ones(5, dtype=torch.float64), atol=1e-2)


def test_the_loss_of_a_perfect_prediction_is_minus_one():
    criterion, (first, _) = build(), views()
    criterion.predictor = torch.nn.Identity()
    assert criterion(first, first).item() == pytest.approx(-1)
    assert criterion(first, first.flip(0)).item() > -0.99
