"""Opens an image file as the network is to see it, and decodes no more of it than is needed.

The decoder of JPEG can leave out the higher frequencies of each block of 8 x 8 pixels and so give
the image at 1/2, 1/4 or 1/8 of its size: an eighth of a large photograph costs a fraction of the
whole, and is averaged better than by taking every eighth pixel. How much is needed depends on the
part that a transform takes, which depends on the size of the image; so an image is opened first
(``Picture.size``, from its header) and decoded then (``Picture.pixels``).

A JPEG at full size is decoded by torchvision where it can, straight to a tensor, which takes a
fifth less time than by PIL and then to a tensor. Both use libjpeg-turbo and give the same pixels.
torchvision means to drop its decoder; PIL does whatever it does not.
"""

import io
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

REDUCTIONS = (8, 4, 2, 1)  # that a JPEG can be decoded at


class Pixels(NamedTuple):
    """A decoded image."""

    values: Tensor  # (ceil(H / reduction), ceil(W / reduction), 3) uint8
    reduction: int  # of REDUCTIONS


class Picture(Protocol):
    """An image whose size is known and whose pixels are there when asked for."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""

    def pixels(self, most: int = 1) -> Pixels:
        """The image in RGB, reduced by at most ``most``. Raises OSError, which names the image."""


class Decoded:
    """An image that is in memory already; given as it is, whatever is asked for.

    Args:
        values: (H, W, 3) uint8.
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values

    @property
    def size(self) -> tuple[int, int]:
        return self.values.shape[1], self.values.shape[0]

    def pixels(self, most: int = 1) -> Pixels:
        return Pixels(self.values, 1)


class Jpeg:
    """The bytes of a JPEG in colour or grey.

    Args:
        path: for errors.
    """

    def __init__(self, content: bytes, size: tuple[int, int], path: Any) -> None:
        self.content = content
        self.size = size
        self.path = path

    def pixels(self, most: int = 1) -> Pixels:
        width, height = self.size
        reduction = next(by for by in REDUCTIONS if by <= min(most, width, height))
        values = self._by_torchvision() if reduction == 1 else None
        if values is not None:
            return Pixels(values, 1)
        try:
            with Image.open(io.BytesIO(self.content)) as image:
                image.draft(None, (width // reduction, height // reduction))
                return Pixels(as_pixels(image), reduction)
        except Exception as error:  # as in read_image
            raise _unreadable(self.path, error) from error

    def _by_torchvision(self) -> Tensor | None:
        """(H, W, 3) uint8; None where torchvision has no decoder, or the image is damaged."""
        try:
            from torchvision.io import ImageReadMode, decode_jpeg

            content = torch.frombuffer(bytearray(self.content), dtype=torch.uint8)
            return decode_jpeg(content, mode=ImageReadMode.RGB).permute(1, 2, 0)
        except (ImportError, RuntimeError, Warning):
            return None


def open_image(path: Path | BinaryIO) -> Picture:
    """An image with its pixels still to be decoded, where its format allows; else decoded.

    Args:
        path: a file, or what is open for reading and says by ``str`` where it comes from.

    Raises:
        OSError: the file cannot be read or is no image; names it. A JPEG that is cut short is found
            out by ``pixels`` only.
    """
    try:
        with Image.open(path) as image:
            # Ink (CMYK) and files of several pictures (MPO) are left to PIL's conversions.
            if image.format == "JPEG" and image.mode in ("RGB", "L") and image.fp is not None:
                image.fp.seek(0)
                return Jpeg(image.fp.read(), image.size, path)
            return Decoded(as_pixels(_in_rgb(image)))
    except Exception as error:  # as in read_image
        raise _unreadable(path, error) from error


def read_image(path: Path | BinaryIO) -> Image.Image:
    """The image in RGB; what is transparent becomes white.

    Args:
        path: as ``open_image``.

    Raises:
        OSError: the file cannot be read or is no whole image; names it.
    """
    try:
        with Image.open(path) as image:
            return _in_rgb(image)
    except Exception as error:  # a damaged file makes the decoders raise almost anything
        raise _unreadable(path, error) from error


def as_pixels(image: Image.Image) -> Tensor:
    """(H, W, 3) uint8 of an image in RGB or grey."""
    if image.mode != "RGB":  # else it would be copied
        image = image.convert("RGB")
    return torch.from_numpy(np.array(image))


def as_image(values: Tensor) -> Image.Image:
    """The RGB image of (H, W, 3) uint8."""
    return Image.fromarray(values.numpy())


def _in_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # PIL's own conversion clips 16 bits instead
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _unreadable(path: Any, error: Exception) -> OSError:
    return OSError(f"cannot read the image {path}: {error}")
