"""Finds where a run can be gone on with."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utilities import checkpoint
from utilities.finished import differing

LOG = logging.getLogger(__name__)


def last_good(folder: Path) -> dict[str, Any] | None:
    """The parts of the newest checkpoint of a run that can be read; None where there is none.

    That is ``last.pt``. Where the disk has spoiled it, the best ones hold as much, of earlier.
    """
    files = [folder / "last.pt", *sorted(folder.glob("best_*.pt"), key=_age)]
    for file in files:
        if not file.is_file():
            continue
        try:
            return checkpoint.load(file)
        except ValueError as error:
            LOG.warning("%s; trying an earlier one", error)
    return None


def check_flags(saved: Mapping[str, Any], asked: Mapping[str, Any], folder: Path) -> None:
    """Refuse to go on with a run under other flags.

    Raises:
        ValueError: names those that differ.
    """
    differ = differing(saved, asked)
    if differ:
        raise ValueError(
            f"--resume: {folder} is a run of other flags: {', '.join(differ)}; give these again, "
            "or another --group, --savename or --save_path"
        )


def _age(file: Path) -> float:
    return -file.stat().st_mtime
