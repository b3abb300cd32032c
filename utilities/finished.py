"""Finds runs that are finished, so that a script of many runs can be repeated.

Only the standard library is imported: a script that skips dozens of runs does not wait for torch.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from utilities.run_files import finished_flags

BEFORE = "before.pt"  # of a run folder: embeddings before training, until the report is written

# Flags that change where a run happens, not its results.
PLACES = frozenset(
    ("source_path", "save_path", "device", "gpu", "kernels", "resume", "checkpoint_every",
     "wandb_mode", "project", "tensorboard", "evaluate_on_cpu", "eval_memory")
)  # fmt: skip


def exit_if_finished(flags: Mapping[str, Any], name: str) -> None:
    """Exit if ``--resume`` is given and the run is finished.

    Raises:
        SystemExit: the run is finished (status 0), or one of other flags has its name (status 1).
    """
    if not flags["resume"]:
        return
    try:
        folder = finished_run(flags, name)
    except ValueError as error:
        sys.exit(str(error))
    if folder:
        print(f"{folder} is finished")
        sys.exit()


def finished_run(flags: Mapping[str, Any], name: str) -> Path | None:
    """Return the folder of a finished run of these flags; None if there is none.

    That is ``<save_path>/<dataset>/<name>``, ``_2``, …. A run is finished when its last epoch is
    written and its embeddings before training are deleted. Interrupted runs are skipped.

    Args:
        flags: as parsed; one that is None, which the dataset's recipe fills, is not compared.
        name: the run's name.

    Raises:
        ValueError: a finished run of this name has other flags; names them.
    """
    asked = {flag: value for flag, value in flags.items() if value is not None}
    for folder in folders_of(Path(flags["save_path"]) / flags["dataset"], name):
        done = _finished_flags(folder)
        if done is None:
            continue
        differ = differing(done, asked)
        if differ:
            raise ValueError(
                f"{folder} is a finished run of other flags: {', '.join(differ)}; "
                "give another --group, --savename or --save_path"
            )
        return folder
    return None


def differing(kept: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """List the flags that shape a run and have changed: ``--lr 0.1 (now 0.2)``.

    Args:
        kept: of the earlier run; a flag that it does not know is not compared.
        asked: of this one.
    """
    before, now = (json.loads(json.dumps(dict(flags), default=str)) for flags in (kept, asked))
    return [
        f"--{flag} {before[flag]} (now {value})"
        for flag, value in now.items()
        if flag in before and flag not in PLACES and before[flag] != value
    ]


def folders_of(parent: Path, name: str) -> Iterator[Path]:
    """Yield the folders of the runs of one name, oldest first."""
    for attempt in count(1):
        folder = parent / (name if attempt == 1 else f"{name}_{attempt}")
        if not folder.is_dir():
            return
        yield folder


def _finished_flags(folder: Path) -> dict[str, Any] | None:
    """Return the flags of the run in ``folder`` if it is finished."""
    return None if (folder / BEFORE).is_file() else finished_flags(folder)
