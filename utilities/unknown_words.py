"""Says what the unknown words of a command line were probably meant to be."""

import difflib
from collections.abc import Collection, Sequence
from pathlib import Path

from utilities.files import cache_folder

FAMILIAR = {  # flags of other programs
    "amp": "precision", "backbone": "arch", "data": "source_path", "data_dir": "source_path",
    "data_path": "source_path", "embedding_dim": "embed_dim", "embedding_size": "embed_dim",
    "encoder": "arch", "exp_name": "savename", "fp16": "precision", "img_size": "image_size",
    "input_size": "image_size", "max_epochs": "n_epochs", "model_name": "arch",
    "name": "savename", "num_epochs": "n_epochs", "num_workers": "kernels", "opt": "optim",
    "optimizer": "optim", "out": "save_path", "output": "save_path", "output_dir": "save_path",
    "resolution": "image_size", "run_name": "savename", "train_batch_size": "bs", "wd": "decay",
    "weight_decay": "decay", "workers": "kernels",
}  # fmt: skip
TABLES = ("manifest.csv", "manifest.tsv", "manifest.parquet")


def explained(unknown: Sequence[str], known: Collection[str], source_path: str | None) -> str:
    """Return a message that names all unknown words, and for each what comes closest.

    Words after an unknown flag are taken for its values, unless they name a dataset.

    Args:
        unknown: words that the parser left over.
        known: flags, with their dashes.
        source_path: folder of the datasets, if it was given.
    """
    lines: list[str] = []
    after_flag = False
    for word in unknown:
        is_flag = word.startswith("-") and not word.lstrip("-")[:1].isdigit()
        if is_flag:
            lines.append(f"{word} is not a flag; {_nearest(word, known)}")
        elif dataset := _as_dataset(word, source_path):
            lines.append(f"{word} follows no flag; did you mean {dataset}?")
        elif not after_flag:
            lines.append(f"{word} follows no flag; a dataset is given as --dataset NAME")
        after_flag = after_flag or is_flag
    if len(lines) == 1:
        return lines[0]
    return "\n".join([f"{len(lines)} words are unknown", *(f"  {line}" for line in lines)])


def _nearest(word: str, known: Collection[str]) -> str:
    name = word.partition("=")[0].lstrip("-").replace("-", "_").lower()
    name = FAMILIAR.get(name, name)
    near = difflib.get_close_matches(f"--{name}", known, n=3, cutoff=0.5)
    if f"--{name}" in known:
        near = [f"--{name}"]
    return f"did you mean {' or '.join(near)}?" if near else "see --help"


def _as_dataset(word: str, source_path: str | None) -> str:
    """Return the flags that name the dataset in a folder called ``word``; empty if none is."""
    path = Path(word).expanduser()
    if source_path is not None and _holds_images(Path(source_path).expanduser() / path.name):
        return f"--dataset {path.name}"
    if _holds_images(cache_folder() / "datasets" / word):
        return f"--dataset {word}"
    for folder in (path, Path("data") / path):
        if _holds_images(folder):
            return f"--dataset {folder.name} --source_path {folder.parent}"
    return ""


def _holds_images(folder: Path) -> bool:
    return (folder / "images").is_dir() or any((folder / table).is_file() for table in TABLES)
