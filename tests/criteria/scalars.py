"""Plain numbers for the equations that serve as oracles, and the tensors to compare them on."""

import math

import pytest
import torch
import torch.nn.functional as F


def dot(x, y):
    return sum(a * b for a, b in zip(x, y, strict=True))


def unit(x):
    length = math.sqrt(dot(x, x))
    return [a / length for a in x]


def cosine(x, y):
    return dot(unit(x), unit(y))


def softmax(logits):
    exps = [math.exp(x) for x in logits]
    return [x / sum(exps) for x in exps]


def cross_entropy(logits, label):
    return -math.log(softmax(logits)[label])


def kl(p, q):
    """KL(p || q) of two lists of probabilities."""
    return sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))


def mean_above_zero(hinges):
    """Mean of the positive ones; 0 without any."""
    active = [hinge for hinge in hinges if hinge > 0]
    return sum(active) / max(len(active), 1)


def linear(layer, row):
    """A linear layer of one row; its bias may be None."""
    outputs = [dot(weights, row) for weights in layer.weight.tolist()]
    return outputs if layer.bias is None else [a + b for a, b in zip(outputs, layer.bias.tolist())]  # noqa: B905


def normal(*shape, seed=0, dtype=torch.float64):
    """Normally distributed entries."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def unit_rows(n, dim=4, seed=0, dtype=torch.float64):
    """Rows (n, dim) of length 1, in random directions."""
    return F.normalize(normal(n, dim, seed=seed, dtype=dtype), dim=1)


def shuffle(n, seed=1):
    """A permutation of n places."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def along_the_sphere(gradient, embeds):
    """The gradient without its part along each unit row, which a normalisation would remove."""
    return gradient - (gradient * embeds).sum(dim=1, keepdim=True) * embeds


def assert_same(ours, theirs, tensors, their_tensors=None, *, close=1e-9, sphere=False):
    """Two losses and their gradients agree.

    Args:
        tensors: the tensors to differentiate our loss by; those of theirs where they differ.
        sphere: compare gradients along the unit sphere alone.
    """
    assert ours.item() == pytest.approx(theirs.item(), abs=close)
    our_grads = torch.autograd.grad(ours, tensors)
    their_grads = torch.autograd.grad(theirs, tensors if their_tensors is None else their_tensors)
    for x, y, tensor in zip(our_grads, their_grads, tensors, strict=True):
        if sphere:
            x, y = along_the_sphere(x, tensor), along_the_sphere(y, tensor)
        assert torch.allclose(x, y, atol=10 * close)
        assert x.abs().sum() > 0


def two_views(n, dim=4, seed=0):
    """The features (n, dim) of two views."""
    return [x.clone() for x in normal(2, n, dim, seed=seed)]
