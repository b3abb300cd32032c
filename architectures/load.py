"""A trained embedder again, from the folder of its run or from one checkpoint file.

Nothing is downloaded: the checkpoint's weights replace those that training started from.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import architectures
from architectures.embedder import Embedder
from architectures.weights import mismatch
from utilities import checkpoint
from utilities.finished import PLACES
from utilities.run_folder import RunFolder

# What the embedder is, and the input that it knows. A checkpoint fixes these.
OF_THE_EMBEDDER = ("arch", "embed_dim", "image_size", "augmentation")
# Where and whether something happens: of the command line of today, not of the day of training.
OF_THE_COMMAND = (PLACES - {"source_path", "project"}) | {"savename"}


class Trained(NamedTuple):
    """What a checkpoint holds of an embedder."""

    embedder: Embedder  # on the CPU, in evaluation mode
    flags: dict[str, Any]  # every flag of the run that trained it, those of its recipe filled in
    file: Path
    epoch: int


def checkpoint_file(run: Path, name: str = "last") -> Path:
    """The checkpoint ``name`` of a run folder; ``run`` itself where that is a file.

    Args:
        name: "last", or ``best_<score>`` such as "best_test/embeds/e_recall@1".

    Raises:
        FileNotFoundError: there is no such file or folder, or no such checkpoint in the folder;
            names those that it has.
    """
    if run.is_file():
        return run
    if not run.is_dir():
        raise FileNotFoundError(
            f"--checkpoint {run} does not exist; give a run folder or one of its .pt files"
        )
    file = RunFolder(run).checkpoint(name)
    if not file.is_file():
        there = ", ".join(sorted(path.name for path in run.glob("*.pt")))
        raise FileNotFoundError(
            f"--checkpoint {run} holds no {file.name}; "
            + (f"give one of its files: {there}" if there else "a run saves one after each epoch")
        )
    return file


def load_embedder(run: Path, name: str = "last") -> Trained:
    """Rebuild the embedder of a run, with the flags that it was trained with.

    Args:
        run: a run folder, or a checkpoint file.
        name: which checkpoint of the folder; see ``checkpoint_file``.

    Raises:
        FileNotFoundError: as ``checkpoint_file``.
        ValueError: the file is damaged, was not written by a run, or its weights are not those of
            the architecture that its flags name; says what it holds and what would fit.
    """
    file = checkpoint_file(run, name)
    parts = checkpoint.load(file)
    flags, state = parts.get("flags"), parts.get("embedder")
    if not isinstance(flags, dict) or not isinstance(state, dict):
        raise ValueError(
            f"checkpoint {file} holds {', '.join(parts) or 'nothing'}, of a run are needed flags "
            "and embedder; give the last.pt of a run folder"
        )
    missing = [flag for flag in OF_THE_EMBEDDER if flags.get(flag) is None]
    if missing:
        raise ValueError(
            f"checkpoint {file} lacks the flags {', '.join(missing)}; give the last.pt of a run"
        )
    try:
        embedder = architectures.create(
            flags["arch"], flags["embed_dim"], pretrained=False, image_size=flags["image_size"]
        )
    except ValueError as error:
        raise ValueError(f"checkpoint {file} cannot be rebuilt: {error}") from error
    misfit = mismatch(embedder.state_dict(), state)
    if misfit:
        raise ValueError(
            f"checkpoint {file} does not hold --arch {flags['arch']} --embed_dim "
            f"{flags['embed_dim']} --image_size {flags['image_size']}, which its flags say: "
            f"{misfit}; it needs the version of timm that config.json beside it names"
        )
    embedder.load_state_dict(state)
    return Trained(embedder.eval(), flags, file, int(parts.get("epoch", 0)))


def evaluation_flags(
    trained: Trained, defaults: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """The flags under which a checkpoint is evaluated again, by default exactly as in training.

    A flag that the command line gives goes before the checkpoint's, and that before the default.
    ``--seed`` starts k-means and draws the validation split, and ``--bs`` rounds: convolutions and
    matrix products of other batches add in another order, which moves an embedding by some 1e-7
    and can swap two neighbours. So these too are the checkpoint's unless given.

    Args:
        defaults: every flag with its default; one that the checkpoint does not know keeps it.
        given: only the flags that the command line names.

    Raises:
        ValueError: a flag of ``OF_THE_EMBEDDER`` is given and is not that of the checkpoint.
    """
    for flag in OF_THE_EMBEDDER:
        if flag in given and given[flag] != trained.flags[flag]:
            raise ValueError(
                f"--{flag} {given[flag]} is not what {trained.file} was trained with, "
                f"{trained.flags[flag]}; leave --{flag} out"
            )
    saved = {
        flag: value
        for flag, value in trained.flags.items()
        if flag in defaults and flag not in OF_THE_COMMAND
    }
    return {**defaults, **saved, **given}
