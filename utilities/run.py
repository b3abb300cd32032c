"""A training run: its folder, its epochs, and how it is interrupted and resumed."""

import logging
import math
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch

from utilities import checkpoint, distributed, log, plots
from utilities import device as devices
from utilities.finished import differing
from utilities.interrupt import Interruption
from utilities.memory import peak_memory_mb
from utilities.results.runs import is_fraction
from utilities.run_files import BEFORE
from utilities.run_folder import RunFolder
from utilities.trackers import Trackers

LOG = logging.getLogger(__name__)

REDRAW = 30.0  # seconds between two drawings of the curves: each takes one, an epoch may take less


class Stateful(Protocol):
    """A part of a run that can be saved and loaded."""

    def state_dict(self) -> Mapping[str, Any]: ...
    def load_state_dict(self, state: Any) -> Any: ...


class State:
    """Named parts that the rest of a run depends on, saved and loaded together.

    Parts that are None are skipped. The global random generators and that of ``device`` are
    included.
    """

    def __init__(self, device: torch.device, **parts: Stateful | None) -> None:
        self.device = device
        self.parts = {name: part for name, part in parts.items() if part is not None}

    def state_dict(self) -> dict[str, Any]:
        parts = {name: part.state_dict() for name, part in self.parts.items()}
        return {**parts, "rng": checkpoint.rng_state(self.device)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, part in self.parts.items():
            try:
                part.load_state_dict(state[name])
            except (RuntimeError, LookupError, TypeError, AttributeError, ValueError) as error:
                why = " ".join(str(error).split())  # torch lists the keys, line by line
                raise ValueError(
                    f"--resume: the checkpoint's {name} does not fit this run ({why:.200}); start "
                    "another run with --savename"
                ) from error
        checkpoint.set_rng_state(state["rng"], self.device)


class Checkpoint(dict[str, Any]):
    """The content of a file written by ``Run.save``: a State, flags, epoch and best scores."""

    def __init__(self, folder: Path, parts: Mapping[str, Any]) -> None:
        super().__init__(parts)
        if "passes" in parts:  # written before the parts were grouped and named as they are now
            latest = {f"miner/{name}": value for name, value in parts.get("adapted", {}).items()}
            self["progress"] = {"terms": parts["progress"], "latest": latest}
            self["trainer"], self["batches"] = parts, parts["passes"]
        self.folder = folder

    @property
    def epoch(self) -> int:
        """The epoch to resume after; the final one is evaluated again, for the report."""
        final = self.get("final", self["flags"]["n_epochs"])
        return min(self["epoch"], final - 1)


def to_resume(
    save_path: Path, dataset: str, name: str, flags: Mapping[str, Any]
) -> Checkpoint | None:
    """Return the newest readable checkpoint of the run of this name; None if there is none.

    ValueError if its flags differ from ``flags``, where those that are None are not compared, or
    all of its checkpoints are damaged.
    """
    folder = RunFolder.newest(save_path, dataset, name)
    if folder is None:
        return None
    earlier = sorted(folder.glob("best_*.pt"), key=lambda file: -file.stat().st_mtime)
    files = [file for file in (folder / "last.pt", *earlier) if file.is_file()]
    for file in files:
        try:
            saved = Checkpoint(folder, checkpoint.load(file))
        except ValueError as error:
            LOG.warning("%s; trying an earlier one", error)
            continue
        if "averaged" in saved:
            continue  # weights alone, from which no training can continue
        given = {name: value for name, value in flags.items() if value is not None}
        if flags.get("max_steps"):
            given.pop("n_epochs", None)  # follows from the steps
        if differ := differing(saved["flags"], given):
            raise ValueError(
                f"--resume: {folder} has other flags: {', '.join(differ)}; use the same "
                "flags, or another --group, --savename or --save_path"
            )
        return saved if saved["flags"]["n_epochs"] else None  # one of no epochs begins again
    if files:
        raise ValueError(
            f"--resume: no checkpoint in {folder} can be read; delete the folder to start from the "
            "beginning, or start another run with --savename"
        )
    LOG.info("--resume: %s has no checkpoint yet; starting from the beginning", folder)
    return None


class Run:
    """Writes scores, checkpoints and curves, so that a crash loses little.

    With several processes, the first writes, and all agree when to stop.

    Args:
        folder: of the run, locked.
        flags, data: kept in every checkpoint.
        interruption: asks the run to stop between two steps.
        best_of: scores, such as ``val/embeds/e_recall@1``, whose best checkpoint is kept.
        patience: end the run once none of ``best_of`` has risen in as many evaluations; 0: never.
        keep_all: keep every checkpoint that was the best so far, each under its epoch.
        checkpoint_every: "500" steps, "15m" minutes, or "0": at the end of an epoch only.
        saved: the checkpoint to resume from.
    """

    def __init__(
        self,
        folder: RunFolder,
        state: State,
        *,
        flags: Mapping[str, Any],
        data: Mapping[str, Any] | None = None,
        trackers: Trackers,
        n_epochs: int = 0,
        interruption: Interruption | None = None,
        best_of: Sequence[str] = (),
        patience: int = 0,
        keep_all: bool = False,
        checkpoint_every: str = "0",
        saved: Checkpoint | None = None,
    ) -> None:
        self.folder = folder
        self.state = state
        self.own = {"flags": dict(flags), "data": data}
        self.n_epochs = n_epochs
        self.final = n_epochs  # the last epoch, earlier once patience has ended
        self.trackers = trackers
        self.interruption = interruption or Interruption()
        self.best_of = tuple(best_of)
        self.patience = patience
        self.keep_all = keep_all
        self.period = Period(checkpoint_every)
        self.writes = distributed.is_first()
        self.last = folder.checkpoint("last")
        self.curves = folder.path / "curves.png"
        self._before = folder.path / BEFORE
        self.epoch = 0  # the last that was recorded
        self.best: dict[str, float] = {}
        self.resumed = saved is not None
        self._drawn = time.monotonic()
        self._began = time.monotonic()  # with the first epoch of this process
        self._begun_after = 0  # epochs
        if saved:
            state.load_state_dict(saved)
            self.epoch, self.best = saved.epoch, saved["best"]
            LOG.info("resuming after epoch %d", self.epoch)

    def epochs(self) -> Iterator[int]:
        """Yield the epochs that are left. A run of none saves its untrained state."""
        if not self.n_epochs:
            self.save()
        self._began, self._begun_after = time.monotonic(), self.epoch
        for epoch in range(self.epoch + 1, self.n_epochs + 1):
            yield epoch
            if epoch == self.final:
                return

    def ends_after(self, epoch: int, scores: Mapping[str, float]) -> bool:
        """Apply ``patience``; return whether the run ends after an epoch of these scores.

        All processes must call it.
        """
        rows = [*self.folder.rows, {"epoch": epoch, **scores}]  # of the process that writes
        if distributed.broadcast(0 < self.patience <= evaluations_since_best(rows, self.best_of)):
            self.final = epoch
        return epoch == self.final

    def save(self, scores: Mapping[str, float] | None = None) -> None:
        """Write ``last.pt``, and ``best_<score>.pt`` for each score that improved in this epoch."""
        if not self.writes:
            return
        scores = scores or {}
        improved = [
            name
            for name in self.best_of
            if scores.get(name, math.nan) > self.best.get(name, -math.inf)
        ]
        self.best |= {name: scores[name] for name in improved}
        reached = {"epoch": self.epoch, "final": self.final, "best": self.best}
        parts = {**self.state.state_dict(), **self.own, **reached}
        # Averaged weights have files of their own, in which they are the embedder.
        average: dict[str, Any] = {}
        if "ema" in parts:
            average = {"embedder": parts["ema"], "averaged": True, **self.own, **reached}
        self.folder.check_there()
        for name in improved:
            content = average if average and "/ema_" in name else parts
            checkpoint.save(self._best_file(name, self.epoch), content)
        if average:
            checkpoint.save(self.folder.checkpoint("ema"), average)
        checkpoint.save(self.last, parts)

    def best_checkpoint(self, score: str, epoch: int) -> Path | None:
        """Return the file of the epoch in which a score was best; None if it keeps no files."""
        return self._best_file(score, epoch) if score in self.best_of else None

    def _best_file(self, score: str, epoch: int) -> Path:
        suffix = f"_epoch{epoch}" if self.keep_all else ""
        return self.folder.checkpoint(f"best_{score}{suffix}")

    def after_step(self, step: int) -> None:
        """Save if it is due after ``step`` steps; save and exit with 0 if a signal came."""
        stop = self._must_stop()
        if stop or self.period.is_over(step):
            self.save()
        if stop:
            self._leave()

    def record(self, epoch: int, scores: Mapping[str, float]) -> None:
        """Write an epoch's scores and checkpoint; exit with 0 if a signal came before the last."""
        self.write(epoch, scores)
        self.epoch = epoch
        self.save(scores)
        LOG.info("epoch %d/%d: %s", epoch, self.n_epochs, self._told(scores))
        if epoch == self.final < self.n_epochs:
            names = " or ".join(self.best_of)
            LOG.info("stopped by --patience %d: no new best %s", self.patience, names)
            if self.writes:
                self.folder.mark_stopped(epoch)
        if self._must_stop() and epoch < self.final:
            self._leave()

    def record_untrained(self, scores: Mapping[str, float], kept: Mapping[str, Any]) -> None:
        """Write the scores of epoch 0, and what the end of the run is compared with."""
        if self.writes and kept:
            checkpoint.save(self._before, kept)
        if scores:
            self.write(0, scores)
            LOG.info("untrained: %s", self._told(scores))

    def untrained(self) -> tuple[dict[str, float], dict[str, Any]]:
        """Return what ``record_untrained`` wrote before the run was interrupted; empty if gone."""
        first = self.folder.rows[0] if self.folder.rows else {"epoch": -1}
        scores = {
            name: math.nan if value is None else value
            for name, value in first.items()
            if name != "epoch" and first["epoch"] == 0
        }
        if not self._before.is_file():
            return scores, {}
        try:
            return scores, checkpoint.load(self._before)
        except ValueError as error:
            raise ValueError(
                f"--resume: {self._before} is damaged; delete it to resume without the "
                "retrieval before training in the report, or start another run with --savename"
            ) from error

    def finish(self, shown: Sequence[Path] = ()) -> None:
        """Draw the curves, hand them and the files ``shown`` to the trackers, and close these."""
        if not self.writes:
            return
        if any(len(row) > 1 for row in self.folder.rows):
            self._draw_curves()
        self.trackers.show([path for path in (self.curves, *shown) if path.is_file()])
        self.trackers.finish()
        self.folder.mark_finished()
        self._before.unlink(missing_ok=True)

    def write(self, epoch: int, scores: Mapping[str, float]) -> None:
        """Write an epoch's scores to the metrics files, curves and trackers."""
        if not self.writes:
            return
        self.folder.record(epoch, scores)
        self.trackers.log(scores, epoch)
        if time.monotonic() - self._drawn >= REDRAW:
            self._draw_curves()

    def _told(self, scores: Mapping[str, float]) -> str:
        """Describe an epoch: loss, scores of ``best_of``, mAP@R, speed and time left."""
        parts = [f"loss {scores['train/loss']:.4f}"] if "train/loss" in scores else []
        headlines = {name.rpartition("/")[0] + "/mAP@R" for name in self.best_of}
        for name, value in scores.items():
            if name in headlines or name in self.best_of:
                parts.append(f"{name} {100 * value if is_fraction(name) else value:.2f}")
        if "train/images_per_second" in scores:
            parts.append(f"{scores['train/images_per_second']:.0f} images/s")
        done, left = self.epoch - self._begun_after, self.final - self.epoch
        if done > 0 and left > 0:
            minutes, seconds = divmod(round((time.monotonic() - self._began) / done * left), 60)
            hours, minutes = divmod(minutes, 60)
            parts.append(f"{hours}:{minutes:02d}:{seconds:02d} left")
        return ", ".join(parts)

    def _draw_curves(self) -> None:
        plots.learning_curves(self.folder.rows, self.curves)
        self._drawn = time.monotonic()

    def _must_stop(self) -> bool:
        return distributed.any_rank(self.interruption.signal is not None)

    def _leave(self) -> NoReturn:
        command = [*distributed.command(), *([] if "--resume" in sys.argv else ["--resume"])]
        signal = self.interruption.signal or "a signal to another process"
        LOG.info("stopped by %s; saved in %s. Resume with: %s", signal, self.last,
                 shlex.join(command))  # fmt: skip
        if self.writes:
            self.trackers.finish()
        sys.exit(0)


def open_folder(
    save_path: Path,
    dataset: str,
    name: str,
    *,
    flags: Mapping[str, Any],
    device: Any,
    resume: bool = False,
    saved: Checkpoint | None = None,
) -> RunFolder:
    """Create the folder of a run, or reopen that of ``saved``; start log.txt and config.json.

    With ``resume`` a folder in which nothing was saved yet is reopened, too.
    """
    if not distributed.is_first():
        return RunFolder(distributed.broadcast(Path()))
    existing = RunFolder.newest(save_path, dataset, name) if resume else None
    folder = (
        RunFolder.reopen(existing, saved.epoch if saved else -1)
        if existing
        else RunFolder.create(save_path, dataset, name)
    )
    log.set_up(folder.log_file)
    folder.write_config(flags, device)
    distributed.broadcast(folder.path)
    return folder


def ending(
    conclusion: str, folder: RunFolder, device: torch.device, start: float, *, dry_run: bool
) -> str:
    """Return the last lines of a run that began at ``time.perf_counter()`` ``start``."""
    seconds = time.perf_counter() - start
    memory = f"peak memory {peak_memory_mb() / 1024:.2f} GiB"
    if (on_gpu := devices.peak_memory_gib(device)) is not None:
        memory += f" and {on_gpu:.2f} GiB on the GPU"
    if dry_run:
        return f"dry run: ok, {seconds:.1f} s, {memory}"
    return (
        f"{conclusion}\n{seconds / 60:.1f} minutes, {memory}, excluding data-loading workers\n"
        f"run folder: {folder.path}"
    )


def evaluations_since_best(rows: Sequence[Mapping[str, Any]], scores: Sequence[str]) -> int:
    """Return how many evaluations have passed since one of the scores was higher than ever before.

    As for the files of best scores, that before training, at epoch 0, does not count.

    Args:
        rows: an epoch and scores by name, oldest first; a row without any of ``scores`` is no
            evaluation, and a score that is not finite, or None, is never higher.
    """
    best: dict[str, float] = {}
    passed = 0
    for row in rows:
        found = {name: row[name] for name in scores if name in row and row["epoch"]}
        finite = {name: v for name, v in found.items() if v is not None and math.isfinite(v)}
        higher = {name: v for name, v in finite.items() if v > best.get(name, -math.inf)}
        best |= higher
        passed = 0 if higher else passed + bool(found)
    return passed


class Period:
    """Tells when a number of steps ("500") or minutes ("10m") is over; "0" never is."""

    def __init__(self, period: str) -> None:
        self.minutes = float(period[:-1]) if period.endswith("m") else 0.0
        self.steps = 0 if period.endswith("m") else int(period)
        self._last = time.monotonic()

    def is_over(self, step: int) -> bool:
        """Return whether the period is over after ``step`` steps; call it after each."""
        if self.steps:
            return step % self.steps == 0
        now = time.monotonic()
        if not self.minutes or now - self._last < 60 * self.minutes:
            return False
        self._last = now
        return True
