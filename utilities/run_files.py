"""Reads config.json and metrics.jsonl of a run folder, with the standard library only."""

import json
from pathlib import Path
from typing import Any

from utilities.files import read_json

Row = dict[str, Any]  # {"epoch": int, score name: float or None}


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
    """Return the rows of a metrics.jsonl, oldest first, without a last line that was cut short."""
    rows: list[Row] = []
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    lines = text.splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            int(row["epoch"])
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            if number < len(lines):
                raise ValueError(f"{path} line {number} is damaged; remove the line") from error
        else:
            rows.append(row)
    return rows


def finished_flags(folder: Path) -> dict[str, Any] | None:
    """Return the flags of the run in ``folder`` if its last epoch is recorded, else None."""
    try:
        flags = read_config(folder)["flags"]
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        epoch = json.loads(lines[-1])["epoch"]
    except (OSError, LookupError, ValueError, TypeError, RecursionError):
        return None
    return flags if epoch == flags.get("n_epochs") else None
