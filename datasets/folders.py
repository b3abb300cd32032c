"""Reads images from folders: one folder per class, or as published lists of files say.

<root>/images/<class>/<file>           cub200, cars196, emoji and any dataset of your own
<root>/classes.json                    optional: {class folder: {"name": ..., "group": ...}}
<root>/captions.json                   optional: {"<class>/<file>": caption}, for every image

<root>/images/bicycle_final/<file>     online_products
<root>/Info_Files/Ebay_train.txt       lines of: image_id class_id super_class_id path
<root>/Info_Files/Ebay_test.txt

<root>/img/WOMEN/Dresses/<item>/<file> inshop
<root>/list_eval_partition.txt         lines of: image_name item_id train|query|gallery

<root>/train_val2018/Aves/2761/<file>  inat
<root>/Inat_dataset_splits/Inaturalist_train_set1.txt    a path a line
<root>/Inat_dataset_splits/Inaturalist_test_set1.txt

A table of one's own is read by ``datasets.manifest``.
"""

import json
import logging
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.image_files import Listing, image_files
from datasets.image_set import ImageSet
from datasets.recipes import RECIPES
from utilities.registry import closest_first

log = logging.getLogger(__name__)

MANIFESTS = ("manifest.csv", "manifest.tsv", "manifest.parquet")

_TREES = {
    "cub200": ("images/001.Black_footed_Albatross/*.jpg", "images/002.Laysan_Albatross/*.jpg", "…"),
    "cars196": (
        "images/Acura Integra Type R 2001/*.jpg",
        "images/Acura RL Sedan 2012/*.jpg",
        "…",
    ),
    "online_products": (
        "images/bicycle_final/*.JPG",
        "images/cabinet_final/*.JPG",
        "…",
        "Info_Files/Ebay_train.txt",
        "Info_Files/Ebay_test.txt",
    ),
    "inshop": (
        "img/MEN/Denim/id_00000080/*.jpg",
        "img/WOMEN/Dresses/id_00000002/*.jpg",
        "…",
        "list_eval_partition.txt",
    ),
    "inat": (
        "train_val2018/Actinopterygii/2229/*.jpg",
        "train_val2018/Aves/2761/*.jpg",
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
    """How the dataset in ``root`` should be laid out, as the last lines of an error."""
    lines = _TREES.get(root.name, _OWN_TREE)
    return "; expected\n" + "\n".join(f"  {root}/{line}" for line in lines)


def find(name: str, source_path: Path) -> Path:
    """The folder of the dataset ``name``.

    Raises:
        FileNotFoundError: there is none; names the datasets that are known or present.
    """
    root = source_path / name
    if root.is_dir():
        return root
    message = f"--dataset {name}: there is no folder {root}"
    if name not in RECIPES:
        message += f". Known datasets, closest first: {', '.join(closest_first(name, RECIPES))}"
    there = [
        path.name
        for path in visible(source_path)
        if (path / "images").is_dir()
        or (path.name in RECIPES and path.is_dir())
        or any((path / file).is_file() for file in MANIFESTS)
    ]
    message += f". Datasets in --source_path {source_path}: {', '.join(there) or 'none'}"
    raise FileNotFoundError(message + expected_tree(root))


def visible(folder: Path) -> list[Path]:
    """What ``folder`` holds, sorted by name, without hidden entries; empty if it does not exist."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def clean(folder: str) -> str:
    """A class folder's words: "001.Black_footed_Albatross" → "Black footed Albatross".

    Only digits and a dot at the very start are a number; "…Supersports Conv. Convertible 2012"
    stays whole.
    """
    return " ".join(re.sub(r"^\d+\.", "", folder).replace("_", " ").split()) or folder


def read_class_folders(root: Path) -> ImageSet:
    """Every image under ``<root>/images/<class>/``; classes and files in sorted order.

    A class without images is left out with a warning.

    Raises:
        FileNotFoundError: no ``images`` folder, or no images in class folders.
        ValueError: ``classes.json`` or ``captions.json`` does not fit the images.
    """
    images = root / "images"
    if not images.is_dir():
        found = ", ".join(path.name for path in visible(root)[:8]) or "nothing"
        raise FileNotFoundError(
            f"{root} holds no folder `images` (it holds: {found}){expected_tree(root)}"
        )
    entries = visible(images)
    folders = [path for path in entries if path.is_dir()]
    loose = len(image_files(images, recursive=False).paths) if not folders else 0
    if loose:
        raise FileNotFoundError(
            f"{images} holds {loose} images directly; each belongs into a folder that is named "
            f"after its class{expected_tree(root)}"
        )

    listings = {folder: image_files(folder, recursive=False) for folder in folders}
    files = {folder: listing.paths for folder, listing in listings.items()}
    empty = [folder.name for folder, paths in files.items() if not paths]
    files = {folder: paths for folder, paths in files.items() if paths}
    if not files:
        raise FileNotFoundError(
            f"{images} holds {len(folders)} class folders and no images in them"
            f"{expected_tree(root)}"
        )
    skipped = sum((listing.skipped for listing in listings.values()), Counter[str]())
    if problems := Listing([], skipped).problems():
        log.warning("skipped in %s: %s", images, problems)
    if empty:
        log.warning("%d class folders without images are left out: %s", len(empty), listed(empty))

    names, groups = described(root, [folder.name for folder in files], known=set(empty))
    return ImageSet(
        name=root.name,
        paths=tuple(path for paths in files.values() for path in paths),
        labels=np.repeat(np.arange(len(files)), [len(paths) for paths in files.values()]),
        class_names=names,
        class_groups=groups,
        captions=_captions(root, [path for paths in files.values() for path in paths]),
    )


def described(
    root: Path, classes: Sequence[str], known: Collection[str] = ()
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Words and groups of classes, as ``<root>/classes.json`` has them; else their cleaned names.

    Args:
        known: further classes that the file may name.

    Raises:
        ValueError: the file is no JSON object, or gives a group to some classes only.
    """
    file = root / "classes.json"
    about = _read_json(file)
    stray = sorted(set(about) - {*classes, *known})
    if stray:
        log.warning("%s names classes that do not exist: %s", file, listed(stray))
    entries = [about.get(name, {}) for name in classes]
    names = tuple(
        str(entry.get("name") or clean(name)) for name, entry in zip(classes, entries, strict=True)
    )
    groups = tuple(str(entry["group"]) for entry in entries if entry.get("group"))
    if groups and len(groups) < len(classes):
        raise ValueError(
            f"{file} gives a group to {len(groups)} of {len(classes)} classes; give one to each or "
            "to none"
        )
    return names, groups


def _captions(root: Path, paths: list[Path]) -> tuple[str, ...]:
    file = root / "captions.json"
    captions = _read_json(file)
    if not captions:
        return ()
    keys = [path.relative_to(root / "images").as_posix() for path in paths]
    missing = [key for key in keys if key not in captions]
    if missing:
        raise ValueError(
            f"{file} has no caption for {len(missing)} of {len(keys)} images: {listed(missing)}"
        )
    return tuple(str(captions[key]) for key in keys)


def _read_json(file: Path) -> dict[str, Any]:
    """The object in ``file``; an empty one if there is no such file."""
    if not file.exists():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}, expected an object")
    return content


def read_online_products(root: Path) -> tuple[ImageSet, ImageSet]:
    """Train and test of Stanford Online Products; a class is one product.

    Source: Song et al., Deep Metric Learning via Lifted Structured Feature Embedding, CVPR 2016.
    A product has no name of its own: its words and its group are its super-class ("coffee maker").

    Raises:
        FileNotFoundError: a list or the ``images`` folder is missing.
        ValueError: a line of a list cannot be read.
    """
    if not (root / "images").is_dir():
        raise FileNotFoundError(f"{root} holds no folder `images`{expected_tree(root)}")
    return _read_products(root, "train"), _read_products(root, "test")


def _read_products(root: Path, split: str) -> ImageSet:
    file = root / "Info_Files" / f"Ebay_{split}.txt"
    if not file.exists():
        raise FileNotFoundError(f"the list {file} is missing{expected_tree(root)}")
    paths, products, words = [], [], []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines()[1:], start=2):
        if not line.strip():
            continue
        fields = line.split()
        if len(fields) != 4 or not fields[1].isdigit():
            raise ValueError(
                f"{file}, line {number}: {line!r} is not `image_id class_id super_class_id path`"
            )
        paths.append(root / "images" / fields[3])
        products.append(int(fields[1]))
        words.append(clean(Path(fields[3]).parent.name.removesuffix("_final")))
    if not paths:
        raise ValueError(f"{file} lists no images")
    _, first, labels = np.unique(products, return_index=True, return_inverse=True)
    names = tuple(words[row] for row in first)
    return ImageSet(
        name=f"{root.name}.{split}",
        paths=tuple(paths),
        labels=labels.astype(np.int64),
        class_names=names,
        class_groups=names,
    )


def listed(names: Iterable[object], most: int = 10) -> str:
    """The first names, and how many more there are."""
    texts = [str(name) for name in names]
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more
