"""Optimizer steps: forward, backward, update, and what is done when a gradient is not finite."""

import logging
from typing import Any

import torch
from torch import nn, optim
from torch.optim.lr_scheduler import LRScheduler

from utilities.precision import autocast

LOG = logging.getLogger(__name__)


class Trainer:
    """Takes steps on an objective, and knows all that the next one depends on beside the weights.

    A step whose gradient is not finite changes nothing and is counted. Under fp16 some are normal:
    the loss is scaled up until a gradient overflows now and then. Where several processes train
    together, gradients are averaged before they are looked at, so that all of them agree.

    Args:
        objective: (batch, ...) -> an outcome with a ``loss``; DistributedDataParallel or not.
        optimizer: of its parameters.
        scheduler: of the optimizer's rates, moved on with each step.
        device: of the batches.
        precision: fp32, bf16 or fp16.
        most_skipped: steps without a finite gradient, one after the other, that end training.

    Attributes:
        iteration: steps so far, those included that changed nothing.
        skipped: steps so far that changed nothing.
    """

    def __init__(
        self,
        objective: nn.Module,
        optimizer: optim.Optimizer,
        scheduler: LRScheduler,
        *,
        device: torch.device,
        precision: str = "fp32",
        most_skipped: int = 10,
    ) -> None:
        self.objective = objective
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.device = device
        self.precision = precision
        self.most_skipped = most_skipped
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.iteration = 0
        self.skipped = 0
        self._in_a_row = 0

    def step(self, *inputs: Any) -> Any:
        """Take a step on the objective's inputs, on the device already; returns its outcome.

        Raises:
            FloatingPointError: the last of too many steps whose gradient is not finite.
        """
        with autocast(self.device, self.precision):
            outcome = self.objective(*inputs)
        self.optimizer.zero_grad()
        self.scaler.scale(outcome.loss).backward()
        self.scaler.unscale_(self.optimizer)  # nothing, unless the loss was scaled
        if self._finite():
            self.scaler.step(self.optimizer)
            self._in_a_row = 0
        else:
            self._skip()
        self.scaler.update()
        self.iteration += 1
        self.scheduler.step()
        return outcome

    def _finite(self) -> bool:
        gradients = [
            parameter.grad
            for group in self.optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        return bool(nn.utils.get_total_norm(gradients).isfinite())

    def _skip(self) -> None:
        self.skipped += 1
        self._in_a_row += 1
        # The scaler halves its factor with each of these, so its search takes longer than others'.
        most = self.most_skipped + 16 * self.scaler.is_enabled()
        if self._in_a_row >= most:
            raise FloatingPointError(
                f"the gradient was not finite in {self._in_a_row} steps, one after the other, the "
                f"last of them step {self.iteration + 1}"
            )
        if not self.scaler.is_enabled():
            LOG.warning("step %d left out: its gradient is not finite", self.iteration + 1)

    def state_dict(self) -> dict[str, Any]:
        """The states of optimizer, schedule and scaler, and the counts."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "iteration": self.iteration,
            "skipped": self.skipped,
            "skipped_in_a_row": self._in_a_row,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was asked."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        self.iteration = state["iteration"]
        self.skipped = state["skipped"]
        self._in_a_row = state["skipped_in_a_row"]
