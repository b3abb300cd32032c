"""Finds the image files that cannot be decoded, before training starts."""

import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm
from tqdm.contrib.concurrent import thread_map

from datasets.folders import listed
from datasets.image_set import ImageSet
from datasets.reading import READING, open_image
from utilities.disk_cache import Entry, digest, stamp
from utilities.files import special_kind

LOG = logging.getLogger(__name__)


def keep_readable(*sets: ImageSet, root: Path) -> list[ImageSet]:
    """Return the sets without images that cannot be decoded; FileNotFoundError if none is left."""
    paths = {path for image_set in sets for path in image_set.paths}
    faults = find_faults((path for image_set in sets for path in image_set.paths), root)
    if faults:
        lines = "\n".join(f"  {path}: {why}" for path, why in faults.items())
        LOG.warning(
            "%d of %d images cannot be read and are skipped:\n%s", len(faults), len(paths), lines
        )
    return [_without(image_set, faults) for image_set in sets]


def find_faults(paths: Iterable[Path], root: Path) -> dict[Path, str]:
    """Return why images cannot be decoded, for those that cannot.

    Results are cached for each ``root``, as long as a file's size and time of change stay.
    """
    stamps = {path: stamp(path) for path in paths}
    entry = Entry("checked", root.name, digest([str(root.resolve()), str(READING)]))
    with entry.locked():
        kept = entry.read_tensors()  # one string: a long dict would be slow to load
        faults: dict[str, str] = json.loads(kept["faults"]) if kept else {}  # by stamp
        new = [path for path, mark in stamps.items() if mark not in faults]
        if new:
            found = thread_map(
                fault,
                new,
                max_workers=os.cpu_count(),
                desc=f"{root.name}: check images",
                unit="image",
                tqdm_class=tqdm,
            )
            faults |= {stamps[path]: why for path, why in zip(new, found, strict=True)}
            entry.keep_tensors({"faults": json.dumps(faults)})
    return {path: faults[mark] for path, mark in stamps.items() if faults[mark]}


def fault(path: Path) -> str:
    """Return why an image cannot be decoded to its end; empty if it can."""
    if kind := special_kind(path):
        return kind
    try:
        open_image(path).pixels(8)  # reads all of a JPEG, but decodes an eighth of its pixels
    except OSError as error:
        why = error.__cause__ or error
        return str(why) or type(why).__name__
    return ""


def _without(image_set: ImageSet, faults: dict[Path, str]) -> ImageSet:
    rows = [row for row, path in enumerate(image_set.paths) if path not in faults]
    if len(rows) == len(image_set):
        return image_set
    if not rows:
        raise FileNotFoundError(
            f"{image_set.name}: none of the {len(image_set)} images can be read: "
            + listed((f"{path} ({why})" for path, why in faults.items()), most=3)
        )
    kept = image_set.subset(rows, image_set.name)
    if kept.n_classes < image_set.n_classes:
        n_lost = image_set.n_classes - kept.n_classes
        LOG.warning("%s: skipped %d classes without a readable image", image_set.name, n_lost)
    return kept
