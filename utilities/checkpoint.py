"""Checkpoints: tensors and plain values, read without running code, never half-written.

``torch.load(path, weights_only=True)`` reads them anywhere, without this project and without the
device that they were trained on, since tensors are saved as CPU tensors.
"""

import copy
import os
import random
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from utilities import device
from utilities.device import CPU
from utilities.files import atomic_path

FORMAT = 1  # raised when older code would misread a newer file

PLAIN = (bool, int, float, str, bytes, type(None))
MAPPINGS = (dict, OrderedDict, Counter)  # a Counter is how MultiStepLR keeps its milestones
SEQUENCES = (list, tuple)


def save(path: Path, parts: Mapping[str, Any]) -> None:
    """Write named ``parts`` to ``path``, whole or not at all.

    Parts are nestings of dicts, lists and tuples of tensors and plain values; a TypeError says
    where any other value is. "format" is reserved.
    """
    if "format" in parts:
        raise ValueError("a checkpoint part cannot be called 'format'; choose another name")
    parts = {name: _plain(name, part) for name, part in parts.items()}
    with atomic_path(path, parents=False) as temporary:
        try:
            with temporary.open("wb") as file:
                torch.save({"format": FORMAT, **parts}, file)
                file.flush()
                os.fsync(file.fileno())  # else a power cut can leave the new name on an empty file
        except RuntimeError as error:  # torch's zip writer trips over the file's own OSError
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load(path: Path) -> dict[str, Any]:
    """Return the parts that ``save`` wrote, tensors on the CPU; ValueError for any other file.

    A file that a disk has damaged is refused, too, by the checksums of its zip members.
    """
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    try:
        with zipfile.ZipFile(path) as members:  # torch itself does not compare checksums
            if damaged := members.testzip():
                raise zipfile.BadZipFile(f"{damaged} does not match its checksum")
        parts = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile, pickle and torch each raise their own
        raise ValueError(
            f"checkpoint {path} cannot be read ({type(error).__name__}): it is damaged, cut short, "
            "or not tensors and plain values; take another checkpoint of the run"
        ) from error
    if not isinstance(parts, dict) or not isinstance(parts.get("format"), int):
        raise ValueError(
            f"checkpoint {path} was not written by this project; "
            "weights of a backbone go to --weights"
        )
    if parts["format"] > FORMAT:
        raise ValueError(
            f"checkpoint {path} has format {parts['format']}, this version reads up to {FORMAT}; "
            "update the code"
        )
    del parts["format"]
    return parts


def rng_state(on: torch.device = CPU) -> dict[str, Any]:
    """Return the states of the generators of Python, numpy, torch, and the device ``on``."""
    kind, keys, *rest = cast(tuple, np.random.get_state())  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), *rest),
        "torch": torch.get_rng_state(),
        "device": device.rng_state(on),
    }


def set_rng_state(state: Mapping[str, Any], on: torch.device = CPU) -> None:
    """Restore ``rng_state``; the state of another type of device is ignored."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.asarray(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    # Older checkpoints have a list of the states of all GPUs; take the first.
    older = {"cuda": state["cuda"][0]} if state.get("cuda") else {}
    device.set_rng_state(state.get("device", older), on)


def _plain(name: str, value: Any) -> Any:
    """Return the value with its tensors on the CPU; refuse subclasses, such as numpy scalars."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
    kind = type(value)
    if kind is Tensor or kind in PLAIN:
        return value
    if kind in MAPPINGS:
        kept = copy.copy(value)  # keeps order and attributes
        for key, item in value.items():
            if type(key) not in PLAIN:
                raise TypeError(f"checkpoint part {name} has a key that is a {type(key).__name__}")
            kept[key] = _plain(f"{name}.{key}", item)
        return kept
    if kind in SEQUENCES:
        return kind(_plain(f"{name}.{index}", item) for index, item in enumerate(value))
    raise TypeError(
        f"checkpoint part {name} is a {kind.__module__}.{kind.__name__}; give a tensor, "
        "a number, a string, or lists and dicts of them"
    )
