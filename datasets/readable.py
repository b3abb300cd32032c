"""Finds the image files that cannot be decoded, before training starts."""

import logging
from collections.abc import Iterable
from pathlib import Path

from datasets.folders import listed
from datasets.image_files import READING
from datasets.image_set import ImageSet
from datasets.reading import open_image
from utilities.disk_cache import of_files
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

    Results are cached for each ``root``, as long as a file is not changed.
    """
    found = of_files("checked", root, paths, fault, "check images", version=READING)
    return {path: why for path, why in found.items() if why}


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
