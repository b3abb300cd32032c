"""Makes small sets of image-caption pairs in each layout."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def image_bytes(seed: int = 0, size: tuple[int, int] = (12, 10), kind: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def write(path: Path, content: bytes | str | dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, dict):
        content = json.dumps(content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def pair(folder: Path, name: str, caption: object, seed: int = 0, as_json: bool = True) -> Path:
    """``folder/name`` and its caption file."""
    image = write(folder / name, image_bytes(seed))
    if as_json:
        write(image.with_suffix(".json"), {"caption": caption})
    else:
        write(image.with_suffix(".txt"), str(caption))
    return image


def shard(path: Path, files: dict[str, bytes]) -> Path:
    """A tar of these files, in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def samples(captions: list, first: int = 0) -> dict[str, bytes]:
    """Files of a shard as img2dataset writes them: per pair a .jpg, a .json and a .txt."""
    files = {}
    for number, caption in enumerate(captions, first):
        key = f"{number:09d}"
        files[f"{key}.jpg"] = image_bytes(number)
        files[f"{key}.json"] = json.dumps({"caption": caption, "width": 12}).encode()
        files[f"{key}.txt"] = str(caption).encode()
    return files
