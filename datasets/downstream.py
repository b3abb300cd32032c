"""Labelled datasets that frozen features are evaluated on; train and test share their classes.

| name         | classes | train / val / test     | split                                       |
|--------------|---------|------------------------|---------------------------------------------|
| food101      | 101     | 75,750 / – / 25,250    | published                                   |
| cifar10      | 10      | 50,000 / – / 10,000    | published                                   |
| cifar100     | 100     | 50,000 / – / 10,000    | published                                   |
| cub2011      | 200     | 5,994 / – / 5,794      | published; halves where its list is missing |
| sun397       | 397     | 19,850 / – / 19,850    | 50 + 50 of each class, drawn                |
| cars196      | 196     | 8,144 / – / 8,041      | published; halves where lists are missing   |
| aircraft *   | 100     | 3,334 / 3,333 / 3,333  | published, of variants                      |
| dtd          | 47      | 1,880 / 1,880 / 1,880  | published, the first of its ten             |
| pets *       | 37      | 3,680 / – / 3,669      | published                                   |
| caltech101 * | 101     | 3,030 / – / 5,647      | 30 + the rest of each class, drawn          |
| flowers *    | 102     | 1,020 / 1,020 / 6,149  | published                                   |
| stl10        | 10      | 5,000 / – / 8,000      | published, all ten folds                    |
| eurosat      | 10      | 10,000 / – / 5,000     | 1,000 + 500 of each class, drawn            |
| resisc45     | 45      | 3,150 / – / 25,200     | 70 + 560 of each class, drawn               |
| mnist        | 10      | 60,000 / – / 10,000    | published                                   |
| pcam         | 2       | 262,144 / 32,768 / 32,768 | published                                |
| clevr-counts | 8       | 2,000 / – / 5,000      | of its train 250, of its val 625 per count  |
| imagenet     | 1,000   | 1,281,167 / – / 50,000 | published: train/<class>/ and val/<class>/  |
| digits       | 10      | 901 / – / 896          | halves of each class; scikit-learn's images |
| emoji        | 622     | 2,886 / – / 2,535      | halves of each class, of its test classes   |
| NAME         |         |                        | a folder of your own: halves of each class; |
|              |         |                        | of a manifest that names test, of test's    |
| NAME:groups  |         |                        | as NAME; the groups of classes are classes  |
| NAME:groups_apart |    |                        | as that, but halves of each group's classes |

Where val is –, linear_probe takes some of train. * is scored by the mean of class accuracies. Sizes
of drawn splits follow Radford et al., Learning Transferable Visual Models From Natural Language
Supervision, ICML 2021, table 9, but the draws are ours, and so are clevr-counts (its test images
have no labels) and stl10 (they train on one fold). caltech101 is without its background class.
emoji, cub200, online_products, inshop and inat hold only the test classes of ``datasets.splits``,
which a model trained on the others never saw; cub2011 and cars196 hold all classes. With :groups
train and test show other images of the same classes; with :groups_apart, of other classes.
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from datasets import drawings, splits
from datasets.caption_index.layouts import labelled_manifest
from datasets.folders import class_files, clean, expected_tree, listed, read_class_folders
from datasets.image_set import Images, ImageSet
from datasets.library_sets import SOURCES, draw, read_digits, read_torchvision
from datasets.readable import keep_readable
from utilities.registry import closest_first
from utilities.seeding import derive

LOG = logging.getLogger(__name__)

_FOLDERS = ("cub2011", "resisc45", "imagenet")
_LIBRARY = (*sorted(SOURCES), "digits")
_UNSEEN = ("emoji", "cub200", *splits.LISTS)  # evaluated on the classes of their test split
Sets = tuple[Mapping[str, Images], tuple[str, ...]]  # by part, and the names of the classes

KNOWN = (*_FOLDERS, *_LIBRARY, *_UNSEEN)


@dataclass(frozen=True)
class Downstream:
    """A dataset for frozen features. Labels mean the same class in each of its sets."""

    name: str  # as given: "emoji:groups"
    train: Images
    val: Images | None  # None: none are published
    test: Images
    class_names: tuple[str, ...]  # (C,)
    per_class: bool = False  # scored by the mean of class accuracies

    @property
    def n_classes(self) -> int:
        return len(self.class_names)


def build(name: str, source_path: Path, *, seed: int = 0) -> Downstream:
    """Return the dataset ``name`` of the table above; torchvision downloads what is missing.

    A folder of ``source_path`` goes before a set of torchvision or scikit-learn of that name; which
    of them it is, is logged.
    ``seed`` is of drawn splits: the benchmark's own, so that all runs share them.

    Raises:
        FileNotFoundError: the images are not there and cannot be downloaded; says where they go.
        ValueError: classes that do not agree, or that have no groups for ``:groups``.
    """
    base, _, groups = name.partition(":")
    rng = np.random.default_rng(derive(seed, "downstream", base))
    with _flagged(name):
        if groups not in ("", "groups", "groups_apart"):
            raise ValueError(
                f"only :groups or :groups_apart can follow a name; use {base}:groups or {base}"
            )
        if groups:
            sets, class_names = _by_group(name, labelled(base, source_path), rng)
        else:
            sets, class_names = _sets(name, source_path, rng)
        if len(class_names) < 2:
            raise ValueError(
                f"classification needs 2 classes of two images or more; got {len(class_names)}"
            )
    test = sets["test"]
    if isinstance(test, ImageSet):
        place, per_class = os.path.commonpath([path.absolute() for path in test.paths]), False
        LOG.info("%s: images of the folder %s", name, place)
    else:
        library = f"torchvision's {SOURCES[base].kind}" if base in SOURCES else "scikit-learn"
        LOG.info("%s: images of %s", name, library)
        per_class = base in SOURCES and SOURCES[base].per_class
    return Downstream(name, sets["train"], sets.get("val"), test, class_names, per_class=per_class)


def _sets(name: str, source_path: Path, rng: np.random.Generator) -> Sets:
    root = source_path / name
    if _from_library(name, source_path):
        return read_digits(rng) if name == "digits" else read_torchvision(name, source_path, rng)
    if name == "cub2011":
        return _cub(source_path, rng)
    if name == "resisc45":
        return _from_folders(name, root, rng, drawn=(70, 560))
    if name == "imagenet" or (root / "train").is_dir():
        return _from_folders(name, root, rng)
    return _halved(name, labelled(name, source_path), rng)


def _from_library(name: str, source_path: Path) -> bool:
    """Return whether ``name`` is a set of torchvision or scikit-learn, and not a user's folder."""
    if name not in _LIBRARY:
        return False
    place = SOURCES[name].place if name in SOURCES else ""
    if name == "cars196" and (source_path / place).is_dir():
        return True  # in the published split, which class folders are without
    root = source_path / name
    if _is_laid_out(root) or (root / "train").is_dir():
        return False
    return not root.is_dir() or place.split("/")[0] == name  # torchvision's own folder


def _is_laid_out(root: Path) -> bool:
    return (root / "images").is_dir() or labelled_manifest(root) is not None


def is_ours(name: str, source_path: Path) -> bool:
    """Return whether ``labelled`` has the images of ``name``: a benchmark or a user's folder."""
    elsewhere = name in _FOLDERS or _from_library(name, source_path)
    return name in _UNSEEN or (not elsewhere and _is_laid_out(source_path / name))


def labelled(name: str, source_path: Path) -> ImageSet:
    """Return all images of a benchmark or a user's folder that are evaluated on."""
    with _flagged(name):
        root = source_path / name
        if name in _UNSEEN and not (name == "emoji" and drawings.is_own(root)):
            return splits.read(name, source_path)[1]
        if not root.is_dir():
            raise FileNotFoundError(
                f"there is no folder {root}. Known datasets, closest first: "
                f"{', '.join(closest_first(name, KNOWN))}; a folder of your own is laid out as"
                f"{expected_tree(root)}"
            )
        _, laid_out = splits.read_layout(name, source_path)
        of_part = next(laid_out[part] for part in ("test", "all", "train") if part in laid_out)
        (images,) = keep_readable(of_part, root=root)
        return images


@contextmanager
def _flagged(name: str) -> Iterator[None]:
    """Put the flag in front of an error that does not begin with one."""
    try:
        yield
    except (FileNotFoundError, ValueError) as error:
        if str(error).startswith("--"):
            raise
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f"--evaluation_datasets {name}: {error}") from error


def _halved(
    name: str, images: ImageSet, rng: np.random.Generator, drawn: tuple[int, int] | None = None
) -> tuple[dict[str, ImageSet], tuple[str, ...]]:
    """Draw images of each class for train and for test; a class of one image is left out."""
    sizes = np.bincount(images.labels)
    if (sizes < 2).any():
        LOG.warning(
            "%s: skipped %d classes of one image, which cannot be both in train and in test: %s",
            *(name, (sizes < 2).sum(), listed(np.array(images.class_names)[sizes < 2])),
        )
        images = images.of_classes(np.flatnonzero(sizes >= 2), images.name)
    parts = zip(("train", "test"), draw(images.labels, drawn, rng), strict=True)
    sets = {part: images.subset(rows, f"{name}.downstream.{part}") for part, rows in parts}
    return sets, images.class_names


def _by_group(name: str, images: ImageSet, rng: np.random.Generator) -> Sets:
    """Return halves of each class as without :groups, labelled by the groups of the classes.

    With :groups_apart, return halves of each group's classes.
    """
    base, _, how = name.partition(":")
    if not images.class_groups:
        raise ValueError(
            f'the classes of {images.name} have no groups; give each a "group" in its '
            f"classes.json, or use {base}"
        )
    halves = _apart(name, images, rng) if how == "groups_apart" else _halved(name, images, rng)[0]
    names = tuple(sorted(set(halves["train"].class_groups)))

    def regroup(half: ImageSet) -> ImageSet:
        numbers = np.array([names.index(group) for group in half.class_groups])
        return replace(
            half,
            labels=numbers[half.labels],
            class_names=names,
            class_groups=(),
            class_descriptions=(),
            class_tags=(),
        )

    return {part: regroup(half) for part, half in halves.items()}, names


def _apart(name: str, images: ImageSet, rng: np.random.Generator) -> dict[str, ImageSet]:
    """Draw classes of each group for train and for test; a group of one class is left out."""
    groups, group = np.unique(images.class_groups, return_inverse=True)  # (C,) of each class
    alone = np.bincount(group) < 2
    if alone.any():
        LOG.warning(
            "%s: skipped %d groups of one class, which cannot be both in train and in test: %s",
            *(name, alone.sum(), listed(groups[alone])),
        )
    paired = np.flatnonzero(~alone[group])
    if not len(paired):
        raise ValueError(
            f"no group of {images.name} has two classes; use {name.partition(':')[0]}:groups"
        )
    parts = zip(("train", "test"), draw(group[paired], None, rng), strict=True)
    return {
        part: images.of_classes(paired[places], f"{name}.downstream.{part}")
        for part, places in parts
    }


def _cub(source_path: Path, rng: np.random.Generator) -> Sets:
    """Read CUB-200-2011 as its lists split it: Wah et al., Technical Report, Caltech, 2011."""
    roots = [source_path / name for name in ("cub2011", "CUB_200_2011", "cub200")]
    root = next((root for root in roots if root.is_dir()), None)
    if root is None:
        raise FileNotFoundError(
            f"none of {', '.join(map(str, roots))} exists; unpack CUB_200_2011.tgz in "
            f"{source_path}, or leave cub2011 out"
        )
    lists = root / "images.txt", root / "train_test_split.txt"
    if not all(file.is_file() for file in lists):
        return _from_folders("cub2011", root, rng)
    path_of, trains = (
        dict(line.split(maxsplit=1) for line in file.read_text(encoding="utf-8").splitlines())
        for file in lists
    )
    parts: dict[str, dict[str, list[Path]]] = {"train": {}, "test": {}}
    for number, path in path_of.items():
        file = root / "images" / path
        part = "train" if trains[number].strip() == "1" else "test"
        parts[part].setdefault(file.parent.name, []).append(file)
    return _of_files("cub2011", root, parts)


def _from_folders(
    name: str, root: Path, rng: np.random.Generator, drawn: tuple[int, int] | None = None
) -> Sets:
    """Read ``train/<class>/`` and ``test/``, or else ``val/``; halve ``images/<class>/``."""
    if (root / "images").is_dir():
        (images,) = keep_readable(read_class_folders(root), root=root)
        return _halved(name, images, rng, drawn)
    parts = {part: root / part for part in ("train", "val", "test") if (root / part).is_dir()}
    if "test" not in parts and "val" in parts:
        parts["test"] = parts.pop("val")  # with both, val is for choosing hyperparameters
    if not {"train", "test"} <= set(parts):
        raise FileNotFoundError(
            f"{root} must hold images as\n  {root}/train/<class>/*\n  {root}/test/<class>/*  (or "
            f"val)\nor as\n  {root}/images/<class>/*\nput them there, give another --source_path, "
            f"or leave {name} out"
        )
    files = {}
    for part, folder in parts.items():
        files[part], rest = class_files(folder)
        rest.warn(folder)
    return _of_files(name, root, files)


def _of_files(name: str, root: Path, parts: Mapping[str, Mapping[str, Sequence[Path]]]) -> Sets:
    """Return the sets of each class's files by part; all parts need the same classes."""
    classes = sorted(label for label, files in parts["train"].items() if files)
    for part, by_class in parts.items():
        found = {label for label, images in by_class.items() if images}
        odd = sorted(found.symmetric_difference(classes))
        if odd or not found:
            raise ValueError(
                f"train and {part} of {root} need images of the same classes; in one of them only: "
                f"{listed(odd) or 'no class at all'}"
            )
    names = clean(classes)
    sets = {}
    for part, by_class in parts.items():
        files = tuple(file for label in classes for file in by_class[label])
        labels = np.repeat(np.arange(len(classes)), [len(by_class[label]) for label in classes])
        sets[part] = ImageSet(f"{name}.{part}", files, labels, names)
    return sets, names
