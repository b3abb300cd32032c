"""Miniatures of the datasets' layouts, with files as small as they can be."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets import ImageSet, splits


def save_image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (10, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def noise_images(folder: Path, n: int) -> ImageSet:
    """n images, two of each class, with captions; the red of row r is 30 r."""
    paths = tuple(folder / f"{row}.png" for row in range(n))
    for row, path in enumerate(paths):
        pixels = np.random.default_rng(row).integers(0, 256, (24, 30, 3), dtype=np.uint8)
        pixels[..., 0] = 30 * row
        Image.fromarray(pixels).save(path)
    names = tuple("abcdefgh"[: n // 2])
    captions = tuple(f"caption {row}" for row in range(n))
    return ImageSet("tiny", paths, np.arange(n) // 2, names, captions=captions)


def load(root: Path, **flags) -> splits.Data:
    """The dataset in ``root``."""
    return splits.load(root.name, root.parent, **flags)


def fill(root: Path, classes: dict[str, int], suffix: str = ".jpg") -> Path:
    """``root/images/<class>/<number><suffix>``, as many as ``classes`` says."""
    for number, (name, count) in enumerate(classes.items()):
        for image in range(count):
            save_image(root / "images" / name / f"{image}{suffix}", seed=100 * number + image)
    return root


@pytest.fixture
def mine(tmp_path):
    """Makes a dataset of one's own: ``mine({"class": number of images})``."""
    return lambda classes: fill(tmp_path / "mine", classes)


@pytest.fixture
def cub200(tmp_path):
    names = (
        "001.Black_footed_Albatross",
        "002.Laysan_Albatross",
        "010.Red_winged_Blackbird",
        "023.Brandt_Cormorant",
        "200.Common_Yellowthroat",
    )
    return fill(tmp_path / "cub200", dict.fromkeys(names, 3))


@pytest.fixture
def cars196(tmp_path):
    names = (
        "Acura Integra Type R 2001",
        "BMW 3 Series Sedan 2012",
        "Ram C-V Cargo Van Minivan 2012",
        "Bentley Continental Supersports Conv. Convertible 2012",
    )
    return fill(tmp_path / "cars196", dict.fromkeys(names, 2))


@pytest.fixture
def online_products(tmp_path):
    root = tmp_path / "online_products"
    lists = {
        "train": (
            "1 1 1 bicycle_final/111085122871_0.JPG",
            "2 1 1 bicycle_final/111085122871_1.JPG",
            "3 2 1 bicycle_final/111265328556_0.JPG",
            "4 2 1 bicycle_final/111265328556_1.JPG",
            "5 3 4 coffee_maker_final/111_0.JPG",
        ),
        "test": (
            "59552 11319 1 bicycle_final/251952414262_2.JPG",
            "59553 11319 1 bicycle_final/251952414262_6.JPG",
            "59554 11320 12 toaster_final/9_0.JPG",
        ),
    }
    (root / "Info_Files").mkdir(parents=True)
    for split, lines in lists.items():
        text = "\n".join(["image_id class_id super_class_id path", *lines, ""])
        (root / "Info_Files" / f"Ebay_{split}.txt").write_text(text)
        for number, line in enumerate(lines):
            save_image(root / "images" / line.split()[3], seed=number)
    return root


@pytest.fixture
def described(tmp_path):
    """A dataset of one's own that says more than folder names do."""
    root = fill(tmp_path / "mine", {"a": 2, "b": 2, "c": 2, "d": 2}, suffix=".png")
    about = {
        name: {"name": f"the {name}", "group": "early" if name < "c" else "late"} for name in "abcd"
    }
    captions = {
        f"{name}/{number}.png": f"{name} number {number}" for name in "abcd" for number in (0, 1)
    }
    (root / "classes.json").write_text(json.dumps(about))
    (root / "captions.json").write_text(json.dumps(captions))
    return root
