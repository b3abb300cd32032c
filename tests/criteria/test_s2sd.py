import pytest
import torch
import torch.nn.functional as F

from batchminer import Distance
from criteria import S2SD, Criterion, CrossBatchMemory, Margin, MultiSimilarity, SmoothAP
from tests.criteria.scalars import cosine, kl, linear, normal, softmax, unit
from utilities.structures import Batch, Embedding

DIM, FEATURES = 4, 5
LABELS = torch.tensor([0, 2, 0, 1, 1, 2, 0])


class Pull(Criterion):
    """Mean squared distance of images to the vector of their class, which has its own rate."""

    def __init__(self, embed_dim):
        super().__init__()
        self.vectors = torch.nn.Parameter(torch.ones(3, embed_dim) / embed_dim)

    def forward(self, embeds, labels):
        self.seen = embeds
        return (embeds - self.vectors[labels]).square().sum(dim=1).mean()

    def param_groups(self, lr):
        return [{"params": [self.vectors], "lr": 10 * lr, "weight_decay": 0.0}]


class TwoViews(Criterion):
    n_views = 2

    def compute(self, views, batch):
        return (views[0].embeds - views[1].embeds).square().sum()


def make(name, dim):
    return {
        "pull": lambda: Pull(dim),
        "multisimilarity": MultiSimilarity,
        "margin": lambda: Margin(3, Distance(0), beta_lr=0.5),
        "memory": lambda: CrossBatchMemory(SmoothAP(temperature=0.1), dim, size=9, start=0),
        "two_views": TwoViews,
    }[name]()


def s2sd(seed=0, **chosen):
    torch.manual_seed(seed)
    defaults = {"source": "pull", "target": "pull", "target_dims": (3, 6)}
    return S2SD(DIM, FEATURES, make, **{**defaults, **chosen}).double()


def inputs(dtype=torch.float64):
    """One view with gradients, and its batch."""
    feature_map = normal(7, FEATURES, 2, 2)
    features = feature_map.mean(dim=(2, 3)) * 2  # not their plain average, to tell them apart
    embeds = normal(7, DIM, seed=1)
    parts = (x.to(dtype).requires_grad_() for x in (embeds, features, feature_map))
    return Embedding(*parts), Batch((torch.zeros(7, 3, 2, 2),), LABELS, torch.arange(7))


def probabilities(rows, temperature):
    return [softmax([cosine(a, b) / temperature for b in rows]) for a in rows]


def distillation(rows, teacher, temperature):
    """D: KL of each row of the teacher's probabilities to those of the embeddings."""
    pairs = zip(*(probabilities(x, temperature) for x in (teacher, rows)), strict=True)
    return temperature**2 / len(rows) * sum(kl(p, q) for p, q in pairs)


def pull(criterion, rows):
    vectors = criterion.vectors.tolist()
    return sum(
        sum((x - v) ** 2 for x, v in zip(row, vectors[int(label)], strict=True))
        for row, label in zip(rows, LABELS, strict=True)
    ) / len(rows)


def equation(criterion, view, *, w=0.0, feat_w=0.0, temperature=1.0, pool_aggr=False):
    """The whole sum, one number at a time."""
    embeds, features, feature_map = (x.tolist() for x in view)
    if pool_aggr:
        features = []
        for image in feature_map:
            cells = [[x for row in channel for x in row] for channel in image]
            features.append([sum(c) / len(c) + max(c) for c in cells])
    targets = []
    for first, _, second in criterion.heads:
        hidden = [[max(0.0, x) for x in linear(first, row)] for row in features]
        targets.append([unit(linear(second, row)) for row in hidden])
    m = len(targets)
    of_targets = sum(pull(c, rows) for c, rows in zip(criterion.targets, targets, strict=True))
    loss = (pull(criterion.source, embeds) + of_targets / m) / 2
    loss += w / m * sum(distillation(embeds, rows, temperature) for rows in targets)
    return loss + feat_w * distillation(embeds, features, temperature)


@pytest.mark.parametrize("w", [0.0, 50.0])
@pytest.mark.parametrize("feat_w", [None, 20.0])
@pytest.mark.parametrize("temperature", [1.0, 0.2])
@pytest.mark.parametrize("pool_aggr", [False, True])
def test_equals_the_equation(w, feat_w, temperature, pool_aggr):
    feat = {} if feat_w is None else {"feat_distill": True, "feat_w": feat_w}
    criterion = s2sd(w=w, T=temperature, pool_aggr=pool_aggr, feat_distill_delay=0, **feat)
    view, batch = inputs()
    expected = equation(
        criterion, view, w=w, feat_w=feat_w or 0, temperature=temperature, pool_aggr=pool_aggr
    )
    assert criterion.compute([view], batch).item() == pytest.approx(expected, rel=1e-9)


def test_distillation_from_equal_similarities_adds_nothing():
    view, batch = inputs()
    view = view._replace(features=F.pad(view.embeds.detach() / 7, (0, 1)))  # of equal cosines
    plain = s2sd().compute([view], batch)
    distilled = s2sd(feat_distill=True, feat_distill_delay=0).compute([view], batch)
    assert distilled.item() == pytest.approx(plain.item(), abs=1e-12)


@pytest.mark.parametrize("source", ["features", "targets"])
def test_distillation_moves_the_embeddings_and_no_teacher(source):
    chosen = {"features": {"feat_distill": True, "feat_distill_delay": 0}, "targets": {"w": 50.0}}
    view, batch = inputs()
    grads = []
    for criterion in (s2sd(), s2sd(**chosen[source])):
        tensors = [view.embeds, view.features, *criterion.parameters()]
        grads.append(torch.autograd.grad(criterion.compute([view], batch), tensors))
    (embeds, *others), (with_embeds, *with_others) = grads
    assert not torch.allclose(embeds, with_embeds)
    assert all(map(torch.equal, others, with_others))


def test_without_weight_the_targets_still_train_features_and_heads():
    criterion = s2sd()
    view, batch = inputs()
    tensors = [view.features, *criterion.heads.parameters()]
    grads = torch.autograd.grad(criterion.compute([view], batch), tensors)
    assert all(grad.abs().sum() > 0 for grad in grads)


@pytest.mark.parametrize("pool_aggr", [False, True])
def test_gradients_reach_the_pooled_tensor_only(pool_aggr):
    criterion = s2sd(pool_aggr=pool_aggr)
    view, batch = inputs()
    criterion.compute([view], batch).backward()
    read, unread = view.feature_map, view.features
    if not pool_aggr:
        read, unread = unread, read
    assert read.grad.abs().sum() > 0
    assert unread.grad is None


def test_a_feature_map_of_another_width_is_read():
    """Of backbones whose layers after pooling change the width, such as MobileNetV3."""
    view, batch = inputs()
    wide = view._replace(feature_map=normal(7, FEATURES + 3, 2, 2))
    pooled = S2SD(DIM, FEATURES, make, FEATURES + 3, source="pull", target="pull", pool_aggr=True)
    assert pooled.double().compute([wide], batch).isfinite()
    assert s2sd().compute([wide], batch).isfinite()  # reads the features


@pytest.mark.parametrize("read", ["features", "feature_map"])
def test_gradient_of_what_is_not_distilled(read):
    """The teachers are constants, so the numeric derivative of the whole is a different one."""
    criterion = s2sd(pool_aggr=read == "feature_map")
    view, batch = inputs()

    def loss(embeds, pooled):
        return criterion.compute([view._replace(embeds=embeds, **{read: pooled})], batch)

    assert torch.autograd.gradcheck(loss, (view.embeds, getattr(view, read)))


def test_gradient_of_the_distillation():
    criterion = s2sd(w=3.0, feat_distill=True, feat_distill_delay=0)
    view, batch = inputs()

    def loss(embeds):
        return criterion.compute([view._replace(embeds=embeds)], batch)

    assert torch.autograd.gradcheck(loss, (view.embeds,))


def test_features_are_distilled_after_the_delay_of_training_iterations():
    """The state dict holds the count: without it a resumed run would wait again."""
    criterion, plain = s2sd(feat_distill=True, feat_distill_delay=2), s2sd()
    view, batch = inputs()
    expected = plain.compute([view], batch)
    criterion.eval()
    for _ in range(5):
        assert criterion.compute([view], batch) == expected
    criterion.train()
    losses = [criterion.compute([view], batch) for _ in range(4)]
    assert [loss == expected for loss in losses] == [True, True, False, False]
    resumed = s2sd(seed=1, feat_distill=True, feat_distill_delay=2)
    resumed.load_state_dict(criterion.state_dict())
    assert resumed.compute([view], batch) == losses[3]


def test_children_are_made_for_their_dimensions_and_shared_by_none():
    made = []

    def record(name, dim):
        made.append((name, dim))
        return make("pull", dim)

    criterion = S2SD(DIM, FEATURES, record, source="a", target="b", target_dims=[3, 6, 3])
    assert made == [("a", DIM), ("b", 3), ("b", 6), ("b", 3)]
    assert len({id(c.vectors) for c in (criterion.source, *criterion.targets)}) == 4


def test_the_source_gets_the_embeddings_as_they_are_and_the_targets_unit_rows():
    criterion = s2sd()
    view, batch = inputs()
    criterion.compute([view], batch)
    assert torch.equal(criterion.source.seen, view.embeds)
    for target, dim in zip(criterion.targets, (3, 6), strict=True):
        assert target.seen.shape == (7, dim)
        assert torch.allclose(target.seen.norm(dim=1), torch.ones(7, dtype=torch.float64))


def test_children_keep_their_learning_rates_and_heads_have_the_embedders():
    criterion = s2sd(source="margin")
    groups = criterion.param_groups(lr=1e-3)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert {rates[id(p)] for p in criterion.heads.parameters()} == {1e-3}
    assert rates[id(criterion.source.beta)] == 0.5
    assert [rates[id(c.vectors)] for c in criterion.targets] == [0.01, 0.01]
    held = [p for group in groups for p in group["params"]]
    assert sorted(map(id, held)) == sorted(map(id, criterion.parameters()))
    assert all(group["weight_decay"] == 0.0 for group in groups)


@pytest.mark.parametrize("name", ["multisimilarity", "margin", "pull", "memory"])
def test_low_precision_inside_autocast_is_computed_in_float32(name):
    criterion = s2sd(
        source=name, target=name, w=50.0, pool_aggr=True, feat_distill=True, feat_distill_delay=0
    ).float()
    view, batch = inputs(dtype=torch.bfloat16)
    exact = Embedding(*(x.detach().float() for x in view))
    criterion.eval()  # a memory would be another one at the second call
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = criterion.compute([view], batch)
    loss.backward()
    assert loss.dtype == torch.float32
    assert view.embeds.grad.isfinite().all()
    assert view.feature_map.grad.isfinite().all()
    if name != "margin":  # whose miner draws
        assert loss.item() == pytest.approx(criterion.compute([exact], batch).item(), rel=1e-6)


def test_collapsed_features_and_one_class_have_finite_gradients():
    criterion = s2sd(source="multisimilarity", target="multisimilarity", w=50.0)
    view, batch = inputs()
    same = view._replace(features=torch.zeros_like(view.features).requires_grad_())
    loss = criterion.compute([same], batch._replace(labels=torch.zeros(7, dtype=torch.long)))
    grads = torch.autograd.grad(loss, [same.embeds, same.features, *criterion.heads.parameters()])
    assert loss.isfinite()
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("flag", ["source", "target"])
def test_a_child_that_reads_several_views_is_named(flag):
    with pytest.raises(ValueError, match=f"{flag}.*two_views"):
        s2sd(**{flag: "two_views"})
