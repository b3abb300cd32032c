"""Finds finished runs, so that a script of many runs can be repeated without waiting for torch."""

import json
import sys
from collections.abc import Iterator, Mapping
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from utilities.run_files import checkpoint_file, finished_flags

# Values of flags that older runs did not record; of objectives that have changed since, by loss.
EARLIER = {
    "data_class_replacement": False, "no_zero_init_last": False, "train_classes": 0,
    "language_proxy_w": 0.0, "language_proxy_vectors": "words", "language_centre": False,
    "language_several": "ranks", "data_pairs_mutual": False, "data_pairs_csls": 0,
    "embed_init": "random", "test_classes": None, "test_fraction": None,
    "clip_grad": 0.0, "patience": 0, "ema": 0.0, "recipe": "standard",
}  # fmt: skip
EARLIER_OF = {loss: {"loss_simclr_layers": 2} for loss in ("simclr", "slip", "lgslip")}

# Flags that change where a run happens, not its results.
PLACES = frozenset(
    ("source_path", "save_path", "device", "gpu", "kernels", "resume", "checkpoint_every",
     "accept_changed_data", "wandb_mode", "project", "tensorboard", "evaluate_on_cpu",
     "eval_memory", "forward_bs", "grad_checkpointing")
)  # fmt: skip


def exit_if_finished(flags: Mapping[str, Any], name: str) -> None:
    """Exit if ``--resume`` is given and the run is finished (status 0) or has other flags (1).

    Exit, too, if the checkpoint that is to be evaluated does not exist (1).
    """
    try:
        if flags["checkpoint"]:
            checkpoint_file(Path(flags["checkpoint"]))
        folder = finished_run(flags, name) if flags["resume"] else None
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    if folder:
        print(f"{folder} is finished")
        sys.exit()


def finished_run(flags: Mapping[str, Any], name: str) -> Path | None:
    """Return the folder of a finished run of this name and these flags; None if there is none.

    ValueError if the newest run of this name is finished and has other flags. Flags that are None
    are left to the dataset's recipe, and not compared.
    """
    given = {flag: value for flag, value in flags.items() if value is not None}
    differ: list[str] = []  # of the newest; none if it is not finished
    for folder in folders_of(Path(flags["save_path"]) / flags["dataset"], name):
        done = finished_flags(folder)
        differ = differing(done, given) if done is not None else []
        if done is not None and not differ:
            return folder
    if differ:
        raise ValueError(
            f"{folder} is finished and has other flags: {', '.join(differ)}; "
            "give another --group, --savename or --save_path"
        )
    return None


def differing(kept: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """List changed flags that shape a run, as ``--lr 0.1 (now 0.2)``; ``kept`` may lack some."""
    before, now = (json.loads(json.dumps(dict(flags), default=str)) for flags in (kept, given))
    before = EARLIER | EARLIER_OF.get(before.get("loss"), {}) | before
    if before.get("use_float16"):  # of older runs, which recorded what it meant on their device
        before["precision"] = "half"
    return [
        f"--{flag} {before[flag]} (now {value})"
        for flag, value in now.items()
        if flag in before and flag not in PLACES and before[flag] not in _equal(value)
    ]


def _equal(value: Any) -> tuple[Any, ...]:
    """Return the value, and its only item where it is a list: older runs had one prompt."""
    return (value, *value) if isinstance(value, list) and len(value) == 1 else (value,)


def attempts(parent: Path, name: str) -> Iterator[Path]:
    """Yield the folders that runs of one name take: ``name``, ``name_2``, ``name_3``, …"""
    yield parent / name
    yield from (parent / f"{name}_{attempt}" for attempt in count(2))


def folders_of(parent: Path, name: str) -> Iterator[Path]:
    """Return the folders of the runs of one name, oldest first."""
    return takewhile(Path.is_dir, attempts(parent, name))
