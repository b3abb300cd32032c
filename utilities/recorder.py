"""Where the scores of a run go, epoch by epoch: its folder, its best checkpoints, W&B."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utilities import checkpoint, plots
from utilities.log import WandbLog
from utilities.run_folder import RunFolder


class Recorder:
    """Writes scores, checkpoints and curves after each epoch, so that a crash loses at most one.

    Args:
        run: the run's folder.
        wandb: a Weights & Biases run, maybe a disabled one.
        best_of: scores, such as ``val/embeds/e_recall@1``, whose best checkpoint is kept.
        keep_all: keep every checkpoint that was once the best, each under its epoch.
    """

    def __init__(
        self, run: RunFolder, wandb: WandbLog, *, best_of: Sequence[str], keep_all: bool = False
    ) -> None:
        self.run = run
        self.wandb = wandb
        self.best_of = tuple(best_of)
        self.keep_all = keep_all
        self.best: dict[str, float] = {}

    def record(self, epoch: int, scores: Mapping[str, float]) -> None:
        """Metrics files, curves and W&B."""
        self.run.record(epoch, scores)
        self.wandb.log(scores, epoch)
        plots.learning_curves(self.run.rows, self.curves)

    def save(self, epoch: int, scores: Mapping[str, float], parts: Mapping[str, Any]) -> None:
        """``last.pt``, and ``best_<score>.pt`` for each score that improved."""
        improved = [
            name
            for name in self.best_of
            if name in scores and scores[name] > self.best.get(name, float("-inf"))
        ]
        self.best |= {name: scores[name] for name in improved}
        parts = {**parts, "epoch": epoch, "best": self.best}
        for name in improved:
            suffix = f"_epoch{epoch}" if self.keep_all else ""
            checkpoint.save(self.run.checkpoint(f"best_{name}{suffix}"), parts)
        checkpoint.save(self.last, parts)

    def finish(self, pictures: Sequence[Path] = ()) -> None:
        """Send the curves and other pictures, and close W&B."""
        for picture in (self.curves, *pictures):
            if picture.is_file():
                self.wandb.image(picture)
        self.wandb.finish()

    @property
    def last(self) -> Path:
        return self.run.checkpoint("last")

    @property
    def curves(self) -> Path:
        return self.run.path / "curves.png"
