"""Reads the published lists of In-Shop Clothes Retrieval and of iNaturalist's classes.

Both name the images of train and test; nothing is drawn. Their layouts are in ``datasets.folders``.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from datasets.folders import clean, expected_tree
from datasets.image_set import ImageSet

STATUSES = ("train", "query", "gallery")


def read_inshop(root: Path) -> tuple[ImageSet, ImageSet]:
    """Train and test of In-Shop Clothes Retrieval; a class is one item of a shop.

    Source: Liu et al., DeepFashion: Powering Robust Clothes Recognition and Retrieval with Rich
    Annotations, CVPR 2016. Test images either ask (``ImageSet.queries``) or are the gallery; a
    query is looked for in the gallery alone. An item has no name of its own: its words and its
    group are the folders above it ("women dresses"), as super-classes are for online_products.

    The list may lie in ``Eval/`` and the images in ``Img/``, as the archives have them.

    Raises:
        FileNotFoundError: the list or the ``img`` folder is missing.
        ValueError: a line of the list cannot be read, or a status has no image.
    """
    file = _first_file(root / "list_eval_partition.txt", root / "Eval" / "list_eval_partition.txt")
    if file is None:
        raise FileNotFoundError(
            f"the list {root / 'list_eval_partition.txt'} is missing{expected_tree(root)}"
        )
    above = next((path for path in (root, root / "Img") if (path / "img").is_dir()), None)
    if above is None:
        raise FileNotFoundError(f"{root} holds no folder `img`{expected_tree(root)}")
    rows: dict[str, list[tuple[Path, str]]] = {status: [] for status in STATUSES}
    for number, line in _lines(file, skip=2):  # how many there are, and what the columns are
        fields = line.split()
        if len(fields) != 3 or fields[2] not in STATUSES:
            raise ValueError(
                f"{file}, line {number}: {line!r} is not `image_name item_id evaluation_status` "
                f"with a status of {', '.join(STATUSES)}; take the list as it was published"
            )
        rows[fields[2]].append((above / fields[0], fields[1]))
    empty = [status for status in STATUSES if not rows[status]]
    if empty:
        raise ValueError(
            f"{file} lists no image as {' or as '.join(empty)}; take the list as it was published"
        )
    test = rows["query"] + rows["gallery"]
    asks = np.arange(len(test)) < len(rows["query"])
    return (
        _inshop_set(f"{root.name}.train", above, rows["train"]),
        _inshop_set(f"{root.name}.test", above, test, asks),
    )


def _inshop_set(
    name: str, above: Path, rows: Sequence[tuple[Path, str]], queries: np.ndarray | None = None
) -> ImageSet:
    paths, items = zip(*rows, strict=True)
    _, first, labels = np.unique(items, return_index=True, return_inverse=True)
    words = []
    for row in first:  # img/WOMEN/Tees_Tanks/id_00000003/02_1_front.jpg
        parts = paths[row].relative_to(above).parts[1:-2]
        words.append(clean(" ".join(parts).lower()) if parts else items[row])
    return ImageSet(
        name, paths, labels.astype(np.int64), tuple(words), tuple(words), queries=queries
    )


def read_inat(root: Path) -> tuple[ImageSet, ImageSet]:
    """Train and test of iNaturalist 2018 for metric learning; a class is a species.

    Source: Brown et al., Smooth-AP: Smoothing the Path Towards Large-Scale Image Retrieval, ECCV
    2020, whose lists hold a path a line; images by Van Horn et al., The iNaturalist Species
    Classification and Detection Dataset, CVPR 2018. The folder of a species is its number
    ("Aves/2761"); its words are the name that the competition's ``categories.json`` gives it, where
    that lies beside the lists' folder, else its super-class ("Aves"), which is its group.

    The lists may also lie beside the images instead of in ``Inat_dataset_splits/``.

    Raises:
        FileNotFoundError: a list is missing.
        ValueError: a line is no path of an image in a species' folder; a species is in both lists.
    """
    train, test = (_read_species(root, split) for split in ("train", "test"))
    folders = [{path.parent for path in images.paths} for images in (train, test)]
    shared = sorted(folders[0] & folders[1])
    if shared:
        raise ValueError(
            f"the lists of {root} both name images of {shared[0].relative_to(root)}, and of "
            f"{len(shared) - 1} more; a species is trained on or tested on. Take the lists as they "
            "were published"
        )
    return train, test


def _read_species(root: Path, split: str) -> ImageSet:
    name = f"Inaturalist_{split}_set1.txt"
    file = _first_file(root / "Inat_dataset_splits" / name, root / name)
    if file is None:
        raise FileNotFoundError(
            f"the list {root / 'Inat_dataset_splits' / name} is missing{expected_tree(root)}"
        )
    paths = []
    for number, line in _lines(file, skip=0):
        path = Path(line.strip())
        if len(path.parts) < 3 or path.is_absolute():
            raise ValueError(
                f"{file}, line {number}: {line!r} is not `folder/<super-class>/<species>/<file>`"
            )
        paths.append(path)
    if not paths:
        raise ValueError(f"{file} lists no images")
    species = ["/".join(path.parts[-3:-1]) for path in paths]
    folders, labels = np.unique(species, return_inverse=True)
    groups = tuple(folder.partition("/")[0] for folder in folders)
    names = groups
    if (root / "categories.json").is_file():
        names = _species_names(root / "categories.json", [str(folder) for folder in folders])
    return ImageSet(
        f"{root.name}.{split}",
        tuple(root / path for path in paths),
        labels.astype(np.int64),
        names,
        groups,
    )


def _species_names(file: Path, folders: Sequence[str]) -> tuple[str, ...]:
    """Names from the competition's list of ``{"id": ..., "name": ...}``."""
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
        name_of = {str(entry["id"]): str(entry["name"]) for entry in entries}
        return tuple(name_of[folder.rpartition("/")[2]] for folder in folders)
    except (ValueError, TypeError, LookupError) as error:
        raise ValueError(
            f'{file} does not name the species by {{"id": number, "name": words}} '
            f"({type(error).__name__}: {error}); take iNaturalist 2018's, or remove it"
        ) from error


def _first_file(*files: Path) -> Path | None:
    return next((file for file in files if file.is_file()), None)


def _lines(file: Path, skip: int) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers from 1, after the first ``skip``."""
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if number > skip and line.strip():
            yield number, line
