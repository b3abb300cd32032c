"""Optimizer groups by what weight decay may shrink."""

from collections.abc import Collection, Iterable
from typing import Any

from torch import nn


def split_decay(
    modules: nn.Module | Iterable[nn.Module], undecayed: Collection[str] = ()
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The trainable parameters with and without weight decay.

    Decay is for matrices: the weights of linear, convolutional and embedding layers. It would pull
    the scale of a norm toward zero, and shrinks nothing that matters of a bias, a temperature or
    another parameter with less than two axes.

    Args:
        modules: one or several; a parameter that two of them share is there once.
        undecayed: names of further parameters without decay, as their module has them; "positions"
            fits ``positions`` and ``tower.positions``.

    Returns:
        decayed, undecayed: both in order of registration.
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
    """``split_decay`` as optimizer groups: the run's weight decay, and none; empty ones left out.

    Args:
        lr: learning rate of both.
    """
    decayed, rest = split_decay(modules, undecayed)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "lr": lr},
        {"params": rest, "lr": lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
