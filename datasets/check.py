"""Looks a dataset over before it is trained on.

    python -m datasets.check cub200 --source_path data

Is it laid out as expected, are counts those that were published, can every image be read, has any
class one image only, is any picture both trained on and tested on (which is wrong in a set of
one's own; a published one stays as it is, and it is said)? Ends with status 0 where nothing
is wrong and with 1 and a list where something is. Nothing is downloaded and no image is changed.
"""

import argparse
import csv
import logging
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from datasets import caption_index, emoji, openclipart, splits
from datasets.caption_set import open_caption_set
from datasets.folders import expected_tree
from datasets.image_set import ImageSet
from datasets.lookalikes import alike, looks
from datasets.readable import find_faults
from utilities.files import cache_folder

NEAR = 8  # bits
MOST = 10  # examples of a kind

PUBLISHED = {
    "cub200": {
        **{"images": 11_788, "classes": 200},
        **{"train images": 5_864, "train classes": 100},
        **{"test images": 5_924, "test classes": 100},
    },
    "cars196": {
        **{"images": 16_185, "classes": 196},
        **{"train images": 8_054, "train classes": 98},
        **{"test images": 8_131, "test classes": 98},
    },
    "online_products": {
        **{"images": 120_053, "classes": 22_634},
        **{"train images": 59_551, "train classes": 11_318},
        **{"test images": 60_502, "test classes": 11_316},
    },
    "inshop": {
        **{"images": 52_712, "classes": 7_982},
        **{"train images": 25_882, "train classes": 3_997},
        **{"test images": 26_830, "test classes": 3_985},
        **{"queries": 14_218, "gallery images": 12_612},
    },
    "inat": {
        **{"images": 461_939, "classes": 8_142},
        **{"train images": 325_846, "train classes": 5_690},
        **{"test images": 136_093, "test classes": 2_452},
    },
    "emoji": {"images": emoji.EXPECTED[1], "classes": emoji.EXPECTED[0]},
    "openclipart": {"pairs": sum(package.pairs for package in openclipart.PACKAGES.values())},
}
SOURCES = {
    "cub200": "CUB-200-2011, https://www.vision.caltech.edu/datasets/cub_200_2011/; its folder "
    "`images` goes into <source_path>/cub200",
    "cars196": "Cars196, whose first home (Stanford) is gone; the copy with class folders that was "
    "released with Roth et al. (ICML 2020), https://www.dropbox.com/s/zi2o92hzqekbmef/cars196.tar?dl=1",
    "online_products": "Stanford Online Products, https://cvgl.stanford.edu/projects/lifted_struct/;"
    " its class folders go into `images`, its lists into `Info_Files`",
    "inshop": "DeepFashion, In-Shop Clothes Retrieval, https://mmlab.ie.cuhk.edu.hk/projects/"
    "DeepFashion/InShopRetrieval.html; img.zip and list_eval_partition.txt",
    "inat": "images: train_val2018.tar.gz of https://github.com/visipedia/inat_comp/tree/master/2018"
    "; lists: Inat_dataset_splits of https://github.com/Andrew-Brown1/Smooth_AP",
    "emoji": "it is built when it is first used: python main.py --dataset emoji",
    "openclipart": "it is built when it is first used: python main.py --dataset openclipart",
}


@dataclass
class Findings:
    """What was found out about a dataset."""

    root: Path
    counts: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # worth knowing, no reason to stop
    misplaced: bool = False  # not laid out as expected: the tree is shown


def examine(name: str, source_path: Path, near: int = NEAR) -> Findings:
    """All of the module's questions about one dataset.

    Args:
        near: bits by which the hashes of a train and a test image may differ to be looked at; -1
            compares none.
    """
    found = Findings(source_path / name)
    try:
        if name in ("emoji", "openclipart"):
            _verify_built(name, found.root)
        if caption_index.is_caption_set(found.root):
            _examine_captions(found)
        else:
            _examine_labels(name, source_path, near, found)
    except (FileNotFoundError, ValueError) as error:
        found.wrong.append(str(error))
        found.misplaced = True
    published = PUBLISHED.get(name, {}) if found.counts else {}
    others = [what for what, count in published.items() if found.counts.get(what, 0) != count]
    if others:
        found.wrong.append(f"counts differ from the published ones: {', '.join(others)}")
    return found


def _verify_built(name: str, root: Path) -> None:
    """Raise what ``verify`` of the dataset raises; it is not built here."""
    if not root.exists():
        raise FileNotFoundError(f"--dataset {name}: there is no folder {root}")
    (emoji if name == "emoji" else openclipart).verify(root)


# ----------------------------------------------------------------------------------------- labels


def _examine_labels(name: str, source_path: Path, near: int, found: Findings) -> None:
    root, laid_out = splits.read_layout(name, source_path)
    found.counts["images"] = sum(map(len, laid_out.values()))
    parts = splits.split(name, root, laid_out)
    sets = {"train": parts.train, "val": parts.val, "test": parts.test}
    there = {part: images for part, images in sets.items() if images is not None}
    # Of train and test; those of val can be of train.
    found.counts["classes"] = parts.train.n_classes + parts.test.n_classes
    for part, images in there.items():
        found.counts[f"{part} images"] = len(images)
        found.counts[f"{part} classes"] = images.n_classes
    if parts.test.queries is not None:
        found.counts["queries"] = int(parts.test.queries.sum())
        found.counts["gallery images"] = int((~parts.test.queries).sum())

    faults = find_faults((path for images in there.values() for path in images.paths), root)
    if faults:
        reasons = [f"{path}: {why}" for path, why in faults.items()]
        found.wrong.append(_capped(f"{len(faults):,} images cannot be read", reasons))
    for images in there.values():
        found.notes.extend(_lonely(images))
    if near >= 0:
        before = [*parts.train.paths, *(parts.val.paths if parts.val is not None else ())]
        train = [path for path in before if path not in faults]
        test = [path for path in parts.test.paths if path not in faults]
        _compare(train, test, near, found, fixed=name in PUBLISHED)


def _lonely(images: ImageSet) -> list[str]:
    """Classes and queries that retrieval has nothing to find for."""
    if images.queries is not None:
        there = set(images.labels[~images.queries].tolist())
        lost = [row for row in np.flatnonzero(images.queries) if images.labels[row] not in there]
        title = f"{images.name}: {len(lost):,} queries have no image of their class in the gallery"
        return [_capped(title, [str(images.paths[row]) for row in lost])] if lost else []
    single = [rows[0] for rows in images.rows_by_class if len(rows) == 1]
    title = f"{images.name}: {len(single):,} of {images.n_classes:,} classes have one image"
    names = [f"{images.class_names[images.labels[row]]} ({images.paths[row]})" for row in single]
    return [_capped(title, names)] if single else []


def _compare(
    train: Sequence[Path], test: Sequence[Path], near: int, found: Findings, fixed: bool
) -> None:
    """Test images that are pictures of train, and those that only look like one.

    Args:
        fixed: the split is a published one, and stays as it is whatever is in it.
    """
    if not train or not test:
        return
    matches = alike(
        looks(test, f"{found.root.name}: test images"),
        looks(train, f"{found.root.name}: train images"),
        near,
    )
    matches.sort(key=lambda match: (match.difference, match.distance, match.row))
    root = found.root
    lines = {
        same: [
            f"{match.distance} bits: {_below(test[match.row], root)} and "
            f"{_below(train[match.other], root)}"
            for match in matches
            if match.same is same
        ]
        for same in (True, False)
    }
    if lines[True]:
        title = f"{len(lines[True]):,} of {len(test):,} test images are pictures of train"
        (found.notes if fixed else found.wrong).append(_capped(title, lines[True]))
    if lines[False]:
        title = f"{len(lines[False]):,} of {len(test):,} test images look like one of train"
        found.notes.append(_capped(title, lines[False]))


def _below(path: Path, root: Path) -> Path:
    return path.relative_to(root) if path.is_relative_to(root) else path


# --------------------------------------------------------------------------------------- captions


def _examine_captions(found: Findings) -> None:
    images = open_caption_set(found.root)
    found.counts["pairs"] = len(images)
    hashes = np.fromiter((hash(caption) for caption in images.captions), np.int64, len(images))
    found.counts["distinct captions"] = len(np.unique(hashes))
    skipped = images.index.with_name(caption_index.SKIPPED)
    if not skipped.is_file():
        return
    with skipped.open(encoding="utf-8", newline="") as lines:
        rows = [(line["key"], line["reason"]) for line in csv.DictReader(lines)]
    if rows:
        kinds = Counter(reason.partition(":")[0] for _, reason in rows)
        said = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
        found.wrong.append(
            _capped(
                f"{len(rows):,} images are left out ({said}), all of them in {skipped}",
                [f"{key}: {reason}" for key, reason in rows],
            )
        )


# ------------------------------------------------------------------------------------ what is said


def _capped(title: str, lines: Iterable[str], most: int = MOST) -> str:
    """A title and the first lines under it, and how many more there are."""
    lines = list(lines)
    more = [f"and {len(lines) - most:,} more"] if len(lines) > most else []
    return "\n".join([title, *(f"    {line}" for line in [*lines[:most], *more])])


def report(name: str, found: Findings) -> str:
    """The findings as text: counts, what is wrong, what is worth knowing, where to get it."""
    text = [f"{name} in {found.root}"]
    if found.counts:
        published = PUBLISHED.get(name, {})
        rows = [("", "found", "published" if published else "")]
        for what, count in found.counts.items():
            wanted = f"{published[what]:,}" if what in published else ""
            rows.append((what, f"{count:,}", wanted))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        text += [
            f"  {what:<{widths[0]}}  {count:>{widths[1]}}  {wanted:>{widths[2]}}".rstrip()
            + ("  differs" if published.get(what) not in (None, found.counts.get(what)) else "")
            for what, count, wanted in rows
        ]
    for title, entries in (("wrong:", found.wrong), ("worth knowing:", found.notes)):
        if entries:
            text += [title, *(f"  - {entry}" for entry in entries)]
    if found.misplaced and "; expected\n" not in "".join(found.wrong):
        text.append(expected_tree(found.root).removeprefix("; "))
    if found.wrong and name in SOURCES:
        text.append(f"where it comes from: {SOURCES[name]}")
    text.append("something is wrong" if found.wrong else "nothing is wrong")
    return "\n".join(text)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m datasets.check",
        description="Look a dataset over: layout, counts, unreadable images, classes of one image, "
        "pictures that are both in train and in test. Exit status 1 where something is wrong.",
    )
    parser.add_argument("dataset", metavar="DATASET", help="as main.py's --dataset")
    parser.add_argument(
        "--source_path", type=Path, metavar="DIR", help="folder of all datasets, as main.py's"
    )
    parser.add_argument(
        "--near",
        type=int,
        default=NEAR,
        metavar="BITS",
        help="hashes of 64 bits of a train and a test image that differ by so many are looked at; "
        f"-1 compares none, which is faster (default: {NEAR})",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the findings; the exit status."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if not -1 <= args.near <= 64:
        parser.error(f"--near {args.near} is no number of bits; use one from 0 to 64, or -1")
    logging.basicConfig(format="%(message)s")
    source_path = (args.source_path or cache_folder() / "datasets").expanduser()
    found = examine(args.dataset, source_path, args.near)
    print(report(args.dataset, found))
    return bool(found.wrong)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted")
