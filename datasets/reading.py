"""Opens image files upright in RGB and decodes no more of them than is needed.

A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size, at a fraction of the cost. How much is needed
depends on the crop, and the crop on the image's size; so an image is opened first
(``LazyImage.size``, from its header) and decoded later (``LazyImage.pixels``). At full size
torchvision decodes a JPEG if it was imported: the same pixels as PIL's, a fifth faster. An image
that is stored turned or mirrored, as its EXIF orientation tells, is set upright. Whoever changes
the pixels that a file is read as raises ``image_files.READING``.
"""

import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image
from torch import Tensor

from datasets import image_files  # noqa: F401  lets plug-ins open their formats
from utilities.files import special_kind

MOST_EXTREME = 20  # aspect ratio of images that are used whole
MOST_BYTES = 1 << 30  # of a JPEG, whatever follows its end in the file
TURNS = {  # EXIF orientation -> what sets an image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
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
    stored: tuple[int, int]  # width and height before it is set upright
    orientation: int  # of EXIF, 1 to 8
    path: Any  # its str is named in errors

    @property
    def size(self) -> tuple[int, int]:
        return self.stored[::-1] if self.orientation >= 5 else self.stored

    def pixels(self, max_reduction: int = 1) -> Pixels:
        width, height = self.stored
        reduction = next(by for by in REDUCTIONS if by <= min(max_reduction, width, height))
        values = self._by_torchvision() if reduction == 1 else None
        if values is None:
            try:
                with Image.open(io.BytesIO(self.content)) as image:
                    image.draft(None, (width // reduction, height // reduction))
                    values = as_pixels(image)
            except Exception as error:  # as in open_image
                raise _unreadable(self.path, error) from error
        return Pixels(upright(values, self.orientation), reduction)

    def _by_torchvision(self) -> Tensor | None:
        if "torchvision" not in sys.modules:  # importing it for a few images takes a second
            return None
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
    if isinstance(path, Path) and (kind := special_kind(path)):  # reading a pipe would never end
        raise _unreadable(path, kind)
    try:
        with Image.open(path) as image:
            # CMYK and files of several images (MPO) are left to PIL's conversions.
            if image.format == "JPEG" and image.mode in ("RGB", "L") and image.fp is not None:
                size = image.fp.seek(0, io.SEEK_END)
                image.fp.seek(0)
                content = image.fp.read(min(size, MOST_BYTES))
                return Jpeg(content, image.size, orientation(image), path)
            # Decoded first: Pillow itself turns a TIFF, and a PNG may hold EXIF after its pixels.
            values = as_pixels(in_rgb(image))
            return Decoded(upright(values, orientation(image)))
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


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an opened image, 1 to 8; 1 if it has none that is valid."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF makes its parser raise almost anything; the pixels are sound
        return 1
    return int(value) if value in range(1, 9) else 1


def upright(values: Tensor, orientation: int) -> Tensor:
    """Return (H, W, 3) pixels, stored in an EXIF orientation, as they should be seen."""
    if orientation not in TURNS:
        return values
    # PIL moves whole pixels, three times as fast as torch moves bytes.
    return as_pixels(as_image(values).transpose(TURNS[orientation]))


def in_rgb(image: Image.Image) -> Image.Image:
    """Return an image of any mode in RGB: values scaled by their range, transparent on white."""
    image.load()  # some know their mode and palette only then
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_in_8_bits(image)).convert("RGB")  # PIL would clip the values
    if image.has_transparency_data:
        if image.mode in ("La", "RGBa"):  # premultiplied
            image = image.convert(image.mode.upper())
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode == "LAB":
        from PIL import ImageCms

        spaces = (ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"))
        return cast(Image.Image, ImageCms.profileToProfile(image, *spaces, outputMode="RGB"))
    return image.convert("RGB")


def _in_8_bits(image: Image.Image) -> NDArray[np.uint8]:
    """Scale an image of deep grey values to 8 bits.

    16 bits are scaled by the range of their type. Integers of 32 bits and floats do not tell
    theirs: it is the first of 0 to 1 (floats only), 0 to 255 and 0 to 65535 that holds all values,
    else that of the image's own values. NaN is black.
    """
    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        return (values >> 8).astype(np.uint8)
    finite = values if image.mode == "I" else values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    usual = (1, 255, 65535) if image.mode == "F" else (255, 65535)
    if low >= 0 and high <= usual[-1]:
        low, high = 0.0, next(top for top in usual if high <= top)
    scaled = np.subtract(values, low, dtype=np.float64)
    scaled *= 255 / max(high - low, 1e-300)
    np.nan_to_num(scaled, copy=False)  # in place, like the rest: an image may have 10^8 pixels
    return scaled.clip(0, 255, out=scaled).round(out=scaled).astype(np.uint8)


def _unreadable(path: Any, why: object) -> OSError:
    return OSError(f"cannot read the image {path}: {why}")
