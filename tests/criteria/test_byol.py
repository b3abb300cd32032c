import math

import pytest
import torch
from torch import nn

from criteria.byol import BYOL
from utilities.structures import Batch, Embedding


class Toy(nn.Module):
    """Images (B, 3, 2, 2) to features (B, 5), with a BatchNorm and a linear layer beside."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.BatchNorm1d(5))
        self.embedding = nn.Linear(5, 2)

    def forward(self, images):
        features = self.net(images)
        return Embedding(self.embedding(features), features, features[:, :, None, None])


def build(n_steps=10, momentum=0.9):
    torch.manual_seed(0)
    embedder = Toy().double()
    criterion = BYOL(5, embedder, n_steps, momentum=momentum, hidden_dim=6, proj_dim=4)
    return embedder, criterion.double()


def batch(n=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    views = [torch.randn(n, 3, 2, 2, generator=generator, dtype=torch.float64) for _ in range(2)]
    return Batch(tuple(views), torch.arange(n), torch.arange(n))


def loss_of(embedder, criterion, chosen):
    return criterion.compute([embedder(view) for view in chosen.views], chosen)


def disturb(embedder, criterion, by=0.1):
    """Move the online networks, as an optimizer would."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in [*embedder.parameters(), *criterion.projector.parameters()]:
            p += by * torch.randn(p.shape, generator=generator, dtype=p.dtype)


def unit(x):
    norm = math.sqrt(sum(a * a for a in x))
    return [a / norm for a in x]


def test_equals_the_equation():
    embedder, criterion = build()
    disturb(embedder, criterion)
    chosen = batch()
    p = [criterion.predictor(criterion.projector(embedder(v).features)) for v in chosen.views]
    z = [criterion.target_projector(criterion.target_embedder(v).features) for v in chosen.views]
    expected = 0.0
    for one, other in ((0, 1), (1, 0)):
        for x, y in zip(p[one].tolist(), z[other].tolist(), strict=True):
            distance = sum((a - b) ** 2 for a, b in zip(unit(x), unit(y), strict=True))
            expected += distance / len(chosen.labels)  # eq. 2, which is 2 - 2 cos
    assert loss_of(embedder, criterion, chosen).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.996])
def test_the_target_follows_by_the_published_momentum(momentum):
    n_steps = 5
    embedder, criterion = build(n_steps, momentum)
    online = [*embedder.parameters(), *criterion.projector.parameters()]
    target = [*criterion.target_embedder.parameters(), *criterion.target_projector.parameters()]
    assert len(online) == len(target)
    assert all(torch.equal(t, o) for t, o in zip(target, online, strict=True))
    expected = [t.clone() for t in target]
    for step in range(8):
        disturb(embedder, criterion)
        m = 1 - (1 - momentum) * (math.cos(math.pi * min(step, n_steps) / n_steps) + 1) / 2
        expected = [m * t + (1 - m) * o.detach() for t, o in zip(expected, online, strict=True)]
        criterion.after_step(embedder)
        assert all(
            torch.allclose(t, e, rtol=1e-12, atol=1e-14)
            for t, e in zip(target, expected, strict=True)
        )


def test_after_the_planned_steps_the_target_stands_still():
    embedder, criterion = build(n_steps=2)
    for _ in range(2):
        criterion.after_step(embedder)
    before = [t.clone() for t in criterion.target_embedder.parameters()]
    disturb(embedder, criterion)
    criterion.after_step(embedder)
    assert all(
        torch.equal(t, b)
        for t, b in zip(criterion.target_embedder.parameters(), before, strict=True)
    )


def test_the_target_has_no_gradient_and_the_online_networks_do():
    embedder, criterion = build()
    loss_of(embedder, criterion, batch()).backward()
    for part in (criterion.target_embedder, criterion.target_projector):
        assert all(p.grad is None and not p.requires_grad for p in part.parameters())
    for part in (embedder.net, criterion.projector, criterion.predictor):
        assert all(p.grad is not None for p in part.parameters())


def test_the_embedder_is_copied_and_not_held():
    embedder, criterion = build()
    held = {id(p) for p in criterion.parameters()}
    assert not held & {id(p) for p in embedder.parameters()}
    assert not any(module is embedder for module in criterion.modules())
    assert any(name.startswith("target_embedder.") for name in criterion.state_dict())
    trained = {id(p) for group in criterion.param_groups(1.0) for p in group["params"]}
    assert trained == {
        id(p) for part in (criterion.projector, criterion.predictor) for p in part.parameters()
    }


def test_an_embedder_that_does_not_train_gives_a_target_that_does():
    embedder = Toy().eval().requires_grad_(False)
    criterion = BYOL(5, embedder, 10, hidden_dim=6, proj_dim=4)
    assert all(module.training for module in criterion.target_embedder.modules())


def test_the_target_normalises_by_the_batch_with_statistics_of_its_own():
    embedder, criterion = build()
    chosen = batch()
    loss_of(embedder, criterion, chosen)
    norm = criterion.target_embedder.net[2]
    expected = torch.zeros(5, dtype=torch.float64)
    for view in chosen.views:
        expected = 0.9 * expected + 0.1 * criterion.target_embedder.net[:2](view).mean(dim=0)
    assert torch.allclose(norm.running_mean, expected, atol=1e-12)
    criterion.after_step(embedder)
    assert torch.allclose(norm.running_mean, expected, atol=1e-12)


def test_the_momentum_resumes():
    embedder, criterion = build()
    for _ in range(4):
        criterion.after_step(embedder)
    other = build()[1]
    other.load_state_dict(criterion.state_dict())
    assert other.steps == 4


@pytest.mark.parametrize("momentum", [-0.1, 1.1, float("nan")])
def test_a_momentum_out_of_range_is_refused(momentum):
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\]; got"):
        build(momentum=momentum)
