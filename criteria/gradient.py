"""Losses whose gradient is written by hand."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def with_gradient(loss: Tensor, tensor: Tensor, gradient: Tensor) -> Tensor:
    """The scalar ``loss``, whose derivative with respect to ``tensor`` is ``gradient``.

    For a loss over a (B, B) matrix of pairs, automatic differentiation keeps and walks back through
    every elementwise step; the derivative is often a softmax that the loss has computed already.
    Write both under ``torch.no_grad()`` and join them here.

    Args:
        loss: scalar without a graph.
        tensor: what the loss was computed from.
        gradient: d loss / d tensor, of its shape.
    """
    return _WithGradient.apply(tensor, loss, gradient)


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return upstream * gradient, None, None
