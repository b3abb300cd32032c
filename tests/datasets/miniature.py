"""Small copies of the published datasets' layouts: their names, trees and lists, a few JPEGs each.

    cub200(folder)            images/001.Black_footed_Albatross/….jpg
    cars196(folder)           images/Ram C-V Cargo Van Minivan 2012/00001.jpg
    online_products(folder)   images/coffee_maker_final/….JPG and Info_Files/Ebay_{train,test}.txt
    inshop(folder)            img/WOMEN/Tees_Tanks/id_…/….jpg and list_eval_partition.txt
    inat(folder)              train_val2018/Aves/2761/….jpg and Inat_dataset_splits/….txt

Each writes ``<folder>/<name>`` and returns it. A class is a colour with stripes of a direction of
its own, so that a network can tell classes apart; its images differ in phase, shade and noise.
"""

import colorsys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

CUB = (  # of the published list, with the breaks in its numbers that a miniature has
    "001.Black_footed_Albatross",
    "009.Brewer_Blackbird",
    "022.Chuck_will_Widow",
    "028.Brown_Creeper",
    "036.Northern_Flicker",
    "061.Heermann_Gull",
    "105.Whip_poor_Will",
    "111.Loggerhead_Shrike",
    "118.House_Sparrow",
    "139.Scarlet_Tanager",
    "166.Golden_winged_Warbler",
    "187.American_Three_toed_Woodpecker",
)
CARS = (
    "Acura Integra Type R 2001",
    "Aston Martin V8 Vantage Convertible 2012",
    "BMW 3 Series Sedan 2012",
    "Bentley Continental Supersports Conv. Convertible 2012",
    "Chevrolet Corvette Ron Fellows Edition Z06 2007",
    "Dodge Caliber Wagon 2012",
    "Ford F-150 Regular Cab 2012",
    "Jeep Wrangler SUV 2012",
    "Mercedes-Benz 300-Class Convertible 1993",
    "Ram C-V Cargo Van Minivan 2012",
    "Rolls-Royce Phantom Drophead Coupe Convertible 2012",
    "smart fortwo Convertible 2012",
)
PRODUCTS = (  # super-classes of the published list, in its order
    *("bicycle", "cabinet", "chair", "coffee_maker", "fan", "kettle"),
    *("lamp", "mug", "sofa", "stapler", "table", "toaster"),
)
CLOTHES = (
    *("MEN/Denim", "MEN/Jackets_Vests", "MEN/Sweatshirts_Hoodies", "WOMEN/Blouses_Shirts"),
    *("WOMEN/Dresses", "WOMEN/Rompers_Jumpsuits", "WOMEN/Tees_Tanks", "WOMEN/Graphic_Tees"),
)
SPECIES = (
    *("Actinopterygii/2229", "Amphibia/2704", "Arachnida/612", "Aves/2761", "Aves/4210"),
    *("Insecta/1033", "Mammalia/4355", "Mollusca/5027", "Plantae/5590", "Plantae/8135"),
    *("Reptilia/5001", "Protozoa/8137"),
)


def picture(kind: int, number: int, size: int = 56) -> Image.Image:
    """Image ``number`` of the class ``kind``, RGB."""
    rng = np.random.default_rng([kind, number])
    y, x = np.mgrid[:size, :size] / size
    angle = 2.4 * kind  # the golden angle: neighbours in number are far apart
    waves = np.sin(2 * np.pi * (3 + kind % 4) * (x * np.cos(angle) + y * np.sin(angle))
                   + rng.uniform(0, 2 * np.pi))  # fmt: skip
    colour = np.array(colorsys.hsv_to_rgb((0.618 * kind) % 1, 0.7, rng.uniform(0.7, 1)))
    pixels = colour * (0.75 + 0.25 * waves)[..., None] + rng.normal(0, 0.04, (size, size, 3))
    return Image.fromarray((255 * pixels.clip(0, 1)).astype(np.uint8))


def _save(path: Path, kind: int, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    size = 48 + 4 * (number % 4)
    picture(kind, number, size).save(path, "JPEG", quality=92)


def _names(published: tuple[str, ...], n: int, joint: str) -> list[str]:
    """So many class names: the published ones, then those again with a number."""
    rounds = range(1, -(-n // len(published)) + 1)
    return [name if r == 1 else f"{name}{joint}{r}" for r in rounds for name in published][:n]


def cub200(folder: Path, *, n_classes: int = 12, per_class: int = 6) -> Path:
    """A batch of the published 108 images, two of a class, needs 108 classes."""
    for kind, name in enumerate(_names(CUB, n_classes, "_")):
        bird = name.partition(".")[2].title()
        for number in range(per_class):
            file = f"{bird}_{number + 1:04d}_{796111 + 17 * kind + number}.jpg"
            _save(folder / "cub200" / "images" / name / file, kind, number)
    return folder / "cub200"


def cars196(folder: Path, *, n_classes: int = 12, per_class: int = 6) -> Path:
    for kind, name in enumerate(_names(CARS, n_classes, " ")):
        for number in range(per_class):
            file = f"{per_class * kind + number + 1:05d}.jpg"
            _save(folder / "cars196" / "images" / name / file, kind, number)
    return folder / "cars196"


def online_products(folder: Path, *, per_class: int = 5) -> Path:
    """Two products of each super-class; the first is trained on, the second tested on."""
    root = folder / "online_products"
    lists = {"train": ["image_id class_id super_class_id path"]}
    lists["test"] = list(lists["train"])
    product = image = 0
    for split in lists:
        for place, name in enumerate(PRODUCTS):
            product += 1
            for number in range(per_class):
                image += 1
                path = f"{name}_final/{111085122871 + product}_{number}.JPG"
                lists[split].append(f"{image} {product} {place + 1} {path}")
                _save(root / "images" / path, product, number)
    _write_lists(root / "Info_Files", {f"Ebay_{split}.txt": lists[split] for split in lists})
    return root


def inshop(folder: Path, *, n_items: int = 16, per_status: int = 3) -> Path:
    """Half of the items are trained on; others have ``per_status`` queries and gallery images."""
    root = folder / "inshop"
    lines = []
    for item in range(1, n_items + 1):
        name = f"id_{item:08d}"
        place = f"img/{CLOTHES[item % len(CLOTHES)]}/{name}"
        for number in range(2 * per_status):
            status = ("query", "gallery")[number % 2] if item > n_items // 2 else "train"
            view = ("front", "side", "back", "full", "additional", "flat")[number % 6]
            path = f"{place}/{number // 6 + 1:02d}_{number % 6 + 1}_{view}.jpg"
            lines.append(f"{path:<70} {name} {status}")  # the published list has runs of spaces
            _save(root / path, item, number)
    head = [str(len(lines)), "image_name item_id evaluation_status"]
    _write_lists(root, {"list_eval_partition.txt": head + lines})
    return root


def inat(folder: Path, *, per_class: int = 5) -> Path:
    """The first half of ``SPECIES`` is tested on, so that nothing depends on the order of names."""
    root = folder / "inat"
    lists: dict[str, list[str]] = {"train": [], "test": []}
    for kind, species in enumerate(SPECIES):
        for number in range(per_class):
            file = f"{0x3F0AC2B19 + 7919 * kind + number:032x}.jpg"
            path = f"train_val2018/{species}/{file}"
            lists["test" if kind < len(SPECIES) // 2 else "train"].append(path)
            _save(root / path, kind, number)
    names = {split: f"Inaturalist_{split}_set1.txt" for split in lists}
    _write_lists(root / "Inat_dataset_splits", {names[split]: lists[split] for split in lists})
    return root


def _write_lists(folder: Path, lists: dict[str, list[str]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in lists.items():
        (folder / name).write_text("\n".join([*lines, ""]), encoding="utf-8")


LAYOUTS: dict[str, Callable[..., Path]] = {
    "cub200": cub200,
    "cars196": cars196,
    "online_products": online_products,
    "inshop": inshop,
    "inat": inat,
}
