"""Describes the images and words of a run, so that a change between two of its starts is seen.

A description is plain values, kept in every checkpoint: names and digests of each class, not of
each image. Files are compared by their content and their place below the dataset's folder, so that
a dataset may be moved or copied. Image files of a caption set, of which there may be millions, are
compared by their sizes.
"""

import json
import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets.caption_set import CaptionSet
from datasets.folders import listed
from datasets.image_set import ImageSet
from datasets.splits import Data
from utilities.disk_cache import digest, digest_of_file, of_files

LOG = logging.getLogger(__name__)

Description = dict[str, Any]

PARTS = ("train", "val", "test")
MOST = 4  # changes that are listed


def describe(data: Data, root: Path, files: Mapping[str, Path]) -> Description:
    """Describe the images of a run and other files that shape it.

    Args:
        root: folder of the dataset.
        files: files or folders of words, partners and the like, by the flag that names them.
    """
    paths = (path for part in data if isinstance(part, ImageSet) for path in part.paths)
    contents = of_files("contents", root, paths, digest_of_file, "read images")
    sets = zip(PARTS, data, strict=True)
    parts = {name: _describe(part, root, contents) for name, part in sets if part is not None}
    return {**parts, "files": {flag: _digest(path) for flag, path in files.items()}}


def classes(description: Description) -> dict[str, list[str]]:
    """Return the names of the classes of train, val and test, for those that have classes."""
    parts = {part: description[part] for part in PARTS if part in description}
    return {part: found["classes"] for part, found in parts.items() if "classes" in found}


def changes(before: Description, now: Description) -> list[str]:
    """Say what differs between two descriptions, such as "train: the class kit fox is new"."""
    found = []
    for part in PARTS:
        old, new = before.get(part), now.get(part)
        if old and new:
            found += [f"{part}: {change}" for change in _changes(old, new)]
        elif old or new:
            found.append(f"{part}: the images were {'added' if new else 'removed'}")
    for flag in sorted(before["files"].keys() | now["files"].keys()):
        if before["files"].get(flag) != now["files"].get(flag):
            found.append(f"--{flag} has different content")
    return found


def refuse_changes(
    before: Description | None, now: Description, *, run: Path, accept: bool
) -> None:
    """Raise ValueError if a run is resumed on other data; only warn with ``accept``.

    Other training classes are never accepted: proxies and the like belong to the old ones.
    """
    if before is None:
        LOG.warning("%s does not record its data, so a change of them would go unnoticed", run)
        return
    if not (found := changes(before, now)):
        return
    message = f"--resume: the data have changed since {run} began: {_listing(found)}"
    if before["train"].get("classes") != now["train"].get("classes"):
        raise ValueError(
            f"{message}; restore them, or start another run with --savename: a run cannot change "
            "its training classes"
        )
    if not accept:
        raise ValueError(
            f"{message}; restore them, start another run with --savename, or continue on the "
            "changed data with --accept_changed_data"
        )
    LOG.warning("%s; continuing, as --accept_changed_data is given", message)


def refuse_trained_classes(
    before: Description | None, now: Description, *, checkpoint: Path, accept: bool
) -> None:
    """Raise ValueError if a checkpoint was trained on classes that it is now tested on.

    With ``accept`` that is a warning, like any other change of the data since training.
    """
    if before is None:
        LOG.info("%s does not record its data; classes are split as they are today", checkpoint)
        return
    trained, tested = _by_class(before["train"]), _by_class(before.get("test") or {})
    named = trained.keys() - tested.keys()  # in some datasets classes share words
    files = {files for _, files in trained.values()}
    searched = _by_class(now.get("test") or {})
    both = [name for name, found in searched.items() if name in named or found[1] in files]
    if both and not accept:
        raise ValueError(
            f"{checkpoint} was trained on {len(both)} of the {len(searched)} classes to evaluate: "
            f"{listed(both, MOST)}; restore the data of its training, or give --accept_changed_data"
        )
    if found := changes(before, now):
        LOG.warning("the data have changed since %s was trained: %s", checkpoint, _listing(found))


def _listing(changes: list[str]) -> str:
    more = f"; and {len(changes) - MOST} more" if len(changes) > MOST else ""
    return "; ".join(changes[:MOST]) + more


def _describe(
    images: ImageSet | CaptionSet, root: Path, contents: Mapping[Path, str]
) -> Description:
    if isinstance(images, CaptionSet):
        return {"n": len(images), "files": images.fingerprint(sizes=True)}
    groups = images.class_groups or ("",) * images.n_classes
    files = [
        digest(f"{_place(images.paths[row], root)} {contents[images.paths[row]]}" for row in rows)
        for rows in images.rows_by_class
    ]
    queries = b"" if images.queries is None else images.queries.tobytes()
    return {
        "n": len(images),
        "classes": list(images.class_names),
        "groups": digest(groups),
        "counts": [len(rows) for rows in images.rows_by_class],
        "files": files,
        "captions": digest(map(json.dumps, images.captions)),
        "queries": digest([queries]),
    }


def _changes(old: Description, new: Description) -> list[str]:
    if "classes" not in old or "classes" not in new:
        if old == new:
            return []
        return [
            f"{new['n']:,} images, {old['n']:,} before"
            if old["n"] != new["n"]
            else "images or captions were replaced or renamed"
        ]
    before, now = _by_class(old), _by_class(new)
    if not before.keys() & now.keys():
        return ["all classes are different"]
    found = [f"the class {name} is gone" for name in before.keys() - now.keys()]
    found += [f"the class {name} is new" for name in now.keys() - before.keys()]
    for name in before.keys() & now.keys():
        (n_old, files_old), (n_new, files_new) = before[name], now[name]
        if n_old != n_new:
            found.append(f"the class {name} has {n_new} images, {n_old} before")
        elif files_old != files_new:
            found.append(f"images of the class {name} were replaced or renamed")
    names = {"groups": "groups of classes", "captions": "captions", "queries": "queries"}
    found += [
        f"the {words} have changed"
        for key, words in names.items()
        if old[key] != new[key] and not found
    ]
    if not found and old["classes"] != new["classes"]:
        found.append("the classes are in another order")
    return sorted(found)


def _by_class(description: Description) -> dict[str, tuple[int, str]]:
    """Return number of images and digest of files by class; equal names are numbered."""
    seen: Counter[str] = Counter()
    found = {}
    if "classes" not in description:
        return {}
    columns = (description[key] for key in ("classes", "counts", "files"))
    for name, n, files in zip(*columns, strict=True):
        seen[name] += 1
        found[name if seen[name] == 1 else f"{name} ({seen[name]})"] = n, files
    return found


def _place(path: Path, root: Path) -> str:
    return str(path.relative_to(root) if path.is_relative_to(root) else path)


def _digest(path: Path) -> str:
    """Return a digest of a file, or of the names and contents of the files in a folder."""
    if path.is_file():
        return digest_of_file(path)
    files = [
        file
        for file in sorted(path.rglob("*"))
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
    ]
    return digest(f"{file.relative_to(path)} {digest_of_file(file)}" for file in files)
