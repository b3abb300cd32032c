"""Gradient caching: the exact gradient of a large batch in the memory of a small one.

A contrastive loss compares every image of a batch with every other, so accumulating the gradients
of smaller batches gives another loss. But an encoder f reads each image alone, and

    dL/dθ = Σ_i  dL/df(x_i) · df(x_i)/dθ

needs the activations of few images at a time:

1. embed the batch in chunks, without keeping activations;
2. compute the loss of all embeddings and its gradient dL/df(x_i), which is kept: the cache;
3. embed each chunk again, with activations, and backpropagate its part of the cache.

Gao, Zhang, Han and Callan, Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup,
RepL4NLP 2021. It costs a second forward pass.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def in_chunks(encode: Callable[..., Any], n: int, *inputs: Tensor) -> Any:
    """Return ``encode(*inputs)``, computed at most ``n`` rows at a time in both passes.

    Each chunk is a checkpoint of torch: this is step 1, and ``loss.backward()`` takes steps 2 and
    3. So any objective fits: its miners draw once, its memories see a batch once, a scaled loss
    stays scaled, and DistributedDataParallel averages gradients once. The random numbers of
    dropout are the same in both passes.

    Args:
        encode: treats each row alone; returns a tensor (B, ...) or a named tuple of such tensors.
        n: 0 encodes all rows at once.
        inputs: (B, ...) each.
    """
    n_rows = len(inputs[0])
    if not 0 < n < n_rows:
        return encode(*inputs)
    n_chunks = math.ceil(n_rows / n)
    chunks = zip(*(tensor.chunk(n_chunks) for tensor in inputs), strict=True)
    outputs = [checkpoint(encode, *chunk, use_reentrant=False) for chunk in chunks]
    if isinstance(outputs[0], Tensor):
        return torch.cat(outputs)
    return outputs[0]._make(map(torch.cat, zip(*outputs, strict=True)))
