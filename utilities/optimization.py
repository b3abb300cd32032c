"""Optimisers and learning-rate schedules by name."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import optim
from torch.optim.lr_scheduler import LambdaLR, LRScheduler


def build_optimizer(
    name: str, groups: list[dict[str, Any]], *, lr: float, decay: float
) -> optim.Optimizer:
    """``adam``, ``adamw`` or ``sgd`` (momentum 0.9) over parameter groups.

    A group's own ``lr`` or ``weight_decay`` stands; ``lr`` and ``decay`` serve the groups without.
    All are torch's fused ones, which can leave a step out without the CPU knowing: ``Trainer``.
    """
    if name == "sgd":
        sgd = optim.SGD(groups, lr=lr, weight_decay=decay, momentum=0.9, fused=True)
        fit_state(sgd)
        return sgd
    kind = {"adam": optim.Adam, "adamw": optim.AdamW}[name]
    return kind(groups, lr=lr, weight_decay=decay, fused=True)


def fit_state(optimizer: optim.Optimizer) -> None:
    """Make the state of a new or loaded optimizer what torch's fused steps take for granted."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if group.get("momentum"):
                # torch would take the first gradient as the momentum, and what lies in memory where
                # that step is left out. From zero the first momentum is the first gradient too.
                state = optimizer.state[parameter]
                if state.get("momentum_buffer") is None:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
            state = optimizer.state.get(parameter, {})  # none of what had no gradient yet
            for name, value in state.items():
                if value.shape == parameter.shape and value.stride() != parameter.stride():
                    state[name] = torch.empty_like(parameter).copy_(value)  # strides are not read


def build_scheduler(
    name: str,
    optimizer: optim.Optimizer,
    *,
    n_steps: int,
    steps_per_epoch: int,
    tau: Sequence[int],
    gamma: float,
    lr: float,
    warmup_steps: int = 0,
    warmup_lr: float = 1e-5,
    final_lr: float = 1e-6,
) -> LRScheduler:
    """A schedule that is stepped once per optimizer step.

    ``step`` multiplies every rate by ``gamma`` after each epoch in ``tau``, ``cosine`` lowers it
    after each epoch, to zero after the last (Loshchilov and Hutter, SGDR, ICLR 2017),
    ``warmup_cosine`` goes by the step (see there), ``none`` keeps the rates.

    Args:
        n_steps: planned in all; 0 keeps the rates.
        lr, warmup_steps, warmup_lr, final_lr: as ``warmup_cosine``.

    Raises:
        ValueError: as ``warmup_cosine``.
    """
    n_epochs = max(1, math.ceil(n_steps / steps_per_epoch))

    def milestones(step: int) -> float:
        return gamma ** sum(step // steps_per_epoch >= epoch for epoch in tau)

    def cosine(step: int) -> float:
        done = min(step // steps_per_epoch / n_epochs, 1.0)
        return (1 + math.cos(math.pi * done)) / 2

    if name == "warmup_cosine" and n_steps:
        return warmup_cosine(
            optimizer,
            lr,
            max_steps=n_steps,
            warmup_steps=warmup_steps,
            warmup_lr=warmup_lr,
            final_lr=final_lr,
        )
    shares = {"step": milestones, "cosine": cosine}
    return LambdaLR(optimizer, shares.get(name, lambda step: 1.0))


def scaled_lr(lr: float, bs: int, base_bs: int = 512) -> float:
    """The learning rate for batches of ``bs`` where ``lr`` is right for ``base_bs``: lr bs/base_bs.

    Goyal et al., Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour, 2017. A ``base_bs`` of
    0 keeps ``lr``.
    """
    return lr * bs / base_bs if base_bs else lr


def warmup_cosine(
    optimizer: optim.Optimizer,
    lr: float,
    *,
    max_steps: int,
    warmup_steps: int = 5000,
    warmup_lr: float = 1e-5,
    final_lr: float = 1e-6,
) -> LRScheduler:
    """A schedule that is stepped once per optimizer step.

    After t steps the rate of a group of rate ``lr`` is, with T = max_steps and W = warmup_steps,

        warmup_lr + (lr - warmup_lr) t / W                               for t < W,
        final_lr + (lr - final_lr) (1 + cos(pi (t - W) / (T - W))) / 2   for W <= t <= T,

    and final_lr from then on; that of a group of another rate r is r / lr times as much.

    The schedule of El Banani et al., CVPR 2023, at its numbers but for ``lr``.

    Args:
        lr: the run's learning rate, scaled by the batch size already, and that of most groups.

    Raises:
        ValueError: no step is left after the warm-up, or the warm-up would lower the rate or the
            cosine raise it.
    """
    if max_steps <= warmup_steps:
        raise ValueError(
            f"--max_steps {max_steps} ends within the warm-up of --warmup_steps {warmup_steps}; "
            f"use --max_steps {warmup_steps + 1} or more, or --warmup_steps {max_steps // 50}, the "
            "share of the published schedule"
        )
    for flag, rate, used in (
        ("--warmup_lr", warmup_lr, warmup_steps > 0),
        ("--final_lr", final_lr, True),
    ):
        if used and rate > lr:
            raise ValueError(
                f"{flag} {rate:g} is above the learning rate of {lr:g} (--lr, scaled by "
                f"--lr_base_bs); use {flag} {lr / 100:g}, or a higher --lr"
            )

    def share(step: int) -> float:
        if step < warmup_steps:
            return (warmup_lr + (lr - warmup_lr) * step / warmup_steps) / lr
        done = min((step - warmup_steps) / (max_steps - warmup_steps), 1.0)
        return (final_lr + (lr - final_lr) * (1 + math.cos(math.pi * done)) / 2) / lr

    return LambdaLR(optimizer, share)
