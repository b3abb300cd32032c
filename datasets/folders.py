"""Reads images from one folder per class, and words that describe the classes.

<root>/images/<class>/<file>   cub200, cars196, emoji and any dataset of your own; the images of
                               folders inside a class folder are of this class
<root>/classes.json            optional: {class folder: the name}, or instead of a name an object
                               {"name": ..., "group": ..., "description": ..., "tags": [...]}
<root>/captions.json           optional: {"<class>/<file>": caption or captions}, for every image
"""

import logging
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datasets.image_files import Listing, image_files, refuse_unreadable_names
from datasets.image_set import ImageSet
from datasets.recipes import RECIPES
from utilities.captions import join
from utilities.files import json_name, read_json
from utilities.registry import closest_first

LOG = logging.getLogger(__name__)

OUTSIDE = "image outside the class folders"
MANIFESTS = ("manifest.csv", "manifest.tsv", "manifest.parquet")

_INDEX = re.compile(r"(\d+)([. _])[ _]*(?=[^\W\d_])")  # of a class, before a letter

_TREES = {
    "cub200": ("images/001.Black_footed_Albatross/*.jpg", "…"),
    "cars196": ("images/Acura Integra Type R 2001/*.jpg", "…"),
    "online_products": (
        "images/bicycle_final/*.JPG",
        "…",
        "Info_Files/Ebay_train.txt",
        "Info_Files/Ebay_test.txt",
    ),
    "inshop": ("img/MEN/Denim/id_00000080/*.jpg", "…", "list_eval_partition.txt"),
    "inat": (
        "train_val2018/Actinopterygii/2229/*.jpg",
        "…",
        "Inat_dataset_splits/Inaturalist_train_set1.txt",
        "Inat_dataset_splits/Inaturalist_test_set1.txt",
    ),
}
_OWN_TREE = (
    "images/<first class>/*.jpg",
    "images/<second class>/*.jpg",
    "…  or",
    "manifest.csv with the columns path, label and, if you like, split and caption",
)


def expected_tree(root: Path) -> str:
    """Return the expected layout of the dataset in ``root``, as the last lines of an error."""
    lines = _TREES.get(root.name, _OWN_TREE)
    return "; expected\n" + "\n".join(f"  {root}/{line}" for line in lines)


def find(name: str, source_path: Path) -> Path:
    """Return the folder of a dataset; FileNotFoundError lists the datasets known or present."""
    root = source_path / name
    if root.is_dir():
        return root
    message = f"--dataset {name}: there is no folder {root}"
    if name not in RECIPES:
        message += f". Known datasets, closest first: {', '.join(closest_first(name, RECIPES))}"
    present = [
        path.name
        for path in visible(source_path)
        if (path / "images").is_dir()
        or (path.name in RECIPES and path.is_dir())
        or any((path / file).is_file() for file in MANIFESTS)
    ]
    message += f". Datasets in --source_path {source_path}: {', '.join(present) or 'none'}"
    raise FileNotFoundError(message + expected_tree(root))


def visible(folder: Path) -> list[Path]:
    """Return the entries of ``folder`` that are not hidden, sorted; none if it does not exist."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def clean(folders: Sequence[str]) -> tuple[str, ...]:
    """Return the words of class folders: "001.Black_footed_Albatross" → "Black footed Albatross".

    A leading index before a letter is cut, unless that would make two names one: `001.` in any set,
    `001_` or `001 ` only where all names have an index that is padded with zeros or counts them
    ("3 wheeler" counts wheels, "12 oz can" ounces).
    """
    found = [_INDEX.match(folder) for folder in folders]
    numbers = [match[1] for match in found if match]
    counting = sorted(map(int, numbers)) in ([*range(len(folders))], [*range(1, len(folders) + 1)])
    padded = len(numbers) == len(folders) and any(number.startswith("0") for number in numbers)
    cut = [
        spaced(folder[m.end() :] if m and (m[2] == "." or counting or padded) else folder)
        for folder, m in zip(folders, found, strict=True)
    ]
    whole = [spaced(folder) for folder in folders]
    counts = [len({name.casefold() for name in names}) for names in (cut, whole)]
    return tuple(cut if counts[0] == counts[1] else whole)


def spaced(name: str) -> str:
    """Return a name with single spaces instead of underscores, whole if nothing else is left."""
    return " ".join(name.replace("_", " ").split()) or name


def read_class_folders(root: Path) -> ImageSet:
    """Return every image under ``<root>/images/<class>/``; classes and files in sorted order.

    Raises FileNotFoundError if there are none, ValueError if a JSON file does not fit them or a
    name is not in UTF-8.
    """
    images = root / "images"
    if not images.is_dir():
        found = ", ".join(path.name for path in visible(root)[:8]) or "nothing"
        raise FileNotFoundError(
            f"{root} holds no folder `images` (it holds: {found}){expected_tree(root)}"
        )
    folders, rest = class_files(images)
    if not folders and rest.paths:
        raise FileNotFoundError(
            f"{images} holds {len(rest.paths)} images directly; put each into a folder that is "
            f"named after its class{expected_tree(root)}"
        )
    empty = [name for name, paths in folders.items() if not paths]
    files = {name: paths for name, paths in folders.items() if paths}
    if not files:
        raise FileNotFoundError(
            f"{images} holds {len(folders)} class folders and no images in them"
            f"{expected_tree(root)}"
        )
    if empty:
        LOG.warning("skipped %d class folders without images: %s", len(empty), listed(empty))
    rest.warn(images)

    about = described(root, list(files), known=empty)
    paths = tuple(chain.from_iterable(files.values()))
    labels = np.repeat(np.arange(len(files)), [len(of_class) for of_class in files.values()])
    captions = _captions(root, paths)
    return ImageSet(root.name, paths, labels, captions=captions, **about._asdict())


def class_files(folder: Path) -> tuple[dict[str, list[Path]], Listing]:
    """Return the images of each class folder, and a listing of all that is skipped.

    Images in folders inside a class folder belong to its class; those outside class folders are
    skipped. Raises ValueError if a name is not in UTF-8.
    """
    folders = [path for path in visible(folder) if path.is_dir()]
    listings = {path: image_files(path) for path in folders}
    beside = image_files(folder, recursive=False)
    refuse_unreadable_names(
        [*folders, *beside.paths, *chain(*(of.paths for of in listings.values()))]
    )
    all_of = [beside, *listings.values()]
    skipped = sum((of.skipped for of in all_of), Counter[str]())
    first = {kind: path for of in reversed(all_of) for kind, path in of.first.items()}
    if beside.paths:
        skipped[OUTSIDE], first[OUTSIDE] = len(beside.paths), beside.paths[0]
    rest = Listing(beside.paths, skipped, first)
    return {path.name: listing.paths for path, listing in listings.items()}, rest


class About(NamedTuple):
    """The words of C classes, as ``ImageSet`` holds them."""

    class_names: tuple[str, ...]
    class_groups: tuple[str, ...]
    class_descriptions: tuple[tuple[str, ...], ...]
    class_tags: tuple[tuple[str, ...], ...]


def described(root: Path, classes: Sequence[str], known: Collection[str] = ()) -> About:
    """Return the words of classes from ``<root>/classes.json``; names default to cleaned folders.

    The file may describe ``known`` classes, too. Raises ValueError if it does not fit.
    """
    file = root / "classes.json"
    about = read_json(file) if os.path.lexists(file) else {}
    if unknown := sorted(set(about) - {*classes, *known}):
        LOG.warning("%s describes classes that do not exist: %s", file, listed(unknown))
    entries = [(name, _entry(file, name, about.get(name, {}))) for name in classes]
    names = tuple(
        _text(file, *entry, "name") or folder
        for entry, folder in zip(entries, clean(classes), strict=True)
    )
    groups = tuple(group for entry in entries if (group := _text(file, *entry, "group")))
    if groups and len(groups) < len(classes):
        raise ValueError(
            f"{file} gives a group to {len(groups)} of {len(classes)} classes; give one to each or "
            "to none"
        )
    same: dict[str, list[str]] = {}
    for name, folder in zip(names, classes, strict=True):
        same.setdefault(name.casefold(), []).append(folder)
    if alike := [" = ".join(folders) for folders in same.values() if len(folders) > 1]:
        LOG.warning(
            "%s: %d names are those of several classes, which words cannot tell apart: %s; give "
            "them names in classes.json",
            *(root, len(alike), listed(alike)),
        )
    descriptions = tuple(_texts(file, *entry, "description") for entry in entries)
    tags = tuple(_texts(file, *entry, "tags") for entry in entries)
    return About(names, groups, *(found if any(found) else () for found in (descriptions, tags)))


def _entry(file: Path, name: str, entry: object) -> dict[str, Any]:
    """Return a class's entry of classes.json as an object."""
    about = {"name": entry} if isinstance(entry, str) else entry
    if not isinstance(about, dict):
        raise ValueError(
            f'{file}: {name!r} must be a name or {{"name": ..., "group": ...}}; got '
            f"{json_name(entry)}"
        )
    return about


def _text(file: Path, name: str, entry: Mapping[str, Any], key: str) -> str:
    """Return a text of a class with single spaces; empty if there is none."""
    value = entry.get(key)
    if not isinstance(value, str | None):
        raise ValueError(f"{file}: {key} of {name!r} must be a text; got {json_name(value)}")
    return " ".join((value or "").split())


def _texts(file: Path, name: str, entry: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """Return the distinct texts of a class, one or a list of them; blank ones are left out."""
    value = entry.get(key)
    if value is None:
        return ()
    try:
        lines = join(value, f"{key} of {name!r}").split("\n")
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    return tuple(dict.fromkeys(line for line in lines if line))


def _captions(root: Path, paths: Iterable[Path]) -> tuple[str, ...]:
    file = root / "captions.json"
    given = read_json(file) if os.path.lexists(file) else {}
    if not given:
        return ()
    keys = [path.relative_to(root / "images").as_posix() for path in paths]
    try:
        texts = tuple(join(given[key], f"caption of {key}") if key in given else "" for key in keys)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    if missing := [key for key, text in zip(keys, texts, strict=True) if not text]:
        raise ValueError(
            f"{file} has no caption for {len(missing)} of {len(keys)} images: {listed(missing)}"
        )
    return texts


def listed(names: Iterable[object], most: int = 10) -> str:
    """Join the first names and say how many more there are."""
    texts = [str(name) for name in names]
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more
