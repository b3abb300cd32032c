"""The differentiable operations that the losses are written with: values, derivatives, corners."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from criteria import primitives
from criteria.histogram import soft_histograms
from criteria.primitives import (
    chosen_distances,
    cosines,
    distances,
    hinge_mean,
    masked_logsumexp,
    mean_squared_length,
    nonempty,
    pair_logsumexp,
    similarities,
    soft_hinge_mean,
    softplus_mean,
)
from utilities.structures import References


def rows(n=5, dim=6, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, dim, generator=generator, dtype=dtype), dim=1)


def references(n=7, dim=6):
    return References(rows(n, dim, seed=1), torch.zeros(n, dtype=torch.long))


# --------------------------------------------------------------------------------------------------
# A batch with itself or with references
# --------------------------------------------------------------------------------------------------
COMPARED = {
    similarities: lambda x, z: x @ z.T,
    cosines: lambda x, z: F.normalize(x, dim=1) @ F.normalize(z, dim=1).T,
    distances: lambda x, z: torch.linalg.vector_norm(x[:, None] - z, dim=2),
}


@pytest.mark.parametrize("itself", [True, False])
@pytest.mark.parametrize("compared", COMPARED)
def test_comparisons_and_their_derivatives_are_those_of_the_definition(compared, itself):
    x, beside = (1.5 * rows()).requires_grad_(), None if itself else references()
    values = compared(x, beside)
    expected = COMPARED[compared](x, x if itself else beside.embeds)
    assert torch.allclose(values, expected, atol=1e-7)  # of the products, on the diagonal
    slopes = torch.linspace(-1, 2, values.numel(), dtype=torch.float64).view(values.shape)
    (gradient,) = torch.autograd.grad((values * slopes).sum(), x)
    (expected_gradient,) = torch.autograd.grad((expected * slopes).sum(), x)
    if compared is distances and itself:
        slopes = slopes.clone().fill_diagonal_(0)  # rounding may make a distance of 0 a tiny one
        (gradient,) = torch.autograd.grad((compared(x) * slopes).sum(), x)
    assert torch.allclose(gradient, expected_gradient, atol=1e-12)


@pytest.mark.parametrize("compared", [similarities, cosines])
def test_gradcheck_of_comparisons(compared):
    x = rows().requires_grad_()
    assert gradcheck(compared, (x,))
    assert gradcheck(lambda x: compared(x, references()), (x,))


def test_the_distance_of_two_images_at_one_place_has_no_gradient():
    x = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 1.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(distances(x)[0, 1], x)
    assert torch.equal(gradient, torch.zeros_like(x))


def test_a_row_of_zeros_has_cosine_zero_and_a_finite_gradient():
    x = torch.cat([rows(2), torch.zeros(1, 6)]).requires_grad_()
    values = cosines(x)
    assert torch.equal(values[2], torch.zeros(3, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(values.sum(), x)
    assert gradient.isfinite().all()


# --------------------------------------------------------------------------------------------------
# Distances of chosen pairs
# --------------------------------------------------------------------------------------------------
ANCHORS = torch.tensor([4, 0, 1, 1, 4, 2])
OTHERS = torch.tensor([[3, 0, 2, 2, 3, 1], [0, 1, 4, 3, 3, 2]])  # repeated pairs, an image itself


@pytest.fixture(params=["rows", "matrix"])
def way(request, monkeypatch):
    """Run a test once for each way in which the distances are computed."""
    monkeypatch.setattr(primitives, "MATRIX_SHARE", math.inf if request.param == "rows" else 0)
    return request.param


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("itself", [True, False])
def test_chosen_distances_are_those_of_the_definition(way, itself, squared):
    x, beside = rows().requires_grad_(), None if itself else references()
    expected = torch.linalg.vector_norm(
        x[ANCHORS] - (x if itself else beside.embeds)[OTHERS], dim=2
    )
    expected = expected.square() if squared else expected
    values = chosen_distances(x, beside, ANCHORS, OTHERS, squared=squared)
    slopes = torch.linspace(-1, 2, expected.numel(), dtype=torch.float64).view(expected.shape)
    (gradient,) = torch.autograd.grad((values * slopes).sum(), x)
    (expected_gradient,) = torch.autograd.grad((expected * slopes).sum(), x)
    # From a product, a distance of 0 is one below 1e-6 and its square below 1e-12.
    assert torch.allclose(values, expected, atol=1e-12)
    assert torch.allclose(gradient, expected_gradient, atol=1e-12)


@pytest.mark.parametrize("squared", [False, True])
def test_gradcheck_of_chosen_distances(way, squared):
    apart = torch.tensor([[3, 2, 2, 4, 3, 1]])
    for beside in (None, references()):
        assert gradcheck(
            lambda x, z=beside: chosen_distances(x, z, ANCHORS, apart, squared=squared),
            (rows().requires_grad_(),),
        )


@pytest.mark.parametrize("gap", [1e-1, 1e-2, 1e-3, 1e-4])
def test_near_pairs_keep_their_digits(way, gap):
    """In float32, where the products of unit rows have lost all of a distance of 1e-4."""
    x = rows(dtype=torch.float32)
    x[1] = x[0] + gap * rows(1, seed=2, dtype=torch.float32)[0]
    x.requires_grad_()
    values = chosen_distances(x, None, torch.tensor([0]), torch.tensor([[1]]))
    exact = (x.double()[1] - x.double()[0]).detach()
    assert values.item() == pytest.approx(exact.norm().item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(values.sum(), x)
    assert torch.allclose(gradient[1], (exact / exact.norm()).float(), atol=1e-5)
    assert torch.allclose(gradient[0], -gradient[1], atol=1e-6)


@pytest.mark.parametrize("squared", [False, True])
def test_a_chosen_distance_of_zero_has_no_gradient(way, squared):
    x = (rows(dtype=torch.float32)[[0, 0, 1, 2, 0]] * 3).requires_grad_()
    pairs = torch.tensor([0, 1]), torch.tensor([[1, 4]])
    values = chosen_distances(x, None, *pairs, squared=squared)
    assert torch.equal(values, torch.zeros(1, 2))
    (gradient,) = torch.autograd.grad(values.sum(), x)
    # In the matrix 2 x - x - x has its rounding, in double precision.
    assert torch.allclose(gradient, torch.zeros_like(x), atol=1e-12)


def test_no_pair_has_no_gradient(way):
    x, none = rows().requires_grad_(), torch.zeros(0, dtype=torch.long)
    values = chosen_distances(x, None, none, none.view(2, 0))
    assert values.shape == (2, 0)
    (gradient,) = torch.autograd.grad(values.sum(), x)
    assert torch.equal(gradient, torch.zeros_like(x))


def test_many_pairs_are_read_from_the_matrix():
    x, anchors = rows(40).requires_grad_(), torch.arange(40)
    few = chosen_distances(x, None, anchors[:20], anchors.flip(0)[None, :20])
    many = chosen_distances(x, None, anchors.repeat(5), anchors.flip(0).repeat(5)[None])
    assert type(few.grad_fn) is not type(many.grad_fn)
    assert torch.allclose(few, many[:, :20], atol=1e-12)


# --------------------------------------------------------------------------------------------------
# Sums over masks
# --------------------------------------------------------------------------------------------------
VALUES = torch.tensor(
    [[0.3, -1.0, 0.3, 2.0], [5.0, 5.0, 5.0, -5.0], [1.0, 2.0, 3.0, 4.0], [0.5, 0.0, -9.0, 9.0]],
    dtype=torch.float64,
)  # with ties
MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 1]], dtype=torch.bool)
OTHER_MASK = torch.tensor(
    [[0, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0], [1, 1, 1, 0]], dtype=torch.bool
)
MASKS = [MASK, torch.zeros_like(MASK), torch.ones_like(MASK)]


def entries(values, mask):
    """The entries of each row in the mask, as lists."""
    return [
        [v for v, m in zip(*row, strict=True) if m]
        for row in zip(values.tolist(), mask.tolist(), strict=True)
    ]


@pytest.mark.parametrize("mask", MASKS)
def test_masked_logsumexp(mask):
    values = VALUES.clone().requires_grad_()
    totals = masked_logsumexp(values, mask)
    for total, row in zip(totals.tolist(), entries(VALUES, mask), strict=True):
        expected = math.log(sum(map(math.exp, row))) if row else torch.finfo(VALUES.dtype).min
        assert total == pytest.approx(expected, rel=1e-12)
    assert nonempty(totals).tolist() == mask.any(dim=1).tolist()
    assert gradcheck(lambda v: masked_logsumexp(v, mask)[mask.any(dim=1)], (values,))
    (gradient,) = torch.autograd.grad(totals.sum(), values)
    assert torch.equal(gradient * ~mask, torch.zeros_like(gradient))


def test_pair_logsumexp():
    values, others = VALUES.clone().requires_grad_(), VALUES.flip(0).clone().requires_grad_()
    totals = pair_logsumexp(values, MASK, others, OTHER_MASK)
    both = zip(entries(values, MASK), entries(others, OTHER_MASK), strict=True)
    expected = [[math.exp(p + n) for p in row for n in other] for row, other in both]
    assert (
        nonempty(totals).tolist()
        == [bool(terms) for terms in expected]
        == [True, False, False, True]
    )
    found = [math.log(sum(terms)) for terms in expected if terms]
    assert totals[nonempty(totals)].tolist() == pytest.approx(found, rel=1e-12)
    full = [0, 3]
    assert gradcheck(lambda u, v: pair_logsumexp(u, MASK, v, OTHER_MASK)[full], (values, others))
    for gradient in torch.autograd.grad(F.softplus(totals).sum(), (values, others)):
        assert torch.equal(gradient[1:3], torch.zeros(2, 4, dtype=torch.float64))


@pytest.mark.parametrize("scale", [1.0, 7.5])
@pytest.mark.parametrize("mask", MASKS)
def test_soft_hinge_mean(mask, scale):
    violations = VALUES.clone().requires_grad_()
    expected = [
        math.log(1 + sum(math.exp(scale * v) for v in row)) / scale for row in entries(VALUES, mask)
    ]
    mean = soft_hinge_mean(violations, mask, scale)
    assert mean.item() == pytest.approx(sum(expected) / len(expected), abs=1e-12)
    assert gradcheck(lambda v: soft_hinge_mean(v, mask, scale), (violations,))


@pytest.mark.parametrize("mask", MASKS)
def test_softplus_mean(mask):
    violations = VALUES.clone().requires_grad_()
    chosen = [math.log(1 + math.exp(v)) for row in entries(VALUES, mask) for v in row]
    mean = softplus_mean(violations, mask)
    assert mean.item() == pytest.approx(sum(chosen) / max(len(chosen), 1), abs=1e-12)
    assert gradcheck(lambda v: softplus_mean(v, mask), (violations,))


def test_large_values_neither_overflow_nor_lose_the_gradient():
    values = torch.tensor([[1e4, -1e4, 1e4]], requires_grad=True)
    mask = torch.ones(1, 3, dtype=torch.bool)
    for loss, expected in (
        (masked_logsumexp(values, mask).sum(), [0.5, 0, 0.5]),
        (soft_hinge_mean(values, mask, 40.0), [0.5, 0, 0.5]),
        (softplus_mean(values, mask), [1 / 3, 0, 1 / 3]),
    ):
        (gradient,) = torch.autograd.grad(loss, values)
        assert loss.isfinite() and gradient[0].tolist() == pytest.approx(expected)


def test_hinge_mean_counts_the_positive_violations():
    violations = torch.tensor([[3.0, -1.0, 0.0], [0.5, -2.0, 1.0]], dtype=torch.float64)
    loss = hinge_mean(violations.requires_grad_())
    assert loss.item() == pytest.approx(4.5 / 3)
    (gradient,) = torch.autograd.grad(loss, violations)
    third = 1 / 3
    assert gradient.tolist() == [[third, 0, 0], [third, 0, third]]
    assert gradcheck(hinge_mean, (violations.detach()[violations != 0].requires_grad_(),))


@pytest.mark.parametrize("violations", [[-1.0, 0.0], []])
def test_hinge_mean_without_violations_is_a_differentiable_zero(violations):
    violations = torch.tensor(violations, requires_grad=True)
    loss = hinge_mean(violations)
    (gradient,) = torch.autograd.grad(loss, violations)
    assert loss.item() == 0
    assert torch.equal(gradient, torch.zeros_like(violations))


def test_mean_squared_length():
    x = (2 * rows()).requires_grad_()
    assert mean_squared_length(x).item() == pytest.approx(4)
    assert gradcheck(mean_squared_length, (x,))


@pytest.mark.parametrize("itself", [True, False])
def test_soft_histograms(itself):
    values = torch.tensor(
        [[-1.0, 0.3, 0.9], [0.31, 1.0, -0.7], [0.2, -0.2, 0.45]], dtype=torch.float64
    )
    positive = torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 0]], dtype=torch.bool)
    h_neg, h_pos = soft_histograms(values, positive, 5, itself=itself)  # nodes 0.5 apart
    assert h_pos.tolist() == pytest.approx([0, 0, (0.4 + 0.38) / 2, (0.6 + 0.62) / 2, 0])
    assert h_neg.sum().item() == pytest.approx(1)
    inner = (values * 0.9).requires_grad_()  # the histograms bend at the nodes
    assert gradcheck(lambda v: soft_histograms(v, positive, 5, itself=itself), (inner,))


@pytest.mark.parametrize("apply", [similarities, hinge_mean, mean_squared_length, cosines])
def test_a_second_derivative_is_refused(apply):
    x = rows().requires_grad_()
    (gradient,) = torch.autograd.grad(apply(x).sum(), x, create_graph=True)
    if gradient.requires_grad:
        with pytest.raises(RuntimeError, match="once_differentiable"):
            gradient.sum().backward()
