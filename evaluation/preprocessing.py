"""From an image to an embedder's input, as at the evaluation of the run that trained it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

import datasets
from datasets.colour import normalise_bytes
from datasets.reading import open_image
from datasets.transforms import CenterCrop, shorter_side
from utilities.structures import input_size


class Preprocessing(NamedTuple):
    """Preprocessing of an RGB image, without randomness."""

    image_size: int  # pixels, side S of the square input (3, S, S)
    crop_ratio: float  # S / shorter side after resizing, in (0, 1]
    mean: tuple[float, ...]  # (3,) of values in [0, 1]
    std: tuple[float, ...]  # (3,)

    def transform(self) -> CenterCrop:
        """image -> (3, S, S) float32."""
        return datasets.eval_transform(*self)

    def settings(self) -> dict[str, Any]:
        """Return all of it for ``evaluation.exported_preprocess``, as preprocessing.json has it."""
        return {
            "resize_shorter_side": self.shorter_side,
            "interpolation": "bilinear",
            "antialias": True,
            "exif_orientation": "applied",
            **self._asdict(),  # centre crop, then (value - mean) / std of values in [0, 1]
        }

    def read(self, path: Path) -> Tensor:
        """Return an image file as (3, S, S) float32. Raises OSError, naming it."""
        image, transform = open_image(path), self.transform()
        drawn = transform.draw(image.size)
        view = transform.crop(image.pixels(transform.max_reduction(drawn)), drawn)
        return normalise_bytes(view[None], self.mean, self.std)[0]

    @property
    def shorter_side(self) -> int:
        """The shorter side in pixels before the middle is cut out, and in an image cache."""
        return shorter_side(self.image_size, self.crop_ratio)


def preprocessing(
    flags: Mapping[str, Any], mean: tuple[float, ...], std: tuple[float, ...]
) -> Preprocessing:
    """Return the preprocessing for a run's dataset, image_size and augmentation.

    Under "big" the image is resized to the input's side, 256, and not cropped beyond the square, as
    Roth et al., ICML 2020, do.
    """
    big = flags["augmentation"] == "big"
    return Preprocessing(
        input_size(flags["image_size"], flags["augmentation"]),
        1.0 if big else datasets.recipe(flags["dataset"]).crop_ratio,
        tuple(mean),
        tuple(std),
    )


def preprocessing_of(embedder: Any, flags: Mapping[str, Any] | None) -> Preprocessing:
    """Return the preprocessing of a run's embedder, or, without ``flags``, of its backbone."""
    if flags is not None:
        return preprocessing(flags, embedder.mean, embedder.std)
    mean, std = tuple(embedder.mean), tuple(embedder.std)
    return Preprocessing(embedder.image_size, embedder.crop_ratio, mean, std)
