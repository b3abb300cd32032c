"""Losses that classify with class vectors: softmax, ArcFace, sub-centres, CosFace, SoftTriple."""

import math

import pytest
import torch
from pytorch_metric_learning.losses import (
    ArcFaceLoss,
    CosFaceLoss,
    NormalizedSoftmaxLoss,
    SoftTripleLoss,
    SubCenterArcFaceLoss,
)

from criteria.arcface import ArcFace, add_angle
from criteria.cosface import CosFace
from criteria.softmax import Softmax
from criteria.softtriplet import SoftTriplet
from criteria.subcenter_arcface import SubcenterArcFace

CLASSES, DIM = 7, 5
ALL = [Softmax, ArcFace, CosFace, SubcenterArcFace, SoftTriplet]
BATCHES = [
    [0, 0, 0, 0, 3, 3, 6, 1],  # uneven, singletons, absent classes
    [5, 2, 5, 4, 2, 5, 0],  # unordered
    [3, 3, 3],  # one class
    [6],
]


def make(criterion, n_classes=CLASSES, dim=DIM, seed=0, **hyperparameters):
    torch.manual_seed(seed)
    return criterion(n_classes, dim, **hyperparameters).double()


def batch(labels, dim=DIM, seed=0):
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randn(len(labels), dim, generator=generator, dtype=torch.float64) * 3
    return embeds.requires_grad_(), torch.tensor(labels)


def cosine(x, y):
    dot = sum(a * b for a, b in zip(x, y, strict=True))
    return dot / math.sqrt(sum(a * a for a in x)) / math.sqrt(sum(b * b for b in y))


def cross_entropy(logits, label):
    return -math.log(math.exp(logits[label]) / sum(math.exp(z) for z in logits))


def oracle(criterion, embeds, labels):
    """The papers' equations, one image and one class vector at a time."""
    k = criterion.per_class
    vectors = criterion.class_vectors.tolist()
    total = 0.0
    for x, y in zip(embeds.tolist(), labels.tolist(), strict=True):
        cosines = [
            [cosine(x, vectors[j * criterion.n_classes + c]) for j in range(k)]
            for c in range(criterion.n_classes)
        ]
        total += cross_entropy(LOGITS[type(criterion)](criterion, cosines, y), y)
    loss = total / len(labels)
    if isinstance(criterion, SoftTriplet) and k > 1:
        spread = 0.0
        for c in range(criterion.n_classes):
            for i in range(k):
                for j in range(i + 1, k):
                    w, v = (vectors[n * criterion.n_classes + c] for n in (i, j))
                    spread += math.sqrt(2 - 2 * cosine(w, v))
        loss += criterion.reg_weight * spread / (criterion.n_classes * k * (k - 1))
    return loss


def softmax_logits(criterion, cosines, y):
    return [cos / criterion.temperature for (cos,) in cosines]


def cosface_logits(criterion, cosines, y):
    return [
        criterion.feature_scale * (cos - criterion.margin * (c == y))
        for c, (cos,) in enumerate(cosines)
    ]


def arcface_logits(criterion, cosines, y):
    m, logits = criterion.angular_margin, []
    for c, centres in enumerate(cosines):
        cos = max(centres)
        theta = math.acos(cos)
        if c == y:
            cos = math.cos(theta + m) if theta <= math.pi - m else cos - m * math.sin(m)
        logits.append(criterion.feature_scale * cos)
    return logits


def softtriplet_logits(criterion, cosines, y):
    logits = []
    for c, centres in enumerate(cosines):
        weights = [math.exp(cos / criterion.gamma) for cos in centres]
        sim = sum(w * cos for w, cos in zip(weights, centres, strict=True)) / sum(weights)
        logits.append(criterion.lambda_ * (sim - criterion.margin_delta * (c == y)))
    return logits


LOGITS = {
    Softmax: softmax_logits,
    ArcFace: arcface_logits,
    CosFace: cosface_logits,
    SubcenterArcFace: arcface_logits,
    SoftTriplet: softtriplet_logits,
}

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
]


@pytest.mark.parametrize(("criterion", "hyperparameters"), SETTINGS)
@pytest.mark.parametrize("labels", BATCHES)
def test_equals_the_equation(criterion, hyperparameters, labels):
    criterion = make(criterion, **hyperparameters)
    embeds, labels = batch(labels)
    expected = oracle(criterion, embeds, labels)
    assert criterion(embeds, labels).item() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(
    ("criterion", "theirs", "tolerance"),
    [
        (Softmax, lambda c, d: NormalizedSoftmaxLoss(c, d, temperature=0.05), 1e-10),
        (CosFace, lambda c, d: CosFaceLoss(c, d, margin=0.35, scale=16), 1e-10),
        # Theirs goes through arccos.
        (ArcFace, lambda c, d: ArcFaceLoss(c, d, margin=math.degrees(0.5), scale=16), 1e-9),
        (
            SubcenterArcFace,
            lambda c, d: SubCenterArcFaceLoss(
                num_classes=c, embedding_size=d, margin=math.degrees(0.5), scale=16, sub_centers=3
            ),
            1e-9,
        ),
        (
            lambda c, d: SoftTriplet(c, d, reg_weight=0.0),
            lambda c, d: SoftTripleLoss(c, d, centers_per_class=2, la=8, gamma=0.1, margin=0.01),
            1e-10,
        ),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_equals_pytorch_metric_learning(criterion, theirs, tolerance, seed):
    """Coincides with the same scales and margins (theirs in degrees), SoftTriple without its
    regulariser, which theirs has not. Their vectors are columns, a class's side by side.
    """
    criterion = make(criterion, 20, 6, seed)
    theirs = theirs(20, 6)
    embeds, labels = batch([0, 3, 3, 19, 7, 7, 7, 12, 1, 0], 6, seed)
    columns = criterion.class_vectors.detach().unflatten(0, (-1, 20)).transpose(0, 1).reshape(-1, 6)
    (their_vectors,) = theirs.parameters()
    their_vectors.data = columns.T.clone()

    our_loss, their_loss = criterion(embeds, labels), theirs(embeds, labels)
    assert our_loss.item() == pytest.approx(their_loss.item(), abs=tolerance)
    ours = torch.autograd.grad(our_loss, [embeds, criterion.class_vectors])
    other = torch.autograd.grad(their_loss, [embeds, their_vectors])
    assert torch.allclose(ours[0], other[0], atol=tolerance)
    by_class = ours[1].unflatten(0, (-1, 20)).transpose(0, 1).reshape(-1, 6)
    assert torch.allclose(by_class.T, other[1], atol=tolerance)


@pytest.mark.parametrize(("criterion", "hyperparameters"), SETTINGS)
def test_gradient_of_embeddings_and_class_vectors(criterion, hyperparameters):
    criterion = make(criterion, **hyperparameters)
    embeds, labels = batch(BATCHES[0])

    def loss(embeds, vectors):
        return torch.func.functional_call(criterion, {"class_vectors": vectors}, (embeds, labels))

    vectors = criterion.class_vectors.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(loss, (embeds, vectors))


@pytest.mark.parametrize("criterion", ALL)
def test_batch_order_does_not_matter(criterion):
    criterion = make(criterion)
    embeds, labels = batch(BATCHES[0])
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    assert torch.allclose(criterion(embeds, labels), criterion(embeds[order], labels[order]))


@pytest.mark.parametrize("criterion", ALL)
def test_length_of_embeddings_and_class_vectors_does_not_matter(criterion):
    criterion = make(criterion)
    embeds, labels = batch(BATCHES[0])
    loss = criterion(embeds, labels)
    with torch.no_grad():
        criterion.class_vectors *= torch.linspace(0.1, 9, len(criterion.class_vectors))[:, None]
    assert torch.allclose(criterion(embeds * 0.01, labels), loss)


@pytest.mark.parametrize("criterion", ALL)
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_image_on_or_opposite_its_class_vector_has_a_finite_gradient(criterion, sign, dtype):
    """The angle's derivative is infinite there, and rounding can leave a cosine outside [-1, 1]."""
    criterion = make(criterion, n_classes=40, dim=33).to(dtype)
    labels = torch.arange(40)
    with torch.no_grad():  # all vectors of a class are equal
        vectors = criterion.class_vectors[:40].clone()
        criterion.class_vectors.copy_(vectors.repeat(criterion.per_class, 1))
    embeds = (sign * vectors).requires_grad_()
    loss = criterion(embeds, labels)
    for grad in torch.autograd.grad(loss, [embeds, criterion.class_vectors]):
        assert grad.isfinite().all()
        assert 0 < grad.abs().max() < 100
    turned = embeds + 1e-3 * torch.randn(40, 33, generator=torch.Generator().manual_seed(5))
    assert loss.item() == pytest.approx(criterion(turned, labels).item(), abs=0.1)


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


def test_one_subcentre_is_arcface_and_one_centre_is_cosface():
    embeds, labels = batch(BATCHES[0])
    arcface, subcenter = make(ArcFace), make(SubcenterArcFace, n_subcenters=1)
    assert torch.equal(arcface(embeds, labels), subcenter(embeds, labels))
    cosface = make(CosFace, margin=0.01, feature_scale=8.0)
    softtriplet = make(SoftTriplet, n_centroids=1)
    assert torch.equal(cosface(embeds, labels), softtriplet(embeds, labels))


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


@pytest.mark.parametrize("criterion", ALL)
@pytest.mark.parametrize("label", [CLASSES, -1])
def test_a_label_out_of_range_is_named(criterion, label):
    embeds, _ = batch([0, 0])
    with pytest.raises(ValueError, match=rf"label {label} is not in \[0, {CLASSES}\)"):
        make(criterion)(embeds, torch.tensor([0, label]))


@pytest.mark.parametrize(
    ("criterion", "flag"),
    [(ArcFace, "--loss_arcface"), (SubcenterArcFace, "--loss_subcenter_arcface")],
)
@pytest.mark.parametrize("margin", [28.6, 2, -0.1])
def test_a_margin_that_is_no_angle_is_refused(criterion, flag, margin):
    with pytest.raises(ValueError, match=f"angular_margin must be .* got {margin}"):
        criterion(4, 4, angular_margin=margin)


@pytest.mark.parametrize(
    ("criterion", "hyperparameters", "rate", "rows"),
    [
        (Softmax, {}, 1e-5, CLASSES),
        (ArcFace, {"lr": 0.0}, 0.0, CLASSES),
        (CosFace, {}, 5e-4, CLASSES),
        (SubcenterArcFace, {"lr": 0.1}, 0.1, 3 * CLASSES),
        (SoftTriplet, {"lrmulti": 10.0}, 0.2, 2 * CLASSES),
    ],
)
def test_class_vectors_have_their_own_rate_and_no_decay(criterion, hyperparameters, rate, rows):
    (group,) = make(criterion, **hyperparameters).param_groups(lr=0.02)
    assert group["lr"] == pytest.approx(rate)
    assert group["weight_decay"] == 0.0
    assert [p.shape for p in group["params"]] == [(rows, DIM)]


@pytest.mark.parametrize("criterion", ALL)
def test_the_first_class_vectors_follow_the_seed_and_are_as_long_as_uniform_ones(criterion):
    torch.manual_seed(3)
    first, second = criterion(500, 64), criterion(500, 64)
    assert not torch.equal(first.class_vectors, second.class_vectors)
    torch.manual_seed(3)
    assert torch.equal(criterion(500, 64).class_vectors, first.class_vectors)
    lengths = first.class_vectors.detach().norm(dim=1)
    assert lengths.mean().item() == pytest.approx(1 / math.sqrt(3), rel=0.02)
