"""Where scores and pictures go beside the run folder: Weights & Biases, TensorBoard.

A tracker is for looking on: what a run needs is in its folder, so one that fails is left out, with
a warning, and training goes on.
"""

import csv
import importlib.util
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from utilities.files import atomic_path

LOG = logging.getLogger(__name__)

WandbMode = Literal["online", "offline", "disabled"]

WANDB_RUN = "wandb.json"  # in the run folder: which W&B run it is, and the last epoch sent there
NAMES = ("class", "group")  # columns of tables that hold no numbers


class Tracker(Protocol):
    """What is told of a run, as it comes."""

    name: str

    def log(self, scores: Mapping[str, float], epoch: int) -> None:
        """Scores by name after ``epoch`` epochs."""

    def images(self, paths: Sequence[Path]) -> None:
        """Pictures, each under its file's name."""

    def tables(self, paths: Sequence[Path]) -> None:
        """CSV files with a header, each under its file's name."""

    def finish(self) -> None:
        """Wait until everything is written or sent."""


class Trackers:
    """Some trackers as one; none at all will do. One that fails is left out from then on."""

    def __init__(self, trackers: Sequence[Tracker] = ()) -> None:
        self.trackers = list(trackers)

    def log(self, scores: Mapping[str, float], epoch: int) -> None:
        self._tell("log", scores, epoch)

    def show(self, paths: Sequence[Path]) -> None:
        """Pictures (.png) and tables (.csv)."""
        self._tell("images", [path for path in paths if path.suffix == ".png"])
        self._tell("tables", [path for path in paths if path.suffix == ".csv"])

    def finish(self) -> None:
        self._tell("finish")

    def _tell(self, what: str, *told: Any) -> None:
        for tracker in tuple(self.trackers):
            try:
                getattr(tracker, what)(*told)
            except Exception as error:  # a full disk, a lost server, a fault of the library
                self.trackers.remove(tracker)
                LOG.warning(
                    "%s failed (%s: %s) and is left out from here on; every score is in "
                    "metrics.jsonl",
                    *(tracker.name, type(error).__name__, _first_line(error)),
                )


def refuse_missing(mode: WandbMode, tensorboard: bool) -> None:
    """Raise ValueError, before anything is loaded, where a tracker's package is not installed."""
    for wanted, module, said in (
        (mode != "disabled", "wandb", f"--wandb_mode {mode}"),
        (tensorboard, "tensorboard", "--tensorboard"),
    ):
        if wanted and not _installed(module):
            raise ValueError(f"{said} needs {module}; pip install {module}, or leave the flag out")


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # imported without a spec, or barred from it
        return False


# --------------------------------------------------------------------------------------------------
# Weights & Biases
# --------------------------------------------------------------------------------------------------
class Wandb:
    """A Weights & Biases run; it goes on where the run folder does.

    An epoch that it has been told is not told again: a run that resumes may repeat its last.

    Args:
        run: of ``wandb.init``.
        record: file that keeps the run's id and its last epoch.
        last: that epoch; -1 before the first.
    """

    name = "W&B"

    def __init__(self, run: Any, record: Path, last: int = -1) -> None:
        self.run = run
        self.record = record
        self.last = last
        self._remember()

    def log(self, scores: Mapping[str, float], epoch: int) -> None:
        if epoch > self.last:
            self.run.log(dict(scores), step=epoch, commit=True)
            self.last = epoch
            self._remember()

    def images(self, paths: Sequence[Path]) -> None:
        import wandb

        self.run.log({path.stem: wandb.Image(str(path)) for path in paths}, commit=False)

    def tables(self, paths: Sequence[Path]) -> None:
        import wandb

        tables = {}
        for path in paths:
            columns, *rows = _cells(path)
            tables[path.stem] = wandb.Table(columns=columns, data=rows)
        self.run.log(tables, commit=False)

    def finish(self) -> None:
        self.run.finish()

    def _remember(self) -> None:
        with atomic_path(self.record) as temporary:
            temporary.write_text(json.dumps({"id": self.run.id, "last": self.last}) + "\n")


def start_wandb(
    mode: WandbMode,
    *,
    project: str,
    group: str,
    name: str,
    config: Mapping[str, Any],
    folder: Path,
) -> Wandb:
    """Start a Weights & Biases run that keeps its files in ``folder``, or go on with the one there.

    The key comes from ``wandb login`` or from WANDB_API_KEY, both read by W&B itself; it is never a
    flag and never written.

    Args:
        mode: "online", or "offline" (send later with ``wandb sync``).

    Raises:
        ValueError: no one is logged in, or the server does not answer; says what to do about it.
    """
    import wandb

    settings = wandb.Settings(
        console="off",  # progress bars are no log
        disable_git=True,  # a remote's address can hold a token; config.json has the commit
        init_timeout=90,
        silent=True,
    )
    record = folder / WANDB_RUN
    before = json.loads(record.read_text()) if record.is_file() else {}
    try:
        run = wandb.init(
            mode=mode,
            project=project,
            group=group,
            name=name,
            config=dict(config),
            dir=str(folder),
            settings=settings,
            **({"id": before["id"], "resume": "allow", "allow_val_change": True} if before else {}),
        )
    except (wandb.errors.UsageError, wandb.errors.AuthenticationError) as error:
        raise ValueError(
            "--wandb_mode online needs a login: run `wandb login` once, or set WANDB_API_KEY in "
            f"the environment, or use --wandb_mode offline ({_first_line(error)})"
        ) from error
    except wandb.errors.CommError as error:
        raise ValueError(
            "--wandb_mode online: the server does not answer; check the network, or use "
            f"--wandb_mode offline and `wandb sync` later ({_first_line(error)})"
        ) from error
    return Wandb(run, record, before.get("last", -1))


def _cells(path: Path) -> list[list[Any]]:
    """The header and the rows of a CSV file; numbers but in columns of names, None where empty."""
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    read = [str if column in NAMES else float for column in header]
    return [
        header,
        *([r(c) if c else None for r, c in zip(read, row, strict=True)] for row in rows),
    ]


# --------------------------------------------------------------------------------------------------
# TensorBoard
# --------------------------------------------------------------------------------------------------
class TensorBoard:
    """Event files for ``tensorboard --logdir``: a scalar for each score, and the pictures.

    It has no tables; those are in the run folder.

    Args:
        folder: of the event files.
        first: the epoch that comes next; what earlier files hold of it and of later ones is
            dropped. None for a new run.
    """

    name = "TensorBoard"

    def __init__(self, folder: Path, first: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=first)
        self.epoch = 0

    def log(self, scores: Mapping[str, float], epoch: int) -> None:
        for name, value in scores.items():
            self.writer.add_scalar(name, value, epoch)
        self.writer.flush()
        self.epoch = epoch

    def images(self, paths: Sequence[Path]) -> None:
        import numpy as np
        from PIL import Image

        for path in paths:
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"))  # HxWx3
            self.writer.add_image(path.stem, pixels, self.epoch, dataformats="HWC")

    def tables(self, paths: Sequence[Path]) -> None:
        pass

    def finish(self) -> None:
        self.writer.close()


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
