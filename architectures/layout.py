"""Puts an embedder in channels_last, except for convolutions whose gradient oneDNN gets wrong."""

from typing import Any

import torch
from torch import Tensor, nn

SAFE_BLOCK = 16  # input channels that oneDNN handles together with AVX-512; with AVX2 they are 8


def lay_out(embedder: nn.Module) -> None:
    """Move an embedder to channels_last, in which CPUs and tensor cores convolve faster.

    Values and shapes stay the same. The ``unsafe`` convolutions keep, and are given, the
    contiguous layout; those around them are in channels_last all the same.
    """
    embedder.to(memory_format=torch.channels_last)
    for module in embedder.modules():
        if isinstance(module, nn.Conv2d) and unsafe(module):
            # ``contiguous`` would keep the strides of a kernel of 1 x 1, which fit both layouts.
            module.weight.data = module.weight.data.clone(memory_format=torch.contiguous_format)
            module.register_forward_pre_hook(_contiguous)


def unsafe(conv: nn.Conv2d) -> bool:
    """Return whether the gradient of a convolution must not be computed in channels_last on CPUs.

    With a kernel of 1 x 1, a stride, and fewer input channels than a block, oneDNN writes beyond
    its workspace: other memory is overwritten, or the gradient is wrong, or it never ends (its
    issue 6035). A last block that is not full counts as unsafe too, though no case is known.
    """
    strided = conv.kernel_size == (1, 1) and max(conv.stride) > 1
    return strided and conv.in_channels // conv.groups % SAFE_BLOCK != 0


def _contiguous(conv: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    return tuple(tensor.contiguous() for tensor in inputs)
