"""Chunks of a batch: how many rows at a time, how much is kept, the same random numbers twice."""

import weakref
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from utilities.gradient_cache import in_chunks

BS = 8


class Output(NamedTuple):
    embeds: Tensor
    features: Tensor


class Net(nn.Module):
    """Notes the size of each batch that it embeds, and which hidden states are still kept."""

    def __init__(self, dropout=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(3, 5), nn.Linear(5, 4)
        self.dropout = nn.Dropout(dropout)
        self.sizes, self.hidden, self.most_kept = [], [], 0

    def forward(self, x):
        self.sizes.append(len(x))
        kept = sum(len(rows) for ref in self.hidden if (rows := ref()) is not None)
        hidden = self.dropout(self.first(x).tanh())
        self.hidden.append(weakref.ref(hidden))
        self.most_kept = max(self.most_kept, kept + len(hidden))
        return Output(self.last(hidden.square()), hidden * 2)


def rows():
    return torch.randn(BS, 3, generator=torch.Generator().manual_seed(1))


def backward(net, output):
    """The gradient of a loss that compares each row with every other."""
    net.zero_grad()
    (output.embeds @ output.features[:, :4].T).softmax(dim=1).diagonal().log().sum().backward()
    return [p.grad.clone() for p in net.parameters()]


@pytest.mark.parametrize(
    ("n", "sizes"), [(0, [8]), (8, [8]), (9, [8]), (4, [4, 4]), (3, [3, 3, 2]), (1, [1] * 8)]
)
def test_chunks_are_embedded_again_one_after_the_other(n, sizes):
    net = Net()
    wanted = backward(net, net(rows()))
    net.sizes.clear()
    got = backward(net, in_chunks(net, n, rows()))
    torch.testing.assert_close(got, wanted)
    assert net.sizes == (sizes + sizes[::-1] if len(sizes) > 1 else sizes)


def test_only_the_activations_of_a_chunk_are_kept():
    whole, parts = Net(), Net()
    for _ in range(2):  # the second batch finds what the first one left
        backward(whole, whole(rows()))
        backward(parts, in_chunks(parts, 2, rows()))
    assert (whole.most_kept, parts.most_kept) == (BS, 2)


def test_both_passes_drop_the_same_units():
    """The gradient is that of the chunks one after the other, and the generator is left there."""
    whole, parts = Net(dropout=0.5), Net(dropout=0.5)
    torch.manual_seed(2)
    outputs = [whole(chunk) for chunk in rows().chunk(4)]
    wanted = backward(whole, Output(*map(torch.cat, zip(*outputs, strict=True))))
    after = torch.get_rng_state()
    torch.manual_seed(2)
    got = backward(parts, in_chunks(parts, 2, rows()))
    torch.testing.assert_close(got, wanted)
    assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_that_of_the_first_pass(dtype):
    """Computed outside autocast, as the backward pass is."""
    net, seen = Net(), []
    net.first.register_forward_hook(lambda *called: seen.append(called[-1].dtype))
    with torch.autocast("cpu", dtype=dtype):
        whole, parts = net(rows()), in_chunks(net, 3, rows())
    whole, parts = (Output(*(field.float() for field in out)) for out in (whole, parts))
    for got, wanted in zip(backward(net, parts), backward(net, whole), strict=True):
        assert (got - wanted).norm() < 8 * torch.finfo(dtype).eps * wanted.norm()
    assert seen == [dtype] * 7


def test_a_tensor_and_several_inputs():
    product = in_chunks(lambda x, y: x * y, 3, rows(), rows())
    assert torch.equal(product, rows() ** 2)
