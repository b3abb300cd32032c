import pytest
import torch

from criteria import LGSLIP, SLIP, Criterion, SimCLR
from tests.criteria.caption_losses import CAPTIONS, DIM, FEATURES, batch, clip, views


class Apart(Criterion):
    """A stand-in for SimCLR: reads two views, has a weight, and counts the steps."""

    n_views = 2
    reads = "features"

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
        self.steps = 0

    def compute(self, views, batch):
        self.check(views, batch)
        first, second = (view.features for view in views)
        return (self.weight * first - second).square().mean()

    def after_step(self, embedder):
        self.steps += 1

    def param_groups(self, lr):
        return [{"params": [self.weight], "lr": 10 * lr}]


def simclr():
    torch.manual_seed(1)
    return SimCLR(FEATURES, hidden_dim=6, layers=3, proj_dim=3).double()


def make(name, embed_dim):
    assert embed_dim == 3
    return {"clip": clip, "simclr": Apart}[name]()


def make_shared(name, embed_dim):
    return {"clip": clip, "simclr": simclr}[name]()


@pytest.mark.parametrize("weight", [{}, {"ssl_weight": 0.3}, {"ssl_weight": 0.0}])
def test_slip_is_the_sum_of_both(weight):
    criterion, given = SLIP(make, 3, **weight), views(3)
    first, second = (view.features for view in given[1:])
    expected = clip().compute(given[:1], batch())
    expected = expected + weight.get("ssl_weight", 1.0) * (2 * first - second).square().mean()
    loss = criterion.compute(given, batch())
    assert torch.equal(loss, expected)
    read = [view.features for view in given]
    assert all(map(torch.equal, *(torch.autograd.grad(x, read) for x in (loss, expected))))


@pytest.mark.parametrize("weight", [{}, {"ssl_weight": 0.3}, {"ssl_weight": 0.0}])
def test_lgslip_compares_both_through_one_projector(weight):
    """Published: three linear layers, as wide at their end as the captions' projection."""
    criterion, given = LGSLIP(make_shared, 3, **weight).double(), views(2)
    projector = criterion.simclr.projector
    linear = [m for m in projector if isinstance(m, torch.nn.Linear)]
    assert [layer.out_features for layer in linear] == [6, 6, DIM]
    first, second = (projector(view.features) for view in given)
    alone = clip()
    alone.projection = torch.nn.Identity()
    expected = alone.compute([given[0]._replace(features=first)], batch())
    expected = expected + weight.get("ssl_weight", 1.0) * criterion.simclr.loss(first, second)
    loss = criterion.compute(given, batch())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    trained = [*(view.features for view in given), *projector.parameters()]
    grads = torch.autograd.grad(loss, trained, allow_unused=True)
    assert all(grad is not None for grad in grads[2:])
    held = [p for group in criterion.param_groups(0.1) for p in group["params"]]
    assert sorted(map(id, held)) == sorted(map(id, criterion.parameters()))


@pytest.mark.parametrize(("kind", "making"), [(SLIP, make), (LGSLIP, make_shared)])
def test_captions_are_those_of_the_first_view(kind, making):
    """With the captions the loss changes by what CLIP's loss on the first view changes by."""
    criterion, given = kind(making, 3).double(), views(kind.n_views)
    swapped = batch((CAPTIONS[1], CAPTIONS[0], *CAPTIONS[2:]))
    change = criterion.compute(given, swapped) - criterion.compute(given, batch())
    read = given[0]
    if kind is LGSLIP:
        read = read._replace(features=criterion.simclr.projector(read.features))
    of_clip = criterion.clip.compute([read], swapped) - criterion.clip.compute([read], batch())
    assert change.item() == pytest.approx(of_clip.item(), rel=1e-9)
    assert abs(change.item()) > 1e-3


def test_both_parts_keep_their_groups_and_follow_the_steps():
    criterion = SLIP(make, 3)
    assert {"params": [criterion.simclr.weight], "lr": 2.0} in criterion.param_groups(0.2)
    with torch.no_grad():
        criterion.clip.log_scale.fill_(9.0)
    criterion.after_step(torch.nn.Identity())
    assert criterion.clip.log_scale.exp().item() == pytest.approx(100)
    assert criterion.simclr.steps == 1
