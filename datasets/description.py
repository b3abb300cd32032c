"""Describes the images and words of a run, so that a change between two of its starts is noticed.

A description is kept in every checkpoint: of labelled images, names and digests of each class and
a digest of each image; of a file or texts that a flag names, their digest. Files are compared by
their content and their place below the folder of datasets, which may be moved or copied. Of images
with captions, ``SAMPLED`` are compared by content, all by size.
"""

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets.caption_set import CaptionSet
from datasets.folders import listed
from datasets.image_set import ImageSet
from utilities.checksums import digest, digest_of_file
from utilities.disk_cache import of_files
from utilities.progress import in_threads

LOG = logging.getLogger(__name__)

Description = dict[str, Any]  # a set's name -> what it holds; a flag's -> digest of its file

PARTS = ("train", "val", "test")
SAMPLED = 8192  # images of a caption set whose contents are compared
MOST = 4  # changes that are listed


def describe(
    sets: Mapping[str, Any], source: Path, files: Mapping[str, Path | Sequence[str]]
) -> Description:
    """Describe sets of images; and words and models, in files, folders or texts, by their flags.

    Args:
        sets: by name; None for one that the run does not have. Those of libraries are left out.
        source: folder of the datasets.
    """
    paths: dict[Path, list[Path]] = {}  # by the folder of their dataset: each is looked up once
    for images in sets.values():
        if isinstance(images, ImageSet):
            root = source / images.name.partition(".")[0]
            paths.setdefault(root, []).extend(images.paths)
    contents: dict[Path, str] = {}
    for root, of_root in paths.items():
        contents |= of_files("contents", root, of_root, digest_of_file, "read images")
    described: Description = {}
    for name, images in sets.items():
        if isinstance(images, ImageSet):
            described[name] = _labelled(images, source, contents)
        elif isinstance(images, CaptionSet):
            described[name] = _captioned(images)
        elif images is None:
            described[name] = None
    return described | {
        f"--{flag}": _digest(words) if isinstance(words, Path) else digest(words)
        for flag, words in files.items()
    }


def classes(description: Description) -> dict[str, list[str]]:
    """Return the names of the classes of train, val and test, for those that have classes."""
    parts = {part: description.get(part) or {} for part in PARTS}
    return {part: found["classes"] for part, found in parts.items() if "classes" in found}


def changes(before: Description, now: Description) -> list[str]:
    """Say how what ``now`` describes has changed, such as "train: the class kit fox is new"."""
    found = []
    for name, new in now.items():
        old = before.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found += [f"{name}: {change}" for change in _changes(old, new)]
        elif name.startswith("--") and old != new:
            found.append(f"{name} has different content")
        elif old != new:
            found.append(f"{name}: the images were {'added' if new else 'removed'}")
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
    old, new = (part.get("train") or {} for part in (before, now))
    if new and old.get("classes") != new.get("classes"):
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


def refuse_trained(
    before: Description | None,
    now: Description,
    *,
    checkpoint: Path,
    accept: bool,
    same_dataset: bool,
) -> None:
    """Raise ValueError if a checkpoint was trained on images or classes to evaluate.

    Images that were evaluated during its training, too, do not count. With ``accept`` that is a
    warning, as is any other difference if it is to be the ``same_dataset``.
    """
    if before is None:
        LOG.info("%s does not record its data; classes are split as they are today", checkpoint)
        return
    trained = before["train"]
    named = set(trained.get("classes", ())) - set(classes(before).get("test", ()))
    both = {}
    for part in ("val", "test"):
        new, old = now.get(part) or {}, before.get(part) or {}
        if "classes" in trained and "classes" in new:
            of_images = np.repeat(new["classes"], new["counts"])
            seen = np.isin(new["contents"], trained["contents"])
            seen &= ~np.isin(new["contents"], old.get("contents", ()))
            both[part] = set(of_images[seen].tolist())
            if part == "test" and same_dataset:  # in val, train may have other images of a class
                both[part] |= named & set(new["classes"])
    if any(both.values()):
        message = f"{checkpoint} was trained on images or classes to evaluate: " + "; ".join(
            f"{part}: {listed(sorted(names), MOST)}" for part, names in both.items() if names
        )
        if not accept:
            raise ValueError(
                f"{message}; evaluate with the data and the split of its training, or give "
                "--accept_changed_data"
            )
        LOG.warning("%s", message)
    found = changes(before, {part: now.get(part) for part in PARTS})
    if found and same_dataset:
        LOG.warning("the data differ from those %s was trained with: %s", checkpoint,
                    _listing(found))  # fmt: skip


def _listing(changes: list[str]) -> str:
    more = f"; and {len(changes) - MOST} more" if len(changes) > MOST else ""
    return "; ".join(changes[:MOST]) + more


def _labelled(images: ImageSet, source: Path, contents: Mapping[Path, str]) -> Description:
    texts = [f"{_place(path, source)} {contents[path]}" for path in images.paths]
    in_classes = np.concatenate(images.rows_by_class) if len(images) else np.empty(0, np.int64)
    values = [int(contents[images.paths[row]][:15], 16) for row in in_classes]
    return {
        "classes": list(images.class_names),
        "groups": digest(images.class_groups),
        "counts": [len(rows) for rows in images.rows_by_class],
        "files": [digest(texts[row] for row in rows) for rows in images.rows_by_class],
        "contents": torch.tensor(values, dtype=torch.int64),  # class after class
        "captions": digest(images.captions),
        "queries": digest([b"" if images.queries is None else images.queries.tobytes()]),
        "order": digest(texts),
    }


def _captioned(images: CaptionSet) -> Description:
    rows = np.unique(np.linspace(0, len(images) - 1, min(len(images), SAMPLED)).astype(int))

    def content(row: int) -> str:
        try:
            file = images.file(row)
            return digest([file.read_bytes() if isinstance(file, Path) else file.read()])
        except OSError:
            return "missing"

    contents = in_threads(content, rows.tolist(), f"{images.name}: read images")
    return {"n": len(images), "files": images.fingerprint(sizes=True), "sample": digest(contents)}


def _changes(old: Description, new: Description) -> list[str]:
    if "classes" not in old or "classes" not in new:
        if old == new:
            return []
        return [
            f"{new['n']:,} images, {old['n']:,} before"
            if "n" in old and "n" in new and old["n"] != new["n"]
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
    others = {
        "groups": "the groups of classes have changed", "captions": "the captions have changed",
        "queries": "other images are queries", "classes": "the classes are in another order",
        "order": "the images are in another order",
    }  # fmt: skip
    different = (words for key, words in others.items() if old[key] != new[key])
    return sorted(found) or list(different)[:1]


def _by_class(description: Description) -> dict[str, tuple[int, str]]:
    """Return number of images and digest of files by class; equal names are numbered."""
    seen: Counter[str] = Counter()
    found = {}
    columns = (description[key] for key in ("classes", "counts", "files"))
    for name, n, files in zip(*columns, strict=True):
        seen[name] += 1
        found[name if seen[name] == 1 else f"{name} ({seen[name]})"] = n, files
    return found


def _place(path: Path, source: Path) -> str:
    return str(path).removeprefix(f"{source}{os.sep}")  # relative_to takes 25 µs, of each image


def _digest(path: Path) -> str:
    """Return a digest of a file, or of the names and contents of the files in a folder."""
    if path.is_file():
        return digest_of_file(path)
    files: list[Path] = [
        file
        for file in sorted(path.rglob("*"))
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
    ]
    return digest(f"{file.relative_to(path)} {digest_of_file(file)}" for file in files)
