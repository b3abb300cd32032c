"""Checks a dataset before it is trained on.

    python -m datasets.check cub200 --source_path data

Checks the layout and its names, the counts, that images can be read, files that are skipped,
classes of a single image, images of extreme shape, images in both train and test, and captions.
What cannot be read is a problem; other findings are problems in your own datasets and notes for
published ones, which stay as they are. The exit status is 1 if there are problems. Nothing is
downloaded and no image is changed.
"""

from datasets import check_flags
from utilities import startup

if __name__ == "__main__":  # a wrong flag need not wait for torch
    startup.begin()
    check_flags.parse()

import csv
import logging
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from datasets import caption_index, drawings, emoji, openclipart, splits
from datasets.caption_index.layouts import labelled_manifest
from datasets.caption_set import open_caption_set
from datasets.folders import class_files
from datasets.image_files import HIDDEN, is_harmless
from datasets.image_set import ImageSet
from datasets.lookalikes import appearances, most_similar
from datasets.oddities import caption_oddities, headers, same_files
from datasets.readable import find_faults
from datasets.reading import MOST_EXTREME
from language import build_encoder, readability
from utilities import faults
from utilities.files import FOLDER, cache_folder

MOST = 10  # examples of each kind
MOST_HEADERS = 1_000_000  # images whose headers are read; of more, as many evenly spaced ones


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
    published: bool
    counts: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # worth knowing, no reason to stop

    @property
    def own(self) -> list[str]:
        """Problems of one's own dataset; of a published one, which stays as it is, notes."""
        return self.notes if self.published else self.problems

    def report(self, where: list[str], title: str, lines: Sequence[str]) -> None:
        """Add the first of some lines under a title, if there are any, and their number."""
        if lines:
            more = [f"and {len(lines) - MOST:,} more"] if len(lines) > MOST else []
            where.append("\n".join([title, *(f"    {line}" for line in [*lines[:MOST], *more])]))

    def below(self, path: Path) -> Path:
        return path.relative_to(self.root) if path.is_relative_to(self.root) else path


def examine(name: str, source_path: Path, near: int = check_flags.NEAR) -> Findings:
    """Check one dataset; test images are compared with train's if hashes are ``near``, in bits."""
    root = source_path / name
    own = name in ("emoji", "openclipart") and drawings.is_own(root)
    found = Findings(root, name in PUBLISHED and not own)
    try:
        if name in ("emoji", "openclipart") and not own:  # which are not built here
            if not found.root.exists():
                raise FileNotFoundError(f"--dataset {name}: there is no folder {found.root}")
            (emoji if name == "emoji" else openclipart).verify(found.root)
        if caption_index.is_caption_set(found.root):
            _examine_captions(found)
        else:
            _examine_labels(name, source_path, near, found)
    except (OSError, ValueError) as error:
        found.problems.append(str(error))
    published = PUBLISHED[name] if found.counts and found.published else {}
    if others := [what for what, count in published.items() if found.counts.get(what, 0) != count]:
        found.problems.append(f"counts differ from the published ones: {', '.join(others)}")
    return found


def _examine_labels(name: str, source_path: Path, near: int, found: Findings) -> None:
    root, laid_out = splits.read_layout(name, source_path)
    parts = splits.split(root, laid_out)
    train, val, test = parts
    counts = found.counts
    counts["images"] = sum(map(len, laid_out.values()))
    counts["classes"] = train.n_classes + (test.n_classes if test else 0)  # val may share train's
    present = {part: images for part, images in parts._asdict().items() if images}
    for part, images in present.items():
        counts[f"{part} images"] = len(images)
        counts[f"{part} classes"] = images.n_classes
    if test and test.queries is not None:
        counts["queries"] = int(test.queries.sum())
        counts["gallery images"] = len(test) - counts["queries"]

    faults = find_faults((path for images in present.values() for path in images.paths), root)
    reasons = [f"{path}: {why}" for path, why in faults.items()]
    title = f"{len(faults):,} of {counts['images']:,} images cannot be read"
    found.report(found.problems, title, reasons)
    for images in present.values():
        _examine_unmatched(images, found)
    if (root / "images").is_dir() and "all" in laid_out and not labelled_manifest(root):
        _examine_skipped(found)
    seen = [path for images in (train, val) if images for path in images.paths]
    both = seen, test.paths if test else ()
    sides = [[path for path in side if path not in faults] for side in both]
    paths = sides[0] + sides[1]
    _examine_shapes(lambda row: found.below(paths[row]), paths.__getitem__, len(paths), found)
    same = same_files(sides[1], sides[0])
    lines = [f"{found.below(path)} is {found.below(other)}" for path, other in same.items()]
    n_test = len(both[1])
    found.report(found.own, f"{len(same):,} of {n_test:,} test images are files of train", lines)
    sides[1] = [path for path in sides[1] if path not in same]
    if near >= 0 and all(sides):
        _compare(sides[0], sides[1], near, found)
    captions = [caption for images in present.values() for caption in images.captions]
    if captions:
        _examine_texts(captions, found)


def _examine_skipped(found: Findings) -> None:
    """Report the files among class folders that are not used, by kind."""
    _, rest = class_files(found.root / "images")
    lines: dict[bool, list[str]] = {True: [], False: []}
    for kind, count in rest.skipped.most_common():
        if kind not in (HIDDEN, FOLDER):
            line = f"{kind} ({count:,}), such as {found.below(rest.first[kind])}"
            lines[is_harmless(kind)].append(line)
    found.report(found.notes, "skipped, since they are not images", lines[True])
    title = "skipped, though they may be wanted (for HEIC, pip install pillow-heif)"
    found.report(found.problems, title, lines[False])


def _examine_shapes(
    name_of: Callable[[int], object],
    file_of: Callable[[int], Path | BinaryIO],
    n: int,
    found: Findings,
) -> None:
    """Report images that are stored turned, and those too long or too high to be seen whole."""
    rows = np.unique(np.linspace(0, n - 1, min(n, MOST_HEADERS)).astype(int)).tolist()
    about = dict(zip(rows, headers(file_of, rows, f"{found.root.name}: headers"), strict=True))
    turned = [
        f"{name_of(row)}: orientation {header.orientation}"
        for row, header in about.items()
        if header.orientation > 1
    ]
    title = f"{len(turned):,} of {len(rows):,} images are stored turned (EXIF); read upright"
    found.report(found.notes, title, turned)
    extreme = [
        f"{name_of(row)}: {header.width} x {header.height}"
        for row, header in about.items()
        if header.ratio > MOST_EXTREME
    ]
    title = (
        f"{len(extreme):,} of {len(rows):,} images are over {MOST_EXTREME} times as long as wide; "
        "evaluation sees their middle only"
    )
    found.report(found.own, title, extreme)


def _examine_texts(captions: Sequence[str], found: Findings) -> None:
    found.counts["distinct captions"], odd = caption_oddities(captions)
    for title, samples in odd:
        found.report(found.own, title, samples)


def _examine_unmatched(images: ImageSet, found: Findings) -> None:
    """Report the images for which retrieval can find nothing."""
    rows = images.unmatched
    lines = [f"{images.class_names[images.labels[row]]} ({images.paths[row]})" for row in rows]
    what = (
        f"{len(rows):,} of {images.n_classes:,} classes have one image"
        if images.queries is None
        else f"{len(rows):,} queries have no image of their class in the gallery"
    )
    found.report(found.own, f"{images.name}: {what}", lines)


def _compare(train: Sequence[Path], test: Sequence[Path], near: int, found: Findings) -> None:
    """Look for test images that also appear in train, or look like one of train."""
    root = found.root
    matches = most_similar(
        appearances(test, f"{root.name}: test images"),
        appearances(train, f"{root.name}: train images"),
        near,
    )
    matches.sort(key=lambda match: (match.difference, match.distance, match.row))
    for same, what, where in (
        (True, "also appear in train", found.own),
        (False, "look like one of train", found.notes),
    ):
        lines = [
            f"{match.distance} bits: {found.below(test[match.row])} and "
            f"{found.below(train[match.other])}"
            for match in matches
            if match.same is same
        ]
        found.report(where, f"{len(lines):,} of {len(test):,} test images {what}", lines)


def _examine_captions(found: Findings) -> None:
    images = open_caption_set(found.root)
    found.counts["pairs"] = len(images)
    _examine_texts(images.captions, found)
    _examine_shapes(images.key, images.file, len(images), found)
    skipped = images.index.with_name(caption_index.SKIPPED)
    if not skipped.is_file():
        return
    with skipped.open(encoding="utf-8", newline="") as lines:
        rows = [(line["key"], line["reason"]) for line in csv.DictReader(lines)]
    kinds = Counter(reason.partition(":")[0] for _, reason in rows)
    counts = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
    title = f"skipped {len(rows):,} images ({counts}), listed in {skipped}"
    found.report(found.problems, title, [f"{key}: {reason}" for key, reason in rows])


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


def report(name: str, found: Findings) -> str:
    text = [f"{name} in {found.root}"]
    if found.counts:
        published = PUBLISHED[name] if found.published else {}
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


def main(argv: Sequence[str] | None = None) -> int:
    parser, args = check_flags.parse(argv)
    logging.basicConfig(format="%(message)s")
    with faults.reported(parser.error):
        source_path = (args.source_path or cache_folder() / "datasets").expanduser()
        found = examine(args.dataset, source_path, args.near)
        if args.language_model and found.counts:
            examine_words(args.language_model, source_path, found)
    print(report(args.dataset, found))
    return bool(found.problems)


if __name__ == "__main__":
    sys.exit(main())
