"""Finds and reads the files of a run folder, with the standard library only."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utilities.files import read_json

BEFORE = "before.pt"  # of a run folder: embeddings before training, until the report is written
STOPPED = "stopped_after"  # in config.json: the epoch at which --patience ended a run, if it did
FINISHED = "finished"  # in config.json: when the last file was written; None until then

NUMBER = int | float | None
Row = dict[str, Any]  # {"epoch": int, score name: float or None}


def checkpoint_name(name: str) -> str:
    """Return the file name of the checkpoint ``last``, ``ema`` or ``best_<score>``."""
    return f"{name.replace('/', '_')}.pt"


def checkpoint_file(run: Path, name: str = "last") -> Path:
    """Return the checkpoint "last" or ``best_<score>`` of a run folder; ``run`` if it is a file."""
    if run.is_file():
        return run
    if not run.is_dir():
        raise FileNotFoundError(f"checkpoint {run} does not exist; give a run folder or a .pt file")
    file = run / checkpoint_name(name)
    if not file.is_file():
        found = ", ".join(sorted(path.name for path in run.glob("*.pt")))
        raise FileNotFoundError(
            f"run folder {run} holds no {file.name}; "
            + (f"give one of its files: {found}" if found else "a run saves one after each epoch")
        )
    return file


def read_config(folder: Path) -> dict[str, Any]:
    """Return config.json of a run folder; ValueError if it is missing, damaged or without flags."""
    try:
        config = read_json(folder / "config.json")
        dict(config["flags"])
    except OSError:
        raise ValueError(f"{folder} holds no run (no config.json)") from None
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{folder} holds no run (config.json: {error!r})") from None
    return config


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a metrics.jsonl, oldest first, without a last line that was cut short.

    Raises ValueError, which names the line, if another line is not what ``RunFolder`` writes.
    """
    rows: list[Row] = []
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    *lines, rest = text.split("\n")
    for number, line in enumerate((*lines, *([rest] if rest.strip() else [])), start=1):
        try:
            row = json.loads(line)
            wrong = [name for name, value in row.items() if not isinstance(value, NUMBER)]
            after = rows[-1]["epoch"] if rows else -1
            if wrong or type(row["epoch"]) is not int or row["epoch"] <= after:
                raise ValueError(f"{wrong or row['epoch']} after epoch {after}")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            if number <= len(lines):
                raise ValueError(f"{path} line {number} is damaged; remove the line") from error
        else:
            rows.append(row)
    return rows


def finished_flags(folder: Path) -> dict[str, Any] | None:
    """Return the flags of the run in ``folder`` if it is finished, else None."""
    try:
        config, rows = read_config(folder), read_rows(folder / "metrics.jsonl")
    except (OSError, ValueError):
        return None
    return config["flags"] if is_finished(folder, config, rows) else None


def is_finished(folder: Path, config: Mapping[str, Any], rows: Sequence[Row]) -> bool:
    """Return whether a run has recorded its last epoch and written its last file."""
    flags = config["flags"]
    last = config.get(STOPPED, flags.get("n_epochs"))
    recorded = bool(rows) and (rows[-1]["epoch"] == last or bool(flags.get("evaluate_only")))
    # Older runs do not say when they finished, but left BEFORE until then.
    return recorded and bool(config.get(FINISHED, not (folder / BEFORE).exists()))
