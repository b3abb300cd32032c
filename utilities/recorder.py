"""Where the scores of a run go, epoch by epoch: its folder, its best checkpoints, W&B."""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from utilities import checkpoint, plots
from utilities.finished import BEFORE
from utilities.log import WandbLog
from utilities.run_folder import RunFolder


class Every:
    """Tells when it is time again: after so many steps, or after so many minutes.

    Args:
        period: "500" steps, "10m" minutes, "0" never.
    """

    def __init__(self, period: str) -> None:
        self.minutes = float(period[:-1]) if period.endswith("m") else 0.0
        self.steps = 0 if period.endswith("m") else int(period)
        self._last = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether it is time after ``step`` steps; asked after each."""
        if self.steps:
            return step % self.steps == 0
        now = time.monotonic()
        if not self.minutes or now - self._last < 60 * self.minutes:
            return False
        self._last = now
        return True


class Recorder:
    """Writes scores, checkpoints and curves, so that a crash loses little.

    Args:
        run: the run's folder.
        wandb: a Weights & Biases run, maybe a disabled one.
        best_of: scores, such as ``val/embeds/e_recall@1``, whose best checkpoint is kept.
        keep_all: keep every checkpoint that was once the best, each under its epoch.
        writes: False where another process writes; nothing here does anything then.
    """

    def __init__(
        self,
        run: RunFolder,
        wandb: WandbLog,
        *,
        best_of: Sequence[str],
        keep_all: bool = False,
        writes: bool = True,
    ) -> None:
        self.run = run
        self.wandb = wandb
        self.best_of = tuple(best_of)
        self.keep_all = keep_all
        self.writes = writes
        self.best: dict[str, float] = {}

    def record(self, epoch: int, scores: Mapping[str, float]) -> None:
        """Metrics files, curves and W&B."""
        if not self.writes:
            return
        self.run.record(epoch, scores)
        self.wandb.log(scores, epoch)
        plots.learning_curves(self.run.rows, self.curves)

    def record_untrained(
        self, scores: Mapping[str, float], embeds: tuple[Tensor, Tensor] | None
    ) -> None:
        """The scores of epoch 0, and the embeddings that the report will compare with."""
        if not self.writes:
            return
        if embeds is not None:
            checkpoint.save(self._before, {"embeds": embeds[0], "rows": embeds[1]})
        if scores:
            self.record(0, scores)

    def untrained(self) -> tuple[dict[str, float], tuple[Tensor, Tensor] | None]:
        """What ``record_untrained`` was given, in an earlier run of the program."""
        first = self.run.rows[0] if self.run.rows and not self.run.rows[0]["epoch"] else {}
        scores = {
            name: math.nan if value is None else value
            for name, value in first.items()
            if name != "epoch"
        }
        if not self._before.is_file():
            return scores, None
        kept = checkpoint.load(self._before)
        return scores, (kept["embeds"], kept["rows"])

    def save(
        self, epoch: int, parts: Mapping[str, Any], scores: Mapping[str, float] | None = None
    ) -> None:
        """``last.pt``, and ``best_<score>.pt`` for each score that improved.

        Args:
            epoch: the last that was recorded.
            scores: of that epoch; None in the middle of the next.
        """
        if not self.writes:
            return
        improved = [
            name
            for name in self.best_of
            if scores and name in scores and scores[name] > self.best.get(name, float("-inf"))
        ]
        self.best |= {name: scores[name] for name in improved if scores}
        parts = {**parts, "epoch": epoch, "best": self.best}
        for name in improved:
            suffix = f"_epoch{epoch}" if self.keep_all else ""
            checkpoint.save(self.run.checkpoint(f"best_{name}{suffix}"), parts)
        checkpoint.save(self.last, parts)

    def pause(self) -> None:
        """Close W&B; the run will be gone on with."""
        if self.writes:
            self.wandb.finish()

    def finish(self, pictures: Sequence[Path] = ()) -> None:
        """Send the curves and other pictures, close W&B, and keep nothing for a resumption."""
        if not self.writes:
            return
        for picture in (self.curves, *pictures):
            if picture.is_file():
                self.wandb.image(picture)
        self.wandb.finish()
        self._before.unlink(missing_ok=True)

    @property
    def last(self) -> Path:
        return self.run.checkpoint("last")

    @property
    def curves(self) -> Path:
        return self.run.path / "curves.png"

    @property
    def _before(self) -> Path:
        return self.run.path / BEFORE
