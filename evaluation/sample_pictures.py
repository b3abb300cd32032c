"""A few pictures to try an embedder on: real ones if there are any."""

from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datasets.image_files import is_image_name
from evaluation.exported_preprocess import prepare as prepare_exported
from evaluation.preprocessing import Preprocessing


class Pictures(NamedTuple):
    paths: list[Path]
    images: Tensor  # (B, 3, S, S) as evaluation reads them
    source: str


def sample_pictures(
    prepare: Preprocessing, places: Sequence[Path], n: int, folder: Path
) -> Pictures:
    """Return the first pictures of files or folders that can be read, or drawn ones if none are.

    Args:
        n: how many; if there are fewer, they repeat.
        folder: for drawn ones.

    Raises:
        ValueError: a place that does not exist.
    """
    missing = [str(place) for place in places if not place.exists()]
    if missing:
        raise ValueError(f"--pictures {missing[0]} does not exist; give image files or folders")
    found: dict[Path, Tensor] = {}
    files = (file for place in places for file in (place.rglob("*") if place.is_dir() else [place]))
    for path in files:
        if len(found) == n:
            break
        try:
            if is_image_name(path.name) and path.is_file():
                prepare_exported(path, prepare.settings())
                found[path.absolute()] = prepare.read(path)
        except (OSError, ValueError):  # the others are as good
            continue
    source = ", ".join(map(str, places))
    if not found:
        source = "drawn, not real; give some with --pictures FILE ..."
        found = {path: prepare.read(path) for path in draw(folder, n)}
    chosen = list(islice(cycle(found), n))
    return Pictures(chosen, torch.stack([found[path] for path in chosen]), source)


def draw(folder: Path, n: int) -> list[Path]:
    """Draw soft coloured shapes; return their files."""
    rng = np.random.default_rng(0)
    paths = [folder / f"{number}.png" for number in range(n)]
    for path in paths:
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3)).astype(np.uint8))
        coarse.resize((400, 300), Image.Resampling.BICUBIC).save(path)
    return paths
