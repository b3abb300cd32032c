"""Finds the image files that cannot be decoded, before training starts."""

import hashlib
import json
import logging
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from datasets.folders import listed
from datasets.image_files import special_kind
from datasets.image_set import ImageSet
from utilities.files import atomic_path, cache_folder

log = logging.getLogger(__name__)


def fault(path: Path) -> str:
    """Why an image cannot be decoded to its end; empty when it can."""
    if kind := special_kind(path):
        return kind
    try:
        with Image.open(path) as image:
            image.draft("RGB", (1, 1))  # a JPEG is read whole, but its pixels at an eighth only
            image.load()
    except Exception as error:  # as in read_image
        return str(error) or type(error).__name__
    return ""


def keep_readable(*sets: ImageSet, root: Path) -> list[ImageSet]:
    """The sets without the images that cannot be decoded, which are named in the log.

    Every image is decoded once; what was found is kept beside the images (in the cache folder where
    that cannot be written), and holds as long as a file's size and time of change do.

    Raises:
        FileNotFoundError: a set has no readable image.
    """
    faults = find_faults([path for image_set in sets for path in image_set.paths], root)
    if faults:
        log.warning(
            "%d of %d images cannot be read and are left out:\n%s",
            len(faults),
            len({path for image_set in sets for path in image_set.paths}),
            "\n".join(f"  {path}: {why}" for path, why in faults.items()),
        )
    return [_without(image_set, faults) for image_set in sets]


def find_faults(paths: Iterable[Path], root: Path) -> dict[Path, str]:
    """Why each image that cannot be decoded cannot; what is known of ``root`` is not read again."""
    record = _record_file(root)
    known = _read_record(record)
    paths = list(dict.fromkeys(paths))
    keys = {path: _key(path, root) for path in paths}
    stamps = {path: _stamp(path) for path in paths}
    fresh = [path for path in paths if known.get(keys[path], [""])[0] != stamps[path]]
    if fresh:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            bar = tqdm(
                pool.map(fault, fresh),
                desc=f"{root.name}: check images",
                total=len(fresh),
                unit="image",
            )
            found = dict(zip(fresh, bar, strict=True))
        known |= {keys[path]: [stamps[path], found[path]] for path in fresh}
        with atomic_path(record) as temporary:
            temporary.write_text(json.dumps(known), encoding="utf-8")

    return {path: known[keys[path]][1] for path in paths if known[keys[path]][1]}


def _key(path: Path, root: Path) -> str:
    """Its name in the record: below ``root`` where it is, else in full."""
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


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
        log.warning(
            "%s: %d classes have no readable image and are left out",
            image_set.name,
            image_set.n_classes - kept.n_classes,
        )
    return kept


def _stamp(path: Path) -> str:
    """Changes when the file does."""
    try:
        status = path.stat()
    except OSError:
        return "missing"
    return f"{status.st_size} {status.st_mtime_ns}"


def _record_file(root: Path) -> Path:
    if os.access(root, os.W_OK):
        return root / ".checked.json"
    mark = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:12]
    return cache_folder() / "checked" / f"{root.name}-{mark}.json"


def _read_record(record: Path) -> dict[str, list[str]]:
    """What was found before, by relative path: [stamp, fault]. A record is never worth an error."""
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
