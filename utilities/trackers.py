"""Mirrors a run to Weights & Biases and TensorBoard.

The run folder holds everything, so a tracker that fails is dropped with a warning.
"""

import csv
import importlib.util
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from utilities import distributed
from utilities.files import atomic_path

LOG = logging.getLogger(__name__)

WandbMode = Literal["online", "offline", "disabled"]

WANDB_RUN = "wandb.json"  # in the run folder: id of the W&B run and the last epoch sent to it
TEXT_COLUMNS = ("class", "group")  # columns of tables that do not hold numbers


class Tracker(Protocol):
    """Receives the scores, pictures and tables of a run."""

    name: str

    def log(self, scores: Mapping[str, float], epoch: int) -> None: ...
    def images(self, paths: Sequence[Path]) -> None: ...  # .png
    def tables(self, paths: Sequence[Path]) -> None: ...  # .csv with a header
    def finish(self) -> None: ...


class Trackers:
    """Any number of trackers as one. A tracker that fails is dropped."""

    def __init__(self, trackers: Sequence[Tracker] = ()) -> None:
        self.trackers = list(trackers)

    def log(self, scores: Mapping[str, float], epoch: int) -> None:
        self._call("log", scores, epoch)

    def show(self, paths: Sequence[Path]) -> None:
        self._call("images", [path for path in paths if path.suffix == ".png"])
        self._call("tables", [path for path in paths if path.suffix == ".csv"])

    def finish(self) -> None:
        self._call("finish")

    def _call(self, method: str, *arguments: Any) -> None:
        for tracker in tuple(self.trackers):
            try:
                getattr(tracker, method)(*arguments)
            except Exception as error:  # a full disk, a lost server, a fault of the library
                self.trackers.remove(tracker)
                LOG.warning(
                    "%s failed (%s: %s) and is dropped; every score is in metrics.jsonl",
                    *(tracker.name, type(error).__name__, _first_line(error)),
                )


def start(folder: Path, rows: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> Trackers:
    """Start the trackers that the flags ask for, in the process that writes.

    ``rows`` are the epochs recorded before the run was resumed; ``config`` is every flag.
    """
    started: list[Tracker] = []
    if config["wandb_mode"] != "disabled" and distributed.is_first():
        shown = {"project": config["project"], "group": config["group"], "name": folder.name}
        started.append(start_wandb(config["wandb_mode"], config=config, folder=folder, **shown))
    if config["tensorboard"] and distributed.is_first():
        next_epoch = rows[-1]["epoch"] + 1 if rows else None
        started.append(TensorBoard(folder / "tensorboard", next_epoch))
    return Trackers(started)


def refuse_missing(mode: WandbMode, tensorboard: bool) -> None:
    """Raise ValueError if the package of a tracker is not installed; imports nothing heavy."""
    for wanted, module, flag in (
        (mode != "disabled", "wandb", f"--wandb_mode {mode}"),
        (tensorboard, "tensorboard", "--tensorboard"),
    ):
        if wanted and not _installed(module):
            raise ValueError(f"{flag} needs {module}; pip install {module}, or leave the flag out")


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # imported without a spec, or barred from it
        return False


class Wandb:
    """A Weights & Biases run, resumed along with the run folder.

    ``record`` stores its id and the last epoch sent; a resumed run may repeat that epoch.
    """

    name = "W&B"

    def __init__(self, run: Any, record: Path, last: int = -1) -> None:
        self.run = run
        self.record = record
        self.last = last
        self._store()

    def log(self, scores: Mapping[str, float], epoch: int) -> None:
        if epoch > self.last:
            self.run.log(dict(scores), step=epoch, commit=True)
            self.last = epoch
            self._store()

    def images(self, paths: Sequence[Path]) -> None:
        import wandb

        self.run.log({path.stem: wandb.Image(str(path)) for path in paths}, commit=False)

    def tables(self, paths: Sequence[Path]) -> None:
        import wandb

        cells = {path.stem: _cells(path) for path in paths}
        tables = {
            name: wandb.Table(columns=columns, data=rows)
            for name, (columns, *rows) in cells.items()
        }
        self.run.log(tables, commit=False)

    def finish(self) -> None:
        self.run.finish()

    def _store(self) -> None:
        with atomic_path(self.record, parents=False) as temporary:
            temporary.write_text(json.dumps({"id": self.run.id, "last": self.last}) + "\n")


def start_wandb(
    mode: WandbMode, *, project: str, group: str, name: str, config: Mapping[str, Any], folder: Path
) -> Wandb:
    """Start a Weights & Biases run that keeps its files in ``folder``, or resume the one there.

    W&B reads the key from ``wandb login`` or WANDB_API_KEY; it is never a flag and never written.
    Raises ValueError without login or server; the message has the remedy.
    """
    import wandb

    settings = wandb.Settings(
        console="off",  # progress bars are not a log
        disable_git=True,  # the address of a remote can hold a token; config.json has the commit
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
    """Return the header and rows of a CSV file, as numbers except in ``TEXT_COLUMNS``."""
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    kinds = [str if column in TEXT_COLUMNS else float for column in header]
    return [
        header,
        *([kind(c) if c else None for kind, c in zip(kinds, row, strict=True)] for row in rows),
    ]


class TensorBoard:
    """Event files for ``tensorboard --logdir``: scores and pictures; tables stay in the run folder.

    ``first`` is the next epoch of a resumed run; earlier entries from it on are dropped.
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
