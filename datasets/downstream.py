"""The labelled images on which frozen features are judged: train, validation and test of a dataset.

Train and test share their classes, which tells these sets from those of ``datasets.splits``.

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

Where no validation images are named, ``evaluation.linear_probe`` takes some of train. * is scored
by the mean of class accuracies. Sizes of drawn splits follow Radford et al., Learning Transferable
Visual Models From Natural Language Supervision, ICML 2021, table 9, but the draws are ours, and so
are clevr-counts (its test images have no labels) and stl10 (they train on one fold). caltech101 is
without its background class.

Of emoji, cub200, online_products, inshop and inat only the classes that ``datasets.splits`` tests
on are taken, so that a model that was trained on the others is judged on classes it never saw.
cub2011 and cars196 hold all classes.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datasets import splits
from datasets.caption_index import labelled_manifest
from datasets.folders import clean, expected_tree, listed, read_class_folders, visible
from datasets.image_files import image_files
from datasets.image_set import Images, ImageSet
from datasets.readable import keep_readable
from utilities.registry import closest_first
from utilities.seeding import derive

log = logging.getLogger(__name__)

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Downstream:
    """A dataset for frozen features. Labels mean the same class in each of its sets."""

    name: str  # as asked for: "emoji:groups"
    train: Images
    val: Images | None  # None: none are published
    test: Images
    class_names: tuple[str, ...]  # (C,)
    per_class: bool = False  # scored by the mean of class accuracies

    @property
    def n_classes(self) -> int:
        return len(self.class_names)


class Wrapped:
    """Some rows of another library's dataset, whose items begin with an image, as ``Images``.

    Args:
        name: such as "cifar10.test".
        items: ``items[row][0]`` is a PIL image.
        labels: (N,) classes of the rows.
        rows: (N,) of ``items``; None takes all.
    """

    def __init__(self, name: str, items: Any, labels: Labels, rows: Labels | None = None) -> None:
        self.name = name
        self.items = items
        self.rows = np.arange(len(labels)) if rows is None else rows
        self.labels = labels

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, row: int) -> Image.Image:
        try:
            image: Image.Image = self.items[int(self.rows[row])][0]
            return image.convert("RGB")
        except Exception as error:  # as in read_image
            raise OSError(f"cannot read image {row} of {self.name}: {error}") from error

    def label(self, row: int) -> int:
        return int(self.labels[row])

    def caption(self, row: int) -> str | None:
        return None


@dataclass(frozen=True)
class Source:
    """A dataset that torchvision reads."""

    kind: str  # its class in torchvision.datasets
    place: str  # of its files in --source_path
    train: Mapping[str, Any] = field(default_factory=lambda: {"split": "train"})
    test: Mapping[str, Any] | None = field(default_factory=lambda: {"split": "test"})
    val: Mapping[str, Any] | None = None
    drawn: tuple[int, int] | None = None  # images of each class for train and for test
    per_class: bool = False


_TRAIN, _TEST = {"train": True}, {"train": False}
_SOURCES = {
    "food101": Source("Food101", "food-101"),
    "cifar10": Source("CIFAR10", "cifar-10-batches-py", _TRAIN, _TEST),
    "cifar100": Source("CIFAR100", "cifar-100-python", _TRAIN, _TEST),
    "sun397": Source("SUN397", "SUN397", train={}, test=None, drawn=(50, 50)),
    "cars196": Source("StanfordCars", "stanford_cars"),
    "aircraft": Source("FGVCAircraft", "fgvc-aircraft-2013b", val={"split": "val"}, per_class=True),
    "dtd": Source("DTD", "dtd/dtd", val={"split": "val"}),
    "pets": Source("OxfordIIITPet", "oxford-iiit-pet", {"split": "trainval"}, per_class=True),
    "caltech101": Source(
        "Caltech101",
        "caltech101/101_ObjectCategories",
        train={},
        test=None,
        drawn=(30, 2**31),
        per_class=True,
    ),
    "flowers": Source("Flowers102", "flowers-102", val={"split": "val"}, per_class=True),
    "stl10": Source("STL10", "stl10_binary"),
    "eurosat": Source("EuroSAT", "eurosat/2750", train={}, test=None, drawn=(1000, 500)),
    "mnist": Source("MNIST", "MNIST/raw", _TRAIN, _TEST),
    "pcam": Source("PCAM", "pcam", val={"split": "val"}),
    "clevr-counts": Source(
        "CLEVRClassification", "clevr/CLEVR_v1.0", test={"split": "val"}, drawn=(250, 625)
    ),
}
_FOLDERS = ("cub2011", "resisc45", "imagenet")
_UNSEEN = ("emoji", "cub200", *splits.LISTS)  # judged on the classes of their test split
KNOWN = (*sorted({*_SOURCES, *_FOLDERS}), "digits", *_UNSEEN)


def build(name: str, source_path: Path, *, seed: int = 0) -> Downstream:
    """The dataset ``name`` of the table above.

    Args:
        name: as in the table.
        source_path: folder of all datasets; torchvision downloads into it what is missing.
        seed: of drawn splits; the benchmark's own, and not a run's, so that all runs share them.

    Raises:
        FileNotFoundError: the images are not there and cannot be had; says where they belong.
        ValueError: classes that do not agree, or that have no groups when these are asked for.
    """
    base, _, groups = name.partition(":")
    if groups not in ("", "groups"):
        raise ValueError(
            f"--evaluation_datasets {name}: only :groups can follow a name; use {base}:groups or "
            f"{base}"
        )
    rng = np.random.default_rng(derive(seed, "downstream", base))
    if groups:
        return _by_group(name, labelled(base, source_path), rng)
    if base == "digits":
        return _digits(rng)
    if base == "cub2011":
        return _cub(source_path, rng)
    if base == "cars196" and not (source_path / "stanford_cars").is_dir():
        root = source_path / base
        if any((root / folder).is_dir() for folder in ("train", "images")):
            return _from_folders(base, root, rng)
    if base in _SOURCES:
        return _from_torchvision(base, _SOURCES[base], source_path, rng)
    if base == "resisc45":
        return _from_folders(base, source_path / base, rng, drawn=(70, 560))
    if base == "imagenet" or (source_path / base / "train").is_dir():
        return _from_folders(base, source_path / base, rng)
    return _halved(base, labelled(base, source_path), rng)


def draw(
    labels: Labels, counts: tuple[int, int] | None, rng: np.random.Generator
) -> tuple[Labels, Labels]:
    """Rows for train and for test, drawn from each class alike.

    Args:
        labels: (N,) classes.
        counts: images of each class for train and, of what is left, for test; None: halves, of an
            odd number the larger for train. One image at least is not for train.

    Returns:
        ascending rows of each, which share none.
    """
    parts: tuple[list[int], list[int]] = ([], [])
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        first, then = counts or (-(-len(rows) // 2), len(rows))
        first = min(first, len(rows) - 1)
        parts[0].extend(rows[:first])
        parts[1].extend(rows[first : first + then])
    train, test = (np.sort(np.array(part, dtype=np.int64)) for part in parts)
    return train, test


# ------------------------------------------------------------------------------------- torchvision


def _from_torchvision(
    name: str, source: Source, root: Path, rng: np.random.Generator
) -> Downstream:
    parts = {
        part: _open(name, source, root, getattr(source, part))
        for part in ("train", "val", "test")
        if getattr(source, part) is not None
    }
    labels = {part: _labels(items) for part, items in parts.items()}
    rows: dict[str, Labels] = {part: np.arange(len(labels[part])) for part in parts}
    if source.drawn and source.test is None:
        # Some of torchvision's readers list files in the order of the disk.
        order = np.argsort([str(path) for path in getattr(parts["train"], "_image_files", [])])
        order = order if len(order) else np.arange(len(labels["train"]))
        drawn = draw(labels["train"][order], source.drawn, rng)
        parts["test"], labels["test"] = parts["train"], labels["train"]
        rows["train"], rows["test"] = (order[part] for part in drawn)
    elif source.drawn:
        for part, count in zip(("train", "test"), source.drawn, strict=True):
            rows[part] = draw(labels[part], (count, 0), rng)[0]

    names = _class_names(name, parts["train"], labels["train"])
    if name == "clevr-counts":  # labels are numbers of objects
        least = labels["train"].min()
        labels = {part: numbers - least for part, numbers in labels.items()}
    sets = {}
    for part, items in parts.items():
        sets[part] = Wrapped(f"{name}.{part}", items, labels[part][rows[part]], rows[part])
    return Downstream(
        name, sets["train"], sets.get("val"), sets["test"], names, per_class=source.per_class
    )


def _open(name: str, source: Source, root: Path, options: Mapping[str, Any]) -> Any:
    """torchvision's dataset, downloaded if it is missing."""
    from torchvision import datasets as torchvision_datasets

    kind = getattr(torchvision_datasets, source.kind)
    try:
        return kind(str(root), **options)
    except Exception as error:  # torchvision raises whatever meets it: no file, no folder, no h5py
        log.info("%s is not whole in %s (%s); torchvision downloads it", name, root, error)
    try:
        root.mkdir(parents=True, exist_ok=True)
        return kind(str(root), **options, download=True)
    except Exception as error:
        raise FileNotFoundError(
            f"--evaluation_datasets {name}: there are no whole images in {root / source.place}, "
            f"and torchvision could not download them ({type(error).__name__}: {error}); put there "
            f"what torchvision.datasets.{source.kind} reads, give another --source_path, or leave "
            f"{name} out"
        ) from error


def _labels(items: Any) -> Labels:
    """The classes of a torchvision dataset, without decoding an image."""
    for attribute in ("_labels", "targets", "labels", "y"):
        if hasattr(items, attribute):
            return np.asarray(getattr(items, attribute), dtype=np.int64)
    # PCAM keeps them in a file of its own, (N, 1, 1, 1).
    file = items._base_folder / items._FILES[items._split]["targets"][0]
    with items.h5py.File(file) as targets:
        return np.asarray(targets["y"], dtype=np.int64).reshape(-1)


def _class_names(name: str, items: Any, labels: Labels) -> tuple[str, ...]:
    if name == "clevr-counts":
        return tuple(f"{count} objects" for count in range(labels.min(), labels.max() + 1))
    if name == "pcam":
        return "no tumour", "tumour"
    return tuple(map(clean, getattr(items, "classes", None) or items.categories))


def _digits(rng: np.random.Generator) -> Downstream:
    """Handwritten digits of UCI, 8 x 8 pixels, as scikit-learn carries them."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8) of 0 to 16
    items = [(Image.fromarray(image),) for image in pixels]
    labels = bunch.target.astype(np.int64)
    train, test = (
        Wrapped(f"digits.{part}", items, labels[rows], rows)
        for part, rows in zip(("train", "test"), draw(labels, None, rng), strict=True)
    )
    return Downstream("digits", train, None, test, tuple("0123456789"))


# ----------------------------------------------------------------------------------------- folders


def is_ours(name: str, source_path: Path) -> bool:
    """Whether ``labelled`` has the images of ``name``: a benchmark of ours or a user's folder."""
    root = source_path / name
    own = (root / "images").is_dir() or labelled_manifest(root) is not None
    return name in _UNSEEN or (name not in KNOWN and own)


def labelled(name: str, source_path: Path) -> ImageSet:
    """All images that a labelled dataset of ours gives to this evaluation."""
    if name in _UNSEEN:
        return splits.read(name, source_path)[1]
    root = source_path / name
    if not root.is_dir():
        raise FileNotFoundError(
            f"--evaluation_datasets {name}: there is no folder {root}. Known datasets, closest "
            f"first: {', '.join(closest_first(name, KNOWN))}; one of your own is laid out as"
            f"{expected_tree(root)}"
        )
    _, laid_out = splits.read_layout(name, source_path)
    (images,) = keep_readable(laid_out.get("test") or laid_out["all"], root=root)
    return images


def _halved(
    name: str,
    images: ImageSet,
    rng: np.random.Generator,
    drawn: tuple[int, int] | None = None,
) -> Downstream:
    """Images of each class for train and for test; a class of one image is left out."""
    sizes = np.bincount(images.labels)
    if (sizes < 2).any():
        log.warning(
            "%s: %d classes have one image, which cannot be both learned from and tested on; they "
            "are left out: %s",
            *(name, (sizes < 2).sum(), listed(np.array(images.class_names)[sizes < 2])),
        )
        images = images.of_classes(np.flatnonzero(sizes >= 2), images.name)
    if images.n_classes < 2:
        raise ValueError(
            f"--evaluation_datasets {name}: {images.n_classes} class has two images or more; "
            "classification needs two such classes"
        )
    train, test = draw(images.labels, drawn, rng)
    return Downstream(
        name,
        images.subset(train, f"{name}.downstream.train"),
        None,
        images.subset(test, f"{name}.downstream.test"),
        images.class_names,
    )


def _by_group(name: str, images: ImageSet, rng: np.random.Generator) -> Downstream:
    """Halves of each class as without :groups, labelled by the groups of the classes."""
    if not images.class_groups:
        raise ValueError(
            f"--evaluation_datasets {name}: the classes of {images.name} have no groups; give each "
            f'a "group" in its classes.json, or ask for {name.partition(":")[0]}'
        )
    halves = _halved(name, images, rng)
    names = tuple(sorted(set(images.class_groups)))
    numbers = {group: number for number, group in enumerate(names)}

    def regroup(half: Images) -> ImageSet:
        assert isinstance(half, ImageSet)
        labels = np.array([numbers[group] for group in half.class_groups])[half.labels]
        return replace(half, labels=labels, class_names=names, class_groups=())

    return replace(
        halves, train=regroup(halves.train), test=regroup(halves.test), class_names=names
    )


def _cub(source_path: Path, rng: np.random.Generator) -> Downstream:
    """CUB-200-2011 as its lists split it: Wah et al., Technical Report, Caltech, 2011."""
    roots = [source_path / name for name in ("cub2011", "CUB_200_2011", "cub200")]
    root = next((root for root in roots if root.is_dir()), None)
    if root is None:
        raise FileNotFoundError(
            f"--evaluation_datasets cub2011: none of {', '.join(map(str, roots))} exists; unpack "
            f"CUB_200_2011.tgz in {source_path}, or leave cub2011 out"
        )
    lists = root / "images.txt", root / "train_test_split.txt"
    if not all(file.is_file() for file in lists):
        (images,) = keep_readable(read_class_folders(root), root=root)
        return _halved("cub2011", images, rng)
    path_of, trains = (
        dict(line.split(maxsplit=1) for line in file.read_text(encoding="utf-8").splitlines())
        for file in lists
    )
    parts: tuple[dict[str, list[Path]], ...] = ({}, {})
    for number, path in path_of.items():
        file = root / "images" / path
        parts[trains[number].strip() != "1"].setdefault(file.parent.name, []).append(file)
    return _of_files("cub2011", root, dict(zip(("train", "test"), parts, strict=True)))


def _from_folders(
    name: str, root: Path, rng: np.random.Generator, drawn: tuple[int, int] | None = None
) -> Downstream:
    """``train/<class>/`` and ``test/<class>/`` or ``val/<class>/``; else ``images/<class>/``.

    With both, val is for choosing hyperparameters; val alone is what is tested on.
    """
    if (root / "images").is_dir():
        (images,) = keep_readable(read_class_folders(root), root=root)
        return _halved(name, images, rng, drawn)
    parts = {part: root / part for part in ("train", "val", "test") if (root / part).is_dir()}
    if "test" not in parts and "val" in parts:
        parts["test"] = parts.pop("val")
    if not {"train", "test"} <= set(parts):
        raise FileNotFoundError(
            f"--evaluation_datasets {name}: {root} holds no images as\n  {root}/train/<class>/*\n"
            f"  {root}/test/<class>/*  (or val)\nnor as\n  {root}/images/<class>/*\n"
            f"put them there, give another --source_path, or leave {name} out"
        )
    files = {
        part: {
            path.name: image_files(path, recursive=False).paths
            for path in visible(folder)
            if path.is_dir()
        }
        for part, folder in parts.items()
    }
    return _of_files(name, root, files)


def _of_files(
    name: str, root: Path, parts: Mapping[str, Mapping[str, Sequence[Path]]]
) -> Downstream:
    """Of the files of each class in each part; all parts must have the same classes."""
    classes = sorted(label for label, files in parts["train"].items() if files)
    for part, by_class in parts.items():
        found = {label for label, files in by_class.items() if files}
        odd = sorted(found.symmetric_difference(classes))
        if odd or not found:
            raise ValueError(
                f"--evaluation_datasets {name}: train and {part} of {root} need images of the same "
                f"classes; in one of them only: {listed(odd) or 'no class at all'}"
            )
    sets = {
        part: ImageSet(
            f"{name}.{part}",
            tuple(file for label in classes for file in by_class[label]),
            np.repeat(np.arange(len(classes)), [len(by_class[label]) for label in classes]),
            tuple(map(clean, classes)),
        )
        for part, by_class in parts.items()
    }
    return Downstream(
        name, sets["train"], sets.get("val"), sets["test"], tuple(map(clean, classes))
    )
