"""Checks a dataset before it is trained on.

    python -m datasets.check cub200 --source_path data

Checks the layout, the counts, that images can be read, classes of a single image, and images in
both train and test: a problem in your own datasets, a note for published splits. The exit status is
1 if there are problems. Nothing is downloaded and no image is changed.
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
import torch

from datasets import caption_index, emoji, openclipart, splits
from datasets.caption_set import open_caption_set
from datasets.folders import expected_tree
from datasets.image_set import ImageSet
from datasets.lookalikes import appearances, most_similar
from datasets.readable import find_faults
from language import build_encoder, readability
from utilities.files import cache_folder

NEAR = 8  # bits
MOST = 10  # examples of each kind


def _split(
    train_images: int, train_classes: int, test_images: int, test_classes: int
) -> dict[str, int]:
    return {
        "images": train_images + test_images,
        "classes": train_classes + test_classes,
        "train images": train_images,
        "train classes": train_classes,
        "test images": test_images,
        "test classes": test_classes,
    }


PUBLISHED = {
    "cub200": _split(5_864, 100, 5_924, 100),
    "cars196": _split(8_054, 98, 8_131, 98),
    "online_products": _split(59_551, 11_318, 60_502, 11_316),
    "inshop": _split(25_882, 3_997, 26_830, 3_985) | {"queries": 14_218, "gallery images": 12_612},
    "inat": _split(325_846, 5_690, 136_093, 2_452),
    "emoji": {"images": emoji.EXPECTED[1], "classes": emoji.EXPECTED[0]},
    "openclipart": {"pairs": sum(package.pairs for package in openclipart.PACKAGES.values())},
}
SOURCES = {
    "cub200": "CUB-200-2011, https://www.vision.caltech.edu/datasets/cub_200_2011/; put its folder "
    "`images` into <source_path>/cub200",
    "cars196": "Cars196, whose first home (Stanford) is gone; the copy with class folders that was "
    "released with Roth et al. (ICML 2020), https://www.dropbox.com/s/zi2o92hzqekbmef/cars196.tar?dl=1",
    "online_products": "Stanford Online Products, https://cvgl.stanford.edu/projects/lifted_struct/;"
    " put its class folders into `images`, its lists into `Info_Files`",
    "inshop": "DeepFashion, In-Shop Clothes Retrieval, https://mmlab.ie.cuhk.edu.hk/projects/"
    "DeepFashion/InShopRetrieval.html; img.zip and list_eval_partition.txt",
    "inat": "images: train_val2018.tar.gz of https://github.com/visipedia/inat_comp/tree/master/2018"
    "; lists: Inat_dataset_splits of https://github.com/Andrew-Brown1/Smooth_AP",
    "emoji": "it is built on first use: python main.py --dataset emoji",
    "openclipart": "it is built on first use: python main.py --dataset openclipart",
}


@dataclass
class Findings:
    root: Path
    counts: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # worth knowing, no reason to stop


def examine(name: str, source_path: Path, near: int = NEAR) -> Findings:
    """Check one dataset; test images are compared with train's if hashes are ``near``, in bits."""
    found = Findings(source_path / name)
    try:
        if name in ("emoji", "openclipart"):  # which are not built here
            if not found.root.exists():
                raise FileNotFoundError(f"--dataset {name}: there is no folder {found.root}")
            (emoji if name == "emoji" else openclipart).verify(found.root)
        if caption_index.is_caption_set(found.root):
            _examine_captions(found)
        else:
            _examine_labels(name, source_path, near, found)
    except (FileNotFoundError, ValueError) as error:
        shown = "; expected\n" in str(error)
        found.problems.append(f"{error}{'' if shown else expected_tree(found.root)}")
    published = PUBLISHED.get(name, {}) if found.counts else {}
    if others := [what for what, count in published.items() if found.counts.get(what, 0) != count]:
        found.problems.append(f"counts differ from the published ones: {', '.join(others)}")
    return found


def _examine_labels(name: str, source_path: Path, near: int, found: Findings) -> None:
    root, laid_out = splits.read_layout(name, source_path)
    parts = splits.split(name, root, laid_out)
    train, val, test = parts
    counts = found.counts
    counts["images"] = sum(map(len, laid_out.values()))
    counts["classes"] = train.n_classes + test.n_classes  # val may share those of train
    present = {part: images for part, images in parts._asdict().items() if images}
    for part, images in present.items():
        counts[f"{part} images"] = len(images)
        counts[f"{part} classes"] = images.n_classes
    if test.queries is not None:
        counts["queries"] = int(test.queries.sum())
        counts["gallery images"] = len(test) - counts["queries"]

    faults = find_faults((path for images in present.values() for path in images.paths), root)
    if faults:
        reasons = [f"{path}: {why}" for path, why in faults.items()]
        found.problems.append(_capped(f"{len(faults):,} images cannot be read", reasons))
    found.notes += [note for images in present.values() if (note := _unmatched(images))]
    if near >= 0:
        seen = [path for images in (train, val) if images for path in images.paths]
        sides = [[path for path in side if path not in faults] for side in (seen, test.paths)]
        if all(sides):
            _compare(sides[0], sides[1], near, found, published=name in PUBLISHED)


def _unmatched(images: ImageSet) -> str:
    """Describe the images for which retrieval can find nothing; empty if there are none."""
    rows = images.unmatched
    lines = [f"{images.class_names[images.labels[row]]} ({images.paths[row]})" for row in rows]
    what = (
        f"{len(rows):,} of {images.n_classes:,} classes have one image"
        if images.queries is None
        else f"{len(rows):,} queries have no image of their class in the gallery"
    )
    return _capped(f"{images.name}: {what}", lines) if lines else ""


def _compare(
    train: Sequence[Path], test: Sequence[Path], near: int, found: Findings, published: bool
) -> None:
    """Look for test images that also appear in train, or look like one of train."""
    root = found.root
    matches = most_similar(
        appearances(test, f"{root.name}: test images"),
        appearances(train, f"{root.name}: train images"),
        near,
    )
    matches.sort(key=lambda match: (match.difference, match.distance, match.row))
    for same, what, where in (
        (True, "also appear in train", found.notes if published else found.problems),
        (False, "look like one of train", found.notes),
    ):
        lines = [
            f"{match.distance} bits: {_below(test[match.row], root)} and "
            f"{_below(train[match.other], root)}"
            for match in matches
            if match.same is same
        ]
        if lines:
            where.append(_capped(f"{len(lines):,} of {len(test):,} test images {what}", lines))


def _below(path: Path, root: Path) -> Path:
    return path.relative_to(root) if path.is_relative_to(root) else path


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
        counts = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
        found.problems.append(
            _capped(
                f"skipped {len(rows):,} images ({counts}), listed in {skipped}",
                [f"{key}: {reason}" for key, reason in rows],
            )
        )


def examine_words(model: str, source_path: Path, found: Findings) -> None:
    """Add what a text encoder cannot read of the class names, or of a thousand captions."""
    try:
        encoder = build_encoder(model, torch.device("cpu"))
        if caption_index.is_caption_set(found.root):
            what, names = "captions", readability.sample(open_caption_set(found.root).captions)
        else:
            _, parts = splits.read_layout(found.root.name, source_path)
            what, names = "names", [n for images in parts.values() for n in images.class_names]
        report = readability.examine(encoder, names, encoder.encode(names), what)
    except (OSError, ValueError) as error:
        found.problems.append(str(error))
        return
    if str(report):
        of = found.problems if report.too_many else found.notes
        of.append(f"of {report.n:,} {what}, the text encoder {model} {report}")


def _capped(title: str, lines: Iterable[str]) -> str:
    """Return a title with the first lines under it, and how many more there are."""
    lines = list(lines)
    more = [f"and {len(lines) - MOST:,} more"] if len(lines) > MOST else []
    return "\n".join([title, *(f"    {line}" for line in [*lines[:MOST], *more])])


def report(name: str, found: Findings) -> str:
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
    for title, entries in (("problems:", found.problems), ("notes:", found.notes)):
        if entries:
            text += [title, *(f"  - {entry}" for entry in entries)]
    if found.problems and name in SOURCES:
        text.append(f"source: {SOURCES[name]}")
    n = len(found.problems)
    text.append(f"{n or 'no'} problem{'' if n == 1 else 's'} found")
    return "\n".join(text)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m datasets.check",
        description="Check a dataset: layout, counts, unreadable images, classes of one image, "
        "images in both train and test. The exit status is 1 if there are problems.",
    )
    parser.add_argument("dataset", metavar="DATASET", help="as for main.py's --dataset")
    parser.add_argument(
        "--source_path", type=Path, metavar="DIR", help="folder of all datasets, as for main.py"
    )
    parser.add_argument(
        "--near",
        type=int,
        default=NEAR,
        metavar="BITS",
        help="compare a train and a test image if their 64-bit hashes differ by at most this many "
        f"bits; -1 compares none, which is faster (default: {NEAR})",
    )
    parser.add_argument(
        "--language_model",
        metavar="NAME",
        help="also find class names or captions that this text encoder cannot read, such as minilm",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    if not -1 <= args.near <= 64:
        parser.error(f"--near must be in 0 to 64, or -1 to compare no images; got {args.near}")
    logging.basicConfig(format="%(message)s")
    source_path = (args.source_path or cache_folder() / "datasets").expanduser()
    found = examine(args.dataset, source_path, args.near)
    if args.language_model and found.counts:
        examine_words(args.language_model, source_path, found)
    print(report(args.dataset, found))
    return bool(found.problems)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted")
