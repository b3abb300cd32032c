"""Loads a trained embedder from a run folder or a checkpoint file; nothing is downloaded."""

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import architectures
from architectures.embedder import Embedder
from utilities import checkpoint
from utilities.finished import PLACES
from utilities.run_files import checkpoint_file
from utilities.structures import input_size

# Fixed by a checkpoint: what the embedder is, and the input that it expects.
EMBEDDER_FLAGS = {"arch": str, "embed_dim": int, "image_size": int, "augmentation": str}
OF_THE_SPLIT = {"test_classes", "test_fraction"}  # of one dataset, and one excludes the other
# Taken from today's command line, not from training: where and whether something happens.
COMMAND_FLAGS = (PLACES - {"source_path", "project"}) | {"savename"}


class Trained(NamedTuple):
    embedder: Embedder  # on the CPU, in evaluation mode
    flags: dict[str, Any]  # every flag of the run that trained it, with those of its recipe
    file: Path
    epoch: int
    data: dict[str, Any] | None = None  # as ``datasets.describe`` wrote it; older ones lack it
    criterion: dict[str, Any] | None = None  # state of the objective


def load_embedder(run: Path, name: str = "last") -> Trained:
    """Return the embedder of a run folder or checkpoint file, with the flags of its training.

    Raises:
        FileNotFoundError: there is no such checkpoint; lists those of the folder.
        ValueError: the file is damaged, not of a run, or does not fit its flags.
    """
    file = checkpoint_file(run, name)
    parts = checkpoint.load(file)
    flags, state = parts.get("flags"), parts.get("embedder")
    if not isinstance(flags, dict) or not isinstance(state, dict):
        raise ValueError(
            f"checkpoint {file} must hold flags and embedder; got "
            f"{', '.join(map(str, parts)) or 'nothing'}; give the last.pt of a run folder"
        )
    kinds = {**EMBEDDER_FLAGS, "dataset": str}
    missing = [flag for flag in kinds if flags.get(flag) is None]
    if missing:
        raise ValueError(
            f"checkpoint {file} lacks the flags {', '.join(missing)}; give the last.pt of a run"
        )
    values = {**{f"--{flag}": flags[flag] for flag in kinds}, "epoch": parts.get("epoch", 0)}
    for (name, value), kind in zip(values.items(), (*kinds.values(), int), strict=True):
        if not isinstance(value, kind):
            raise ValueError(
                f"checkpoint {file}: {name} must be of type {kind.__name__}; got "
                f"{reprlib.repr(value)}; give the last.pt of a run"
            )
    try:
        embedder = architectures.create(
            flags["arch"],
            flags["embed_dim"],
            pretrained=False,
            image_size=input_size(flags["image_size"], flags["augmentation"]),
        )
    except ValueError as error:
        raise ValueError(f"checkpoint {file} cannot be rebuilt: {error}") from error
    try:
        embedder.load_state_dict(state)
    except ValueError as error:
        raise ValueError(
            f"checkpoint {file} does not fit its flags --arch {flags['arch']} --embed_dim "
            f"{flags['embed_dim']} --image_size {flags['image_size']}: {error}; it needs the "
            "versions that config.json beside it names"
        ) from error
    epoch, data, criterion = parts.get("epoch", 0), parts.get("data"), parts.get("criterion")
    return Trained(embedder.eval(), flags, file, epoch, data, criterion)


def load_or_create(place: str) -> tuple[Embedder, str, dict[str, Any] | None]:
    """Return an embedder in evaluation mode, a name to show, and the flags of its run, if any.

    ``place`` is a run folder, a checkpoint file, or the name of an architecture (pretrained).
    """
    if not Path(place).exists():
        return architectures.create(place).eval(), place, None
    trained = load_embedder(Path(place))
    return trained.embedder, f"{trained.file}, epoch {trained.epoch}", trained.flags


def evaluation_flags(
    trained: Trained, defaults: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the flags for evaluating a checkpoint, by default exactly as in training.

    Flags ``given`` on the command line override those of the checkpoint, which override defaults.
    Even ``--bs`` is the checkpoint's: rounding in other batches can swap two neighbours.

    Raises:
        ValueError: a flag of ``EMBEDDER_FLAGS`` is given and differs from the checkpoint's.
    """
    for flag in EMBEDDER_FLAGS:
        if flag in given and given[flag] != trained.flags[flag]:
            raise ValueError(
                f"--{flag} must be {trained.flags[flag]}, as {trained.file} was trained; got "
                f"{given[flag]}; leave --{flag} out"
            )
    elsewhere = given.get("dataset", trained.flags["dataset"]) != trained.flags["dataset"]
    split_anew = elsewhere or OF_THE_SPLIT & {*given}
    fresh = COMMAND_FLAGS | OF_THE_SPLIT if split_anew else COMMAND_FLAGS
    saved = {
        flag: value
        for flag, value in trained.flags.items()
        if flag in defaults and flag not in fresh
    }
    return {**defaults, **saved, **given}
