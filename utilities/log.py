"""What a run says: to the console around the progress bars, and to log.txt."""

import logging
import os
import re
import sys
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

# Loggers that speak from INFO upward; of all others only warnings are passed on.
OURS = frozenset({
    "__main__", "architectures", "batchminer", "criteria", "datasampler", "datasets", "evaluation",
    "language", "main", "metrics", "utilities",
})  # fmt: skip


LABEL = re.compile(r"^ *[a-z][\w. ]*:", re.MULTILINE)  # of a line of the summary


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
    console.setFormatter(_ConsoleFormatter(shows_colours(sys.stderr)))
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


def shows_colours(stream: TextIO) -> bool:
    """Whether to colour what goes there: to a terminal, unless NO_COLOR is set (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


class _ConsoleFormatter(logging.Formatter):
    """The message alone, after "warning: " or "error: "; tracebacks are for the log file.

    Args:
        colours: labels at the beginning of a line are bold, warnings yellow and errors red.
    """

    def __init__(self, colours: bool = False) -> None:
        super().__init__()
        self.colours = colours

    def format(self, record: logging.LogRecord) -> str:
        text, level = record.getMessage(), record.levelno
        if level >= logging.WARNING:
            colour = "\033[31m" if level >= logging.ERROR else "\033[33m"
            said = f"{record.levelname.lower()}:"
            return f"{colour}{said}\033[0m {text}" if self.colours else f"{said} {text}"
        return LABEL.sub("\033[1m\\g<0>\033[0m", text) if self.colours else text
