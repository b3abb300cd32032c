"""The losses that compare images with class vectors: classifiers and proxies."""

import math

import pytest
import torch
from pytorch_metric_learning import losses as pml

from criteria import (
    ArcFace,
    CosFace,
    ProxyNCA,
    ProxyNCAPlusPlus,
    Softmax,
    SoftTriplet,
    SubcenterArcFace,
)
from criteria.arcface import add_angle
from tests.criteria.registered import LOSSES
from tests.criteria.scalars import assert_same, cosine, cross_entropy, normal, shuffle

ProxyAnchor = LOSSES["oproxy"]
CLASSES, DIM = 7, 5
UNEQUAL = {"pos_alpha": 3.0, "neg_alpha": 10.0, "pos_delta": 0.3, "neg_delta": 0.1}
SETTINGS = [
    (Softmax, {}),
    (Softmax, {"temperature": 0.3}),
    (ArcFace, {}),
    (ArcFace, {"angular_margin": 1.5, "feature_scale": 4.0}),  # often beyond pi - m
    (ArcFace, {"angular_margin": 0.0}),
    (CosFace, {}),
    (CosFace, {"margin": 0.1, "feature_scale": 5.0}),
    (SubcenterArcFace, {}),
    (SubcenterArcFace, {"angular_margin": 1.5, "feature_scale": 3.0, "n_subcenters": 2}),
    (SoftTriplet, {}),
    (SoftTriplet, {"n_centroids": 4, "margin_delta": 0.2, "gamma": 0.5, "reg_weight": 2.0}),
    (SoftTriplet, {"n_centroids": 3, "reg_weight": 0.0, "lambda_": 20.0}),
    (SoftTriplet, {"n_centroids": 1}),
    (ProxyAnchor, {}),
    (ProxyAnchor, UNEQUAL),
    (ProxyAnchor, {"mode": "nca"}),
    (ProxyAnchor, {"mode": "nca", **UNEQUAL}),
    (ProxyNCA, {}),
    (ProxyNCAPlusPlus, {}),
    (ProxyNCAPlusPlus, {"temperature": 2.0}),
]
BATCHES = [
    [0, 0, 0, 0, 3, 3, 6, 1],  # uneven, singletons, absent classes
    [5, 2, 5, 4, 2, 5, 0],  # unordered
    [3, 3, 3],  # one class: a proxy without negatives
    [6],
]
each_setting = pytest.mark.parametrize(("loss", "setting"), SETTINGS)
each_loss = pytest.mark.parametrize("loss", dict.fromkeys(loss for loss, _ in SETTINGS))


def make(loss, n_classes=CLASSES, dim=DIM, seed=0, **setting):
    torch.manual_seed(seed)
    return loss(n_classes, dim, **setting).double()


def batch(labels, dim=DIM, seed=0):
    embeds = 3 * normal(len(labels), dim, seed=seed)
    return embeds.requires_grad_(), torch.tensor(labels)


# --------------------------------------------------------------------------------------------------
# Equations
# --------------------------------------------------------------------------------------------------
def equation(criterion, embeds, labels):
    """The papers' equations, one image and one class vector at a time."""
    k, vectors = criterion.per_class, criterion.class_vectors.tolist()
    cosines = [  # of each image, each class and its vectors
        [
            [cosine(x, vectors[j * criterion.n_classes + c]) for j in range(k)]
            for c in range(criterion.n_classes)
        ]
        for x in embeds.tolist()
    ]
    labels = labels.tolist()
    if isinstance(criterion, ProxyAnchor):
        return proxy_anchor(criterion, cosines, labels)
    of_images = [LOSS[type(criterion)](criterion, *of) for of in zip(cosines, labels, strict=True)]
    return sum(of_images) / len(labels) + spread(criterion, vectors)


def softmax_loss(criterion, cosines, y):
    return cross_entropy([cos / criterion.temperature for (cos,) in cosines], y)


def cosface_loss(criterion, cosines, y):
    harder = [cos - criterion.margin * (c == y) for c, (cos,) in enumerate(cosines)]
    return cross_entropy([criterion.feature_scale * cos for cos in harder], y)


def arcface_loss(criterion, cosines, y):
    m, logits = criterion.angular_margin, []
    for c, centres in enumerate(cosines):
        cos = max(centres)
        theta = math.acos(cos)
        if c == y:
            cos = math.cos(theta + m) if theta <= math.pi - m else cos - m * math.sin(m)
        logits.append(criterion.feature_scale * cos)
    return cross_entropy(logits, y)


def softtriplet_loss(criterion, cosines, y):
    logits = []
    for c, centres in enumerate(cosines):
        weights = [math.exp(cos / criterion.gamma) for cos in centres]
        sim = sum(w * cos for w, cos in zip(weights, centres, strict=True)) / sum(weights)
        logits.append(criterion.lambda_ * (sim - criterion.margin_delta * (c == y)))
    return cross_entropy(logits, y)


def spread(criterion, vectors):
    """SoftTriple's regulariser: how far the centres of each class are apart."""
    k, n = criterion.per_class, criterion.n_classes
    if not isinstance(criterion, SoftTriplet) or k == 1:
        return 0.0
    total = sum(
        math.sqrt(2 - 2 * cosine(vectors[i * n + c], vectors[j * n + c]))
        for c in range(n)
        for i in range(k)
        for j in range(i + 1, k)
    )
    return criterion.reg_weight * total / (n * k * (k - 1))


def proxynca_loss(criterion, cosines, y):
    """Equation 4 with squared distances of unit rows; the own proxy is not in the sum."""
    nearness = [math.exp(-(2 - 2 * cos)) for (cos,) in cosines]
    return -math.log(nearness[y] / (sum(nearness) - nearness[y]))


def proxynca_pp_loss(criterion, cosines, y):
    return cross_entropy([-(2 - 2 * cos) / criterion.temperature for (cos,) in cosines], y)


def proxy_anchor(criterion, cosines, labels):
    """Equation 4 one exponential at a time, and the same with images as anchors."""
    pulls, pushes = {}, {}  # by anchor
    for i, of_image in enumerate(cosines):
        for c, (cos,) in enumerate(of_image):
            anchor = i if criterion.mode == "nca" else c
            if labels[i] == c:
                term = math.exp(-criterion.pos_alpha * (cos - criterion.pos_delta))
                pulls[anchor] = pulls.get(anchor, 0.0) + term
            else:
                term = math.exp(criterion.neg_alpha * (cos - criterion.neg_delta))
                pushes[anchor] = pushes.get(anchor, 0.0) + term
    n_neg = len(labels) if criterion.mode == "nca" else criterion.n_classes
    pull = sum(math.log(1 + total) for total in pulls.values()) / len(pulls)
    return pull + sum(math.log(1 + total) for total in pushes.values()) / n_neg


LOSS = {
    Softmax: softmax_loss,
    ArcFace: arcface_loss,
    CosFace: cosface_loss,
    SubcenterArcFace: arcface_loss,
    SoftTriplet: softtriplet_loss,
    ProxyNCA: proxynca_loss,
    ProxyNCAPlusPlus: proxynca_pp_loss,
}


# --------------------------------------------------------------------------------------------------
# Of every loss
# --------------------------------------------------------------------------------------------------
@each_setting
@pytest.mark.parametrize("labels", BATCHES)
def test_equals_the_equation(loss, setting, labels):
    criterion = make(loss, **setting)
    embeds, labels = batch(labels)
    expected = equation(criterion, embeds, labels)
    assert criterion(embeds, labels).item() == pytest.approx(expected, rel=1e-10, abs=1e-10)


@each_setting
@pytest.mark.parametrize("labels", [BATCHES[0], BATCHES[2]])
def test_gradient_of_embeddings_and_class_vectors(loss, setting, labels):
    criterion = make(loss, **setting)
    embeds, labels = batch(labels)

    def of(embeds, vectors):
        return torch.func.functional_call(criterion, {"class_vectors": vectors}, (embeds, labels))

    vectors = criterion.class_vectors.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(of, (embeds, vectors), eps=1e-7, atol=1e-5)


@each_setting
def test_order_of_the_batch_and_lengths_do_not_matter(loss, setting):
    criterion = make(loss, **setting)
    embeds, labels = batch(BATCHES[0])
    plain, order = criterion(embeds, labels), shuffle(len(labels))
    assert torch.allclose(plain, criterion(embeds[order], labels[order]))
    with torch.no_grad():
        criterion.class_vectors *= torch.linspace(0.1, 9, len(criterion.class_vectors))[:, None]
    assert torch.allclose(criterion(embeds * 0.01, labels), plain)


ANGLE = {"margin": math.degrees(0.5), "scale": 16}  # theirs goes through arccos


@pytest.mark.parametrize(
    ("loss", "setting", "theirs", "their_setting"),
    [
        (Softmax, {}, pml.NormalizedSoftmaxLoss, {"temperature": 0.05}),
        (CosFace, {}, pml.CosFaceLoss, {"margin": 0.35, "scale": 16}),
        (ArcFace, {}, pml.ArcFaceLoss, ANGLE),
        (SubcenterArcFace, {}, pml.SubCenterArcFaceLoss, {**ANGLE, "sub_centers": 3}),
        (
            SoftTriplet,
            {"reg_weight": 0.0},  # theirs has no regulariser
            pml.SoftTripleLoss,
            {"centers_per_class": 2, "la": 8, "gamma": 0.1, "margin": 0.01},
        ),
        (ProxyAnchor, {}, pml.ProxyAnchorLoss, {"margin": 0.1, "alpha": 32}),
        (ProxyNCAPlusPlus, {}, pml.ProxyNCALoss, {"softmax_scale": 1 / 0.11}),
    ],
)
@pytest.mark.parametrize("seed", range(2))
def test_equals_pytorch_metric_learning(loss, setting, theirs, their_setting, seed):
    """Their classifiers' vectors are columns, a class's side by side; their proxies are rows.

    Their ProxyNCALoss has the own proxy in the denominator: it is ProxyNCA++.
    """
    criterion = make(loss, 20, 6, seed, **setting)
    theirs = theirs(num_classes=20, embedding_size=6, **their_setting)
    (their_vectors,) = theirs.parameters()

    def as_theirs(vectors):
        by_class = vectors.unflatten(0, (-1, 20)).transpose(0, 1).reshape(-1, 6)
        return by_class if loss in (ProxyAnchor, ProxyNCAPlusPlus) else by_class.T

    their_vectors.data = as_theirs(criterion.class_vectors.detach()).clone()
    embeds, labels = batch([0, 3, 3, 19, 7, 7, 7, 12, 1, 0], 6, seed)
    our_loss, their_loss = criterion(embeds, labels), theirs(embeds, labels)
    assert_same(our_loss, their_loss, [embeds])
    (ours,) = torch.autograd.grad(criterion(embeds, labels), criterion.class_vectors)
    (other,) = torch.autograd.grad(theirs(embeds, labels), their_vectors)
    assert torch.allclose(as_theirs(ours), other, atol=1e-8)


@each_loss
@pytest.mark.parametrize("label", [CLASSES, -1])
def test_a_label_out_of_range_is_named(loss, label):
    embeds, _ = batch([0, 0])
    with pytest.raises(ValueError, match=rf"label {label} is not in \[0, {CLASSES}\)"):
        make(loss)(embeds, torch.tensor([0, label]))


@pytest.mark.parametrize(
    ("loss", "setting", "rate", "rows"),
    [
        (Softmax, {}, 1e-5, CLASSES),
        (ArcFace, {"lr": 0.0}, 0.0, CLASSES),
        (CosFace, {}, 5e-4, CLASSES),
        (SubcenterArcFace, {"lr": 0.1}, 0.1, 3 * CLASSES),
        (SoftTriplet, {"lrmulti": 10.0}, 0.2, 2 * CLASSES),
        (ProxyAnchor, {}, 2000 * 0.02, CLASSES),
        (ProxyNCA, {}, 50 * 0.02, CLASSES),
        (ProxyNCAPlusPlus, {"lrmulti": 0.0}, 0.0, CLASSES),
        (ProxyNCAPlusPlus, {}, 50 * 0.02, CLASSES),
    ],
)
def test_class_vectors_have_their_own_rate_and_no_decay(loss, setting, rate, rows):
    (group,) = make(loss, **setting).param_groups(lr=0.02)
    assert group["lr"] == pytest.approx(rate)
    assert group["weight_decay"] == 0.0
    assert [p.shape for p in group["params"]] == [(rows, DIM)]


@each_loss
def test_the_first_class_vectors_follow_the_seed_and_have_the_published_size(loss):
    """Classifiers as long as uniform ones in ±1/√D, proxies of standard deviation 1/8."""
    torch.manual_seed(3)
    first, second = loss(500, 64), loss(500, 64)
    assert not torch.equal(first.class_vectors, second.class_vectors)
    torch.manual_seed(3)
    assert torch.equal(loss(500, 64).class_vectors, first.class_vectors)
    std = 1 / 8 if loss in (ProxyAnchor, ProxyNCA, ProxyNCAPlusPlus) else 1 / math.sqrt(3 * 64)
    assert first.class_vectors.std().item() == pytest.approx(std, rel=0.02)


# --------------------------------------------------------------------------------------------------
# Classifiers
# --------------------------------------------------------------------------------------------------
@each_loss
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_image_on_or_opposite_its_class_vector_has_a_finite_gradient(loss, sign, dtype):
    """The angle's derivative is infinite there, and rounding can leave a cosine outside [-1, 1]."""
    criterion = make(loss, n_classes=40, dim=33).to(dtype)
    labels = torch.arange(40)
    with torch.no_grad():  # all vectors of a class are equal
        vectors = criterion.class_vectors[:40].clone()
        criterion.class_vectors.copy_(vectors.repeat(criterion.per_class, 1))
    embeds = (sign * vectors).requires_grad_()
    value = criterion(embeds, labels)
    for grad in torch.autograd.grad(value, [embeds, criterion.class_vectors]):
        assert grad.isfinite().all()
        assert 0 < grad.abs().max() < 100
    turned = embeds + 1e-3 * normal(40, 33, seed=5).to(dtype)
    assert value.item() == pytest.approx(criterion(turned, labels).item(), abs=0.1)


@pytest.mark.parametrize("margin", [0.0, 0.1, 0.5, 1.5, math.pi / 2])
def test_angular_margin_never_rewards_a_larger_angle(margin):
    angles = torch.linspace(0, math.pi, 2001, dtype=torch.float64)
    cosines = angles.cos().requires_grad_()
    made_harder = add_angle(cosines, margin)
    assert (made_harder.diff() < 1e-9).all()
    assert (made_harder <= cosines + 1e-7).all()  # harder, nowhere easier
    within = angles <= math.pi - margin
    assert torch.allclose(made_harder[within], (angles + margin).cos()[within], atol=1e-7)
    (grad,) = torch.autograd.grad(made_harder.sum(), cosines)
    assert grad.isfinite().all()
    assert (grad[within][1:-1] > 0).all()
    assert (grad[~within] == 1).all()


def test_images_far_from_their_class_are_pulled():
    """At more than 90 degrees, where a cosine clamped to [0, 1] has no gradient."""
    criterion = make(ArcFace, n_classes=2, dim=2)
    criterion.class_vectors.data = torch.eye(2).double()
    embeds = torch.tensor([[-0.8, -0.6]], dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(criterion(embeds, torch.tensor([0])), embeds)
    assert (-grad @ criterion.class_vectors[0].detach()).item() > 0.1


def test_of_the_subcentres_the_nearest_counts_and_learns():
    criterion = make(SubcenterArcFace, n_classes=2, dim=3, n_subcenters=2)
    # Rows: first sub-centres of classes 0 and 1, then the second ones.
    criterion.class_vectors.data = torch.tensor(
        [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, -1, 0]], dtype=torch.float64
    )
    embeds = torch.tensor([[0.1, 0.2, 0.9]], dtype=torch.float64)
    criterion(embeds, torch.tensor([0])).backward()
    moved = criterion.class_vectors.grad.abs().sum(dim=1) > 0
    assert moved.tolist() == [False, True, True, False]


def test_special_cases_coincide():
    embeds, labels = batch(BATCHES[0])
    arcface, subcenter = make(ArcFace), make(SubcenterArcFace, n_subcenters=1)
    assert torch.equal(arcface(embeds, labels), subcenter(embeds, labels))
    cosface = make(CosFace, margin=0.01, feature_scale=8.0)
    softtriplet = make(SoftTriplet, n_centroids=1)
    assert torch.equal(cosface(embeds, labels), softtriplet(embeds, labels))
    proxies, softmax = make(ProxyNCAPlusPlus, temperature=0.2), make(Softmax, temperature=0.1)
    softmax.class_vectors.data = proxies.class_vectors.data
    assert torch.allclose(proxies(embeds, labels), softmax(embeds, labels))


def test_the_regulariser_draws_the_centres_of_a_class_together_and_no_others():
    criterion = make(SoftTriplet, n_centroids=3, lambda_=1e-9, reg_weight=1.0)
    embeds, labels = batch(BATCHES[0])
    optimizer = torch.optim.Adam(criterion.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        criterion(embeds, labels).backward()
        optimizer.step()
    centres = criterion.unit_vectors(torch.float64).unflatten(0, (3, CLASSES)).detach()
    assert (centres - centres[:1]).norm(dim=2).max() < 0.2
    assert torch.cdist(centres[0], centres[0]).sum() / (CLASSES * (CLASSES - 1)) > 1


# --------------------------------------------------------------------------------------------------
# Proxies
# --------------------------------------------------------------------------------------------------
def test_proxy_nca_follows_from_pytorch_metric_learning():
    """Theirs is log(1 + r) of an image, ours log r, with r the others' nearness over the own's."""
    criterion, theirs = make(ProxyNCA), pml.ProxyNCALoss(CLASSES, DIM)
    theirs.proxies.data = criterion.class_vectors.detach().clone()
    embeds, labels = batch(BATCHES[0])
    expected = [
        math.log(math.expm1(theirs(embeds[i : i + 1], labels[i : i + 1]).item())) for i in range(8)
    ]
    assert criterion(embeds, labels).item() == pytest.approx(sum(expected) / 8, abs=1e-9)


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


def test_proxy_nca_needs_a_class_to_push_from():
    with pytest.raises(ValueError, match="class"):
        ProxyNCA(1, 4)
