"""What holds for every self-supervised objective, and their shared parts."""

import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from criteria.barlowtwins import BarlowTwins
from criteria.byol import BYOL
from criteria.nnclr import NNCLR
from criteria.self_supervised import Queue, full_precision, head, mean_cosine
from criteria.simclr import SimCLR
from criteria.simsiam import SimSiam
from criteria.swav import SwAV
from criteria.vicreg import VICReg
from utilities.registry import hyperparameters
from utilities.structures import Batch, Embedding

DIM = 6  # of the features
SMALL = {
    SimCLR: {"hidden_dim": 8, "proj_dim": 5},
    SimSiam: {"hidden_dim": 8, "proj_dim": 8, "pred_dim": 4},
    NNCLR: {"hidden_dim": 8, "proj_dim": 5, "pred_dim": 7, "queue_size": 12},
    SwAV: {
        "hidden_dim": 8,
        "proj_dim": 5,
        "n_prototypes": 7,
        "freeze_steps": 1,
        "queue_size": 12,
        "queue_start": 1,
    },
    BYOL: {"hidden_dim": 8, "proj_dim": 5},
    BarlowTwins: {"hidden_dim": 8, "proj_dim": 5},
    VICReg: {"hidden_dim": 8, "proj_dim": 5},
}
every_criterion = pytest.mark.parametrize("kind", SMALL, ids=lambda kind: kind.__name__)


class Toy(nn.Module):
    """Images (B, 3, 4, 4) to features (B, DIM)."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(48, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, DIM)
        )

    def forward(self, images):
        features = self.net(images)
        return Embedding(features[:, :2], features, features[:, :, None, None])


def build(kind, seed=0, **changes):
    """An embedder and a criterion on it, with small heads."""
    torch.manual_seed(seed)
    embedder = Toy()
    given = {"embedder": embedder, "n_steps": 40} if kind is BYOL else {}
    return embedder, kind(DIM, **given, **{**SMALL[kind], **changes})


def batch(n=8, seed=0, noise=0.3):
    """Two noisy views of each of n images."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(n, 3, 4, 4, generator=generator)
    views = [images + noise * torch.randn(images.shape, generator=generator) for _ in range(2)]
    return Batch(tuple(views), torch.arange(n), torch.arange(n))


def loss_of(embedder, criterion, chosen):
    return criterion.compute([embedder(view) for view in chosen.views], chosen)


def train(embedder, criterion, optimizer, batches):
    losses = []
    for chosen in batches:
        loss = loss_of(embedder, criterion, chosen)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        criterion.after_step(embedder)
        losses.append(loss.item())
    return losses


def adamw(embedder, criterion, lr=5e-3):
    groups = [{"params": list(embedder.parameters()), "lr": lr}, *criterion.param_groups(lr)]
    return torch.optim.AdamW(groups, lr=lr, weight_decay=0.01)


def features(n=8, seed=0, dtype=torch.float32):
    """Embeddings of two views, with noise between them, as an embedder would return them."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(n, DIM, generator=generator)
    second = first + 0.3 * torch.randn(n, DIM, generator=generator)
    return [x.to(dtype).requires_grad_() for x in (first, second)]


@every_criterion
def test_training_brings_the_loss_down(kind):
    embedder, criterion = build(kind, **({"queue_size": 64} if kind is NNCLR else {}))
    losses = train(embedder, criterion, adamw(embedder, criterion), [batch(32)] * 30)
    lowest = -1.0 if kind is SimSiam else 0.0
    assert sum(losses[-5:]) / 5 - lowest < 0.85 * (sum(losses[1:4]) / 3 - lowest)


@every_criterion
@pytest.mark.parametrize("done", [1, 4])
def test_a_run_resumes_exactly(kind, done):
    embedder, criterion = build(kind)
    optimizer = adamw(embedder, criterion)
    batches = [batch(seed=i) for i in range(8)]
    train(embedder, criterion, optimizer, batches[:done])
    file = io.BytesIO()
    torch.save([part.state_dict() for part in (embedder, criterion, optimizer)], file)
    expected = train(embedder, criterion, optimizer, batches[done:])

    file.seek(0)
    embedder, criterion = build(kind, seed=9)
    optimizer = adamw(embedder, criterion)
    states = torch.load(file, weights_only=True)
    for part, state in zip((embedder, criterion, optimizer), states, strict=True):
        part.load_state_dict(state)
    assert train(embedder, criterion, optimizer, batches[done:]) == expected


@every_criterion
def test_a_state_dict_is_not_changed_by_later_batches(kind):
    """Of what no optimizer moves: queues."""
    embedder, criterion = build(kind)
    train(embedder, criterion, adamw(embedder, criterion), [batch(seed=i) for i in range(3)])
    state = criterion.state_dict()
    queues = {k: v.clone() for k, v in state.items() if k.endswith("queue.rows")}
    for i in range(3, 6):
        loss_of(embedder, criterion, batch(seed=i))
    assert all(torch.equal(state[name], rows) for name, rows in queues.items())
    assert bool(queues) == (kind in (NNCLR, SwAV))


@every_criterion
def test_batch_order_does_not_matter(kind):
    chosen, order = batch(), torch.randperm(8, generator=torch.Generator().manual_seed(1))
    moved = chosen._replace(views=tuple(view[order] for view in chosen.views))
    embedder, criterion = build(kind)
    loss = loss_of(embedder, criterion, chosen).item()
    assert loss_of(*build(kind), moved).item() == pytest.approx(loss, rel=1e-4)


@every_criterion
def test_the_views_may_be_exchanged(kind):
    chosen = batch()
    swapped = chosen._replace(views=chosen.views[::-1])
    loss = loss_of(*build(kind), chosen).item()
    assert loss_of(*build(kind), swapped).item() == pytest.approx(loss, rel=1e-5)


@every_criterion
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_heads_follow_autocast_and_losses_do_not(kind, dtype):
    _, criterion = build(kind)
    chosen = batch()
    views = [Embedding(x.detach(), x, x[:, :, None, None]) for x in features(dtype=dtype)]
    plain = build(kind)[1].compute(views, chosen)
    seen = []
    criterion.projector.register_forward_hook(lambda module, given, out: seen.append(out.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = criterion.compute(views, chosen)
    assert set(seen) == {torch.bfloat16}
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(plain.item(), rel=0.1, abs=0.05)
    for view in views:
        (grad,) = torch.autograd.grad(loss, view.features, retain_graph=True)
        assert grad.isfinite().all()
        assert grad.abs().sum() > 0


@every_criterion
def test_double_precision_stays(kind):
    embedder, criterion = (part.double() for part in build(kind))
    views = [view.double() for view in batch().views]
    loss = loss_of(embedder, criterion, batch()._replace(views=tuple(views)))
    assert loss.dtype == torch.float64
    assert loss.isfinite()


@every_criterion
@pytest.mark.parametrize("scale", [0.0, 1e-20, 1.0, 1e4])
@pytest.mark.parametrize("constant", [False, True])
def test_extreme_features_give_finite_losses_and_gradients(kind, scale, constant):
    """Equal views of images that differ, or of images that are all alike."""
    _, criterion = build(kind)
    for _ in range(3):
        first, _ = features()
        first = (scale * (first * 0 + 1 if constant else first)).detach().requires_grad_()
        second = first.detach().clone().requires_grad_()
        views = [Embedding(x.detach(), x, x[:, :, None, None]) for x in (first, second)]
        loss = criterion.compute(views, batch())
        trained = [p for p in criterion.parameters() if p.requires_grad]
        grads = torch.autograd.grad(loss, [first, second, *trained], allow_unused=True)
        assert loss.isfinite()
        assert all(grad.isfinite().all() for grad in grads if grad is not None)


@every_criterion
def test_one_image_cannot_be_normalised(kind):
    embedder, criterion = build(kind)
    embedder.eval()
    with pytest.raises(ValueError, match=r"use 2 images or more.*got 1"):
        loss_of(embedder, criterion, batch(1))


@every_criterion
def test_wrong_shapes_are_named(kind):
    embedder, criterion = build(kind)
    chosen = batch()
    views = [embedder(view) for view in chosen.views]
    with pytest.raises(ValueError, match=r"needs 2 view\(s\) of each image, got 1"):
        criterion.compute(views[:1], chosen)
    narrow = views[1]._replace(features=views[1].features[:, :4])
    with pytest.raises(ValueError, match=r"needs features \(8, 6\), got \(8, 4\)"):
        criterion.compute([views[0], narrow], chosen)
    with pytest.raises(ValueError, match=r"got \(8, 2\) and \(7,\)"):
        criterion.compute(views, chosen._replace(labels=torch.arange(7)))


@every_criterion
def test_hyperparameters_out_of_range_name_their_flag(kind):
    checked = 0
    for key, default in hyperparameters(kind).items():
        wrong = -1 if key not in ("temperature", "epsilon") else 0.0
        with pytest.raises(ValueError, match=f"^{key} must be .*; got {wrong:g}"):
            build(kind, **{key: wrong})
        if isinstance(default, float):
            with pytest.raises(ValueError, match=f"^{key} must be .*; got nan"):
                build(kind, **{key: float("nan")})
        checked += 1
    assert checked >= 2


@every_criterion
def test_param_groups_hold_each_trainable_parameter_once(kind):
    embedder, criterion = build(kind)
    matrices, vectors = criterion.param_groups(lr=0.25)
    held = [*matrices["params"], *vectors["params"]]
    trainable = [p for p in criterion.parameters() if p.requires_grad]
    assert sorted(map(id, held)) == sorted(map(id, trainable))
    assert {p.ndim for p in matrices["params"]} == {2}
    assert {p.ndim for p in vectors["params"]} == {1}
    assert matrices["lr"] == vectors["lr"] == 0.25
    assert "weight_decay" not in matrices
    assert vectors["weight_decay"] == 0.0
    assert not {id(p) for p in embedder.parameters()} & set(map(id, criterion.parameters()))


@every_criterion
def test_eval_mode_changes_nothing(kind):
    embedder, criterion = build(kind)
    train(embedder, criterion, adamw(embedder, criterion), [batch(seed=i) for i in range(4)])
    embedder.eval()
    criterion.eval()
    before = {name: value.clone() for name, value in tensors(criterion).items()}
    first = loss_of(embedder, criterion, batch())
    assert torch.equal(loss_of(embedder, criterion, batch()), first)
    assert all(torch.equal(value, before[name]) for name, value in tensors(criterion).items())


def tensors(module):
    return {k: v for k, v in module.state_dict().items() if isinstance(v, torch.Tensor)}


# --------------------------------------------------------------------------------------------------
# Heads
# --------------------------------------------------------------------------------------------------
def kinds(module):
    return [type(layer).__name__ for layer in module]


def test_a_head_is_linear_layers_with_norms_between():
    layers = head(3, 5, 7, 2)
    block = ["Linear", "BatchNorm1d", "ReLU"]
    assert kinds(layers) == [*block, *block, "Linear"]
    assert [tuple(p.shape) for p in layers.parameters() if p.ndim == 2] == [(5, 3), (7, 5), (2, 7)]
    assert [m.bias is not None for m in layers if isinstance(m, nn.Linear)] == [False, False, True]


def test_a_head_may_end_in_a_norm():
    layers = head(3, 5, 2, last_norm=True, last_affine=False)
    assert kinds(layers) == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]
    assert layers[-2].bias is None
    assert layers[-1].weight is None
    assert head(3, 5, 2, last_norm=True)[-1].weight.shape == (2,)
    out = layers(torch.randn(50, 3))
    assert torch.allclose(out.mean(dim=0), torch.zeros(2), atol=1e-5)
    assert torch.allclose(out.var(dim=0, correction=0), torch.ones(2), atol=1e-2)


@pytest.mark.parametrize(
    ("kind", "projector", "predictor"),
    [
        (SimCLR, [2048, 128], None),
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
            dims = [m.out_features for m in layers if isinstance(m, nn.Linear)]
            assert dims == expected
    ends_in_norm = kind in (SimSiam, NNCLR)
    assert isinstance(criterion.projector[-1], nn.BatchNorm1d) == ends_in_norm


# --------------------------------------------------------------------------------------------------
# Full precision, cosines, queues
# --------------------------------------------------------------------------------------------------
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
    x, y = (torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(mean_cosine, (x, y))
    expected = F.cosine_similarity(x, y).mean()
    assert mean_cosine(x, y).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("sizes", [[2, 2, 2], [3, 1, 4], [5], [11, 2]])
def test_a_queue_keeps_the_last_rows(sizes):
    queue = Queue(5, 2)
    told = []
    for i, size in enumerate(sizes):
        rows = torch.full((size, 2), float(i)) + torch.arange(size)[:, None] / 100
        queue.push(rows)
        told += rows.tolist()
    kept = told[-5:]
    assert queue.filled == len(kept)
    assert queue.full == (len(told) >= 5)
    assert queue.rows[5 - len(kept) :].tolist() == kept


def test_a_queue_of_none_stays_so():
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


def test_a_queue_keeps_no_graph():
    queue = Queue(3, 2)
    queue.push(torch.ones(2, 2, requires_grad=True) * 2)
    assert not queue.rows.requires_grad
