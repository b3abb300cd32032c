"""A dataset's name → images with labels and words (`ImageSet`) → batches of tensors.

The parts that need torch are imported when they are first used, so that a dataset's recipe can be
read while the command line is.
"""

import argparse
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets.recipes import RECIPES, Recipe, fill_by_recipe, recipe
from utilities.files import cache_folder
from utilities.registry import from_flags

if TYPE_CHECKING:
    from datasets.caption_set import CaptionSet
    from datasets.colour import finish
    from datasets.image_cache import cached
    from datasets.image_set import Images, ImageSet
    from datasets.loading import loader, preview
    from datasets.splits import Data
    from datasets.transforms import eval_transform, input_size, train_views

_MODULES = {
    "CaptionSet": "caption_set",
    "Images": "image_set",
    "ImageSet": "image_set",
    "Data": "splits",
    "cached": "image_cache",
    "loader": "loading",
    "preview": "loading",
    "eval_transform": "transforms",
    "finish": "colour",
    "input_size": "transforms",
    "train_views": "transforms",
}

__all__ = [
    "RECIPES",
    "CaptionSet",
    "Data",
    "ImageSet",
    "Images",
    "Recipe",
    "build",
    "cached",
    "eval_transform",
    "fill_by_recipe",
    "finish",
    "input_size",
    "loader",
    "preview",
    "recipe",
    "source_folder",
    "train_views",
]


def source_folder(args: argparse.Namespace) -> Path:
    """Return the folder of all datasets: ``--source_path``, or one in the user's cache."""
    given = args.source_path
    return Path(given).expanduser() if given else cache_folder() / "datasets"


def build(args: argparse.Namespace) -> "Data":
    """Return the images of ``--dataset`` in its splits.

    Raises:
        FileNotFoundError, ValueError: as ``splits.load``.
    """
    from datasets import splits

    source_path = source_folder(args)
    return from_flags(splits.load, args, "", name=args.dataset, source_path=source_path)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
