"""Losses with a proxy per class: Proxy Anchor, Proxy-NCA and ProxyNCA++."""

import math

import pytest
import torch
from pytorch_metric_learning.losses import ProxyAnchorLoss, ProxyNCALoss

from criteria.proxy_anchor import ProxyAnchor, log_one_plus_sum_exp
from criteria.proxynca import ProxyNCA
from criteria.proxynca_pp import ProxyNCAPlusPlus
from criteria.softmax import Softmax

CLASSES, DIM = 7, 5
BATCHES = [
    [0, 0, 0, 0, 3, 3, 6, 1],  # uneven, singletons, absent classes
    [5, 2, 5, 4, 2, 5, 0],  # unordered
    [3, 3, 3],  # one class: a proxy without negatives
    [6],
]


def make(criterion, n_classes=CLASSES, dim=DIM, seed=0, **hyperparameters):
    torch.manual_seed(seed)
    return criterion(n_classes, dim, **hyperparameters).double()


def batch(labels, dim=DIM, seed=0):
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randn(len(labels), dim, generator=generator, dtype=torch.float64) * 3
    return embeds.requires_grad_(), torch.tensor(labels)


def unit(rows):
    return [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in rows.tolist()]


def oproxy_oracle(criterion, images, labels, proxies):
    """Equation 4 of Proxy Anchor one exponential at a time, and the same with images as anchors."""
    a_pos, a_neg = criterion.pos_alpha, criterion.neg_alpha
    pulls, pushes = {}, {}  # by anchor
    for i, x in enumerate(images):
        for c, p in enumerate(proxies):
            sim = sum(u * v for u, v in zip(x, p, strict=True))
            anchor = i if criterion.mode == "nca" else c
            if labels[i] == c:
                term = math.exp(-a_pos * (sim - criterion.pos_delta))
                pulls[anchor] = pulls.get(anchor, 0.0) + term
            else:
                term = math.exp(a_neg * (sim - criterion.neg_delta))
                pushes[anchor] = pushes.get(anchor, 0.0) + term
    n_pos = len(pulls)  # the anchors with a positive
    n_neg = len(images) if criterion.mode == "nca" else len(proxies)
    return (
        sum(math.log(1 + total) for total in pulls.values()) / n_pos
        + sum(math.log(1 + total) for total in pushes.values()) / n_neg
    )


def nca_oracle(criterion, images, labels, proxies):
    """Proxy-NCA, equation 4, and ProxyNCA++, one squared distance at a time."""
    temperature = getattr(criterion, "temperature", 1.0)
    total = 0.0
    for x, y in zip(images, labels, strict=True):
        nearness = [
            math.exp(-sum((u - v) ** 2 for u, v in zip(x, p, strict=True)) / temperature)
            for p in proxies
        ]
        others = [near for c, near in enumerate(nearness) if c != y]
        in_sum = others if isinstance(criterion, ProxyNCA) else nearness
        total -= math.log(nearness[y] / sum(in_sum))
    return total / len(images)


def oracle(criterion, embeds, labels):
    of_kind = oproxy_oracle if isinstance(criterion, ProxyAnchor) else nca_oracle
    return of_kind(criterion, unit(embeds), labels.tolist(), unit(criterion.class_vectors))


UNEQUAL = {"pos_alpha": 3.0, "neg_alpha": 10.0, "pos_delta": 0.3, "neg_delta": 0.1}
SETTINGS = [
    (ProxyAnchor, {}),
    (ProxyAnchor, UNEQUAL),
    (ProxyAnchor, {"mode": "nca"}),
    (ProxyAnchor, {"mode": "nca", **UNEQUAL}),
    (ProxyNCA, {}),
    (ProxyNCAPlusPlus, {}),
    (ProxyNCAPlusPlus, {"temperature": 2.0}),
]
each_setting = pytest.mark.parametrize(("criterion", "hyperparameters"), SETTINGS)


@each_setting
@pytest.mark.parametrize("labels", BATCHES)
def test_equals_the_equation(criterion, hyperparameters, labels):
    criterion = make(criterion, **hyperparameters)
    embeds, labels = batch(labels)
    expected = oracle(criterion, embeds, labels)
    assert criterion(embeds, labels).item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("criterion", "theirs"),
    [
        (ProxyAnchor, lambda c, d: ProxyAnchorLoss(c, d, margin=0.1, alpha=32)),
        (ProxyNCAPlusPlus, lambda c, d: ProxyNCALoss(c, d, softmax_scale=1 / 0.11)),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_equals_pytorch_metric_learning(criterion, theirs, seed):
    """Proxy Anchor coincides with margin = pos_delta = -neg_delta and alpha = both alphas.

    Their ProxyNCALoss has the own proxy in the denominator: it is ProxyNCA++ with softmax_scale
    1 / T.
    """
    criterion, theirs = make(criterion, 20, 6, seed), theirs(20, 6)
    theirs.proxies.data = criterion.class_vectors.detach().clone()
    embeds, labels = batch([0, 3, 3, 19, 7, 7, 7, 12, 1, 0], 6, seed)
    our_loss, their_loss = criterion(embeds, labels), theirs(embeds, labels)
    assert our_loss.item() == pytest.approx(their_loss.item(), abs=1e-8)
    ours = torch.autograd.grad(our_loss, [embeds, criterion.class_vectors])
    other = torch.autograd.grad(their_loss, [embeds, theirs.proxies])
    for x, y in zip(ours, other, strict=True):
        assert torch.allclose(x, y, atol=1e-8)


def test_proxy_nca_follows_from_pytorch_metric_learning():
    """Theirs is log(1 + r) of an image, ours log r, with r the others' nearness over the own's."""
    criterion, theirs = make(ProxyNCA), ProxyNCALoss(CLASSES, DIM)
    theirs.proxies.data = criterion.class_vectors.detach().clone()
    embeds, labels = batch(BATCHES[0])
    expected = [
        math.log(math.expm1(theirs(embeds[i : i + 1], labels[i : i + 1]).item())) for i in range(8)
    ]
    assert criterion(embeds, labels).item() == pytest.approx(sum(expected) / 8, abs=1e-9)


def test_proxy_nca_pp_is_softmax_at_half_its_temperature():
    embeds, labels = batch(BATCHES[0])
    proxies, softmax = make(ProxyNCAPlusPlus, temperature=0.2), make(Softmax, temperature=0.1)
    softmax.class_vectors.data = proxies.class_vectors.data
    assert torch.allclose(proxies(embeds, labels), softmax(embeds, labels))


@each_setting
@pytest.mark.parametrize("labels", BATCHES)
def test_gradient_of_embeddings_and_proxies(criterion, hyperparameters, labels):
    criterion = make(criterion, **hyperparameters)
    embeds, labels = batch(labels)

    def loss(embeds, proxies):
        return torch.func.functional_call(criterion, {"class_vectors": proxies}, (embeds, labels))

    proxies = criterion.class_vectors.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(loss, (embeds, proxies), eps=1e-7, atol=1e-4)


@each_setting
def test_batch_order_does_not_matter(criterion, hyperparameters):
    criterion = make(criterion, **hyperparameters)
    embeds, labels = batch(BATCHES[0])
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    assert torch.allclose(criterion(embeds, labels), criterion(embeds[order], labels[order]))


@each_setting
def test_length_of_embeddings_and_proxies_does_not_matter(criterion, hyperparameters):
    criterion = make(criterion, **hyperparameters)
    embeds, labels = batch(BATCHES[0])
    loss = criterion(embeds, labels)
    with torch.no_grad():
        criterion.class_vectors *= torch.linspace(0.1, 9, CLASSES)[:, None]
    assert torch.allclose(criterion(embeds * 0.01, labels), loss)


@pytest.mark.parametrize("mode", ["anchor", "nca"])
def test_large_alphas_do_not_overflow(mode):
    criterion = make(ProxyAnchor, mode=mode, pos_alpha=1e4, neg_alpha=1e4).float()
    embeds, labels = batch(BATCHES[0])
    embeds = embeds.detach().float().requires_grad_()
    loss = criterion(embeds, labels)
    for grad in torch.autograd.grad(loss, [embeds, criterion.class_vectors]):
        assert grad.isfinite().all()
        assert grad.abs().sum() > 0
    assert loss.isfinite()


@pytest.mark.parametrize("mode", ["anchor", "nca"])
def test_images_on_proxies_at_right_angles_have_nothing_left_to_learn(mode):
    criterion = make(ProxyAnchor, n_classes=4, dim=4, mode=mode, neg_delta=0.9, pos_delta=0.1)
    criterion.class_vectors.data = torch.eye(4).double()
    embeds = torch.eye(4).double().requires_grad_()
    loss = criterion(embeds, torch.arange(4))
    (grad,) = torch.autograd.grad(loss, embeds)
    assert loss.item() == pytest.approx(0, abs=1e-9)
    assert grad.abs().max() < 1e-9


def test_an_absent_class_only_pushes_and_only_in_the_negative_term():
    """Class 2 has no image: it does not thin the positive mean, but counts in the negative one."""
    two = make(ProxyAnchor, n_classes=2)
    three = make(ProxyAnchor, n_classes=3)
    three.class_vectors.data[:2] = two.class_vectors.data
    embeds, labels = batch([0, 0, 1])
    three.class_vectors.data[2] = -embeds.detach().mean(dim=0)  # far from all images
    pull_of_two = two(embeds, labels) - push_sum(two, embeds, labels) / 2
    pull_of_three = three(embeds, labels) - push_sum(three, embeds, labels) / 3
    assert torch.allclose(pull_of_two, pull_of_three)


def push_sum(criterion, embeds, labels):
    """Σ_c log(1 + Σ_{i: y_i ≠ c} exp(neg_alpha (s - neg_delta)))."""
    total = 0.0
    for c, p in enumerate(unit(criterion.class_vectors)):
        sims = [
            sum(u * v for u, v in zip(x, p, strict=True))
            for x, y in zip(unit(embeds), labels.tolist(), strict=True)
            if y != c
        ]
        total += math.log(1 + sum(math.exp(32 * (sim + 0.1)) for sim in sims))
    return total


def test_log_one_plus_sum_exp_of_groups_large_small_and_empty():
    values = torch.tensor([900.0, 900.0, -900.0, 0.0, 1.0]).double().requires_grad_()
    groups = torch.tensor([4, 4, 0, 2, 2])
    result = log_one_plus_sum_exp(values, groups, 5)
    expected = [0.0, 0.0, math.log(2 + math.e), 0.0, 900 + math.log(2)]
    assert result.tolist() == pytest.approx(expected, abs=1e-12)
    (grad,) = torch.autograd.grad(result.sum(), values)
    assert grad.tolist() == pytest.approx(
        [0.5, 0.5, 0.0, 1 / (2 + math.e), math.e / (2 + math.e)], abs=1e-12
    )


@each_setting
@pytest.mark.parametrize("label", [CLASSES, -1])
def test_a_label_out_of_range_is_named(criterion, hyperparameters, label):
    embeds, _ = batch([0, 0])
    with pytest.raises(ValueError, match=rf"label {label} is not in \[0, {CLASSES}\)"):
        make(criterion, **hyperparameters)(embeds, torch.tensor([0, label]))


def test_a_mode_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="mode must be anchor or nca; got proxy"):
        ProxyAnchor(4, 4, mode="proxy")


def test_proxy_nca_needs_a_class_to_push_from():
    with pytest.raises(ValueError, match="needs at least 2 training classes, got 1"):
        ProxyNCA(1, 4)


@pytest.mark.parametrize(
    ("criterion", "lrmulti"), [(ProxyAnchor, 2000.0), (ProxyNCA, 50.0), (ProxyNCAPlusPlus, 50.0)]
)
def test_proxies_learn_at_a_multiple_of_the_embedders_rate_without_decay(criterion, lrmulti):
    (group,) = make(criterion).param_groups(lr=1e-5)
    assert group["lr"] == pytest.approx(1e-5 * lrmulti)
    assert group["weight_decay"] == 0.0
    assert [p.shape for p in group["params"]] == [(CLASSES, DIM)]
    (group,) = make(criterion, lrmulti=0.0).param_groups(lr=1e-5)
    assert group["lr"] == 0


@pytest.mark.parametrize("criterion", [ProxyAnchor, ProxyNCA, ProxyNCAPlusPlus])
def test_the_first_proxies_follow_the_seed_and_have_deviation_one_eighth(criterion):
    torch.manual_seed(3)
    first, second = criterion(500, 64), criterion(500, 64)
    assert not torch.equal(first.class_vectors, second.class_vectors)
    torch.manual_seed(3)
    assert torch.equal(criterion(500, 64).class_vectors, first.class_vectors)
    assert first.class_vectors.std().item() == pytest.approx(1 / 8, rel=0.02)
