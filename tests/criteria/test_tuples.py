"""Distances of chosen pairs in both of the ways in which they are found, and the mean of hinges."""

import math

import pytest
import torch
import torch.nn.functional as F

from criteria import tuples
from criteria.tuples import hinge_mean, pair_distances
from utilities.structures import References

ANCHORS = torch.tensor([4, 0, 1, 1, 4, 2])
OTHERS = torch.tensor([[3, 0, 2, 2, 3, 1], [0, 1, 4, 3, 3, 2]])  # repeated pairs, an image itself


@pytest.fixture(params=["rows", "matrix"])
def way(request, monkeypatch):
    """Every test that asks for it runs once in each way."""
    monkeypatch.setattr(tuples, "MATRIX_SHARE", math.inf if request.param == "rows" else 0)
    return request.param


def rows(n=5, dim=6, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, dim, generator=generator, dtype=dtype), dim=1)


def plain(x, z, squared):
    """The definition, differentiated automatically; a distance of 0 has the subgradient 0."""
    distances = torch.linalg.vector_norm(x[ANCHORS] - z[OTHERS], dim=2)
    return distances.square() if squared else distances


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("itself", [True, False])
def test_values_and_gradient_are_those_of_the_definition(way, itself, squared):
    x, z = rows().requires_grad_(), rows(7, seed=1)
    references = None if itself else References(z, torch.zeros(7, dtype=torch.long))
    expected = plain(x, x if itself else z, squared)
    slopes = torch.linspace(-1, 2, expected.numel(), dtype=torch.float64).view(expected.shape)
    (expected_gradient,) = torch.autograd.grad((expected * slopes).sum(), x)
    with torch.no_grad():
        pairs = pair_distances(x, references, ANCHORS, OTHERS, squared=squared)
        gradient = pairs.gradient(slopes)
    # From a product, a distance of 0 is one below 1e-6 and its square below 1e-12.
    assert torch.allclose(pairs.values, expected, atol=1e-12)
    assert torch.allclose(gradient, expected_gradient, atol=1e-12)


@pytest.mark.parametrize("gap", [1e-1, 1e-2, 1e-3, 1e-4])
def test_near_pairs_keep_their_digits(way, gap):
    """In float32, where the products of unit rows have lost all of a distance of 1e-4."""
    x = rows(dtype=torch.float32)
    x[1] = x[0] + gap * rows(1, seed=2, dtype=torch.float32)[0]
    anchors, others = torch.tensor([0]), torch.tensor([[1]])
    pairs = pair_distances(x, None, anchors, others)
    exact = x.double()[1] - x.double()[0]
    assert pairs.values.item() == pytest.approx(exact.norm().item(), rel=1e-5)
    gradient = pairs.gradient(torch.ones(1, 1))
    assert torch.allclose(gradient[1], (exact / exact.norm()).float(), atol=1e-5)
    assert torch.allclose(gradient[0], -gradient[1], atol=1e-6)


@pytest.mark.parametrize("squared", [False, True])
def test_a_distance_of_zero_has_no_gradient(way, squared):
    x = rows(dtype=torch.float32)[[0, 0, 1, 2, 0]] * 3
    pairs = pair_distances(x, None, torch.tensor([0, 1]), torch.tensor([[1, 4]]), squared=squared)
    assert torch.equal(pairs.values, torch.zeros(1, 2))
    gradient = pairs.gradient(torch.ones(1, 2))
    # In the matrix 2 x - x - x has its rounding, in double precision.
    assert torch.allclose(gradient, torch.zeros_like(x), atol=1e-12)


def test_no_pair_has_no_gradient(way):
    x, none = rows(), torch.zeros(0, dtype=torch.long)
    pairs = pair_distances(x, None, none, none.view(2, 0))
    assert pairs.values.shape == (2, 0)
    assert torch.equal(pairs.gradient(pairs.values), torch.zeros_like(x))


def test_many_pairs_are_read_from_the_matrix():
    x = rows(40)
    anchors = torch.arange(40)
    few = pair_distances(x, None, anchors[:20], anchors.flip(0)[None, :20])
    many = pair_distances(x, None, anchors.repeat(5), anchors.flip(0).repeat(5)[None])
    assert type(few) is not type(many)
    assert torch.allclose(few.values, many.values[:, :20], atol=1e-12)


def test_mean_of_hinges_counts_the_positive_ones():
    loss, slopes = hinge_mean(torch.tensor([[3.0, -1.0, 0.0], [0.5, -2.0, 1.0]]))
    assert loss.item() == pytest.approx(4.5 / 3)
    third = 1 / 3
    assert torch.allclose(slopes, torch.tensor([[third, 0, 0], [third, 0, third]]))
    loss, slopes = hinge_mean(torch.tensor([-1.0, 0.0]))
    assert loss.item() == 0
    assert torch.equal(slopes, torch.zeros(2))
