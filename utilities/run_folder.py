"""The folder of a run, ``<save_path>/<dataset>/<run name>/``.

It holds config.json, metrics.jsonl and metrics.csv (one line per epoch), log.txt, checkpoints,
plots and a report.
"""

import csv
import importlib.metadata
import json
import math
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import torch

from utilities.device import describe
from utilities.files import atomic_path, file_id, take_lock
from utilities.finished import attempts, folders_of
from utilities.run_files import FINISHED, STOPPED, Row, checkpoint_name, read_rows

# Packages whose version can change a number.
PACKAGES = (
    "torch", "torchvision", "timm", "transformers", "numpy", "scikit-learn", "faiss-cpu",
    "faiss-gpu-cu12", "pillow", "wandb",
)  # fmt: skip

LOCK = ".lock"
_LOCKS: dict[Path, IO[str]] = {}  # of this process: open files, by folder


def _let_go() -> None:
    """Close a parent's locks: its loading processes may outlive it by seconds."""
    while _LOCKS:
        _LOCKS.popitem()[1].close()


os.register_at_fork(after_in_child=_let_go)


class RunFolder:
    """The folder of one run, locked until the process ends.

    ``rows`` are the recorded epochs, oldest first; a score that is not finite is None.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log_file = path / "log.txt"
        self.rows: list[Row] = []
        self.config: dict[str, Any] = {}  # the contents of config.json, once it is written
        self._place: tuple[int, int] | None = None  # known once it is locked

    @classmethod
    def create(cls, save_path: Path, dataset: str, name: str) -> "RunFolder":
        """Make ``<save_path>/<dataset>/<name>``, or ``<name>_2``, ``_3``, … if that exists.

        Raises:
            ValueError: a name that leads out of ``save_path``.
            OSError: ``save_path`` cannot be written.
        """
        for part, flag in ((dataset, "--dataset"), (name, "--savename")):
            if not part or part in (".", "..") or "/" in part or os.sep in part:
                raise ValueError(f"{flag} {part!r} must be a folder's name, without slashes")
        parent = save_path / dataset
        try:
            parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = f"--save_path {save_path} cannot be written ({error.strerror}); give another"
            raise OSError(reason) from error
        for path in attempts(parent, name):
            with suppress(FileExistsError):
                path.mkdir()  # claims the name: runs that start together never share one
                break
        folder = cls(path)
        folder.lock()
        return folder

    @staticmethod
    def newest(save_path: Path, dataset: str, name: str) -> Path | None:
        """Return the newest folder that ``create`` made for a name, if any."""
        folders = list(folders_of(save_path / dataset, name))
        return folders[-1] if folders else None

    @classmethod
    def reopen(cls, path: Path, epoch: int) -> "RunFolder":
        """Reopen a folder after ``epoch``, without later rows; OSError if it is gone or in use."""
        if not path.is_dir():
            raise FileNotFoundError(f"run folder {path} does not exist")
        folder = cls(path)
        folder.lock()
        for left in path.glob(".*"):  # half-written by a crash
            if left.is_file() and left.name != LOCK:
                left.unlink()
        folder.rows = [row for row in read_rows(path / "metrics.jsonl") if row["epoch"] <= epoch]
        with atomic_path(path / "metrics.jsonl", parents=False) as temporary:
            temporary.write_text("".join(_line(row) for row in folder.rows), encoding="utf-8")
        folder._write_csv()
        return folder

    def lock(self) -> None:
        """Keep other processes out until this one ends; OSError if another has it."""
        path = self.path.resolve()
        self._place = file_id(self.path)
        if path in _LOCKS:  # this process's own
            return
        _LOCKS[path] = take_lock(
            path / LOCK,
            f"run folder {self.path} is in use by another process; wait for it, or set another "
            "--group or --savename for this run",
        )

    def check_there(self) -> None:
        """Raise OSError if the folder was removed or replaced, as by an unmounted share."""
        if self._place != file_id(self.path):
            raise OSError(
                f"run folder {self.path} was removed, or its disk has disappeared; once it is "
                "back, continue with --resume"
            )

    def checkpoint(self, name: str) -> Path:
        """Return the file of the checkpoint ``last``, ``ema`` or ``best_<score>``."""
        return self.path / checkpoint_name(name)

    def write_config(self, flags: Mapping[str, Any], device: torch.device | str = "cpu") -> None:
        """Write config.json: every flag, and the command, code, packages and device of the run."""
        self.config = {
            "flags": dict(flags),
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            FINISHED: None,
            "date": _now(),
            "git": git_state(),
            "python": platform.python_version(),
            "platform": f"{platform.system()} {platform.machine()}",
            "device": describe(torch.device(device)),
            "packages": versions(),
        }
        self._write_config()

    def mark_stopped(self, epoch: int) -> None:
        """Note in config.json that the run ends after this epoch, before the planned one."""
        self.config[STOPPED] = epoch
        self._write_config()

    def mark_finished(self) -> None:
        """Note in config.json that everything of the run is written."""
        self.config[FINISHED] = _now()
        self._write_config()

    def _write_config(self) -> None:
        with atomic_path(self.path / "config.json", parents=False) as temporary:
            text = json.dumps(self.config, indent=2, default=str)  # str: paths
            temporary.write_text(text + "\n", encoding="utf-8")

    def record(self, epoch: int, scores: Mapping[str, float]) -> None:
        """Append one epoch's scores to metrics.jsonl, on disk at return, and to metrics.csv."""
        row: Row = {"epoch": epoch, **{name: _finite(value) for name, value in scores.items()}}
        self.check_there()
        self.rows.append(row)
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(_line(row))
            file.flush()
            os.fsync(file.fileno())
        self._write_csv()

    def _write_csv(self) -> None:
        """Write all rows anew, since a later epoch may add columns."""
        columns = list(dict.fromkeys(name for row in self.rows for name in row)) or ["epoch"]
        with (
            atomic_path(self.path / "metrics.csv", parents=False) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(self.rows)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Return the versions of the installed packages that can change a number."""
    found = {}
    for package in packages:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def git_state() -> dict[str, Any] | None:
    """Return the commit of this code and whether files differ from it; None without git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).resolve().parents[1]), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None  # JSON has neither nan nor infinity


def _line(row: Row) -> str:
    return json.dumps(row, allow_nan=False) + "\n"
