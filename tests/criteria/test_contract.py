"""What holds for every criterion, through ``compute`` and the registry."""

import argparse
import inspect
import io
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import batchminer
import criteria
import parameters
from criteria import Criterion, PairCriterion
from tests.criteria.registered import LOSSES, Embedder, build, flags
from tests.rounding import rounding
from utilities.flag_types import Number
from utilities.registry import hyperparameters
from utilities.structures import Batch, Embedding

FROZEN = {"loss_clip_text": "frozen"}
CASES = {  # name -> (loss, flags)
    **{name: (name, {}) for name in LOSSES},
    "clip of frozen texts": ("clip", FROZEN),
    "declip_nns of frozen texts": ("declip_nns", FROZEN),
    "swav with its queue": ("swav", {"loss_swav_queue_start": 0, "loss_swav_freeze_steps": 1}),
    "s2sd, distilled": (
        "s2sd",
        {"loss_s2sd_w": 5.0, "loss_s2sd_feat_distill": True, "loss_s2sd_feat_distill_delay": 3},
    ),
}
each_case = pytest.mark.parametrize(("loss", "chosen"), CASES.values(), ids=CASES)
each_loss = pytest.mark.parametrize("loss", LOSSES)
PAIRS = [name for name, loss in LOSSES.items() if issubclass(loss, PairCriterion)]
LABELS = [0, 0, 3, 3, 1, 1, 2, 2]
CAPTIONS = ("fox", "redfox", "sea", "acar", "mountain", "cats", "tree", "ahouse")


def embedding(n=8, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    embeds = F.normalize(torch.randn(n, 6, generator=generator), dim=1).to(dtype)
    feature_map = torch.rand(n, 3, 2, 2, generator=generator).to(dtype)
    features = feature_map.mean(dim=(2, 3))
    return Embedding(embeds.requires_grad_(), features.requires_grad_(), feature_map)


def views_for(loss, n=8, dtype=torch.float32):
    """As many views as the criterion needs."""
    return [embedding(n, dtype, seed) for seed in range(LOSSES[loss].n_views)]


def read(loss, views):
    """The part of each view that the criterion compares."""
    return [getattr(view, LOSSES[loss].reads) for view in views]


def batch(labels, dtype=torch.float32):
    n = len(labels)
    images = torch.rand(2, n, 3, 4, 4, generator=torch.Generator().manual_seed(3)).to(dtype)
    return Batch(tuple(images), torch.tensor(labels), torch.arange(n), CAPTIONS[:n])


@each_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_every_dtype_inside_autocast_gives_a_finite_loss_with_gradients(loss, chosen, dtype):
    views, criterion = views_for(loss, dtype=dtype), build(loss, **chosen)
    if dtype == torch.float64:
        criterion.double()
    images = torch.promote_types(dtype, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = criterion.compute(views, batch(LABELS, images))
    trained = [p for p in criterion.parameters() if p.requires_grad]
    grads = torch.autograd.grad(value, [*read(loss, views), *trained], allow_unused=True)
    assert value.shape == ()
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert value.isfinite()
    assert all(grad.isfinite().all() for grad in grads if grad is not None)
    assert all(grad.abs().sum() > 0 for grad in grads[: len(views)])


@pytest.mark.parametrize("loss", parameters.LABEL_LOSSES)  # heads of the others follow autocast
def test_autocast_does_not_change_the_loss(loss):
    plain = build(loss).compute([embedding()], batch(LABELS))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = build(loss).compute([embedding()], batch(LABELS))
    assert torch.equal(plain, inside)


@each_case
@pytest.mark.parametrize("labels", [[1, 1], [0, 3], [2, 2, 2, 2]])
def test_a_batch_without_work_gives_a_finite_loss_and_gradient(loss, chosen, labels):
    views = views_for(loss, len(labels))
    value = build(loss, **chosen).compute(views, batch(labels))
    grads = torch.autograd.grad(value, read(loss, views))
    assert value.isfinite()
    assert all(grad.isfinite().all() for grad in grads)


@each_case
@pytest.mark.parametrize("labels", [[0, 0, 3, 3, 1, 1, 2, 2], [0, 0, 0, 0, 3, 3, 3, 3], [1] * 8])
def test_an_image_that_comes_twice_gives_a_finite_loss_and_gradient(loss, chosen, labels):
    """Drawn with replacement, an image meets itself, here even in the same crop."""
    twice = torch.tensor([0, 0, 2, 3, 4, 4, 4, 7])
    views = [
        Embedding(*(part.detach()[twice].requires_grad_() for part in view))
        for view in views_for(loss)
    ]
    value = build(loss, **chosen).compute(views, batch(labels))
    grads = torch.autograd.grad(value, read(loss, views))
    assert value.isfinite()
    assert all(grad.isfinite().all() for grad in grads)


@each_loss
def test_wrong_shapes_and_numbers_of_views_are_named(loss):
    criterion, views = build(loss), views_for(loss)
    with pytest.raises(ValueError, match=r"\(8, 6\) and \(7,\)"):
        criterion.compute(views, batch(LABELS[:7]))
    for given in ([*views, views[0]], views[:-1]):
        with pytest.raises(ValueError, match=rf" {len(views)} view.*got {len(given)}"):
            criterion.compute(given, batch(LABELS))


@pytest.mark.parametrize("loss", parameters.CAPTION_LOSSES)
@pytest.mark.parametrize("n", [0, 5])
def test_missing_captions_are_named(loss, n):
    with pytest.raises(ValueError, match=rf"caption.* of 8 images has {n};.*dataset"):
        build(loss).compute(views_for(loss), batch(LABELS)._replace(captions=CAPTIONS[:n]))


@each_case
def test_training_resumes_exactly(loss, chosen):
    """The losses after a checkpoint are those of an uninterrupted run, and keep the old state."""
    views = views_for(loss)

    def losses(criterion, embedder, steps):
        for step in steps:
            view = embedding(seed=10 + step)
            value = criterion.compute([view, *views[1:]], batch(LABELS))
            for p in criterion.parameters():
                p.grad = None
            value.backward()
            with torch.no_grad():
                for p in criterion.parameters():
                    if p.grad is not None:
                        p -= 0.01 * p.grad
                for p in embedder.parameters():
                    p += 0.1
            criterion.after_step(embedder)
            yield value.item()

    embedder = Embedder()
    criterion = build(loss, embedder, **chosen)
    list(losses(criterion, embedder, range(2)))
    file = io.BytesIO()
    torch.save([criterion.state_dict(), embedder.state_dict()], file)
    after = list(losses(criterion, embedder, range(2, 6)))
    file.seek(0)
    states = torch.load(file, weights_only=True)
    other = Embedder()
    resumed = build(loss, other, **chosen, seed=5)
    for part, state in zip((resumed, other), states, strict=True):
        part.load_state_dict(state)
    assert list(losses(resumed, other, range(2, 6))) == after
    assert len(set(after)) > 1


@each_case
def test_the_optimizer_gets_each_trainable_parameter_once_and_none_of_the_embedders(loss, chosen):
    embedder = Embedder()
    criterion = build(loss, embedder, **chosen)
    held = [p for group in criterion.param_groups(lr=1e-3) for p in group["params"]]
    trainable = [p for p in criterion.parameters() if p.requires_grad]
    assert sorted(map(id, held)) == sorted(map(id, trainable))
    if held:
        torch.optim.Adam(criterion.param_groups(lr=1e-3), lr=1e-5, weight_decay=4e-4)
    assert not {id(p) for p in embedder.parameters()} & {id(p) for p in criterion.parameters()}
    assert embedder not in list(criterion.modules())


@each_case
def test_what_the_run_decays_is_the_matrices_of_objectives_without_labels(loss, chosen):
    """Released: Adam gets class vectors, boundaries and S2SD's heads without any decay."""
    groups = build(loss, **chosen).param_groups(lr=1e-3)
    for group in groups:
        matrices = {p.ndim > 1 for p in group["params"]} == {True}
        decays = group.get("weight_decay") != 0.0
        assert decays == (matrices and loss not in parameters.LABEL_LOSSES)


@each_loss
def test_language_distillation_goes_beside_every_criterion(loss):
    views, chosen = views_for(loss), batch(LABELS)
    first_view = read(loss, views)[0]
    words = F.normalize(torch.randn(8, 5, generator=torch.Generator().manual_seed(1)), dim=1)
    value = build(loss).compute(views, chosen)
    distill = criteria.build_distillation(flags())
    match = distill(first_view, words @ words.T, chosen.labels)
    (both,) = torch.autograd.grad(value + 7.5 * match, first_view, retain_graph=True)
    (first,) = torch.autograd.grad(value, first_view, retain_graph=True)
    (second,) = torch.autograd.grad(match, first_view)
    assert second.abs().sum() > 0
    assert torch.allclose(both, first + 7.5 * second, atol=1e-5)


@pytest.mark.parametrize(
    ("loss", "chosen"),
    [case for case in CASES.values() if case[0] not in parameters.MINED_LOSSES],  # which draw
)
def test_batch_order_does_not_matter(loss, chosen):
    views, order = views_for(loss), torch.randperm(8, generator=torch.Generator().manual_seed(1))
    moved_views = [Embedding(*(part[order] for part in view)) for view in views]
    chosen_batch = batch(LABELS)
    moved_batch = chosen_batch._replace(
        views=tuple(view[order] for view in chosen_batch.views),
        labels=chosen_batch.labels[order],
        captions=tuple(CAPTIONS[i] for i in order),
    )
    value = build(loss, **chosen).compute(views, chosen_batch)
    moved = build(loss, **chosen).compute(moved_views, moved_batch)
    assert moved.item() == pytest.approx(value.item(), rel=1e-5, abs=rounding(8))
    (grad,) = torch.autograd.grad(value, read(loss, views)[0])
    (moved_grad,) = torch.autograd.grad(moved, read(loss, views)[0])
    assert torch.allclose(moved_grad, grad, rtol=1e-3, atol=1e-5)


def test_the_flags_know_which_losses_compare_images_with_images():
    assert sorted(parameters.PAIR_LOSSES) == sorted(PAIRS)
    mined = [name for name, c in LOSSES.items() if "miner" in inspect.signature(c).parameters]
    assert sorted(parameters.MINED_LOSSES) == sorted(mined)


@pytest.mark.parametrize("loss", [name for name in PAIRS if name != "margin"])  # has boundaries
@pytest.mark.parametrize("labels", [[7, 7, -3, -3, 900, 900, 1, 1], [5, 5, 5, 2, 2, 9, 2, 40]])
def test_pair_losses_compare_labels_and_read_nothing_else_of_them(loss, labels):
    view, labels = embedding(), torch.tensor(labels)
    renamed = torch.unique(labels, return_inverse=True)[1]
    value = build(loss)(view.embeds, labels)
    assert value.isfinite()
    assert torch.equal(value, build(loss)(view.embeds, renamed))


@pytest.mark.parametrize("loss", PAIRS)
def test_every_pair_loss_takes_a_memory(loss):
    criterion, view = build(loss, xbm_size=16), embedding()
    plain = build(loss).compute([view], batch(LABELS))
    first, second = (criterion.compute([view], batch(LABELS)) for _ in range(2))
    if loss not in parameters.MINED_LOSSES:
        assert torch.equal(first, plain)  # nothing is remembered yet
    assert second.isfinite()
    assert second != first
    (grad,) = torch.autograd.grad(second, view.embeds)
    assert grad.isfinite().all()


def test_a_memory_without_images_to_compare_is_refused():
    with pytest.raises(ValueError, match=r"--xbm_size 16 .* --loss softmax "):
        build("softmax", xbm_size=16)


# --------------------------------------------------------------------------------------------------
# Hyperparameters
# --------------------------------------------------------------------------------------------------
REFUSED: dict[str, dict[str, list]] = {
    "multisimilarity": {"dim": [2]},
    "supcon": {"temperature": [0.0, -0.1]},
    "circle": {"gamma": [0]},
    "npair": {"l2": [-1]},
    "angular": {"alpha": [0, 80], "npair_ang_weight": [-1], "npair_l2": [-1]},
    "lifted": {"l2": [-1]},
    "histogram": {"nbins": [64, 1, 0, -3]},
    "smooth_ap": {"temperature": [0, -0.1]},
    "arcface": {"angular_margin": [28.6, 2, -0.1]},
    "subcenter_arcface": {"angular_margin": [28.6, 2, -0.1]},
    "oproxy": {"mode": ["proxy"]},
    "s2sd": {"T": [0], "source": ["s2sd", "simclr"], "target": ["s2sd", "simclr"]},
    "byol": {"momentum": [-0.1, 1.1]},
    "clip": {"temperature": [0.0, 0.005, -1.0, math.inf, math.nan], "text": ["bert"]},
    "declip_nns": {"weight": [-0.1, 1.1, math.nan], "queue_size": [0]},
    **{
        loss: {
            key: [0 if key in ("temperature", "epsilon") else -1]
            + ([math.nan] if isinstance(default, float) else [])
            for key, default in hyperparameters(LOSSES[loss]).items()
        }
        for loss in ("simclr", "nnclr", "swav", "simsiam", "byol", "barlowtwins", "vicreg")
    },
}


@pytest.mark.parametrize(
    ("loss", "key", "value"),
    [(loss, key, value) for loss, of in REFUSED.items() for key in of for value in of[key]],
)
def test_a_hyperparameter_out_of_range_is_named_with_its_flag_and_value(loss, key, value):
    with pytest.raises(ValueError, match=rf"--loss_{loss}_{key}\b") as refused:
        build(loss, **{f"loss_{loss}_{key}": value})
    assert str(value) in str(refused.value) or f"{value:g}" in str(refused.value)


ROWS = {flag.dest or flag.name: flag for flags in parameters.FLAGS.values() for flag in flags}


def refused_by(row):
    """Some numbers that the type of a flag refuses."""
    for value in (0, -1) if row.kind is int else (math.nan, math.inf, -math.inf, -1.0, 0.0):
        try:
            row(str(value))
        except argparse.ArgumentTypeError:
            yield value


NUMBERS = [
    (loss, key)
    for loss in LOSSES
    for key in hyperparameters(LOSSES[loss])
    if isinstance(ROWS[f"loss_{loss}_{key}"].type, Number) and not ROWS[f"loss_{loss}_{key}"].nargs
]


@pytest.mark.parametrize(("loss", "key"), NUMBERS)
def test_a_constructor_refuses_the_numbers_that_its_flag_refuses(loss, key):
    """It is also called without flags."""
    name = f"loss_{loss}_{key}"
    for value in refused_by(ROWS[name].type):
        with pytest.raises(ValueError, match=rf"^--{name.rstrip('_')} must be .*; got {value:g}"):
            build(loss, **{name: value})


def test_a_combination_of_hyperparameters_is_refused():
    with pytest.raises(ValueError, match=r"--loss_margin_nu\b.*0\.1"):
        build("margin", loss_margin_nu=0.1, loss_margin_beta_constant=True)
    for dims in ((8, 0), ()):
        with pytest.raises(ValueError, match="--loss_s2sd_target_dims"):
            build("s2sd", loss_s2sd_target_dims=dims)
    for key, value in (("distill_dir", "sideways"), ("temp", 0)):
        with pytest.raises(ValueError, match=rf"--language_{key}\b.*{value}"):
            criteria.build_distillation(flags(**{f"language_{key}": value}))


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


# --------------------------------------------------------------------------------------------------
# The base class
# --------------------------------------------------------------------------------------------------
class Scaled(Criterion):
    """A criterion with a parameter that records the precision it computes in."""

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
    assert group["lr"] == 0.25 and group["weight_decay"] == 0.0
    assert group["params"] == [criterion.scale]


def test_an_objective_that_only_overrides_compute_has_no_forward():
    with pytest.raises(NotImplementedError, match="Criterion is called through compute"):
        Criterion()(embedding().embeds, torch.tensor(LABELS))
