"""Optimizer steps: forward, backward, update; steps that are not finite are skipped."""

import logging
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn, optim
from torch.optim.lr_scheduler import LRScheduler

from utilities import distributed
from utilities.device import DelayedValue, autocast
from utilities.optimization import fit_state

LOG = logging.getLogger(__name__)


class Length(NamedTuple):
    """The planned length of a run."""

    n_steps: int
    n_epochs: int

    @classmethod
    def of(cls, max_steps: int, n_epochs: int, steps_per_epoch: int) -> "Length":
        """Return the length in steps and epochs; ``max_steps`` of 0 leaves it to the epochs."""
        n_steps = max_steps or n_epochs * steps_per_epoch
        return cls(n_steps, math.ceil(n_steps / steps_per_epoch) if max_steps else n_epochs)

    def shortened(self, most: int, steps_per_epoch: int) -> "Length":
        """Return the length with at most ``most`` steps."""
        n_steps = min(self.n_steps, most)
        return Length(n_steps, math.ceil(n_steps / steps_per_epoch))


class Trainer:
    """Takes steps on an objective; holds what the next step depends on beside the weights.

    A step whose loss or gradient is not finite changes nothing and is counted; under fp16 some are
    normal, while the loss is scaled. The CPU learns of it some steps later, and waits in ``check``
    alone.

    Args:
        objective: (batch, ...) -> an outcome with a ``loss``; DistributedDataParallel or not.
        optimizer: a fused one of torch, which ``found_inf`` tells to leave a step out.
        clip_grad: largest norm of the gradient of all that is trained; 0: unlimited. With a limit
            the outcome's terms have the "grad_norm" before clipping, NaN if the step is skipped.
        most_skipped: steps in a row that change nothing, and end training.
    """

    def __init__(
        self,
        objective: nn.Module,
        optimizer: optim.Optimizer,
        scheduler: LRScheduler,
        *,
        device: torch.device,
        precision: str = "fp32",
        clip_grad: float = 0.0,
        most_skipped: int = 10,
    ) -> None:
        if not getattr(optimizer, "_step_supports_amp_scaling", False):
            raise ValueError(f"{type(optimizer).__name__} must be built with fused=True")
        self.objective = objective
        self.optimizer: Any = optimizer  # takes found_inf, which its type does not say
        self.scheduler = scheduler
        self.device = device
        self.precision = precision
        self.clip_grad = clip_grad
        self.most_skipped = most_skipped
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.iteration = 0
        self._skips = torch.zeros(2, device=device)  # so far, and since the last step that counted
        self._watched = DelayedValue()
        self._known = 0  # skips that the CPU has heard of

    def step(self, *inputs: Any) -> Any:
        """Take a step on the objective's inputs, on the device already; return its outcome.

        FloatingPointError if too many steps in a row had a loss or gradient that is not finite.
        """
        with autocast(self.device, self.precision):
            outcome = self.objective(*inputs)
        self.optimizer.zero_grad()
        self.scaler.scale(outcome.loss).backward()
        self.scaler.unscale_(self.optimizer)  # nothing, unless the loss was scaled
        norm, skip = self._norm_and_skip(outcome.loss)
        self.optimizer.grad_scale, self.optimizer.found_inf = None, skip
        self.optimizer.step()
        self.scaler.update()
        self.iteration += 1
        self.scheduler.step()
        self._count(skip, getattr(outcome, "rows", None))
        if self.clip_grad:
            told = {"grad_norm": norm.masked_fill(skip.bool(), torch.nan)}
            outcome = outcome._replace(terms=outcome.terms | told)
        return outcome

    @torch.no_grad()
    def _norm_and_skip(self, loss: Tensor) -> tuple[Tensor, Tensor]:
        """Clip the gradient; return two scalars on the device.

        They are its norm before that, and 1 if the norm or the loss is not finite, else 0.
        """
        trained = [
            parameter
            for group in self.optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        norm = nn.utils.get_total_norm([parameter.grad for parameter in trained])
        if self.clip_grad:
            nn.utils.clip_grads_with_norm_(trained, self.clip_grad, norm)
        return norm, (~(norm.isfinite() & loss.isfinite())).to(torch.float32)

    def _count(self, skip: Tensor, rows: Tensor | None) -> None:
        so_far, in_a_row = self._skips
        self._skips = torch.stack([so_far + skip, (in_a_row + 1) * skip])
        seen = self._watched.poll(self._skips)
        so_far, in_a_row = (self._known, 0) if seen is None else map(int, seen.tolist())
        self._judge(so_far, in_a_row, self._most_skipped, rows)

    @property
    def _most_skipped(self) -> int:
        # The scaler halves its factor with each of these, so its search takes longer than others'.
        return self.most_skipped + 16 * self.scaler.is_enabled()

    def check(self) -> None:
        """Wait for the device; raise as ``step``, also if not one step was finite so far."""
        most = self._most_skipped
        if not self.scaler.is_enabled():
            most = min(most, max(self.iteration, 1))
        so_far, in_a_row = map(int, self._skips.tolist())
        self._judge(so_far, in_a_row, most, None)

    def _judge(self, so_far: int, in_a_row: int, most: int, rows: Tensor | None) -> None:
        if distributed.any_rank(in_a_row >= most):  # all end with the first that hears of it
            batch = "" if rows is None else f" Rows of the last batch: {rows.tolist()}."
            raise FloatingPointError(
                f"the loss or its gradient was not finite in {max(in_a_row, most)} steps in a row, "
                f"up to step {self.iteration}.{batch} Lower --lr or --language_distill_w, "
                "check the flags of --loss, or train with --precision fp32; the last checkpoint, "
                "if any, is in the run folder"
            )
        if so_far > self._known and not self.scaler.is_enabled():
            LOG.warning(
                "skipped %d step(s) up to step %d: the loss or its gradient was not finite",
                so_far - self._known,
                self.iteration,
            )
        self._known = so_far

    @property
    def skipped(self) -> int:
        """Return the number of skipped steps; waits for the device."""
        return int(self._skips[0])

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "iteration": self.iteration,
            "skipped": self.skipped,
            "skipped_in_a_row": int(self._skips[1]),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        optimizer = state["optimizer"]
        # Older checkpoints were not of a fused optimizer, and torch would take that over.
        groups = [{**group, "fused": True, "foreach": None} for group in optimizer["param_groups"]]
        self.optimizer.load_state_dict({**optimizer, "param_groups": groups})
        fit_state(self.optimizer)
        self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        self.iteration = state["iteration"]
        self._known = state["skipped"]
        skips = [state["skipped"], state["skipped_in_a_row"]]
        self._skips = torch.tensor(skips, dtype=torch.float32, device=self.device)
