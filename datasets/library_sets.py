"""Labelled images that torchvision and scikit-learn read, split for frozen features."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datasets.folders import clean
from datasets.reading import as_image, as_pixels, in_rgb, orientation, upright

LOG = logging.getLogger(__name__)

Labels = NDArray[np.int64]


class Wrapped:
    """Some rows of another library's dataset as ``Images``; ``items[row][0]`` is a PIL image."""

    def __init__(self, name: str, items: Any, labels: Labels, rows: Labels | None = None) -> None:
        self.name = name
        self.items = items
        self.rows = np.arange(len(labels)) if rows is None else rows  # (N,) of items
        self.labels = labels  # (N,) of the rows

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, row: int) -> Image.Image:
        try:
            image: Image.Image = self.items[int(self.rows[row])][0]
            return as_image(upright(as_pixels(in_rgb(image)), orientation(image)))
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
    per_class: bool = False  # scored by the mean of class accuracies


_TRAIN, _TEST = {"train": True}, {"train": False}
SOURCES = {
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


def draw(
    labels: Labels, counts: tuple[int, int] | None, rng: np.random.Generator
) -> tuple[Labels, Labels]:
    """Draw rows of each class for train and for test; return both, ascending and disjoint.

    ``counts`` are images of each class for train and, of those left, for test; None: halves, of an
    odd number the larger for train. At least one image is left for test.
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


def read_torchvision(
    name: str, root: Path, rng: np.random.Generator
) -> tuple[dict[str, Wrapped], tuple[str, ...]]:
    """Return the sets of a dataset of ``SOURCES`` by part, and its class names."""
    source = SOURCES[name]
    parts = {
        part: _open(name, source, root, options)
        for part in ("train", "val", "test")
        if (options := getattr(source, part)) is not None
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
    sets = {
        part: Wrapped(f"{name}.{part}", items, labels[part][rows[part]], rows[part])
        for part, items in parts.items()
    }
    return sets, names


def _open(name: str, source: Source, root: Path, options: Mapping[str, Any]) -> Any:
    from torchvision import datasets as torchvision_datasets

    kind = getattr(torchvision_datasets, source.kind)
    try:
        return kind(str(root), **options)
    except Exception as error:  # torchvision's errors vary: no file, no folder, no h5py
        LOG.info("%s is not complete in %s (%s); torchvision downloads it", name, root, error)
    try:
        root.mkdir(parents=True, exist_ok=True)
        return kind(str(root), **options, download=True)
    except Exception as error:
        raise FileNotFoundError(
            f"there are no complete images in {root / source.place}, and torchvision could not "
            f"download them ({type(error).__name__}: {error}); put there what "
            f"torchvision.datasets.{source.kind} reads, give another --source_path, or leave "
            f"{name} out"
        ) from error


def _labels(items: Any) -> Labels:
    """Return the classes of a torchvision dataset without decoding an image."""
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
    return clean(getattr(items, "classes", None) or items.categories)


def read_digits(rng: np.random.Generator) -> tuple[dict[str, Wrapped], tuple[str, ...]]:
    """Return halves of the 8 x 8 handwritten digits of UCI that scikit-learn carries."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8) of 0 to 16
    items = [(Image.fromarray(image),) for image in pixels]
    labels = bunch.target.astype(np.int64)
    drawn = zip(("train", "test"), draw(labels, None, rng), strict=True)
    sets = {part: Wrapped(f"digits.{part}", items, labels[rows], rows) for part, rows in drawn}
    return sets, tuple("0123456789")
