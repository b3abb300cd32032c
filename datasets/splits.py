"""Splits a dataset into the classes that are trained on, validated on and tested on."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets import drawings, emoji, openclipart
from datasets.caption_index.layouts import columns, is_caption_set, labelled_manifest
from datasets.caption_set import CaptionSet, open_caption_set
from datasets.folders import MANIFESTS, class_files, find, listed, read_class_folders
from datasets.image_files import refuse_unreadable_names
from datasets.image_set import ImageSet
from datasets.lists import read_inat, read_inshop, read_online_products
from datasets.manifest import read_manifest
from datasets.readable import keep_readable
from utilities.seeding import derive

LOG = logging.getLogger(__name__)

EMOJI_SPLIT_SEED = 0  # part of the benchmark: the same test classes for every --seed
LISTS = {  # datasets whose lists name train and test
    "online_products": read_online_products,
    "inshop": read_inshop,
    "inat": read_inat,
}


class Data(NamedTuple):
    """The images of one dataset. Train and test share no class."""

    train: ImageSet | CaptionSet
    val: ImageSet | None
    test: ImageSet | None  # None without test classes, as for images with captions


class Splits(NamedTuple):
    """The labelled images of a dataset. Train and test share no class."""

    train: ImageSet
    val: ImageSet | None  # only from a manifest that names some
    test: ImageSet | None  # None if all classes are trained on


def load(
    name: str,
    source_path: Path,
    classes: Mapping[str, Sequence[str]] | None = None,
    *,
    test_classes: int | None = None,
    test_fraction: float | None = None,
    use_tv_split: bool = False,
    tv_split_perc: float = 0.8,
    tv_split_by_samples: bool = False,
    cv_folds: int = 0,
    cv_fold: int = 0,
    train_classes: int = 0,
    seed: int = 0,
) -> Data:
    """Return the images of a dataset, with validation images if some are to be held out.

    Args:
        classes: names of the classes of train, val and test, instead of halves and folds; other
            classes are left out. Without effect on lists and manifests.
        test_classes, test_fraction: number or share of the classes to test on (``n_tested``).
        use_tv_split: hold out training images (``hold_out``), unless a manifest names some.
        cv_folds, cv_fold: hold out a fold of the training classes (``fold``); 0 for no folds.
        train_classes: train on as many of the remaining classes, drawn by the seed; 0 for all. The
            draws of one seed contain each other.

    Raises:
        FileNotFoundError: as ``read_splits``.
        ValueError: as ``read_splits``; or classes cannot be held out as asked.
    """
    root = openclipart.prepare(source_path) if name == "openclipart" else source_path / name
    if is_caption_set(root):
        if use_tv_split or cv_folds:
            raise ValueError(
                f"{'cv_folds' if cv_folds else 'use_tv_split'} holds out classes, --dataset {name} "
                "has captions instead; use --evaluation_datasets to choose a checkpoint"
            )
        if train_classes:
            raise ValueError(
                f"train_classes draws classes, --dataset {name} has captions instead; leave it out"
            )
        if test_classes is not None or test_fraction is not None:
            raise ValueError(
                f"{_asked(test_classes, test_fraction)} splits classes, --dataset {name} has "
                "captions instead; leave it out"
            )
        return Data(open_caption_set(root), None, None)
    if classes and tv_split_by_samples:  # val holds other images of the classes of train
        classes = {part: names for part, names in classes.items() if part != "val"}
    train, val, test = read_splits(
        name, source_path, classes, test_classes=test_classes, test_fraction=test_fraction
    )
    if cv_folds and val is None:
        train, val = fold(train, cv_folds, cv_fold)
    elif cv_folds and val is not None:
        if not classes:
            raise ValueError(
                f"cv_folds holds out classes of train in turn, but the manifest in {root} names "
                "validation images of its own; let them be train"
            )
        val = replace(val, name=_fold_name(train, cv_folds, cv_fold))
    elif use_tv_split and val is None:
        train, val = hold_out(train, tv_split_perc, by_samples=tv_split_by_samples, seed=seed)
    if train_classes:
        train = draw_classes(train, train_classes, seed)
    return Data(train, val, test)


def read(name: str, source_path: Path) -> tuple[ImageSet, ImageSet]:
    """Return train and test of ``read_splits``; ValueError if a manifest names no test images."""
    splits = read_splits(name, source_path)
    if splits.test is None:
        raise ValueError(f"the manifest of {name} names no test images; add some to evaluate on")
    return splits.train, splits.test


def read_splits(
    name: str,
    source_path: Path,
    classes: Mapping[str, Sequence[str]] | None = None,
    *,
    test_classes: int | None = None,
    test_fraction: float | None = None,
) -> Splits:
    """Return the readable images of a dataset in its published split.

    cub200, cars196 and your own datasets train on the first half of the sorted classes and test on
    the second (``n_tested`` changes the share); online_products, inshop and inat bring lists, and a
    manifest may name splits.
    emoji's classes are shuffled by a fixed seed first: in alphabetical order they are easier. A
    folder of your own of that name is split as your others.

    Raises:
        FileNotFoundError: the images are missing or not laid out as expected; shows how.
        ValueError: there are too few classes, or a list or manifest is wrong.
    """
    root, laid_out = read_layout(name, source_path)
    if not is_emoji(root):  # which is checked against its manifest
        readable = keep_readable(*laid_out.values(), root=root)
        laid_out = dict(zip(laid_out, readable, strict=True))
    splits = split(root, laid_out, classes, test_classes=test_classes, test_fraction=test_fraction)
    for images in splits:
        if images is not None and (lonely := len(images.unmatched)):
            LOG.warning(
                "%s: %d classes have one image, which retrieval cannot match"
                if images.queries is None
                else "%s: ignored %d queries without an image of their class in the gallery",
                *(images.name, lonely),
            )
    return splits


def is_emoji(root: Path) -> bool:
    """Return whether a folder is the built benchmark: not the user's own of that name."""
    return root.name == "emoji" and not drawings.is_own(root)


def n_labelled(root: Path) -> int:
    """Return the number of labelled images in one's own dataset, 0 if it is not one."""
    if manifest := labelled_manifest(root):
        return sum(map(len, read_manifest(manifest).values()))
    images = root / "images"
    return sum(map(len, class_files(images)[0].values())) if images.is_dir() else 0


def read_layout(name: str, source_path: Path) -> tuple[Path, dict[str, ImageSet]]:
    """Return a dataset's folder and its images by part, or of "all"; no image is opened."""
    refuse_unreadable_names([source_path / name])
    if name == "emoji":
        root = emoji.prepare(source_path)
        if is_emoji(root):
            return root, {"all": read_class_folders(root)}
    root = find(name, source_path)
    if manifest := labelled_manifest(root):
        return root, read_manifest(manifest)
    for file in (root / name for name in MANIFESTS):
        if file.is_file():
            LOG.warning(
                "ignored %s, which has no column `label` (it has: %s)",
                *(file, ", ".join(columns(file))),
            )
    if name in LISTS:
        train, test = LISTS[name](root)
        return root, {"train": train, "test": test}
    return root, {"all": read_class_folders(root)}


def split(
    root: Path,
    laid_out: dict[str, ImageSet],
    classes: Mapping[str, Sequence[str]] | None = None,
    *,
    test_classes: int | None = None,
    test_fraction: float | None = None,
) -> Splits:
    """Split what ``read_layout`` returned; raise ValueError if there are too few classes."""
    if "all" not in laid_out:
        if test_classes is not None or test_fraction is not None:
            raise ValueError(
                f"{_asked(test_classes, test_fraction)} splits classes, but {root} brings a split "
                "of its own; leave it out, or remove the column split from its manifest"
            )
        return Splits(laid_out["train"], laid_out.get("val"), laid_out.get("test"))
    images = laid_out["all"]
    if classes and (known := _by_names(images, classes)):
        return known
    place = labelled_manifest(root) or root / "images"
    n_test = n_tested(images, place, test_classes, test_fraction)
    order = np.arange(images.n_classes)
    if is_emoji(root):
        order = np.random.default_rng(EMOJI_SPLIT_SEED).permutation(images.n_classes)
    trained, tested = order[: len(order) - n_test], order[len(order) - n_test :]
    return Splits(
        images.of_classes(trained, f"{images.name}.train"),
        None,
        images.of_classes(tested, f"{images.name}.test") if n_test else None,
    )


def n_tested(
    images: ImageSet, place: Path, test_classes: int | None, test_fraction: float | None
) -> int:
    """Return the number of classes to test on: the last ones; 0 trains on all, for deployment.

    Args:
        place: of the images, for errors.
        test_classes, test_fraction: number or share, of which an odd class goes to test; None and
            None for half of the classes.

    Raises:
        ValueError: fewer than 2 classes would be trained on or, unless none are, tested on.
    """
    n = images.n_classes
    share = 0.5 if test_fraction is None else test_fraction
    n_test = math.ceil(share * n - 1e-9) if test_classes is None else test_classes
    if n - n_test >= 2 and n_test != 1:
        return n_test
    holds = f"{place} holds {n} classes with images ({listed(images.class_names)})"
    if test_classes is None and test_fraction is None:
        raise ValueError(
            f"{holds}; half are trained on and half are tested on, so at least 4 are needed. "
            "--test_classes 0 trains on all"
        )
    most = f"from 2 to {n - 2}, or 0" if n >= 4 else "0" if n >= 2 else ""
    raise ValueError(
        f"{_asked(test_classes, test_fraction)} leaves {max(0, n - n_test)} classes to train on "
        f"and {n_test} to test on; {holds}, and each part needs 2"
        + (f"; use --test_classes {most}" if most else "")
    )


def _asked(test_classes: int | None, test_fraction: float | None) -> str:
    """Return the flag that chose the test classes, as it was typed."""
    if test_classes is not None:
        return f"--test_classes {test_classes}"
    return f"--test_fraction {test_fraction:g}"


def _by_names(images: ImageSet, classes: Mapping[str, Sequence[str]]) -> Splits | None:
    """Return the classes of these names; None if names are equal, or none of test is left.

    Of a run without test classes, none of train.
    """
    number = {name: label for label, name in enumerate(images.class_names)}
    kept = {
        part: [number[name] for name in names if name in number] for part, names in classes.items()
    }
    if len(number) < images.n_classes or not kept.get("test", kept.get("train")):
        return None
    known = {name for names in classes.values() for name in names}
    if new := [name for name in images.class_names if name not in known]:
        LOG.warning("left out %d classes that the training did not know: %s", len(new), listed(new))
    parts = {
        part: images.of_classes(labels, f"{images.name}.{part}") for part, labels in kept.items()
    }
    return Splits(parts["train"], parts.get("val") or None, parts.get("test"))


def fold(train: ImageSet, cv_folds: int, cv_fold: int) -> tuple[ImageSet, ImageSet]:
    """Split training classes into ``cv_folds`` parts; return the others and part ``cv_fold``.

    Source: Musgrave et al., A Metric Learning Reality Check, ECCV 2020, section 4.1, with 4 folds.
    A fold is a run of the sorted classes, like theirs, the same for every ``--seed``. Neighbours in
    the alphabet are often of one kind (the warblers of cub200), so that the held-out classes differ
    from the others as much as the test classes do.
    """
    if cv_folds < 2:
        raise ValueError(f"cv_folds must be at least 2; got {cv_folds}")
    if not 0 <= cv_fold < cv_folds:
        raise ValueError(f"cv_fold must be in 0 to {cv_folds - 1}; got {cv_fold}")
    if train.n_classes < 2 * cv_folds:
        most = train.n_classes // 2
        raise ValueError(
            f"cv_folds {cv_folds} leaves fewer than 2 of {train.n_classes} training classes in a "
            + (f"fold; use {most} or fewer" if most > 1 else "fold; 2 folds need 4 classes")
        )
    folds = np.array_split(np.arange(train.n_classes), cv_folds)
    others = np.concatenate([part for number, part in enumerate(folds) if number != cv_fold])
    name = _fold_name(train, cv_folds, cv_fold)
    return train.of_classes(others, train.name), train.of_classes(folds[cv_fold], name)


def _fold_name(train: ImageSet, cv_folds: int, cv_fold: int) -> str:
    return f"{train.name.removesuffix('.train')}.fold{cv_fold}of{cv_folds}"


def draw_classes(train: ImageSet, n: int, seed: int = 0) -> ImageSet:
    """Return ``n`` random classes of a set, the first of one order for each seed."""
    if not 2 <= n <= train.n_classes:
        raise ValueError(
            f"train_classes must be from 2 to {train.n_classes}, the training classes of "
            f"{train.name}, or 0 for all; got {n}"
        )
    order = np.random.default_rng(derive(seed, "training classes")).permutation(train.n_classes)
    return train.of_classes(order[:n], train.name)


def hold_out(
    train: ImageSet, tv_split_perc: float, *, by_samples: bool = False, seed: int = 0
) -> tuple[ImageSet, ImageSet]:
    """Split training images into those that are trained on and those that validate.

    Args:
        tv_split_perc: share of the classes that stays in train, in (0, 1).
        by_samples: split each class's images instead; a class of one image stays in train.
    """
    rng = np.random.default_rng(derive(seed, "train/validation split"))
    names = (train.name, f"{train.name.removesuffix('.train')}.val")
    if by_samples:
        kept: list[int] = []
        held: list[int] = []
        for rows in train.rows_by_class:
            rows = rng.permutation(rows)
            stays = max(1, round(tv_split_perc * len(rows)))
            kept.extend(rows[:stays])
            held.extend(rows[stays:])
        if not held:
            raise ValueError(
                f"tv_split_perc {tv_split_perc} --tv_split_by_samples leaves no image for "
                f"validation: the largest class has {max(map(len, train.rows_by_class))}; use a "
                "smaller share"
            )
        return train.subset(sorted(kept), names[0]), train.subset(sorted(held), names[1])

    order = rng.permutation(train.n_classes)
    stays = round(tv_split_perc * train.n_classes)
    if min(stays, train.n_classes - stays) < 2:
        raise ValueError(
            f"tv_split_perc {tv_split_perc} splits {train.n_classes} training classes into {stays} "
            f"and {train.n_classes - stays}; each part needs 2"
        )
    return train.of_classes(order[:stays], names[0]), train.of_classes(order[stays:], names[1])
