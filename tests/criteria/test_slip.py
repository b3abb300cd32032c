import pytest
import torch

from criteria import LGSLIP, SLIP, Criterion
from tests.criteria.caption_losses import CAPTIONS, batch, clip, views


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


def make(name, embed_dim):
    assert embed_dim == 3
    return {"clip": clip, "simclr": Apart}[name]()


@pytest.mark.parametrize("weight", [{}, {"ssl_weight": 0.3}, {"ssl_weight": 0.0}])
@pytest.mark.parametrize(("kind", "pair"), [(SLIP, (1, 2)), (LGSLIP, (0, 1))])
def test_is_the_sum_of_both(kind, pair, weight):
    criterion, given = kind(make, 3, **weight), views(kind.n_views)
    first, second = (given[v].features for v in pair)
    expected = clip().compute(given[:1], batch())
    expected = expected + weight.get("ssl_weight", 1.0) * (2 * first - second).square().mean()
    loss = criterion.compute(given, batch())
    assert torch.equal(loss, expected)
    read = [view.features for view in given]
    assert all(map(torch.equal, *(torch.autograd.grad(x, read) for x in (loss, expected))))


@pytest.mark.parametrize("kind", [SLIP, LGSLIP])
def test_captions_are_those_of_the_first_view(kind):
    """Swapping two captions changes CLIP on the first view by as much as it changes the loss."""
    criterion, given = kind(make, 3), views(kind.n_views)
    swapped = batch((CAPTIONS[1], CAPTIONS[0], *CAPTIONS[2:]))
    change = criterion.compute(given, swapped) - criterion.compute(given, batch())
    of_clip = clip().compute(given[:1], swapped) - clip().compute(given[:1], batch())
    assert change.item() == pytest.approx(of_clip.item(), rel=1e-9)
    assert abs(change.item()) > 1e-3


@pytest.mark.parametrize("kind", [SLIP, LGSLIP])
def test_both_parts_keep_their_groups_and_follow_the_steps(kind):
    criterion = kind(make, 3)
    assert {"params": [criterion.simclr.weight], "lr": 2.0} in criterion.param_groups(0.2)
    with torch.no_grad():
        criterion.clip.log_scale.fill_(9.0)
    criterion.after_step(torch.nn.Identity())
    assert criterion.clip.log_scale.exp().item() == pytest.approx(100)
    assert criterion.simclr.steps == 1
