"""Optimisers and learning-rate schedules by name."""

from typing import Any

from torch import optim
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, MultiStepLR


def build_optimizer(
    name: str, groups: list[dict[str, Any]], *, lr: float, decay: float
) -> optim.Optimizer:
    """``adam``, ``adamw`` or ``sgd`` (momentum 0.9) over parameter groups.

    A group's own ``lr`` or ``weight_decay`` stands; ``lr`` and ``decay`` serve the groups without.
    """
    if name == "sgd":
        return optim.SGD(groups, lr=lr, weight_decay=decay, momentum=0.9)
    kind = {"adam": optim.Adam, "adamw": optim.AdamW}[name]
    return kind(groups, lr=lr, weight_decay=decay)


def build_scheduler(
    name: str, optimizer: optim.Optimizer, *, n_epochs: int, tau: list[int], gamma: float
) -> LRScheduler:
    """A schedule that is stepped once per epoch.

    ``step`` multiplies every rate by ``gamma`` after each epoch in ``tau``, ``cosine`` falls to
    zero at the end of ``n_epochs``, ``none`` keeps the rates.
    """
    if name == "step":
        return MultiStepLR(optimizer, milestones=tau, gamma=gamma)
    if name == "cosine":
        return CosineAnnealingLR(optimizer, T_max=max(n_epochs, 1))
    return LambdaLR(optimizer, lambda epoch: 1.0)
