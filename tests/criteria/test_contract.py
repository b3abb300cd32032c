"""What holds for every criterion, through ``compute`` and the registry."""

import argparse
import inspect
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import batchminer
import criteria
import parameters
from criteria import CRITERIA, Criterion, PairCriterion
from tests.criteria.caption_losses import Letters, refuse
from tests.rounding import rounding
from utilities.registry import hyperparameters
from utilities.structures import Batch, Embedding

SMALL = {  # heads, queues and text towers, instead of the published sizes
    "hidden_dim": 8, "proj_dim": 6, "pred_dim": 8, "queue_size": 12, "n_prototypes": 5,
    "width": 8, "layers": 1, "heads": 2, "tokens": 9,
}  # fmt: skip


def flags(**overrides):
    """Every flag of every criterion and miner at its default, but for sizes."""
    chosen = {"seed": 0, "loss": "margin", "batch_mining": "distance"}
    chosen |= {"xbm_size": 0, "xbm_start": 0, "xbm_weight": 1.0}
    for prefix, registry in (("loss_", CRITERIA), ("miner_", batchminer.MINERS)):
        for name, component in registry.items():
            for key, value in hyperparameters(component.load()).items():
                chosen[f"{prefix}{name}_{key}"] = SMALL.get(key, value)
    for key, value in hyperparameters(criteria.LanguageDistillation).items():
        chosen[f"language_{key}"] = value
    return argparse.Namespace(**{**chosen, **overrides})


def build(name, **overrides):
    args = flags(loss=name, **overrides)
    torch.manual_seed(args.seed)  # for class vectors and heads
    return criteria.build(
        args,
        n_classes=4,
        embed_dim=6,
        feature_dim=3,
        miner=batchminer.build(args),
        embedder=Embedder(),
        n_steps=5,
        tokenizer=Letters,
        encoder=refuse,
    )


class Embedder(nn.Module):
    """Images (B, 3, H, W) to their mean colour, mixed: what a momentum encoder is a copy of."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(3, 3)

    def forward(self, images):
        features = self.mix(images.mean(dim=(2, 3)))
        return Embedding(features, features, features[:, :, None, None])


def embedding(n=8, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    embeds = F.normalize(torch.randn(n, 6, generator=generator), dim=1).to(dtype)
    feature_map = torch.rand(n, 3, 2, 2, generator=generator).to(dtype)
    features = feature_map.mean(dim=(2, 3))
    return Embedding(embeds.requires_grad_(), features.requires_grad_(), feature_map)


def views_for(name, n=8, dtype=torch.float32):
    """As many views as the criterion asks for."""
    return [embedding(n, dtype, seed) for seed in range(CRITERIA[name].load().n_views)]


def read(name, views):
    """What of each view the criterion is about."""
    return [getattr(view, CRITERIA[name].load().reads) for view in views]


CAPTIONS = ("fox", "red fox", "sea", "a car", "mountain", "cats", "tree", "a house")


def batch(labels, dtype=torch.float32):
    n = len(labels)
    images = torch.rand(3, n, 3, 4, 4, generator=torch.Generator().manual_seed(3)).to(dtype)
    captions = tuple(text.replace(" ", "") for text in CAPTIONS[:n])
    return Batch(tuple(images[:2]), torch.tensor(labels), torch.arange(n), captions)


LABELS = [0, 0, 3, 3, 1, 1, 2, 2]


@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_every_dtype_inside_autocast_gives_a_finite_loss_with_gradients(name, dtype):
    views, criterion = views_for(name, dtype=dtype), build(name)
    if dtype == torch.float64:
        criterion.double()
    images = torch.promote_types(dtype, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = criterion.compute(views, batch(LABELS, images))
    grads = torch.autograd.grad(loss, read(name, views))
    assert loss.shape == ()
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert loss.isfinite()
    for grad in grads:
        assert grad.isfinite().all()
        assert grad.abs().sum() > 0


@pytest.mark.parametrize("name", parameters.LABEL_LOSSES)  # heads of the others follow autocast
def test_autocast_does_not_change_the_loss(name):
    view = embedding()
    plain = build(name).compute([view], batch(LABELS))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = build(name).compute([view], batch(LABELS))
    assert torch.equal(plain, inside)


@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.parametrize("labels", [[1, 1], [0, 3], [2, 2, 2, 2]])
def test_a_batch_without_work_gives_a_finite_loss_and_gradient(name, labels):
    views = views_for(name, len(labels))
    loss = build(name).compute(views, batch(labels))
    grads = torch.autograd.grad(loss, read(name, views))
    assert loss.isfinite()
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("name", CRITERIA)
def test_wrong_shapes_are_named(name):
    criterion, views = build(name), views_for(name)
    with pytest.raises(ValueError, match=r"got \(8, 6\) and \(7,\)"):
        criterion.compute(views, batch(LABELS[:7]))
    n = len(views)
    with pytest.raises(ValueError, match=rf"needs {n} view\(s\) of each image, got {n + 1}"):
        criterion.compute([*views, views[0]], batch(LABELS))


@pytest.mark.parametrize("name", parameters.CAPTION_LOSSES)
def test_missing_captions_are_named(name):
    with pytest.raises(ValueError, match=r"of 8 images has 0; use a dataset of image-caption"):
        build(name).compute(views_for(name), batch(LABELS)._replace(captions=()))


@pytest.mark.parametrize("name", CRITERIA)
def test_the_state_resumes_losses_and_miner_alike(name):
    """The losses after a checkpoint are those of a run that was never interrupted."""
    criterion, views, embedder = build(name), views_for(name), Embedder()

    def losses(criterion, steps):
        for _ in range(steps):
            yield criterion.compute(views, batch(LABELS)).item()
            criterion.after_step(embedder)

    list(losses(criterion, 2))
    file = io.BytesIO()
    torch.save(criterion.state_dict(), file)
    after = list(losses(criterion, 3))
    file.seek(0)
    resumed = build(name, seed=5)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert list(losses(resumed, 3)) == after


@pytest.mark.parametrize("name", CRITERIA)
def test_the_embedder_is_no_part_of_the_criterion(name):
    """Its weights are trained and saved once, as the embedder's."""
    torch.manual_seed(0)
    embedder, args = Embedder(), flags(loss=name)
    made = criteria.build(
        args, n_classes=4, embed_dim=6, feature_dim=3, miner=batchminer.build(args),
        embedder=embedder, n_steps=5, tokenizer=Letters, encoder=refuse,
    )  # fmt: skip
    assert not {id(p) for p in embedder.parameters()} & {id(p) for p in made.parameters()}
    assert embedder not in list(made.modules())


@pytest.mark.parametrize("name", CRITERIA)
def test_param_groups_hold_each_trainable_parameter_once(name):
    criterion = build(name)
    held = [p for group in criterion.param_groups(lr=1e-3) for p in group["params"]]
    trainable = [p for p in criterion.parameters() if p.requires_grad]
    assert sorted(map(id, held)) == sorted(map(id, trainable))
    if held:
        torch.optim.Adam(criterion.param_groups(lr=1e-3), lr=1e-5, weight_decay=4e-4)


@pytest.mark.parametrize("name", CRITERIA)
def test_language_distillation_goes_beside_every_criterion(name):
    views, chosen = views_for(name), batch(LABELS)
    first_view = read(name, views)[0]
    words = F.normalize(torch.randn(8, 5, generator=torch.Generator().manual_seed(1)), dim=1)
    distill = criteria.build_distillation(flags())
    criterion = build(name)
    loss = criterion.compute(views, chosen)
    match = distill(first_view, words @ words.T, chosen.labels)
    (both,) = torch.autograd.grad(loss + 7.5 * match, first_view, retain_graph=True)
    (first,) = torch.autograd.grad(loss, first_view, retain_graph=True)
    (second,) = torch.autograd.grad(match, first_view)
    assert second.abs().sum() > 0
    assert torch.allclose(both, first + 7.5 * second, atol=1e-5)


DETERMINISTIC = sorted(set(CRITERIA) - set(parameters.MINED_LOSSES))


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_batch_order_does_not_matter(name):
    views, order = views_for(name), torch.randperm(8, generator=torch.Generator().manual_seed(1))
    shuffled = [Embedding(*(part[order] for part in view)) for view in views]
    chosen = batch(LABELS)
    moved_batch = Batch(
        tuple(images[order] for images in chosen.views),
        chosen.labels[order],
        chosen.rows[order],
        tuple(chosen.captions[i] for i in order),
    )
    loss = build(name).compute(views, chosen)
    moved = build(name).compute(shuffled, moved_batch)
    assert moved.item() == pytest.approx(loss.item(), rel=1e-5, abs=rounding(8))


PAIRS = [name for name, row in CRITERIA.items() if issubclass(row.load(), PairCriterion)]


def test_the_flags_know_which_losses_compare_images_with_images():
    assert sorted(parameters.PAIR_LOSSES) == sorted(PAIRS)
    mined = [n for n, c in CRITERIA.items() if "miner" in inspect.signature(c.load()).parameters]
    assert sorted(parameters.MINED_LOSSES) == sorted(mined)


@pytest.mark.parametrize("name", [name for name in PAIRS if name != "margin"])  # has boundaries
@pytest.mark.parametrize("labels", [[7, 7, -3, -3, 900, 900, 1, 1], [5, 5, 5, 2, 2, 9, 2, 40]])
def test_labels_of_pair_losses_are_only_compared(name, labels):
    """Any numbers will do, and only which are equal matters."""
    view, labels = embedding(), torch.tensor(labels)
    renamed = torch.unique(labels, return_inverse=True)[1]
    loss = build(name)(view.embeds, labels)
    assert loss.isfinite()
    assert torch.equal(loss, build(name)(view.embeds, renamed))


@pytest.mark.parametrize("name", PAIRS)
def test_every_pair_loss_takes_a_memory(name):
    criterion, view = build(name, xbm_size=16), embedding()
    plain = build(name).compute([view], batch(LABELS))
    first, second = (criterion.compute([view], batch(LABELS)) for _ in range(2))
    if name in DETERMINISTIC:
        assert torch.equal(first, plain)  # nothing is remembered yet
    assert second.isfinite()
    assert second != first
    (grad,) = torch.autograd.grad(second, view.embeds)
    assert grad.isfinite().all()


def test_a_memory_without_images_to_compare_is_refused():
    with pytest.raises(ValueError, match=r"--xbm_size 16 .* --loss softmax does not compare"):
        build("softmax", xbm_size=16)


class Scaled(Criterion):
    """A criterion with a parameter, that says which precision reached it."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.fixed = nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, embeds, labels):
        self.seen = (embeds @ embeds.T).dtype  # autocast would make this bfloat16
        return self.scale * embeds.sum()


def test_a_subclass_writes_forward_only():
    criterion, view = Scaled(), embedding(dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        criterion.compute([view], batch(LABELS))
    assert criterion.seen == torch.float32
    (group,) = criterion.param_groups(lr=0.25)
    assert group["lr"] == 0.25
    assert group["params"] == [criterion.scale]


class TwoViews(Criterion):
    """An objective on two views, as it overrides ``compute``."""

    n_views = 2

    def compute(self, views, batch):
        self.check(views, batch)
        first, second = (view.embeds for view in views)
        return (first - second).square().sum()


def test_an_objective_on_two_views_overrides_compute():
    assert TwoViews().compute([embedding(), embedding()], batch(LABELS)).item() == 0
    with pytest.raises(ValueError, match=r"TwoViews needs 2 view\(s\) of each image, got 1"):
        TwoViews().compute([embedding()], batch(LABELS))
    with pytest.raises(NotImplementedError, match="TwoViews is called through compute"):
        TwoViews()(embedding().embeds, torch.tensor(LABELS))


def test_flags_reach_the_component_of_their_prefix():
    criterion = build("margin", loss_margin_beta=0.7, loss_margin_margin=0.1)
    assert criterion.beta.tolist() == pytest.approx([0.7] * 4)
    assert criterion.margin == 0.1
    assert isinstance(criterion.miner, batchminer.Distance)
    distill = criteria.build_distillation(flags(language_temp=0.1, language_distill_dir="forward"))
    assert (distill.temp, distill.distill_dir) == (0.1, "forward")


def test_an_unknown_loss_is_named_with_the_closest_first():
    with pytest.raises(ValueError, match="--loss tripplet is unknown; known, closest first: trip"):
        build("tripplet")
