import math

import pytest
import torch
from torch import nn

from criteria import BYOL
from tests.criteria.scalars import normal, unit
from utilities.structures import Batch, Embedding


class Toy(nn.Module):
    """Images (B, 3, 2, 2) to features (B, 5), with a BatchNorm and an unread linear layer."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.BatchNorm1d(5))
        self.embedding = nn.Linear(5, 2)

    def forward(self, images):
        features = self.net(images)
        return Embedding(self.embedding(features), features, features[:, :, None, None])


def make(n_steps=10, momentum=0.9):
    torch.manual_seed(0)
    embedder = Toy().double()
    criterion = BYOL(5, embedder, n_steps, momentum=momentum, hidden_dim=6, proj_dim=4)
    return embedder, criterion.double()


BATCH = Batch(tuple(normal(2, 6, 3, 2, 2)), torch.arange(6), torch.arange(6))


def loss_of(embedder, criterion):
    return criterion.compute([embedder(view) for view in BATCH.views], BATCH)


def move(embedder, criterion):
    """Move the online networks, as an optimizer would."""
    with torch.no_grad():
        for p in [*embedder.parameters(), *criterion.projector.parameters()]:
            p += 0.1 * normal(*p.shape, seed=5)


def test_equals_the_equation():
    embedder, criterion = make()
    move(embedder, criterion)
    p = [criterion.predictor(criterion.projector(embedder(v).features)) for v in BATCH.views]
    z = [criterion.target_projector(criterion.target_embedder(v).features) for v in BATCH.views]
    expected = 0.0
    for one, other in ((0, 1), (1, 0)):
        for x, y in zip(p[one].tolist(), z[other].tolist(), strict=True):
            expected += math.dist(unit(x), unit(y)) ** 2 / 6  # eq. 2, which is 2 - 2 cos
    assert loss_of(embedder, criterion).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.996])
def test_the_target_follows_by_the_published_momentum(momentum):
    """Less from step to step; after the planned steps it no longer moves."""
    n_steps = 5
    embedder, criterion = make(n_steps, momentum)
    online = [*embedder.parameters(), *criterion.projector.parameters()]
    target = [*criterion.target_embedder.parameters(), *criterion.target_projector.parameters()]
    assert len(online) == len(target)
    assert all(torch.equal(t, o) for t, o in zip(target, online, strict=True))
    expected = [t.clone() for t in target]
    for step in range(8):
        move(embedder, criterion)
        m = 1 - (1 - momentum) * (math.cos(math.pi * min(step, n_steps) / n_steps) + 1) / 2
        expected = [m * t + (1 - m) * o.detach() for t, o in zip(expected, online, strict=True)]
        before = [t.clone() for t in target]
        criterion.after_step(embedder)
        for t, e, b in zip(target, expected, before, strict=True):
            assert torch.allclose(t, e, rtol=1e-12, atol=1e-14)
            assert torch.equal(t, b) == (step >= n_steps)


def test_the_target_has_no_gradient_and_the_online_networks_do():
    embedder, criterion = make()
    loss_of(embedder, criterion).backward()
    for part in (criterion.target_embedder, criterion.target_projector):
        assert all(p.grad is None and not p.requires_grad for p in part.parameters())
    for part in (embedder.net, criterion.projector, criterion.predictor):
        assert all(p.grad is not None for p in part.parameters())


def test_the_target_is_in_the_state_and_no_optimizer_moves_it():
    _, criterion = make()
    assert any(name.startswith("target_embedder.") for name in criterion.state_dict())
    trained = {id(p) for group in criterion.param_groups(1.0) for p in group["params"]}
    heads = (criterion.projector, criterion.predictor)
    assert trained == {id(p) for part in heads for p in part.parameters()}


def test_an_embedder_that_does_not_train_gives_a_target_that_does():
    embedder = Toy().eval().requires_grad_(False)
    criterion = BYOL(5, embedder, 10, hidden_dim=6, proj_dim=4)
    assert all(module.training for module in criterion.target_embedder.modules())


def test_the_target_normalises_by_the_batch_with_statistics_of_its_own():
    embedder, criterion = make()
    loss_of(embedder, criterion)
    norm = criterion.target_embedder.net[2]
    expected = torch.zeros(5, dtype=torch.float64)
    for view in BATCH.views:
        expected = 0.9 * expected + 0.1 * criterion.target_embedder.net[:2](view).mean(dim=0)
    assert torch.allclose(norm.running_mean, expected, atol=1e-12)
    criterion.after_step(embedder)
    assert torch.allclose(norm.running_mean, expected, atol=1e-12)
