"""A dataset's name → images with labels and words (`ImageSet`) → batches of tensors.

The parts that need torch are imported when they are first used, so that a dataset's recipe can be
read while the command line is.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from datasets.recipes import RECIPES, Recipe, fill_by_recipe, recipe

if TYPE_CHECKING:
    from datasets.caption_set import CaptionSet
    from datasets.colour import finish
    from datasets.image_cache import cached
    from datasets.image_set import Images, ImageSet
    from datasets.loading import loader, preview
    from datasets.splits import Data, build, source_folder
    from datasets.transforms import eval_transform, input_size, train_views

_MODULES = {
    "CaptionSet": "caption_set",
    "Images": "image_set",
    "ImageSet": "image_set",
    "Data": "splits",
    "build": "splits",
    "cached": "image_cache",
    "source_folder": "splits",
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


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
