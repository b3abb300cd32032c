"""From an RGB image to the network's input.

Training and evaluation with labels follow Roth et al., Revisiting Training Strategies and
Generalization Performance in Deep Metric Learning, ICML 2020; views of an image or a pair follow
El Banani et al., Learning Visual Representations via Language-Guided Sampling, CVPR 2023.

A transform first draws, from the size of an image, the part to crop and how far the image may be
reduced while it is decoded; then it crops the pixels. Random numbers come from torch's global
generator, which ``datasets.loading`` seeds for each image. A view leaves its worker as bytes;
``datasets.finish`` changes colours and normalises on the device. Resizing is torch's antialiased
bilinear interpolation of 8-bit values, within one level of PIL's.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as V

from datasets import colour
from datasets.colour import Crop
from datasets.reading import MOST_EXTREME, REDUCTIONS, LazyImage, Pixels, as_pixels
from utilities.registry import lookup
from utilities.structures import input_size

T = TypeVar("T")


class Part(NamedTuple):
    top: int  # in pixels of the whole image, like the others
    left: int
    height: int
    width: int
    flipped: bool = False
    colour: Tensor | None = None  # (10,) float32, of ``colour.draw``


class CropTransform(ABC, Generic[T]):
    """Makes a view of an image; T is what is known of the view before the image is decoded."""

    @abstractmethod
    def draw(self, size: tuple[int, int]) -> T:
        """Draw the random parameters for an image of this width and height."""

    @abstractmethod
    def max_reduction(self, drawn: T) -> int:
        """Return how far the image may be reduced, one of ``reading.REDUCTIONS``."""

    @abstractmethod
    def crop(self, pixels: Pixels, drawn: T) -> Tensor | Crop:
        """Return (3, S, S) uint8, with the parameters of its colours if they are to change."""

    def __call__(self, image: Image.Image) -> Tensor | Crop:
        return self.crop(Pixels(as_pixels(image), 1), self.draw(image.size))


class RandomCrop(CropTransform[Part]):
    """A random part of the image, resized to a square.

    Args:
        side: S, pixels.
        scale: smallest and largest share of the area; the aspect ratio is in 3/4 to 4/3.
        flip: mirror half of the views.
    """

    def __init__(
        self,
        side: int,
        scale: tuple[float, float],
        *,
        flip: bool = True,
        strengths: colour.Strengths | None = None,
    ) -> None:
        self.side = side
        self.random_part = v2.RandomResizedCrop(side, scale=scale)
        self.flip = flip
        self.strengths = strengths

    def draw(self, size: tuple[int, int]) -> Part:
        width, height = size
        image = torch.empty(()).expand(3, height, width)  # torchvision takes the size from it
        return Part(
            **self.random_part.make_params([image]),
            flipped=self.flip and torch.rand(1).item() < 0.5,
            colour=colour.draw(self.strengths) if self.strengths else None,
        )

    def max_reduction(self, drawn: Part) -> int:
        return _max_reduction(min(drawn.height, drawn.width), self.side)

    def crop(self, pixels: Pixels, drawn: Part) -> Tensor | Crop:
        edges = (drawn.top, drawn.top + drawn.height, drawn.left, drawn.left + drawn.width)
        by = pixels.reduction
        top, bottom, left, right = ((edge + by // 2) // by for edge in edges)  # nearest pixel left
        part = resize(pixels.values[top:bottom, left:right], self.side, self.side)
        if drawn.flipped:
            part = part.flip(1)
        view = part.permute(2, 0, 1)
        return view if drawn.colour is None else Crop(view, drawn.colour)


class CenterCrop(CropTransform[tuple[int, int]]):
    """The centre of the image: its shorter side becomes ``shorter_side``, then a square is cropped.

    Called with an image, it returns the network's input, (3, S, S) float32; in a loader, bytes.
    """

    def __init__(
        self, side: int, shorter_side: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        self.side = side
        self.shorter_side = shorter_side
        self.mean = tuple(mean)
        self.std = tuple(std)

    def draw(self, size: tuple[int, int]) -> tuple[int, int]:
        return size

    def max_reduction(self, drawn: tuple[int, int]) -> int:
        return _max_reduction(min(drawn), self.shorter_side)

    def crop(self, pixels: Pixels, drawn: tuple[int, int]) -> Tensor:
        resized = _resize_shorter(pixels.values, drawn, self.shorter_side)
        return V.center_crop(resized.permute(2, 0, 1), [self.side, self.side])

    def __call__(self, image: Image.Image) -> Tensor:
        view = self.crop(Pixels(as_pixels(image), 1), image.size)
        return colour.normalise_bytes(view[None], self.mean, self.std)[0]


def train_views(
    image_size: int,
    augmentation: str = "base",
    n_views: int = 1,
    scale: tuple[float, float] = (0.08, 1.0),
) -> list[RandomCrop]:
    """Return a transform for each view: image -> (3, S, S) uint8, or ``Crop`` if colours change.

    Args:
        image_size: S in pixels, before "big" enlarges it by 256 / 224.
        augmentation: the same for every view, except for "slip"
            "base": a random part, flipped half of the time;
            "adv": base with greyscale (one time in five) and colour jitter of 0.2;
            "big": base at a larger input;
            "global_crop": at least half of the image and nothing else, for pairs of two images;
            "simclr": at least a fifth of the image, flipped half of the time, with SimCLR's changes
            of colour;
            "slip": "global_crop" for the first view, which text is paired with, else "simclr".
        scale: smallest and largest share of the area under "base", "adv" and "big".
    """
    size = input_size(image_size, augmentation)
    base = RandomCrop(size, scale)
    adv = RandomCrop(size, scale, strengths=colour.ADV)
    global_crop = RandomCrop(size, (0.5, 1.0), flip=False)
    simclr = RandomCrop(size, (0.2, 1.0), strengths=colour.SIMCLR)
    views = {
        "base": [base] * n_views,
        "adv": [adv] * n_views,
        "big": [base] * n_views,  # at a larger input: see input_size
        "global_crop": [global_crop] * n_views,
        "simclr": [simclr] * n_views,
        "slip": [global_crop] + [simclr] * (n_views - 1),
    }
    return lookup(views, augmentation, "--augmentation")


def eval_transform(
    image_size: int,
    crop_ratio: float = 0.875,
    mean: Sequence[float] = (0.485, 0.456, 0.406),
    std: Sequence[float] = (0.229, 0.224, 0.225),
) -> CenterCrop:
    """Return the transform of evaluation: resize to ``shorter_side``, then crop the centre."""
    return CenterCrop(image_size, shorter_side(image_size, crop_ratio), mean, std)


def shorter_side(image_size: int, crop_ratio: float) -> int:
    """Return the shorter side before the centre is cropped, in pixels: 256 for 224 and 0.875."""
    return round(image_size / crop_ratio)


def resized_to(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """Return (height, width) for an image of size (width, height) whose shorter side is resized."""
    width, height = size
    if width <= height:
        return int(shorter * height / width), shorter
    return shorter, int(shorter * width / height)


def shrink(image: LazyImage, shorter: int) -> Tensor:
    """Decode an image to (H, W, 3) uint8 as ``CenterCrop`` resizes it; a smaller one as it is."""
    pixels = image.pixels(_max_reduction(min(image.size), shorter)).values
    if min(image.size) <= shorter:
        return pixels
    return _resize_shorter(pixels, image.size, shorter)


def _resize_shorter(pixels: Tensor, size: tuple[int, int], shorter: int) -> Tensor:
    """Resize pixels of an image of this width and height; of an extreme one, only the middle.

    Resized whole, 30,000 x 1 pixels would be 30,000 times ``shorter`` squared.
    """
    height, width = pixels.shape[:2]
    longest = MOST_EXTREME * min(height, width)
    if max(height, width) > longest:
        size = min(width, longest), min(height, longest)
        pixels = V.center_crop(pixels.permute(2, 0, 1), list(size[::-1])).permute(1, 2, 0)
    return resize(pixels, *resized_to(size, shorter))


def resize(pixels: Tensor, height: int, width: int) -> Tensor:
    """Resize (h, w, 3) uint8 to (H, W, 3), bilinear with antialiasing."""
    if pixels.shape[:2] == (height, width):
        return pixels
    images = pixels[None].permute(0, 3, 1, 2)  # in channels_last, like the result
    images = F.interpolate(images, (height, width), mode="bilinear", antialias=True)
    return images[0].permute(1, 2, 0)


def _max_reduction(length: int, needed: int) -> int:
    """Return the largest reduction that leaves ``needed`` pixels of ``length``."""
    return next(by for by in REDUCTIONS if length // by >= needed or by == 1)
