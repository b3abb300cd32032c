"""Turns a picture into the input of an exported embedder, to the bit as it was evaluated.

    from preprocess import prepare
    images = np.stack([prepare(path) for path in paths])  # (B, 3, S, S) float32

Needs Pillow, numpy, and preprocessing.json in the folder of this file.
"""

# architectures.export copies this file, as preprocess.py: it must not import the project.
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

REDUCTIONS = (8, 4, 2, 1)  # at which a JPEG can be decoded
MOST_EXTREME = 20  # aspect ratio; of longer pictures, the middle is taken


def prepare(path: Any, settings: dict[str, Any] | None = None) -> Any:
    """Return a picture as (3, S, S) float32.

    Args:
        path: of the file, or a file opened for reading bytes.
        settings: those of preprocessing.json; None reads it.
    """
    if settings is None:
        settings = json.loads(Path(__file__).with_name("preprocessing.json").read_text("utf-8"))
    side, shorter = settings["image_size"], settings["resize_shorter_side"]
    with Image.open(path) as image:
        reducible = image.format == "JPEG" and image.mode in ("RGB", "L")
        width, height = image.size
        if reducible:  # it is decoded no larger than needed, which is faster and changes pixels
            least = min(width, height)
            by = next(by for by in REDUCTIONS if least // by >= shorter or by == 1)
            image.draft(None, (width // by, height // by))
        upright = ImageOps.exif_transpose(image)
        if not reducible:
            width, height = upright.size
        elif image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8):  # on its side
            width, height = height, width
        pixels = np.asarray(_in_rgb(upright))
    longest = MOST_EXTREME * min(pixels.shape[:2])
    if max(pixels.shape[:2]) > longest:
        height, width = (min(length, longest) for length in pixels.shape[:2])
        pixels = _centre(pixels, height, width)
    if width <= height:
        height, width = int(shorter * height / width), shorter
    else:
        height, width = shorter, int(shorter * width / height)
    pixels = _resized(_resized(pixels, width, axis=1), height, axis=0)
    values = _centre(pixels, side, side).astype(np.float32)
    mean, std = (np.float32(settings[name]) for name in ("mean", "std"))
    values = (values - np.float32(255) * mean) * (1 / (np.float32(255) * std))
    return np.ascontiguousarray(values.transpose(2, 0, 1))


def _in_rgb(image: Image.Image) -> Image.Image:
    """Return an image in RGB, its transparent parts on white."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F", "LAB", "La", "RGBa"):
        raise ValueError(f"an image of mode {image.mode}; save it with 8 bits a channel in RGB")
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _centre(pixels: Any, height: int, width: int) -> Any:
    top, left = (
        round((n - kept) / 2) for n, kept in zip(pixels.shape, (height, width), strict=False)
    )
    return pixels[top : top + height, left : left + width]


def _resized(pixels: Any, length: int, axis: int) -> Any:
    """Resize (H, W, 3) uint8 along an axis, bilinear with antialiasing.

    In integers, as torch does: with weights of 16 bits, and rounding after each axis.
    """
    n = pixels.shape[axis]
    if n == length:
        return pixels
    scale = n / length
    support = max(scale, 1.0)
    centres, at = scale * (np.arange(length)[:, None] + 0.5), np.arange(n)
    weights = np.maximum(1 - np.abs((at - centres + 0.5) * (1 / support)), 0)  # (length, n)
    weights[at < (centres - support + 0.5).astype(int)] = 0
    weights[at >= (centres + support + 0.5).astype(int)] = 0
    weights /= np.add.accumulate(weights, axis=1)[:, -1:]
    bits = next(
        bits for bits in range(22, 0, -1) if bits == 1 or int(0.5 + weights.max() * 2**bits) < 2**15
    )
    rounded = np.floor(0.5 + weights * 2**bits)
    sums = np.moveaxis(np.tensordot(rounded, pixels.astype(float), (1, axis)), 0, axis)
    return np.clip(np.floor((sums + 2 ** (bits - 1)) / 2**bits), 0, 255).astype(np.uint8)
