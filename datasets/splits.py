"""Which classes are trained on, which choose hyperparameters, and which are tested on."""

import argparse
import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets import emoji, openclipart
from datasets.caption_index import columns, is_caption_set, labelled_manifest
from datasets.caption_set import CaptionSet, open_caption_set
from datasets.folders import (
    MANIFESTS,
    expected_tree,
    find,
    read_class_folders,
    read_online_products,
)
from datasets.image_set import ImageSet
from datasets.lists import read_inat, read_inshop
from datasets.manifest import read_manifest
from datasets.readable import keep_readable
from utilities.files import cache_folder
from utilities.seeding import derive

log = logging.getLogger(__name__)

EMOJI_SPLIT_SEED = 0  # the benchmark's own: its test classes are the same for every --seed
LISTS = {  # datasets whose lists name train and test
    "online_products": read_online_products,
    "inshop": read_inshop,
    "inat": read_inat,
}


class Data(NamedTuple):
    """The images of one dataset. Classes of ``train`` and ``test`` never meet."""

    train: ImageSet | CaptionSet
    val: ImageSet | None  # None without --use_tv_split, --cv_folds or a manifest that names some
    test: ImageSet | None  # None where images have captions instead of classes


def source_folder(args: argparse.Namespace) -> Path:
    """``--source_path``, or the user's cache folder."""
    given = args.source_path
    return Path(given).expanduser() if given else cache_folder() / "datasets"


def build(args: argparse.Namespace) -> Data:
    """The dataset of ``--dataset``, split as the flags say; see ``read_splits``, ``hold_out``,
    ``fold``.

    A set of images and captions has no classes to hold out: all of it is trained on.

    Raises:
        ValueError: ``--use_tv_split`` or ``--cv_folds`` of such a set, both of them, or folds where
            a manifest names the validation images; also as ``read_splits``.
    """
    n_folds = args.cv_folds
    if n_folds and args.use_tv_split:
        raise ValueError(
            f"--cv_folds {n_folds} and --use_tv_split both hold out validation images; give one of "
            "them"
        )
    source_path = source_folder(args)
    root = source_path / args.dataset
    if args.dataset == "openclipart":
        root = openclipart.prepare(source_path)
    if is_caption_set(root):
        if args.use_tv_split or n_folds:
            flag = f"--cv_folds {n_folds}" if n_folds else "--use_tv_split"
            raise ValueError(
                f"{flag} holds out classes, --dataset {args.dataset} has captions instead; "
                "choose by --evaluation_datasets"
            )
        return Data(open_caption_set(root), None, None)
    train, val, test = read_splits(args.dataset, source_path)
    if n_folds:
        if val is not None:
            raise ValueError(
                f"--cv_folds {n_folds} holds out classes of train in turn, the manifest in {root} "
                "names validation images of its own; let them be train"
            )
        train, val = fold(train, n_folds, args.cv_fold)
    elif args.use_tv_split and val is None:
        train, val = hold_out(
            train, args.tv_split_perc, by_samples=args.tv_split_by_samples, seed=args.seed
        )
    return Data(train, val, test)


class Labelled(NamedTuple):
    """The labelled images of a dataset; those that training validates on only where it says so."""

    train: ImageSet
    val: ImageSet | None
    test: ImageSet


def read(name: str, source_path: Path) -> tuple[ImageSet, ImageSet]:
    """Train and test of ``read_splits``."""
    parts = read_splits(name, source_path)
    return parts.train, parts.test


def read_splits(name: str, source_path: Path) -> Labelled:
    """The readable images of a dataset, split as it was published.

    cub200 and cars196 train on the first half of the sorted classes and are tested on the second,
    as a user's own do; online_products, inshop and inat bring their own lists, and a manifest may
    name splits. emoji is shuffled by a fixed seed first: alphabetical order is a little easier, for
    no good reason.

    Raises:
        FileNotFoundError: the images are not there or not laid out as expected; shows how.
        ValueError: there are too few classes to train on some and test on others; also as the
            readers of lists and manifests.
    """
    root, laid_out = read_layout(name, source_path)
    if name != "emoji":  # which is checked against its manifest
        readable = keep_readable(*laid_out.values(), root=root)
        laid_out = dict(zip(laid_out, readable, strict=True))
    parts = split(name, root, laid_out)
    for image_set in parts:
        if image_set is not None:
            _warn_of_lonely(image_set)
    return parts


def read_layout(name: str, source_path: Path) -> tuple[Path, dict[str, ImageSet]]:
    """A dataset's folder, and its images by part as they lie there; no image is opened.

    Returns:
        of the images train, test and perhaps val; or "all", which ``split`` splits.

    Raises:
        FileNotFoundError, ValueError: as ``read_splits``.
    """
    if name == "emoji":
        root = emoji.prepare(source_path)
        return root, {"all": read_class_folders(root)}
    root = find(name, source_path)
    if manifest := labelled_manifest(root):
        return root, read_manifest(manifest)
    for file in (root / name for name in MANIFESTS):
        if file.is_file():
            log.warning(
                "%s is not read, for it has no column `label` (it has: %s)",
                *(file, ", ".join(columns(file))),
            )
    if name in LISTS:
        train, test = LISTS[name](root)
        return root, {"train": train, "test": test}
    return root, {"all": read_class_folders(root)}


def split(name: str, root: Path, laid_out: dict[str, ImageSet]) -> Labelled:
    """What ``read_layout`` found, as train, val and test.

    Raises:
        ValueError: there are too few classes to train on some and test on others.
    """
    if "all" not in laid_out:
        return Labelled(laid_out["train"], laid_out.get("val"), laid_out["test"])
    images = laid_out["all"]
    if images.n_classes < 4:
        place = labelled_manifest(root) or root / "images"
        raise ValueError(
            f"{place} holds {images.n_classes} classes with images "
            f"({', '.join(images.class_names)}); half are trained on and half are tested on, so at "
            f"least 4 are needed{expected_tree(root)}"
        )
    if name == "emoji":
        rng = np.random.default_rng(EMOJI_SPLIT_SEED)
        return _halves(images, rng.permutation(images.n_classes))
    return _halves(images, np.arange(images.n_classes))


def _warn_of_lonely(images: ImageSet) -> None:
    if images.queries is None:
        single = sum(len(rows) == 1 for rows in images.rows_by_class)
        if single:
            log.warning(
                "%s: %d of %d classes have one image: it finds no other of its class, and gives no "
                "positive pair",
                *(images.name, single, images.n_classes),
            )
        return
    asked, there = images.labels[images.queries], images.labels[~images.queries]
    lost = int((~np.isin(asked, there)).sum())
    if lost:
        log.warning(
            "%s: %d of %d queries have no image of their class in the gallery, and do not count",
            *(images.name, lost, len(asked)),
        )


def _halves(images: ImageSet, order: np.ndarray) -> Labelled:
    """The classes of the first and of the second half of ``order``; an odd one goes to test."""
    middle = len(order) // 2
    return Labelled(
        images.of_classes(order[:middle], f"{images.name}.train"),
        None,
        images.of_classes(order[middle:], f"{images.name}.test"),
    )


def fold(train: ImageSet, n_folds: int, held_out: int) -> tuple[ImageSet, ImageSet]:
    """Split training classes into those trained on and one of ``n_folds`` parts that validates.

    Source: Musgrave et al., A Metric Learning Reality Check, ECCV 2020, section 4.1, who take 4.
    A fold is a run of the sorted classes, as theirs is: sorted neighbours are often of one kind
    (the warblers of cub200, the makes of cars196), so that validation asks for classes as unlike
    those that were trained on as test does, which is the other half of the sorted classes. Nothing
    is drawn, and so a fold is the same for every ``--seed`` and trials compare. Sizes differ by one
    class at most, the first folds being the larger.

    Args:
        n_folds: ``--cv_folds``, K.
        held_out: ``--cv_fold``, the fold that validates, in [0, K).

    Returns:
        the other folds, and fold ``held_out``. Over all K each class is held out once.

    Raises:
        ValueError: there is no such fold, or a part would have fewer than two classes.
    """
    if n_folds < 2:
        raise ValueError(f"--cv_folds {n_folds} leaves nothing to train on; use 2 or more")
    if not 0 <= held_out < n_folds:
        raise ValueError(
            f"--cv_fold {held_out} is none of --cv_folds {n_folds}; use one from 0 to {n_folds - 1}"
        )
    if train.n_classes < 2 * n_folds:
        raise ValueError(
            f"--cv_folds {n_folds} of {train.n_classes} training classes leave fewer than 2 in a "
            f"fold; use {train.n_classes // 2} or fewer"
            if train.n_classes > 3
            else f"--cv_folds needs 4 training classes, {train.name} has {train.n_classes}"
        )
    folds = np.array_split(np.arange(train.n_classes), n_folds)
    rest = np.concatenate([part for number, part in enumerate(folds) if number != held_out])
    name = f"{train.name.removesuffix('.train')}.fold{held_out}of{n_folds}"
    return train.of_classes(rest, train.name), train.of_classes(folds[held_out], name)


def hold_out(
    train: ImageSet, share: float, *, by_samples: bool = False, seed: int = 0
) -> tuple[ImageSet, ImageSet]:
    """Split training images into those trained on and those that choose hyperparameters.

    Args:
        share: of the classes that stays in train, in (0, 1); ``--tv_split_perc``.
        by_samples: split each class's images instead, so that both parts know every class. A class
            of one image stays in train.
        seed: the split is another one for every ``--seed``, so that a choice over seeds is not a
            choice for one lucky split.

    Raises:
        ValueError: a part would have fewer than two classes, or no image.
    """
    rng = np.random.default_rng(derive(seed, "train/validation split"))
    names = (train.name, f"{train.name.removesuffix('.train')}.val")
    if by_samples:
        kept: list[int] = []
        held: list[int] = []
        for rows in train.rows_by_class:
            rows = rng.permutation(rows)
            stays = max(1, round(share * len(rows)))
            kept.extend(rows[:stays])
            held.extend(rows[stays:])
        if not held:
            raise ValueError(
                f"--tv_split_perc {share} --tv_split_by_samples leaves no image for validation: "
                f"the largest class has {max(map(len, train.rows_by_class))}; use a smaller share"
            )
        return train.subset(sorted(kept), names[0]), train.subset(sorted(held), names[1])

    order = rng.permutation(train.n_classes)
    stays = round(share * train.n_classes)
    if min(stays, train.n_classes - stays) < 2:
        raise ValueError(
            f"--tv_split_perc {share} splits {train.n_classes} training classes into {stays} and "
            f"{train.n_classes - stays}; each part needs 2"
        )
    return train.of_classes(order[:stays], names[0]), train.of_classes(order[stays:], names[1])
