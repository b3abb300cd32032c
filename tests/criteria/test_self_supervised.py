"""What the self-supervised objectives promise, and their shared parts."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from criteria import BYOL, NNCLR, BarlowTwins, SimCLR, SimSiam, SwAV, VICReg
from criteria.self_supervised import Queue, full_precision, head, mean_cosine
from tests.criteria.scalars import normal
from utilities.structures import Batch, Embedding

DIM = 6  # of the features
SMALL = {
    SimCLR: {"hidden_dim": 8, "proj_dim": 5},
    SimSiam: {"hidden_dim": 8, "proj_dim": 8, "pred_dim": 4},
    NNCLR: {"hidden_dim": 8, "proj_dim": 5, "pred_dim": 7, "queue_size": 64},
    SwAV: {"hidden_dim": 8, "proj_dim": 5, "n_prototypes": 7, "freeze_steps": 1,
           "queue_size": 12, "queue_start": 1},
    BYOL: {"hidden_dim": 8, "proj_dim": 5},
    BarlowTwins: {"hidden_dim": 8, "proj_dim": 5},
    VICReg: {"hidden_dim": 8, "proj_dim": 5},
}  # fmt: skip
every_objective = pytest.mark.parametrize("kind", SMALL, ids=lambda kind: kind.__name__)


class Toy(nn.Module):
    """Images (B, 3, 4, 4) to features (B, DIM)."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(48, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, DIM)
        )

    def forward(self, images):
        return embedding(self.net(images))


def embedding(features):
    return Embedding(features[:, :2], features, features[:, :, None, None])


def make(kind):
    """An embedder and an objective on it, with small heads."""
    torch.manual_seed(0)
    embedder = Toy()
    given = {"embedder": embedder, "n_steps": 40} if kind is BYOL else {}
    return embedder, kind(DIM, **given, **SMALL[kind])


def batch(n=8, seed=0):
    """Two noisy views of each of n images."""
    images, *noise = normal(3, n, 3, 4, 4, seed=seed, dtype=torch.float32)
    views = tuple(images + 0.3 * x for x in noise)
    return Batch(views, torch.arange(n), torch.arange(n))


def loss_of(embedder, criterion, chosen):
    return criterion.compute([embedder(view) for view in chosen.views], chosen)


def train(embedder, criterion, batches):
    groups = [{"params": list(embedder.parameters())}, *criterion.param_groups(5e-3)]
    optimizer, losses = torch.optim.AdamW(groups, lr=5e-3, weight_decay=0.01), []
    for chosen in batches:
        loss = loss_of(embedder, criterion, chosen)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        criterion.after_step(embedder)
        losses.append(loss.item())
    return losses


@every_objective
def test_training_reduces_the_loss(kind):
    losses = train(*make(kind), [batch(32)] * 30)
    lowest = -1.0 if kind is SimSiam else 0.0
    assert sum(losses[-5:]) / 5 - lowest < 0.85 * (sum(losses[1:4]) / 3 - lowest)


@every_objective
def test_the_views_may_be_exchanged(kind):
    chosen = batch()
    swapped = chosen._replace(views=chosen.views[::-1])
    loss = loss_of(*make(kind), chosen).item()
    assert loss_of(*make(kind), swapped).item() == pytest.approx(loss, rel=1e-5)


@every_objective
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_heads_follow_autocast_and_losses_do_not(kind, dtype):
    _, criterion = make(kind)
    first, noise = normal(2, 8, DIM, dtype=torch.float32)
    views = [embedding(x.to(dtype).requires_grad_()) for x in (first, first + 0.3 * noise)]
    plain = make(kind)[1].compute(views, batch())
    seen = []
    criterion.projector.register_forward_hook(lambda module, given, out: seen.append(out.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = criterion.compute(views, batch())
    assert set(seen) == {torch.bfloat16}
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(plain.item(), rel=0.1, abs=0.05)
    for grad in torch.autograd.grad(loss, [view.features for view in views]):
        assert grad.isfinite().all()
        assert grad.abs().sum() > 0


@every_objective
@pytest.mark.parametrize("scale", [0.0, 1e-20, 1.0, 1e4])
@pytest.mark.parametrize("constant", [False, True])
def test_extreme_features_give_finite_losses_and_gradients(kind, scale, constant):
    """Equal views of images that differ, or of images that are all alike."""
    _, criterion = make(kind)
    features = torch.ones(8, DIM) if constant else normal(8, DIM, dtype=torch.float32)
    for _ in range(3):
        views = [embedding((scale * features).requires_grad_()) for _ in range(2)]
        loss = criterion.compute(views, batch())
        trained = [p for p in criterion.parameters() if p.requires_grad]
        read = [view.features for view in views]
        grads = torch.autograd.grad(loss, [*read, *trained], allow_unused=True)
        assert loss.isfinite()
        assert all(grad.isfinite().all() for grad in grads if grad is not None)


@pytest.mark.parametrize(
    ("kind", "headless"), [*((kind, False) for kind in SMALL), (BarlowTwins, True), (VICReg, True)]
)
def test_one_image_is_refused_where_something_normalises_over_the_batch(kind, headless):
    embedder, criterion = make(kind)
    embedder.eval()
    if headless:
        criterion.projector = nn.Identity()
    with pytest.raises(ValueError, match=r"2 images or more.*got 1"):
        loss_of(embedder, criterion, batch(1))


@every_objective
def test_features_of_another_width_are_named(kind):
    views = [embedding(torch.ones(8, dim)) for dim in (DIM, 4)]
    with pytest.raises(ValueError, match=r"\(8, 6\).*\(8, 4\)"):
        make(kind)[1].compute(views, batch())


@every_objective
def test_norms_and_biases_take_no_weight_decay(kind):
    matrices, vectors = make(kind)[1].param_groups(lr=0.25)
    assert {p.ndim for p in matrices["params"]} == {2}
    assert {p.ndim for p in vectors["params"]} == {1}
    assert matrices["lr"] == vectors["lr"] == 0.25
    assert "weight_decay" not in matrices
    assert vectors["weight_decay"] == 0.0


@every_objective
def test_eval_mode_changes_nothing(kind):
    embedder, criterion = make(kind)
    train(embedder, criterion, [batch(seed=i) for i in range(4)])
    embedder.eval()
    criterion.eval()

    def tensors():
        return {k: v for k, v in criterion.state_dict().items() if isinstance(v, torch.Tensor)}

    before = {name: value.clone() for name, value in tensors().items()}
    first = loss_of(embedder, criterion, batch())
    assert torch.equal(loss_of(embedder, criterion, batch()), first)
    assert all(torch.equal(value, before[name]) for name, value in tensors().items())


# --------------------------------------------------------------------------------------------------
# Heads, precision, cosines, queues
# --------------------------------------------------------------------------------------------------
def test_a_head_is_linear_layers_with_norms_between():
    block, last = [nn.Linear, nn.BatchNorm1d, nn.ReLU], [nn.Linear]
    layers = head(3, 5, 7, 2)
    assert [type(layer) for layer in layers] == [*block, *block, *last]
    assert [tuple(p.shape) for p in layers.parameters() if p.ndim == 2] == [(5, 3), (7, 5), (2, 7)]
    assert [m.bias is not None for m in layers if isinstance(m, nn.Linear)] == [False, False, True]


def test_a_head_may_end_in_a_norm():
    layers = head(3, 5, 2, last_norm=True, last_affine=False)
    assert [type(layer) for layer in layers[3:]] == [nn.Linear, nn.BatchNorm1d]
    assert layers[-2].bias is None
    assert layers[-1].weight is None
    assert head(3, 5, 2, last_norm=True)[-1].weight.shape == (2,)


@pytest.mark.parametrize(
    ("kind", "projector", "predictor"),
    [
        (SimCLR, [2048, 2048, 128], None),
        (SimSiam, [2048, 2048, 2048], [512, 2048]),
        (NNCLR, [2048, 2048, 256], [4096, 256]),
        (SwAV, [2048, 128], None),
    ],
)
def test_default_heads_are_the_published_ones(kind, projector, predictor):
    with torch.device("meta"):
        criterion = kind(2048)
    for name, expected in (("projector", projector), ("predictor", predictor)):
        if expected is not None:
            layers = getattr(criterion, name)
            assert [m.out_features for m in layers if isinstance(m, nn.Linear)] == expected
    ends_in_norm = kind in (SimSiam, NNCLR)
    assert isinstance(criterion.projector[-1], nn.BatchNorm1d) == ends_in_norm


def test_full_precision_leaves_autocast():
    @full_precision
    def product(rows, scale):
        return rows @ rows.T * scale

    rows = torch.ones(3, 4, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert product(rows, 2.0).dtype == torch.float32
        assert product(rows.double(), scale=2.0).dtype == torch.float64
        assert (rows @ rows.T).dtype == torch.bfloat16


def test_mean_cosine():
    first = torch.tensor([[3.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    second = torch.tensor([[1.0, 1.0], [0.0, -5.0], [1.0, 0.0]])
    assert mean_cosine(first, second).item() == pytest.approx((0.5**0.5 - 1 + 0) / 3)
    x, y = (normal(4, 3, seed=seed).requires_grad_() for seed in range(2))
    assert torch.autograd.gradcheck(mean_cosine, (x, y))
    assert mean_cosine(x, y).item() == pytest.approx(F.cosine_similarity(x, y).mean().item())


@pytest.mark.parametrize("sizes", [[2, 2, 2], [3, 1, 4], [5], [11, 2]])
def test_a_queue_keeps_the_last_rows(sizes):
    """Without a graph, and in a new tensor each time: a backward pass may still read the old."""
    queue, pushed = Queue(5, 2), []
    for i, size in enumerate(sizes):
        rows = torch.full((size, 2), float(i)) + torch.arange(size)[:, None] / 100
        old, copy = queue.rows, queue.rows.clone()
        queue.push(rows.requires_grad_())
        assert torch.equal(old, copy)
        assert not queue.rows.requires_grad
        pushed += rows.tolist()
    kept = pushed[-5:]
    assert queue.filled == len(kept)
    assert queue.full == (len(pushed) >= 5)
    assert queue.rows[5 - len(kept) :].tolist() == kept


def test_a_queue_of_size_zero_stays_empty():
    queue = Queue(0, 2, 3)
    queue.push(torch.ones(4, 2, 3))
    assert queue.full
    assert queue.rows.shape == (0, 2, 3)


def test_a_queue_may_start_with_random_unit_rows():
    torch.manual_seed(0)
    queue = Queue(50, 3, random=True)
    assert queue.full
    assert torch.allclose(queue.rows.norm(dim=1), torch.ones(50))
    assert queue.rows.mean(dim=0).abs().max() < 0.4
