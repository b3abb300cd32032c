"""The images, batches and sizes that the flags of a run describe."""

import argparse
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from datasets import description, dry_run
from datasets.batches import Batches
from datasets.caption_index import is_caption_set
from datasets.caption_set import CaptionSet
from datasets.description import Description
from datasets.downstream import Downstream, is_ours, labelled
from datasets.downstream import build as build_downstream
from datasets.image_cache import cached
from datasets.image_set import ImageSet
from datasets.loading import loader
from datasets.recipes import MOST_SMALL, RECIPES, fill, recipe, search_by_words
from datasets.splits import Data, load, n_labelled
from datasets.transforms import train_views
from utilities import distributed
from utilities.files import cache_folder
from utilities.registry import from_flags
from utilities.seeding import derive

log = logging.getLogger(__name__)

MOST_WAITING = 0.2  # of an epoch, for images

# Flags that decide which classes a run trains on, and their values in runs that lack them.
SPLIT = {
    "dataset": "", "test_classes": None, "test_fraction": None, "use_tv_split": False,
    "tv_split_perc": 0.8, "tv_split_by_samples": False, "cv_folds": 0, "cv_fold": 0,
    "train_classes": 0, "seed": 0,
}  # fmt: skip


def source_folder(args: argparse.Namespace) -> Path:
    given = args.source_path
    return Path(given).expanduser() if given else cache_folder() / "datasets"


def build(args: argparse.Namespace, classes: Mapping[str, Sequence[str]] | None = None) -> Data:
    """Return the images of ``--dataset``, split by halves or into ``classes`` (``splits.load``)."""
    given = {"name": args.dataset, "source_path": source_folder(args), "classes": classes}
    return from_flags(load, args, "", **given)


def build_as_trained(
    args: argparse.Namespace,
    flags: Mapping[str, Any],
    trained: Description | None,
    checkpoint: Path,
) -> Data:
    """Return the images to evaluate a checkpoint on, in the classes that its training knew.

    Args:
        flags, trained: of its training, and what described its data; None in older checkpoints.

    Raises:
        ValueError: it was trained on some of them, and not ``--accept_changed_data``.
    """
    same = all(getattr(args, flag) == flags.get(flag, older) for flag, older in SPLIT.items())
    data = build(args, description.classes(trained) if same and trained else None)
    now = describe(args, data._asdict())
    description.refuse_trained(
        *(trained, now),
        checkpoint=checkpoint,
        accept=args.accept_changed_data,
        same_dataset=args.dataset == flags["dataset"],
    )
    return data


def describe(
    args: argparse.Namespace,
    sets: Mapping[str, Any],
    files: Mapping[str, Path | Sequence[str]] | None = None,
    *,
    resumed: Any = None,
) -> Description:
    """Describe sets of a run's images, and the files and texts that flags name.

    ValueError if the checkpoint ``resumed`` is of other data, and not ``--accept_changed_data``.
    """
    described = description.describe(sets, source_folder(args), files or {})
    if resumed is not None:
        accept = args.accept_changed_data
        description.refuse_changes(
            resumed.get("data"), described, run=resumed.folder, accept=accept
        )
    return described


def fill_by_recipe(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Set unset flags to the recipe of ``--dataset``; return the values set and its reason.

    Own labelled images are small up to ``MOST_SMALL``. A guided run on classes with names also
    searches by words, unless its metrics are chosen.
    """
    root = source_folder(args) / args.dataset
    captions = is_caption_set(root)
    if captions and args.recipe == "small":
        raise ValueError(
            f"--recipe small is for images with labels, and --dataset {args.dataset} has captions; "
            "leave it out"
        )
    if args.recipe is None:
        own = args.dataset not in RECIPES and not captions
        args.recipe = "small" if own and 0 < n_labelled(root) <= MOST_SMALL else "standard"
    chosen = recipe(args.dataset, captions, args.recipe == "small")
    filled = fill(args, chosen)
    return filled | search_by_words(args, filled), chosen.why


def decoded(args: argparse.Namespace, data: Data, shorter_side: int) -> Data:
    """Return the data; with ``--cache_images`` they are decoded once, kept, and read from there."""
    if not args.cache_images:
        return data

    def keep(images: Any) -> Any:  # of any kind, to the same
        return images and cached(images, shorter_side, args.kernels)

    with distributed.first_rank_first():
        return Data(*map(keep, data))


def training_batches(
    args: argparse.Namespace, train: ImageSet | CaptionSet, sampler: Any, n_views: int, *, pin: bool
) -> Batches:
    """Return the training batches that ``sampler`` draws, in the views of ``--augmentation``."""
    scale, rank = recipe(args.dataset).train_scale, distributed.rank()
    views = train_views(args.image_size, args.augmentation, n_views, scale)
    return Batches(
        loader(
            train, views, sampler, workers=args.kernels, seed=args.seed, rank=rank, pin_memory=pin
        )
    )


def sizes(data: Data) -> dict[str, str]:
    """Describe the size of each set of images, by its name."""
    return {
        images.name: f"{len(images):,} images of {images.n_classes:,} classes"
        if isinstance(images, ImageSet)
        else f"{len(images):,} images with captions"
        for images in data
        if images is not None
    }


def warn_of_waiting(args: argparse.Namespace, share: float, epoch: int) -> None:
    """Warn if much of an epoch was spent waiting for images, at epochs 1, 2, 4, 8, …"""
    if share <= MOST_WAITING or epoch & (epoch - 1):
        return
    cores = os.cpu_count() or 1
    remedies = [] if args.cache_images else ["--cache_images"]
    if args.kernels < cores:
        remedies.append(f"--kernels {cores} (now {args.kernels})")
    log.warning(
        "%.0f %% of the epoch was spent waiting for images; try %s",
        100 * share,
        " or ".join(remedies) or "a faster disk or more cores",
    )


def feedback(args: argparse.Namespace, data: Data) -> ImageSet:
    """Return the validation images that reward a miner, the same at every call."""
    assert data.val is not None  # parameters.check sees to it
    generator = torch.Generator().manual_seed(derive(args.seed, "miner_feedback"))
    drawn = torch.randperm(len(data.val), generator=generator)[: args.feedback_images]
    return data.val.subset(drawn.sort().values.numpy(), "feedback")


def searched_sets(args: argparse.Namespace, data: Data) -> dict[str, ImageSet]:
    """Return the sets whose retrieval is evaluated; checkpoints are chosen by the first."""
    if "retrieval" not in args.evaluations:
        return {}
    sets: Mapping[str, ImageSet | None]
    if not isinstance(data.train, ImageSet):  # the labelled ones of --evaluation_datasets
        source_path = source_folder(args)
        names = dict.fromkeys(name.partition(":")[0] for name in args.evaluation_datasets)
        sets = {name: labelled(name, source_path) for name in names if is_ours(name, source_path)}
    else:
        sets = {
            "val": data.val,
            "test": None if args.no_test_metrics else data.test,
            "train": None if args.no_train_metrics else data.train,
        }
    return {name: searched(args, images) for name, images in sets.items() if images}


def searched(args: argparse.Namespace, images: ImageSet) -> ImageSet:
    """Return a set as it is evaluated: whole, or a few of its images in a dry run."""
    return dry_run.few(images, dry_run.BATCHES * args.bs) if args.dry_run else images


def downstream_sets(args: argparse.Namespace) -> list[Downstream]:
    """Return the labelled datasets on which ``--evaluations`` but retrieval evaluate features."""
    if not set(args.evaluations) - {"retrieval"}:
        return []
    names = args.evaluation_datasets or [args.dataset]
    sets = [build_downstream(name, source_folder(args)) for name in names]
    if not args.dry_run:
        return sets
    return [replace(s, **dry_run.few_of_each(s, dry_run.BATCHES * args.bs)) for s in sets]
