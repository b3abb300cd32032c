"""Which classes are trained on, which choose hyperparameters, and which are tested on."""

import argparse
import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets import emoji, openclipart
from datasets.caption_index import is_caption_set
from datasets.caption_set import CaptionSet, open_caption_set
from datasets.folders import expected_tree, find, read_class_folders, read_online_products
from datasets.image_set import ImageSet
from datasets.readable import keep_readable
from utilities.files import cache_folder
from utilities.seeding import derive

log = logging.getLogger(__name__)

EMOJI_SPLIT_SEED = 0  # the benchmark's own: its test classes are the same for every --seed


class Data(NamedTuple):
    """The images of one dataset. Classes of ``train`` and ``test`` never meet."""

    train: ImageSet | CaptionSet
    val: ImageSet | None  # None without --use_tv_split
    test: ImageSet | None  # None where images have captions instead of classes


def source_folder(args: argparse.Namespace) -> Path:
    """``--source_path``, or the user's cache folder."""
    given = args.source_path
    return Path(given).expanduser() if given else cache_folder() / "datasets"


def build(args: argparse.Namespace) -> Data:
    """The dataset of ``--dataset``, split as the flags say; see ``read`` and ``hold_out``.

    A set of images and captions has no classes to hold out: all of it is trained on.

    Raises:
        ValueError: ``--use_tv_split`` of such a set; also as ``read``.
    """
    source_path = source_folder(args)
    root = source_path / args.dataset
    if args.dataset == "openclipart":
        root = openclipart.prepare(source_path)
    if is_caption_set(root):
        if args.use_tv_split:
            raise ValueError(
                f"--use_tv_split holds out classes, --dataset {args.dataset} has captions instead; "
                "choose by --evaluation_datasets"
            )
        return Data(open_caption_set(root), None, None)
    train, test = read(args.dataset, source_path)
    val = None
    if args.use_tv_split:
        train, val = hold_out(
            train, args.tv_split_perc, by_samples=args.tv_split_by_samples, seed=args.seed
        )
    return Data(train, val, test)


def read(name: str, source_path: Path) -> tuple[ImageSet, ImageSet]:
    """Train and test images of a dataset.

    As published, cub200 and cars196 train on the first half of the sorted classes and are tested on
    the second, and online_products brings its own lists. emoji is shuffled by a fixed seed first:
    alphabetical order is a little easier, for no good reason.

    Raises:
        FileNotFoundError: the images are not there or not laid out as expected; shows how.
        ValueError: there are too few classes to train on some and test on others.
    """
    if name == "emoji":
        images = read_class_folders(emoji.prepare(source_path))
        order = np.random.default_rng(EMOJI_SPLIT_SEED).permutation(images.n_classes)
        train, test = _halves(images, order)
    else:
        root = find(name, source_path)
        if name == "online_products":
            train, test = keep_readable(*read_online_products(root), root=root)
        else:
            (images,) = keep_readable(read_class_folders(root), root=root)
            if images.n_classes < 4:
                raise ValueError(
                    f"{root / 'images'} holds {images.n_classes} classes with images "
                    f"({', '.join(images.class_names)}); half are trained on and half are tested "
                    f"on, so at least 4 are needed{expected_tree(root)}"
                )
            train, test = _halves(images, np.arange(images.n_classes))
    for image_set in (train, test):
        single = sum(len(rows) == 1 for rows in image_set.rows_by_class)
        if single:
            log.warning(
                "%s: %d of %d classes have one image: it finds no other of its class, and gives no "
                "positive pair",
                *(image_set.name, single, image_set.n_classes),
            )
    return train, test


def _halves(images: ImageSet, order: np.ndarray) -> tuple[ImageSet, ImageSet]:
    """The classes of the first and of the second half of ``order``; an odd one goes to test."""
    middle = len(order) // 2
    return (
        images.of_classes(order[:middle], f"{images.name}.train"),
        images.of_classes(order[middle:], f"{images.name}.test"),
    )


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
