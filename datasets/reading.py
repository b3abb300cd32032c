"""Opens image files in RGB and decodes no more of them than is needed.

A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size, at a fraction of the cost. How much is needed
depends on the crop, and the crop on the image's size; so an image is opened first
(``LazyImage.size``, from its header) and decoded later (``LazyImage.pixels``). At full size
torchvision decodes a JPEG if possible: the same pixels as PIL's, a fifth faster.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

REDUCTIONS = (8, 4, 2, 1)  # at which a JPEG can be decoded


class Pixels(NamedTuple):
    values: Tensor  # (ceil(H / reduction), ceil(W / reduction), 3) uint8
    reduction: int  # one of REDUCTIONS


class LazyImage(Protocol):
    """An image of known size that is decoded on request."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""

    def pixels(self, max_reduction: int = 1) -> Pixels:
        """Decode it in RGB, reduced by at most ``max_reduction``. Raises OSError, naming it."""


class Reader(Protocol):
    """Reads the images of a set by row from somewhere else than their files, such as a cache."""

    def open(self, row: int) -> LazyImage:
        """Open an image. Raises OSError, naming it, if it cannot be read."""

    def take(self, rows: NDArray[np.int64]) -> "Reader":
        """Return a reader of these rows, in this order."""


@dataclass(frozen=True, eq=False)
class Decoded:
    values: Tensor  # (H, W, 3) uint8

    @property
    def size(self) -> tuple[int, int]:
        return self.values.shape[1], self.values.shape[0]

    def pixels(self, max_reduction: int = 1) -> Pixels:
        return Pixels(self.values, 1)


@dataclass(frozen=True, eq=False)
class Jpeg:
    content: bytes
    size: tuple[int, int]
    path: Any  # its str is named in errors

    def pixels(self, max_reduction: int = 1) -> Pixels:
        width, height = self.size
        reduction = next(by for by in REDUCTIONS if by <= min(max_reduction, width, height))
        values = self._by_torchvision() if reduction == 1 else None
        if values is not None:
            return Pixels(values, 1)
        try:
            with Image.open(io.BytesIO(self.content)) as image:
                image.draft(None, (width // reduction, height // reduction))
                return Pixels(as_pixels(image), reduction)
        except Exception as error:  # as in open_image
            raise _unreadable(self.path, error) from error

    def _by_torchvision(self) -> Tensor | None:
        try:
            from torchvision.io import ImageReadMode, decode_jpeg

            content = torch.frombuffer(bytearray(self.content), dtype=torch.uint8)
            return decode_jpeg(content, mode=ImageReadMode.RGB).permute(1, 2, 0)
        except (ImportError, RuntimeError, Warning):
            return None


def open_image(path: Path | BinaryIO) -> LazyImage:
    """Open an image; one that is not a plain JPEG is decoded at once.

    ``path`` may be an open file whose ``str`` says where it comes from. Raises OSError, which names
    it, if it is unreadable; a truncated JPEG fails in ``pixels`` only.
    """
    try:
        with Image.open(path) as image:
            # CMYK and files of several images (MPO) are left to PIL's conversions.
            if image.format == "JPEG" and image.mode in ("RGB", "L") and image.fp is not None:
                image.fp.seek(0)
                return Jpeg(image.fp.read(), image.size, path)
            return Decoded(as_pixels(_in_rgb(image)))
    except Exception as error:  # a damaged file makes the decoders raise almost anything
        raise _unreadable(path, error) from error


def read_image(path: Path | BinaryIO) -> Image.Image:
    """Return an image in RGB, its transparent parts on white; raise OSError, which names it."""
    return as_image(open_image(path).pixels().values)


def as_pixels(image: Image.Image) -> Tensor:
    """Return (H, W, 3) uint8 of an image in RGB or grey."""
    if image.mode != "RGB":  # converting would copy it
        image = image.convert("RGB")
    return torch.from_numpy(np.array(image))


def as_image(values: Tensor) -> Image.Image:
    """Return the RGB image of (H, W, 3) uint8."""
    return Image.fromarray(values.numpy())


def _in_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # PIL would clip 16 bits instead of scaling them
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _unreadable(path: Any, error: Exception) -> OSError:
    return OSError(f"cannot read the image {path}: {error}")
