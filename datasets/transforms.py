"""From an RGB image to the network's input.

Training and evaluation with labels follow Roth et al., Revisiting Training Strategies and
Generalization Performance in Deep Metric Learning, ICML 2020; views of an image or of a pair of
images follow El Banani et al., Learning Visual Representations via Language-Guided Sampling, CVPR
2023. Everything that draws, draws from torch's generator, which ``datasets.loading`` seeds for each
image.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from datasets import colour
from utilities.registry import lookup

Transform = Callable[[Image.Image], Tensor]
ViewTransform = Callable[[Image.Image], Tensor | colour.Crop]


def input_size(image_size: int, augmentation: str = "base") -> int:
    """Side of the network's input in pixels: ``image_size``, and 256 for 224 under "big"."""
    return round(image_size * 256 / 224) if augmentation == "big" else image_size


def train_views(
    image_size: int,
    augmentation: str = "base",
    n_views: int = 1,
    mean: Sequence[float] = (0.485, 0.456, 0.406),
    std: Sequence[float] = (0.229, 0.224, 0.225),
    scale: tuple[float, float] = (0.08, 1.0),
) -> list[ViewTransform]:
    """How each view is made of its image: a random part of it, and more by the augmentation.

    Args:
        image_size: side in pixels before "big" enlarges it by 256 / 224.
        augmentation: for every view alike
            "base": flipped half of the time;
            "adv": base with greyscale (one time in five) and colour jitter of 0.2;
            "big": base at a larger input;
            "global_crop": at least half of the image and nothing else, for pairs of two images;
            "simclr": at least a fifth of the image, flipped half of the time, its colours changed
            by ``datasets.colour`` on the device;
            "slip": the first view by "global_crop", as text is paired with it, the others "simclr".
        n_views: views of each tuple of images.
        mean, std: of each channel, of values in [0, 1].
        scale: smallest and largest share of the area that the part may have under "base", "adv" and
            "big"; the others have that of their publication.

    Returns:
        a transform for each view, image -> (3, S, S) float32 with
        S = ``input_size(image_size, augmentation)``; by "simclr" image -> ``Crop``.

    Raises:
        ValueError: the augmentation is unknown.
    """
    size = input_size(image_size, augmentation)
    to_input = Normalise(mean, std)
    flip = v2.RandomHorizontalFlip()
    random_part = v2.RandomResizedCrop(size, scale=scale)
    base = v2.Compose([random_part, flip, to_input])
    paling = [v2.RandomGrayscale(0.2), v2.ColorJitter(0.2, 0.2, 0.2, 0.2)]
    adv = v2.Compose([random_part, *paling, flip, to_input])
    global_crop = v2.Compose([v2.RandomResizedCrop(size, scale=(0.5, 1.0)), to_input])
    simclr = v2.Compose([v2.RandomResizedCrop(size, scale=(0.2, 1.0)), flip, draw_colours])
    views: dict[str, list[ViewTransform]] = {
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
) -> Transform:
    """The middle of the image: the shorter side becomes ``image_size / crop_ratio``, then a crop.

    At 224 px and 0.875 the shorter side becomes 256.
    """
    return v2.Compose(
        [
            v2.Resize(round(image_size / crop_ratio)),
            v2.CenterCrop(image_size),
            Normalise(mean, std),
        ]
    )


class Normalise:
    """image -> (3, H, W) float32, (value - mean) / std for values in [0, 1].

    The same as PILToTensor, ToDtype and Normalize of torchvision in one pass: on a small image
    these three take as long as the crop.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean = 255 * torch.tensor(mean).view(3, 1, 1)
        self.scale = 1 / (255 * torch.tensor(std).view(3, 1, 1))

    def __call__(self, image: Image.Image) -> Tensor:
        return as_pixels(image).sub(self.mean).mul_(self.scale)


def as_pixels(image: Image.Image) -> Tensor:
    """(3, H, W) uint8, in channels_last."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def draw_colours(image: Image.Image) -> colour.Crop:
    """Its pixels, and what the device is to do to their colours."""
    return colour.Crop(as_pixels(image), colour.draw())
