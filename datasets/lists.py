"""Reads the published lists of Online Products, In-Shop and iNaturalist.

<root>/images/bicycle_final/<file>     online_products
<root>/Info_Files/Ebay_train.txt       lines of: image_id class_id super_class_id path
<root>/Info_Files/Ebay_test.txt

<root>/img/WOMEN/Dresses/<item>/<file> inshop; its archives have Img/img/ and Eval/
<root>/list_eval_partition.txt         lines of: image_name item_id train|query|gallery

<root>/train_val2018/Aves/2761/<file>  inat; the lists may also lie in <root>
<root>/Inat_dataset_splits/Inaturalist_train_set1.txt    a path a line
<root>/Inat_dataset_splits/Inaturalist_test_set1.txt

Their lists name the images of train and test. Readers raise FileNotFoundError for a list or folder
that is missing, ValueError for a list that is wrong.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from datasets.folders import expected_tree, spaced
from datasets.image_set import ImageSet
from utilities.files import read_json

STATUSES = ("train", "query", "gallery")


def read_online_products(root: Path) -> tuple[ImageSet, ImageSet]:
    """Return train and test of Stanford Online Products; a class is one product.

    Source: Song et al., Deep Metric Learning via Lifted Structured Feature Embedding, CVPR 2016.
    A product's words and its group are its super-class ("coffee maker").
    """
    _folder(root, "images", root)
    return _read_products(root, "train"), _read_products(root, "test")


def _read_products(root: Path, split: str) -> ImageSet:
    file = _list(root, root / "Info_Files" / f"Ebay_{split}.txt")
    paths, products, words = [], [], []
    for number, line in _lines(file, skip=1):
        fields = line.split()
        if len(fields) != 4 or not fields[1].isdigit():
            raise ValueError(
                f"{file}, line {number}: {line!r} is not `image_id class_id super_class_id path`"
            )
        paths.append(root / "images" / fields[3])
        products.append(int(fields[1]))
        words.append(spaced(Path(fields[3]).parent.name.removesuffix("_final")))
    return _image_set(f"{root.name}.{split}", paths, products, words)


def read_inshop(root: Path) -> tuple[ImageSet, ImageSet]:
    """Return train and test of In-Shop Clothes Retrieval; a class is one item of a shop.

    Source: Liu et al., DeepFashion: Powering Robust Clothes Recognition and Retrieval with Rich
    Annotations, CVPR 2016. Test images are queries (``ImageSet.queries``) or gallery. An item's
    words and its group are the folders above it ("women dresses").
    """
    name = "list_eval_partition.txt"
    file = _list(root, root / name, root / "Eval" / name)
    above = _folder(root, "img", root, root / "Img")
    rows: dict[str, list[tuple[Path, str]]] = {status: [] for status in STATUSES}
    for number, line in _lines(file, skip=2):  # the number of images, and the columns
        fields = line.split()
        if len(fields) != 3 or fields[2] not in STATUSES:
            raise ValueError(
                f"{file}, line {number}: {line!r} is not `image_name item_id evaluation_status` "
                f"with a status of {', '.join(STATUSES)}; use the published list"
            )
        rows[fields[2]].append((above / fields[0], fields[1]))
    if empty := [status for status in STATUSES if not rows[status]]:
        raise ValueError(
            f"{file} lists no image as {' or as '.join(empty)}; use the published list"
        )

    def image_set(split: str, *statuses: str) -> ImageSet:
        paths, items = zip(*(row for status in statuses for row in rows[status]), strict=True)
        words = []
        for path, item in zip(paths, items, strict=True):  # img/WOMEN/Tees_Tanks/<item>/<file>
            parts = path.relative_to(above).parts[1:-2]
            words.append(spaced(" ".join(parts).lower()) if parts else item)
        queries = np.arange(len(paths)) < len(rows["query"]) if split == "test" else None
        return _image_set(f"{root.name}.{split}", paths, items, words, queries=queries)

    return image_set("train", "train"), image_set("test", "query", "gallery")


def read_inat(root: Path) -> tuple[ImageSet, ImageSet]:
    """Return train and test of iNaturalist 2018 for metric learning; a class is a species.

    Source: Brown et al., Smooth-AP: Smoothing the Path Towards Large-Scale Image Retrieval, ECCV
    2020 (the lists); Van Horn et al., The iNaturalist Species Classification and Detection Dataset,
    CVPR 2018 (the images). The group of a species is its super-class ("Aves"); so are its words,
    unless the competition's ``categories.json`` in ``root`` names it.
    """
    train, test = (_read_species(root, split) for split in ("train", "test"))
    folders = [{path.parent for path in images.paths} for images in (train, test)]
    if shared := sorted(folders[0] & folders[1]):
        raise ValueError(
            f"the lists of {root} both name images of {shared[0].relative_to(root)}, and of "
            f"{len(shared) - 1} more; a species is trained on or tested on. Use the published lists"
        )
    return train, test


def _read_species(root: Path, split: str) -> ImageSet:
    name = f"Inaturalist_{split}_set1.txt"
    file = _list(root, root / "Inat_dataset_splits" / name, root / name)
    paths = []
    for number, line in _lines(file, skip=0):
        path = Path(line.strip())
        if len(path.parts) < 3 or path.is_absolute():
            raise ValueError(
                f"{file}, line {number}: {line!r} is not `folder/<super-class>/<species>/<file>`"
            )
        paths.append(root / path)
    folders = ["/".join(path.parts[-3:-1]) for path in paths]
    groups = words = [folder.partition("/")[0] for folder in folders]
    if (root / "categories.json").is_file():
        words = _species_names(root / "categories.json", folders)
    return _image_set(f"{root.name}.{split}", paths, folders, words, groups)


def _species_names(file: Path, folders: Sequence[str]) -> list[str]:
    try:
        entries = read_json(file, list)
        name_of = {str(entry["id"]): str(entry["name"]) for entry in entries}
        return [name_of[folder.rpartition("/")[2]] for folder in folders]
    except (ValueError, TypeError, LookupError) as error:
        raise ValueError(
            f'{file} does not name the species by {{"id": number, "name": words}} '
            f"({type(error).__name__}: {error}); use that of iNaturalist 2018, or remove it"
        ) from error


def _image_set(
    name: str,
    paths: Sequence[Path],
    classes: Sequence[int] | Sequence[str],
    words: Sequence[str],
    groups: Sequence[str] | None = None,
    queries: np.ndarray | None = None,
) -> ImageSet:
    _, first, labels = np.unique(classes, return_index=True, return_inverse=True)
    names = tuple(words[row] for row in first)
    above = names if groups is None else tuple(groups[row] for row in first)
    return ImageSet(name, tuple(paths), labels.astype(np.int64), names, above, queries=queries)


def _list(root: Path, *places: Path) -> Path:
    for file in places:
        if file.is_file():
            return file
    raise FileNotFoundError(f"the list {places[0]} is missing{expected_tree(root)}")


def _folder(root: Path, name: str, *places: Path) -> Path:
    for place in places:
        if (place / name).is_dir():
            return place
    raise FileNotFoundError(f"{root} holds no folder `{name}`{expected_tree(root)}")


def _lines(file: Path, skip: int) -> Iterator[tuple[int, str]]:
    """Yield the filled lines with their numbers from 1, after the first ``skip``."""
    lines = enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
    filled = [(number, line) for number, line in lines if number > skip and line.strip()]
    if not filled:
        raise ValueError(f"{file} lists no images")
    yield from filled
