"""What a run says: to the console around the progress bars, to log.txt, and to Weights & Biases."""

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

WandbMode = Literal["online", "offline", "disabled"]

# Loggers that speak from INFO upward; of all others only warnings are passed on.
OURS = frozenset({
    "__main__", "architectures", "batchminer", "criteria", "datasampler", "datasets", "evaluation",
    "language", "main", "metrics", "utilities",
})  # fmt: skip


class TqdmHandler(logging.Handler):
    """Prints above a running progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


class Remembering(logging.Handler):
    """Keeps records for the log file that there will be once the run has a folder."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def set_up(log_file: Path | None = None, *, quiet: bool = False) -> None:
    """Send log records to the console and, with ``log_file``, to the end of that file.

    Args:
        quiet: warnings and errors alone, for a process beside the one that speaks.

    May be called again once the run folder exists: the file then begins with what was said before.
    It replaces what it set up earlier and leaves handlers of others alone.
    """
    root = logging.getLogger()
    root.setLevel(logging.WARNING if quiet else logging.INFO)
    early = [
        record
        for handler in root.handlers
        if isinstance(handler, Remembering)
        for record in handler.records
    ]
    take_down()
    logging.captureWarnings(True)
    console: logging.Handler = TqdmHandler()
    console.setFormatter(_ConsoleFormatter())
    memory: logging.Handler = Remembering()
    if log_file is not None:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        memory = logging.FileHandler(log_file, encoding="utf-8")
        memory.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        for record in early:
            memory.handle(record)
    for handler in (console, memory):
        handler.addFilter(_ours_or_warning)
        root.addHandler(handler)


def take_down() -> None:
    """Close what ``set_up`` opened."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        if _ours_or_warning in handler.filters:
            root.removeHandler(handler)
            handler.close()


def _ours_or_warning(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING or record.name.partition(".")[0] in OURS


class _ConsoleFormatter(logging.Formatter):
    """The message alone, after "warning: " or "error: "; tracebacks are for the log file."""

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        return text if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {text}"


class WandbLog:
    """A Weights & Biases run, or nothing at all: every method of a disabled log does nothing."""

    def __init__(self, run: Any = None) -> None:
        self.run = run

    def log(self, scores: Mapping[str, float], step: int) -> None:
        """Scores by name at epoch ``step``."""
        if self.run is not None:
            self.run.log(dict(scores), step=step)

    def image(self, path: Path) -> None:
        """A picture, under its file's name."""
        if self.run is not None:
            import wandb

            self.run.log({path.stem: wandb.Image(str(path))})

    def finish(self) -> None:
        """Wait until everything is written or sent."""
        if self.run is not None:
            self.run.finish()


def start_wandb(
    mode: WandbMode,
    *,
    project: str,
    group: str,
    name: str,
    config: Mapping[str, Any],
    folder: Path,
) -> WandbLog:
    """Start a Weights & Biases run that keeps its files in ``folder``.

    The key comes from ``wandb login`` or from WANDB_API_KEY, both read by W&B itself; it is never a
    flag and never written.

    Args:
        mode: "online", "offline" (send later with ``wandb sync``) or "disabled".

    Raises:
        ValueError: wandb is missing, no one is logged in, or the server does not answer; says what
            to do about it.
    """
    if mode == "disabled":
        return WandbLog()
    try:
        import wandb
    except ImportError as error:
        raise ValueError(
            "--log_online needs wandb; pip install wandb, or use --wandb_mode disabled"
        ) from error
    settings = wandb.Settings(
        console="off",  # progress bars are no log
        disable_git=True,  # a remote's address can hold a token; config.json has the commit
        init_timeout=90,
        silent=True,
    )
    try:
        run = wandb.init(
            mode=mode,
            project=project,
            group=group,
            name=name,
            config=dict(config),
            dir=str(folder),
            settings=settings,
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
    return WandbLog(run)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
