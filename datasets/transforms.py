"""From an RGB image to the network's input.

Training and evaluation follow Roth et al., Revisiting Training Strategies and Generalization
Performance in Deep Metric Learning, ICML 2020. Everything that draws, draws from torch's generator,
which ``datasets.loading`` seeds for each image.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from utilities.registry import lookup

Transform = Callable[[Image.Image], Tensor]

_AUGMENTATIONS: dict[str, Callable[[], list]] = {
    "base": lambda: [],
    "adv": lambda: [v2.RandomGrayscale(0.2), v2.ColorJitter(0.2, 0.2, 0.2, 0.2)],
    "big": lambda: [],  # base, at a larger input: see input_size
}


def input_size(image_size: int, augmentation: str = "base") -> int:
    """Side of the network's input in pixels: ``image_size``, and 256 for 224 under "big"."""
    return round(image_size * 256 / 224) if augmentation == "big" else image_size


def train_transform(
    image_size: int,
    augmentation: str = "base",
    mean: Sequence[float] = (0.485, 0.456, 0.406),
    std: Sequence[float] = (0.229, 0.224, 0.225),
    scale: tuple[float, float] = (0.08, 1.0),
) -> Transform:
    """A random part of the image, flipped half of the time.

    Args:
        image_size: side in pixels before "big" enlarges it by 256 / 224.
        augmentation: "base"; "adv" adds greyscale (one time in five) and colour jitter of 0.2;
            "big" is base at a larger input.
        mean, std: of each channel, of values in [0, 1].
        scale: smallest and largest share of the area that the part may have.

    Returns:
        image -> (3, S, S) float32, S = ``input_size(image_size, augmentation)``.
    """
    extra = lookup(_AUGMENTATIONS, augmentation, "--augmentation")()
    size = input_size(image_size, augmentation)
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=scale),
            *extra,
            v2.RandomHorizontalFlip(),
            Normalise(mean, std),
        ]
    )


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
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)  # (3, H, W) uint8
        return pixels.sub(self.mean).mul_(self.scale)
