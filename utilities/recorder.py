"""Where the scores of a run go, epoch by epoch: its folder, its best checkpoints, trackers."""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from utilities import checkpoint, plots
from utilities.finished import BEFORE
from utilities.run_folder import RunFolder
from utilities.trackers import Trackers

REDRAW = 30.0  # seconds between two drawings of the curves: each takes one, an epoch may take less


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
        trackers: W&B and TensorBoard, where they are asked for.
        best_of: scores, such as ``val/embeds/e_recall@1``, whose best checkpoint is kept.
        keep_all: keep every checkpoint that was once the best, each under its epoch.
        writes: False where another process writes; nothing here does anything then.
    """

    def __init__(
        self,
        run: RunFolder,
        trackers: Trackers,
        *,
        best_of: Sequence[str],
        keep_all: bool = False,
        writes: bool = True,
    ) -> None:
        self.run = run
        self.trackers = trackers
        self.best_of = tuple(best_of)
        self.keep_all = keep_all
        self.writes = writes
        self.best: dict[str, float] = {}
        self._drawn = time.monotonic()

    def record(self, epoch: int, scores: Mapping[str, float]) -> None:
        """Metrics files, curves and trackers."""
        if not self.writes:
            return
        self.run.record(epoch, scores)
        self.trackers.log(scores, epoch)
        if time.monotonic() - self._drawn >= REDRAW:
            self._draw_curves()

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
        self.run.check_there()
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
        """Close the trackers; the run will be gone on with."""
        if self.writes:
            self.trackers.finish()

    def finish(self, shown: Sequence[Path] = ()) -> None:
        """Show the curves, other pictures and tables to the trackers, and close these.

        Nothing is kept for a resumption.

        Args:
            shown: .png and .csv files; one that is not there is passed over.
        """
        if not self.writes:
            return
        if self.run.rows:
            self._draw_curves()
        self.trackers.show([path for path in (self.curves, *shown) if path.is_file()])
        self.trackers.finish()
        self._before.unlink(missing_ok=True)

    def _draw_curves(self) -> None:
        plots.learning_curves(self.run.rows, self.curves)
        self._drawn = time.monotonic()

    @property
    def last(self) -> Path:
        return self.run.checkpoint("last")

    @property
    def curves(self) -> Path:
        return self.run.path / "curves.png"

    @property
    def _before(self) -> Path:
        return self.run.path / BEFORE
