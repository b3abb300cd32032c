"""Changes of colour and (value - mean) / std, for whole batches on the device.

    "simclr": jitter (p 0.8): brightness, contrast, saturation, hue in a random order
              -> grey (p 0.2) -> Gaussian blur (p 0.5)
    "adv":    grey (p 0.2) -> jitter

Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, ICML 2020, at
the strengths of El Banani et al., CVPR 2023; "adv" is from Roth et al., ICML 2020. A worker draws
how colours change (``draw``), the device changes them (``adjust``), so the data depend on neither
the number of workers nor the device. Each step equals torchvision's function on float images; on
images of 8 bits, torchvision rounds after each step.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from utilities.device import send
from utilities.structures import Batch


class Strengths(NamedTuple):
    """Ranges and probabilities of the changes of colour."""

    jitter: tuple[float, ...]  # brightness, contrast, saturation; hue in turns of the circle
    jitter_p: float = 1.0
    grey_p: float = 0.2
    blur_p: float = 0.0
    grey_first: bool = False  # before the jitter instead of after it


SIMCLR = Strengths((0.4, 0.4, 0.4, 0.1), jitter_p=0.8, blur_p=0.5)
ADV = Strengths((0.2, 0.2, 0.2, 0.2), grey_first=True)
SIGMA = (0.1, 2.0)  # of the blur, in pixels
LUMA = (0.2989, 0.587, 0.114)  # of red, green and blue, ITU-R BT.601

# The ten numbers drawn for an image.
ORDER = slice(0, 4)  # the adjustment in each place, as an index in jitter; -1: none
FACTORS = slice(4, 8)  # of each adjustment, in the order of jitter
GREY = 8  # 1 after the jitter, -1 before it, 0 not at all
BLUR = 9  # sigma; 0: no blur


class Crop(NamedTuple):
    """A view whose colours the device will change."""

    pixels: Tensor  # (3, S, S) uint8
    colour: Tensor  # (10,) float32, of ``draw``


def draw(strengths: Strengths = SIMCLR) -> Tensor:
    """Draw how one image's colours change, (10,) float32, from torch's global CPU generator."""
    jitter, *shares, grey, blur, width = torch.rand(8).tolist()
    moved = [most * (2 * share - 1) for most, share in zip(strengths.jitter, shares, strict=True)]
    low, high = SIGMA
    return torch.tensor(
        [
            *(torch.randperm(4).tolist() if jitter < strengths.jitter_p else [-1] * 4),
            *(1 + by for by in moved[:3]),
            moved[3],
            (grey < strengths.grey_p) * (-1 if strengths.grey_first else 1),
            low + (high - low) * width if blur < strengths.blur_p else 0,
        ]
    )


def finish(batch: Batch, mean: Sequence[float], std: Sequence[float]) -> Batch:
    """Return the batch with every view as the network's input; float32 views are not changed."""
    if all(view.dtype != torch.uint8 for view in batch.views):
        return batch
    views = []
    for view, colours in zip(batch.views, batch.colours or [None] * len(batch.views), strict=True):
        if view.dtype != torch.uint8:
            views.append(view)
        elif colours is None:
            views.append(normalise_bytes(view, mean, std))
        else:
            views.append(normalise(adjust(view, colours), mean, std))
    return batch._replace(views=tuple(views), colours=())


@torch.no_grad()
def adjust(pixels: Tensor, colours: Tensor) -> Tensor:
    """Change each image's colours by its own numbers, to (B, 3, S, S) float32 in [0, 1].

    ``pixels`` are (B, 3, S, S) uint8. ``colours``, (B, 10) float32 of ``draw``, stay on the CPU:
    they decide which images a step changes, so that nothing waits for the device.
    """
    images = pixels.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    changes = [
        (change, chosen.nonzero().squeeze(1), numbers)
        for change, chosen, numbers in _changes(colours)
        if chosen.any()
    ]
    if not changes:
        return images
    # All indices and numbers are sent to the device at once.
    counts = [len(rows) for _, rows, _ in changes]
    rows = send(torch.cat([rows for _, rows, _ in changes]), images.device).split(counts)
    numbers = torch.cat([numbers[rows] for _, rows, numbers in changes])
    numbers = send(numbers, images.device).split(counts)
    for (change, _, _), chosen, own in zip(changes, rows, numbers, strict=True):
        images[chosen] = change(images[chosen], own)
    return images


def _changes(
    colours: Tensor,
) -> Iterator[tuple[Callable[[Tensor, Tensor], Tensor], Tensor, Tensor]]:
    """Yield each change in turn, a mask (B,) of its images, and its numbers (B,)."""
    orders, factors, grey = colours[:, ORDER], colours[:, FACTORS], colours[:, GREY]
    yield greyscale, grey < 0, grey
    for place in range(orders.shape[1]):
        for number, change in enumerate((brighten, contrast, saturate, rotate_hue)):
            yield change, orders[:, place] == number, factors[:, number]
    yield greyscale, grey > 0, grey
    yield blur, colours[:, BLUR] > 0, colours[:, BLUR]


def greyscale(images: Tensor, _numbers: Tensor) -> Tensor:
    return luma(images)


def brighten(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply images (b, 3, H, W) by factors (b,) and clamp to [0, 1]."""
    return (images * factors[:, None, None, None]).clamp_(0, 1)


def contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Move images away from, or toward, their mean grey."""
    factors = factors[:, None, None, None]
    mean = luma(images).mean(dim=(1, 2, 3), keepdim=True)
    return (images * factors).add_(mean * (1 - factors)).clamp_(0, 1)


def saturate(images: Tensor, factors: Tensor) -> Tensor:
    """Move pixels away from, or toward, their grey."""
    factors = factors[:, None, None, None]
    return (images * factors).add_(luma(images) * (1 - factors)).clamp_(0, 1)


def rotate_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Rotate the hue by a share of its circle, in HSV.

    With value v = max(r, g, b), chroma c = v - min(r, g, b) and hue h in sixths of the circle:
    r = v - c + c [|h - 3| - 1],  g = v - c + c [2 - |h - 2|],  b = v - c + c [2 - |h - 4|],
    where [x] is x clamped to [0, 1].
    """
    red, green, blue = images.unbind(dim=1)  # (b, H, W)
    value, low = images.amax(dim=1), images.amin(dim=1)
    chroma = value - low
    divisor = chroma.clamp(min=1e-12)  # a grey pixel has no hue
    hue = (red - green).div_(divisor).add_(4)
    hue = torch.where(value == green, (blue - red).div_(divisor).add_(2), hue)
    hue = torch.where(value == red, (green - blue).div_(divisor), hue)  # in [-1, 5]
    hue += 6 * turns[:, None, None]
    hue -= 6 * (hue / 6).floor_()  # in [0, 6]
    turned = torch.stack(((hue - 3).abs_() - 1, 2 - (hue - 2).abs_(), 2 - (hue - 4).abs_()), dim=1)
    return turned.clamp_(0, 1).mul_(chroma[:, None]).add_(low[:, None])


def blur(images: Tensor, sigmas: Tensor) -> Tensor:
    """Convolve images (b, 3, S, S) with Gaussians of sigmas (b,); edges are mirrored."""
    count, channels, side, _ = images.shape
    size = blur_size(side)
    offsets = torch.arange(size, device=images.device) - size // 2
    weights = torch.exp(-0.5 * (offsets / sigmas[:, None]).square())  # (b, size)
    weights = weights / weights.sum(dim=1, keepdim=True)
    kernels = weights.repeat_interleave(channels, dim=0)  # (3 b, size), one for each plane
    planes = images.reshape(1, -1, side, side)
    planes = F.pad(planes, [size // 2] * 4, mode="reflect")
    planes = F.conv2d(planes, kernels[:, None, None, :], groups=count * channels)
    planes = F.conv2d(planes, kernels[:, None, :, None], groups=count * channels)
    return planes.reshape(count, channels, side, side)


def blur_size(side: int) -> int:
    """Return the size of the blur's kernel: 15 at 224, proportional elsewhere; odd, at least 3."""
    return max(2 * round((15 * side / 224 - 1) / 2) + 1, 3)


def luma(images: Tensor) -> Tensor:
    """Return the grey of each pixel, (b, 1, H, W), of images (b, 3, H, W)."""
    weights = constant(LUMA, images.device)
    return (images * weights.view(3, 1, 1)).sum(dim=1, keepdim=True)


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return (value - mean) / std of each channel, in channels_last as ``Batch.to`` returns."""
    means, scales = (constant(tuple(values), images.device) for values in (mean, std))
    images = (images - means.view(3, 1, 1)) / scales.view(3, 1, 1)
    return images.contiguous(memory_format=torch.channels_last)


def normalise_bytes(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return (value / 255 - mean) / std of (B, 3, H, W) uint8, float32 in channels_last."""
    means, scales = (constant(tuple(values), pixels.device) for values in (mean, std))
    batch, _, height, width = pixels.shape
    # Rows of W x 3 values against as many constants: three at a time would not fill a vector.
    lines = pixels.permute(0, 2, 3, 1).reshape(-1, 3 * width).to(torch.float32)
    lines.sub_((255 * means).repeat(width)).mul_((1 / (255 * scales)).repeat(width))
    return lines.view(batch, height, width, 3).permute(0, 3, 1, 2)


@lru_cache
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return numbers on the device; they are sent once, as sending waits for the device."""
    return torch.tensor(values, device=device)
