"""Optimizers, their parameter groups, and learning-rate schedules, by name."""

import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
from torch import nn, optim
from torch.optim.lr_scheduler import LambdaLR, LRScheduler


def build(
    groups: list[dict[str, Any]],
    *,
    optim: str,
    scheduler: str,
    lr: float,
    decay: float,
    **shape: Any,
) -> tuple[torch.optim.Optimizer, LRScheduler]:
    """Return ``build_optimizer`` over parameter groups, and ``build_scheduler`` of its rates."""
    optimizer = build_optimizer(optim, groups, lr=lr, decay=decay)
    return optimizer, build_scheduler(scheduler, optimizer, lr=lr, **shape)


def build_optimizer(
    name: str, groups: list[dict[str, Any]], *, lr: float, decay: float
) -> optim.Optimizer:
    """Return ``adam``, ``adamw`` or ``sgd`` (momentum 0.9) over parameter groups.

    All are torch's fused versions, which can skip a step without the CPU knowing; see ``Trainer``.
    """
    if name == "sgd":
        sgd = optim.SGD(groups, lr=lr, weight_decay=decay, momentum=0.9, fused=True)
        fit_state(sgd)
        return sgd
    kind = {"adam": optim.Adam, "adamw": optim.AdamW}[name]
    return kind(groups, lr=lr, weight_decay=decay, fused=True)


def fit_state(optimizer: optim.Optimizer) -> None:
    """Give a new or loaded optimizer the state that torch's fused steps take for granted."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if group.get("momentum"):
                # torch takes the first gradient as the momentum, or uninitialised memory if that
                # step is skipped. Starting at zero, the first momentum is the first gradient too.
                state = optimizer.state[parameter]
                if state.get("momentum_buffer") is None:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
            state = optimizer.state.get(parameter, {})  # empty before the first gradient
            for name, value in state.items():
                if value.shape == parameter.shape and value.stride() != parameter.stride():
                    state[name] = torch.empty_like(parameter).copy_(value)  # strides are not read


def split_decay(
    modules: nn.Module | Iterable[nn.Module], undecayed: Collection[str] = ()
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the trainable parameters with and without weight decay, in order of registration.

    Decay is for matrices; parameters with fewer than two axes have none, nor do those named in
    ``undecayed``: "positions" matches ``tower.positions``. Shared parameters are returned once.
    """
    parts: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    seen: set[nn.Parameter] = set()
    for module in [modules] if isinstance(modules, nn.Module) else modules:
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and parameter not in seen:
                seen.add(parameter)
                named = any(f".{name}".endswith(f".{other}") for other in undecayed)
                parts[parameter.ndim < 2 or named].append(parameter)
    return parts


def decay_groups(
    modules: nn.Module | Iterable[nn.Module], lr: float, undecayed: Collection[str] = ()
) -> list[dict[str, Any]]:
    """Return the non-empty parts of ``split_decay`` as optimizer groups."""
    decayed, rest = split_decay(modules, undecayed)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "lr": lr},
        {"params": rest, "lr": lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


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
    """Return a schedule to be stepped once per optimizer step.

    ``step`` multiplies every rate by ``gamma`` after each epoch in ``tau``; ``cosine`` lowers it
    after each epoch, to zero after the last (Loshchilov and Hutter, SGDR, ICLR 2017);
    ``warmup_cosine`` changes it every step; ``none`` keeps it, as does ``n_steps`` of 0.
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
    factors = {"step": milestones, "cosine": cosine}
    return LambdaLR(optimizer, factors.get(name, lambda step: 1.0))


def scaled_lr(lr: float, bs: int, base_bs: int = 512) -> float:
    """Return lr bs / base_bs (Goyal et al., ImageNet in 1 Hour, 2017), or lr if base_bs is 0."""
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
    """Return a schedule of linear warm-up and cosine decay, to be stepped once per optimizer step.

    After t steps the rate of a group whose rate is ``lr`` is, with T = max_steps and
    W = warmup_steps,

        warmup_lr + (lr - warmup_lr) t / W                               for t < W,
        final_lr + (lr - final_lr) (1 + cos(pi (t - W) / (T - W))) / 2   for W <= t <= T,

    and final_lr afterwards; that of a group of another rate r is r / lr times as high.

    Source: El Banani et al., CVPR 2023; the defaults are theirs.

    Raises:
        ValueError: no step is left after the warm-up, or a rate is above ``lr``.
    """
    if max_steps <= warmup_steps:
        raise ValueError(
            f"--max_steps {max_steps} ends in the warm-up of --warmup_steps {warmup_steps}; use "
            f"--max_steps {warmup_steps + 1} or more, or --warmup_steps {max_steps // 50}, the "
            "share of the published schedule"
        )
    used = (
        {"warmup_lr": warmup_lr, "final_lr": final_lr} if warmup_steps else {"final_lr": final_lr}
    )
    for name, rate in used.items():
        if rate > lr:
            raise ValueError(
                f"--{name} must be at most the learning rate of {lr:g} (--lr, scaled by "
                f"--lr_base_bs); got {rate:g}; use {lr / 100:g}, or a higher --lr"
            )

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (warmup_lr + (lr - warmup_lr) * step / warmup_steps) / lr
        done = min((step - warmup_steps) / (max_steps - warmup_steps), 1.0)
        return (final_lr + (lr - final_lr) * (1 + math.cos(math.pi * done)) / 2) / lr

    return LambdaLR(optimizer, factor)
