"""Log messages on the console, above progress bars, and in log.txt."""

import logging
import os
import re
import sys
from contextlib import suppress
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

# Loggers shown from INFO upward; of all others only warnings are shown.
OURS = frozenset({
    "__main__", "architectures", "batchminer", "criteria", "datasampler", "datasets", "evaluation",
    "language", "main", "metrics", "utilities",
})  # fmt: skip

LABEL = re.compile(r"^ *[a-z][\w. ]*:", re.MULTILINE)  # at the start of a line of the summary
BUFFER = 10_000  # records kept for a log file that does not exist yet


def set_up(log_file: Path | None = None, *, quiet: bool = False) -> None:
    """Send log records to the console (``quiet``: only warnings) and to the end of ``log_file``.

    Call it again once the run folder exists: the file then starts with the earlier records.
    """
    root = logging.getLogger()
    root.setLevel(logging.WARNING if quiet else logging.INFO)
    early = [
        record
        for handler in root.handlers
        if isinstance(handler, BufferingHandler)
        for record in handler.buffer
    ]
    take_down()
    logging.captureWarnings(True)
    shown: logging.Handler = _TqdmHandler()
    shown.setFormatter(_ConsoleFormatter(shows_colours(sys.stderr)))
    memory: logging.Handler = BufferingHandler(BUFFER)
    if log_file is not None:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        memory = _File(log_file, encoding="utf-8", errors="backslashreplace")
        memory.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        for record in early:
            memory.handle(record)
    for handler in (shown, memory):
        handler.addFilter(_ours_or_warning)
        root.addHandler(handler)


def take_down() -> None:
    root = logging.getLogger()
    for handler in list(root.handlers):
        if _ours_or_warning in handler.filters:
            root.removeHandler(handler)
            with suppress(OSError):  # a full disk
                handler.close()


def _ours_or_warning(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING or record.name.partition(".")[0] in OURS


def shows_colours(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


class _File(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Do without the line: the disk is full, and the console has it."""


class _TqdmHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


class _ConsoleFormatter(logging.Formatter):
    """Formats a record as its message, warnings and errors labelled, without traceback."""

    def __init__(self, colours: bool = False) -> None:
        super().__init__()
        self.colours = colours

    def format(self, record: logging.LogRecord) -> str:
        text, level = record.getMessage(), record.levelno
        if level >= logging.WARNING:
            colour = "\033[31m" if level >= logging.ERROR else "\033[33m"
            label = f"{record.levelname.lower()}:"
            return f"{colour}{label}\033[0m {text}" if self.colours else f"{label} {text}"
        return LABEL.sub("\033[1m\\g<0>\033[0m", text) if self.colours else text
