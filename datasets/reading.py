"""Opens an image file as the network is to see it."""

from pathlib import Path
from typing import BinaryIO

from PIL import Image


def read_image(path: Path | BinaryIO) -> Image.Image:
    """The image in RGB; what is transparent becomes white.

    Args:
        path: a file, or what is open for reading and says by ``str`` where it comes from.

    Raises:
        OSError: the file cannot be read or is no whole image; names it.
    """
    try:
        with Image.open(path) as opened:
            image: Image.Image = opened
            if image.mode.startswith("I;16"):  # PIL's own conversion clips 16 bits instead
                image = image.convert("I").point(lambda value: value / 256).convert("L")
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                image = image.convert("RGBA")
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image)
            return image.convert("RGB")
    except Exception as error:  # a damaged file makes the decoders raise almost anything
        raise OSError(f"cannot read the image {path}: {error}") from error
