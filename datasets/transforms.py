"""From an RGB image to the network's input.

Training and evaluation with labels follow Roth et al., Revisiting Training Strategies and
Generalization Performance in Deep Metric Learning, ICML 2020; views of an image or of a pair of
images follow El Banani et al., Learning Visual Representations via Language-Guided Sampling, CVPR
2023. Everything that draws, draws from torch's generator, which ``datasets.loading`` seeds for each
image.

A transform works in two steps. From the size of an image it draws which part is taken, and says how
far the image may be reduced while it is decoded; from the pixels it then cuts the part. A part that
is reduced still has as many pixels as the view, so nothing is enlarged for it.

A view leaves its worker as bytes; what follows in floating point, its colours and
(value - mean) / std, is done to whole batches on the device, by ``datasets.finish``. Resizing is
torch's bilinear with antialiasing on 8 bits, which torchvision's transforms call, too, if the CPU
has AVX2 or is an ARM: PIL's algorithm with weights of 16 bits, so that a pixel differs from PIL's
by one level at most.
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
from datasets.reading import REDUCTIONS, Pixels, as_pixels
from utilities.registry import lookup

T = TypeVar("T")


class Part(NamedTuple):
    """The part of an image that a view shows, and what is done to it."""

    top: int  # in pixels of the whole image, as the others
    left: int
    height: int
    width: int
    flipped: bool = False
    colour: Tensor | None = None  # (10,) float32, of ``colour.draw``


class CropTransform(ABC, Generic[T]):
    """How a view is made of an image; T is what is known of the view before its pixels are."""

    @abstractmethod
    def draw(self, size: tuple[int, int]) -> T:
        """Decide on everything that is left to chance, for an image of width and height."""

    @abstractmethod
    def most(self, drawn: T) -> int:
        """How far the image may be reduced, one of ``reading.REDUCTIONS``."""

    @abstractmethod
    def cut(self, pixels: Pixels, drawn: T) -> "Tensor | colour.Crop":
        """(3, S, S) uint8, and what is to become of its colours."""

    def bytes_of(self, image: Image.Image) -> "Tensor | colour.Crop":
        """The view of an image that is decoded already."""
        return self.cut(Pixels(as_pixels(image), 1), self.draw(image.size))


class RandomCrop(CropTransform[Part]):
    """A random part of the image, resized to a square.

    Args:
        side: S, pixels.
        scale: smallest and largest share of the area; the part is 3/4 to 4/3 as wide as high.
        flip: mirror half of the views.
        recolour: what is drawn for the colours; None leaves them.
    """

    def __init__(
        self,
        side: int,
        scale: tuple[float, float],
        *,
        flip: bool = True,
        recolour: colour.Strengths | None = None,
    ) -> None:
        self.side = side
        self.random_part = v2.RandomResizedCrop(side, scale=scale)
        self.flip = flip
        self.recolour = recolour

    def draw(self, size: tuple[int, int]) -> Part:
        width, height = size
        image = torch.empty(()).expand(3, height, width)  # torchvision asks an image for its size
        part = self.random_part.make_params([image])
        return Part(
            **{name: part[name] for name in ("top", "left", "height", "width")},
            flipped=self.flip and torch.rand(1).item() < 0.5,
            colour=colour.draw(self.recolour) if self.recolour else None,
        )

    def most(self, drawn: Part) -> int:
        return _reduction(min(drawn.height, drawn.width), self.side)

    def cut(self, pixels: Pixels, drawn: Part) -> "Tensor | colour.Crop":
        top, bottom, left, right = (
            (place + pixels.reduction // 2) // pixels.reduction  # to the nearest pixel that is left
            for place in (
                *(drawn.top, drawn.top + drawn.height),
                *(drawn.left, drawn.left + drawn.width),
            )
        )
        part = resize(pixels.values[top:bottom, left:right], self.side, self.side)
        if drawn.flipped:
            part = part.flip(1)
        view = part.permute(2, 0, 1)
        return view if drawn.colour is None else colour.Crop(view, drawn.colour)

    def __call__(self, image: Image.Image) -> "Tensor | colour.Crop":
        return self.bytes_of(image)


class MiddleCrop(CropTransform[tuple[int, int]]):
    """The middle of the image: its shorter side becomes ``shorter_side``, then a square is cut.

    Called with an image, it gives the network's input, (3, S, S) float32; in a loader, the bytes
    that ``datasets.finish`` makes it of.

    Args:
        side: S, pixels.
        shorter_side: pixels.
        mean, std: of each channel, of values in [0, 1].
    """

    def __init__(
        self, side: int, shorter_side: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        self.side = side
        self.shorter_side = shorter_side
        self.mean = tuple(mean)
        self.std = tuple(std)

    def draw(self, size: tuple[int, int]) -> tuple[int, int]:
        """The size itself: nothing is left to chance."""
        return size

    def most(self, drawn: tuple[int, int]) -> int:
        return _reduction(min(drawn), self.shorter_side)

    def cut(self, pixels: Pixels, drawn: tuple[int, int]) -> Tensor:
        resized = resize(pixels.values, *resized_to(drawn, self.shorter_side))
        return V.center_crop(resized.permute(2, 0, 1), [self.side, self.side])

    def __call__(self, image: Image.Image) -> Tensor:
        view = self.bytes_of(image)
        assert isinstance(view, Tensor)
        return colour.normalise_bytes(view[None], self.mean, self.std)[0]


def input_size(image_size: int, augmentation: str = "base") -> int:
    """Side of the network's input in pixels: ``image_size``, and 256 for 224 under "big"."""
    return round(image_size * 256 / 224) if augmentation == "big" else image_size


def train_views(
    image_size: int,
    augmentation: str = "base",
    n_views: int = 1,
    scale: tuple[float, float] = (0.08, 1.0),
) -> list[RandomCrop]:
    """How each view is made of its image: a random part of it, and more by the augmentation.

    Args:
        image_size: side in pixels before "big" enlarges it by 256 / 224.
        augmentation: for every view alike
            "base": flipped half of the time;
            "adv": base with greyscale (one time in five) and colour jitter of 0.2;
            "big": base at a larger input;
            "global_crop": at least half of the image and nothing else, for pairs of two images;
            "simclr": at least a fifth of the image, flipped half of the time, its colours changed
            as SimCLR asks for;
            "slip": the first view by "global_crop", as text is paired with it, the others "simclr".
        n_views: views of each tuple of images.
        scale: smallest and largest share of the area that the part may have under "base", "adv" and
            "big"; the others have that of their publication.

    Returns:
        a transform for each view, image -> (3, S, S) uint8 with
        S = ``input_size(image_size, augmentation)``; where colours change, image -> ``Crop``.
        ``datasets.finish`` does the rest.

    Raises:
        ValueError: the augmentation is unknown.
    """
    size = input_size(image_size, augmentation)
    base = RandomCrop(size, scale)
    adv = RandomCrop(size, scale, recolour=colour.ADV)
    global_crop = RandomCrop(size, (0.5, 1.0), flip=False)
    simclr = RandomCrop(size, (0.2, 1.0), recolour=colour.SIMCLR)
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
) -> MiddleCrop:
    """The middle of the image: the shorter side becomes ``image_size / crop_ratio``, then a crop.

    At 224 px and 0.875 the shorter side becomes 256.
    """
    return MiddleCrop(image_size, shorter_side(image_size, crop_ratio), mean, std)


def shorter_side(image_size: int, crop_ratio: float) -> int:
    """What the shorter side of an image becomes before the middle is cut out, in pixels."""
    return round(image_size / crop_ratio)


def resized_to(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """Height and width of an image of width and height whose shorter side becomes ``shorter``."""
    width, height = size
    if width <= height:
        return int(shorter * height / width), shorter
    return shorter, int(shorter * width / height)


def shrink(pixels: Pixels, size: tuple[int, int], shorter: int) -> Tensor:
    """(H, W, 3) of an image of width and height ``size``, with the shorter side ``shorter``.

    As ``MiddleCrop`` resizes, to the bit; but what is smaller stays as it is.
    """
    if min(size) <= shorter:
        return pixels.values
    return resize(pixels.values, *resized_to(size, shorter))


def resize(pixels: Tensor, height: int, width: int) -> Tensor:
    """(h, w, 3) -> (H, W, 3) uint8, bilinear with antialiasing."""
    if pixels.shape[:2] == (height, width):
        return pixels
    images = pixels[None].permute(0, 3, 1, 2)  # in channels_last, and so is what comes back
    images = F.interpolate(images, (height, width), mode="bilinear", antialias=True)
    return images[0].permute(1, 2, 0)


def _reduction(length: int, needed: int) -> int:
    """The largest reduction that leaves ``needed`` pixels of ``length``."""
    return next(by for by in REDUCTIONS if length // by >= needed or by == 1)
