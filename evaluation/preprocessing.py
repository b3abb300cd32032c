"""The preprocessing of a run's evaluation, from an image to the input of its embedder."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import datasets
from datasets.transforms import MiddleCrop, shorter_side


class Preprocessing(NamedTuple):
    """The deterministic preprocessing of an RGB image."""

    image_size: int  # pixels, side S of the square input (3, S, S)
    crop_ratio: float  # S / shorter side after resizing, in (0, 1]
    mean: tuple[float, ...]  # (3,) of values in [0, 1]
    std: tuple[float, ...]  # (3,)

    def transform(self) -> MiddleCrop:
        """Return the transform: image -> (3, S, S) float32."""
        return datasets.eval_transform(*self)

    @property
    def shorter_side(self) -> int:
        """The shorter side in pixels before the centre crop, and in an image cache."""
        return shorter_side(self.image_size, self.crop_ratio)


def preprocessing(
    flags: Mapping[str, Any], mean: tuple[float, ...], std: tuple[float, ...]
) -> Preprocessing:
    """Return the preprocessing of a run's flags.

    Args:
        flags: dataset (its recipe knows the crop), image_size and augmentation.
        mean, std: as the backbone's weights expect them.
    """
    return Preprocessing(
        datasets.input_size(flags["image_size"], flags["augmentation"]),
        datasets.recipe(flags["dataset"]).crop_ratio,
        tuple(mean),
        tuple(std),
    )
