"""Trains on four small sets by several recipes, and prints the figures of docs/small_sets.md.

    python -m tests.benchmarks.small_sets FOLDER --recipes small --seeds 0 1 2
    python -m tests.benchmarks.small_sets FOLDER --choose

The second command prints how roots and whitening were chosen, on training classes.
The sets are laid out in FOLDER from the packages of `openclipart` and `emoji`, which are fetched if
need be: photographs of things (Tux Paint's stamps, by folder, without cartoons and signs),
illustrations for children (Art4Apps, by topic), drawings of a folder each (Open Clip Art) and of a
concept each (80 of emoji). Each half of the classes is searched by what was trained on the other.
Finished runs are skipped, so that the command can be repeated.
"""

import argparse
import csv
import hashlib
import math
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import architectures
from datasets import drawings, emoji, openclipart, splits
from evaluation.extract import Features, extract
from evaluation.preprocessing import preprocessing_of
from metrics import Gallery, bootstrap, measure
from utilities.files import atomic_folder, cache_folder
from utilities.results.runs import collect
from utilities.run_files import read_rows

STAMPS, ART4APPS = "usr/share/tuxpaint/stamps", "usr/share/games/pysiogame/res/images/art4apps"
CLIP_ART = "usr/share/openclipart/svg"
SETS = ("stamps", "kids", "emoji80", "clipart")
LONGEST, SHORTEST = 320, 48  # pixels, sides of a picture
FEWEST, FEWEST_DRAWN, MOST_DRAWN = 4, 6, 12  # images of a class

ARCH, SIDE = "efficientnet_lite0_frozen_normalize", 128
EXCHANGED = "_exchanged"  # ends the name of a set whose other half is trained on
SHRINKAGES = (1, 3, 10, 30, math.inf)
SPLITS = 12  # random halves of the training classes
FLAGS = (
    *("--loss", "multisimilarity", "--image_size", str(SIDE), "--no_train_metrics", "--resume"),
    *("--evaluation_metrics", "e_recall@1", "mAP@R", "--evaluate_every", "12"),
)
BACKBONE = "features"  # group of runs that train nothing
PATIENT = "small, length chosen"  # on held-out training classes, then trained on all of them
LONGER = ("--lr", "1e-4", "--fc_lr", "1e-4", "--arch", f"{ARCH}_root")
LENGTH_FLAGS = (
    *LONGER, "--n_epochs", "40", "--patience", "5", "--evaluate_every", "1", "--no_test_metrics",
    "--storage_metrics", "mAP@R", "--use_tv_split", "--tv_split_perc", "0.5",
)  # fmt: skip
RECIPES = {
    # All principal axes of the features: a rotation, which leaves their cosines as they are.
    BACKBONE: ("--arch", ARCH, "--n_epochs", "0", "--embed_init", "pca"),
    "small": ("--arch", f"{ARCH}_root"),
    "small, trained longer": (*LONGER, "--n_epochs", "12"),
    PATIENT: LONGER,
    "standard": (  # at a rate and length that fit its random embedding layer
        *("--arch", ARCH, "--recipe", "standard", "--n_epochs", "12", "--lr", "1e-4"),
    ),
}
SCORES = ("e_recall@1", "mAP@R")


# --------------------------------------------------------------------------------------------------
# The sets
# --------------------------------------------------------------------------------------------------
def stamps(root: Path) -> dict[str, list[Path]]:
    """Return the photographs and paintings of Tux Paint by class, which folders name."""
    classes = defaultdict(list)
    for path in (root / STAMPS).rglob("*.png"):
        folders = path.relative_to(root / STAMPS).parent.parts
        if "cartoon" in folders or folders[0] == "symbols":
            continue
        broad = folders[-1] in ("string", "percussion", "brass", "woodwind", "coins", "auto")
        classes[" ".join(folders[-2:] if broad else folders[-1:])].append(path)
    return classes


def kids(root: Path) -> dict[str, list[Path]]:
    """Return the pictures of Art4Apps by topic."""
    classes = defaultdict(list)
    for path in (root / ART4APPS).rglob("*"):
        if path.suffix in (".jpg", ".png"):
            topic = path.parent.name.replace("_n_", " and ").replace("_", " ")
            classes[topic].append(path)
    return classes


def write_pictures(classes: Mapping[str, Iterable[Path]], folder: Path) -> None:
    """Write pictures on white as JPEG; of equal ones the first, and no class of fewer than 4."""
    seen = set()
    for name, paths in sorted(classes.items()):
        pictures = []
        for path in sorted(paths):
            image = drawings.on_white(Image.open(path).convert("RGBA"))
            pixels = hashlib.sha1(image.tobytes(), usedforsecurity=False).hexdigest()
            if min(image.size) < SHORTEST or pixels in seen:
                continue
            seen.add(pixels)
            image.thumbnail((LONGEST, LONGEST))
            pictures.append((re.sub("[^a-zA-Z0-9]", "_", path.stem), image))
        if len(pictures) >= FEWEST:
            (folder / "images" / name).mkdir(parents=True)
            for number, (stem, image) in enumerate(pictures):
                image.save(folder / "images" / name / f"{number:03d}_{stem}.jpg", quality=92)


def clipart(svg: Path, drawn: Path) -> dict[str, list[Path]]:
    """Return drawings of Open Clip Art by folder, at most 12 of each, drawn by a seed.

    Args:
        svg: its unpacked files.
        drawn: what `openclipart` has made of them.
    """
    classes = defaultdict(list)
    for path in svg.rglob("*.svg"):
        file = path.relative_to(svg).with_suffix("")
        picture = drawn / f"{'_'.join(file.parts)}.jpg"
        if picture.exists():
            classes[" ".join(file.parent.parts).replace("_", " ")].append(picture)
    chosen = {}
    for name, pictures in classes.items():
        if len(pictures) >= FEWEST_DRAWN:
            pictures.sort()
            random.Random(0).shuffle(pictures)
            chosen[name] = pictures[:MOST_DRAWN]
    return chosen


def emoji80(images: Path) -> dict[str, list[Path]]:
    """Return the drawings of 80 concepts."""
    names = sorted(path.name for path in images.iterdir())
    chosen = random.Random(3).sample(names, 80)
    return {name: sorted((images / name).iterdir()) for name in chosen}


def exchange(name: str, folder: Path) -> None:
    """Write a set whose test classes are the training classes of another, and the reverse."""
    halves = splits.split(*splits.read_layout(name, folder))
    assert halves.test is not None
    lines = [
        (str(path.absolute()), images.class_names[label], split)
        for images, split in ((halves.train, "test"), (halves.test, "train"))
        for path, label in zip(images.paths, images.labels, strict=True)
    ]
    with (
        atomic_folder(folder / f"{name}{EXCHANGED}") as fresh,
        (fresh / "manifest.csv").open("w", newline="", encoding="utf-8") as file,
    ):
        csv.writer(file).writerows([("path", "label", "split"), *lines])


def lay_out(folder: Path) -> None:
    """Write the sets that ``folder`` lacks, and each with its halves exchanged."""
    source = cache_folder() / "datasets"
    built = {"openclipart": openclipart.prepare(source), "emoji": emoji.prepare(source)}
    for name in SETS:
        if (folder / name).is_dir():
            continue
        with tempfile.TemporaryDirectory() as unpacked, atomic_folder(folder / name) as fresh:
            root = Path(unpacked)
            if name == "emoji80":
                copy(emoji80(built["emoji"] / "images"), fresh)
                continue
            package = {"stamps": "tuxpaint-stamps-default", "kids": "pysiogame"}
            package_name = package.get(name, "openclipart-svg")
            deb = openclipart.fetch(package_name, source / "downloads", source / "debs")
            openclipart.unpack(deb, root)
            if name == "clipart":
                copy(clipart(root / CLIP_ART, built["openclipart"] / package_name), fresh)
            else:
                write_pictures(stamps(root) if name == "stamps" else kids(root), fresh)

    for name in SETS:
        if not (folder / f"{name}{EXCHANGED}").is_dir():
            exchange(name, folder)


def copy(classes: Mapping[str, Sequence[Path]], folder: Path) -> None:
    for name, pictures in classes.items():
        (folder / "images" / name).mkdir(parents=True)
        for path in pictures:
            shutil.copyfile(path, folder / "images" / name / path.name)


# --------------------------------------------------------------------------------------------------
# The table
# --------------------------------------------------------------------------------------------------
def table(folder: Path) -> str:
    """Return the scores of runs in percent, with the change since the backbone's features.

    Both halves of a set are searched, so that each of its classes counts once. Its scores are means
    over seeds, and intervals are those over classes of ``metrics.bootstrap``, paired.
    """
    found: dict[str, dict[str, list[Path]]] = {}  # by group, then set
    for run in collect([folder], lambda _: True)[0]:
        found.setdefault(run.group, {}).setdefault(run.dataset, []).append(run.folder)
    lines = [
        "| set | classes | recipe | seeds | Recall@1: features | trained | change "
        "| mAP@R: features | trained | change |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name in SETS:
        names = name, f"{name}{EXCHANGED}"
        for group in RECIPES:
            halves = [found.get(group, {}).get(half, []) for half in names]
            if group == BACKBONE or not all(halves):
                continue
            before = [found[BACKBONE][half] for half in names]
            cells = [compared(before, halves, score) for score in SCORES]
            n_classes = sum(len(by_class(paths, SCORES[0])) for paths in halves)
            seeds = min(map(len, halves))
            row = " | ".join([name, str(n_classes), group, str(seeds), *cells])
            lines.append(f"| {row} |")
    return "\n".join(lines)


def compared(before: Sequence[Sequence[Path]], after: Sequence[Sequence[Path]], score: str) -> str:
    """Return the cells of a score, from the run folders of each half."""
    pairs = [
        (of_class, by_class(trained, score)[name])
        for plain, trained in zip(before, after, strict=True)
        for name, of_class in by_class(plain, score).items()
    ]
    counts = torch.tensor([first[0] for first, _ in pairs])
    old, new = (torch.tensor([half[1] for half in column]) for column in zip(*pairs, strict=True))
    labels = torch.arange(len(pairs)).repeat_interleave(counts)
    changes = (new - old)[labels].double()
    low, high = bootstrap({score: changes}, labels)[score]
    means = [100 * values[labels].double().mean() for values in (old, new)]
    change = f"{100 * changes.mean():+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
    return f"{means[0]:.1f} | {means[1]:.1f} | {change}"


def by_class(runs: Sequence[Path], score: str) -> dict[str, tuple[int, float]]:
    """Return the number of images of each test class, and its score, as the mean over runs."""
    rows: dict[str, list[dict[str, str]]] = {}
    for run in runs:
        with (run / "classes_test.csv").open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                rows.setdefault(row["class"], []).append(row)
    return {
        name: (int(of[0]["images"]), float(np.mean([float(row[f"embeds/{score}"]) for row in of])))
        for name, of in rows.items()
    }


def table_of_starts(folder: Path) -> str:
    """Return validation scores of the features as they are, and of other starts of a layer.

    They are means over random halves of the training classes: one is fitted, the other searched.
    """
    lines = ["| features | " + " | ".join(SETS) + " |", "|---|" + "---:|" * len(SETS)]
    kinds: dict[str, tuple[bool, float] | None] = {"as they are": None}
    for root, of in ((False, ""), (True, "roots, ")):
        kinds |= {f"{of}whitened, shrinkage {a:g}": (root, a) for a in SHRINKAGES}
    cells: dict[str, list[str]] = {kind: [] for kind in kinds}
    for name in SETS:
        train = splits.split(*splits.read_layout(name, folder)).train
        embedder = architectures.create(ARCH, 0, image_size=SIDE)
        flags = {"dataset": name, "image_size": SIDE, "augmentation": "base"}
        transform = preprocessing_of(embedder, flags).transform()
        found = extract(embedder, train, transform, workers=0)
        for kind, start in kinds.items():
            scores = [searched(embedder, found, start, seed) for seed in range(SPLITS)]
            recall, precision = (100 * np.mean(column) for column in zip(*scores, strict=True))
            cells[kind].append(f"{recall:.1f} / {precision:.1f}")
    return "\n".join([*lines, *(f"| {kind} | {' | '.join(of)} |" for kind, of in cells.items())])


@torch.no_grad()
def searched(
    embedder: Any, found: Features, start: tuple[bool, float] | None, seed: int
) -> tuple[float, float]:
    """Return Recall@1 and mAP@R of half of the classes, with a layer fitted to the others.

    Args:
        start: whether to take roots, and the shrinkage of the whitening; None for no layer.
    """
    classes = torch.from_numpy(np.random.default_rng(seed).permutation(int(found.labels.max()) + 1))
    fitted = torch.isin(found.labels, classes[: len(classes) // 2])
    embeds = found.features[~fitted]
    if start is not None:
        embedder.root, shrinkage = start
        embedder.start_from(found.features[fitted], found.labels[fitted], shrinkage)
        embeds = embedder.embed_features(embeds)
    gallery = Gallery(F.normalize(embeds, dim=1), found.labels[~fitted])
    scores, _ = measure(["e_recall@1", "mAP@R"], gallery)
    return scores["e_recall@1"], scores["mAP@R"]


def train(*flags: str) -> None:
    """Run main.py, which exits at once if such a run is finished."""
    subprocess.run([sys.executable, "main.py", *FLAGS, *flags], check=True)


def find_length(runs: Path, name: str, seed: int, places: Sequence[str]) -> int:
    """Train on half of the training classes until the others gain no more.

    Returns:
        the epoch with their highest mAP@R; 0 is before training.
    """
    train(*LENGTH_FLAGS, "--group", "length", "--dataset", name, "--seed", str(seed), *places)
    rows = read_rows(runs / name / f"length_s{seed}" / "metrics.jsonl")
    return max(rows, key=lambda row: row["val/embeds/mAP@R"])["epoch"]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    recipes = [name for name in RECIPES if name != BACKBONE]
    parser.add_argument("--recipes", nargs="+", default=recipes, choices=recipes)
    parser.add_argument("--choose", action="store_true", help="print how the start was chosen")
    args = parser.parse_args(argv)
    lay_out(args.folder)
    if args.choose:
        print(table_of_starts(args.folder))
        return
    runs = args.folder / "runs"
    places = ("--source_path", str(args.folder), "--save_path", str(runs))
    for group, seeds in {BACKBONE: [0], **dict.fromkeys(args.recipes, args.seeds)}.items():
        for name in (f"{name}{half}" for half in ("", EXCHANGED) for name in SETS):
            for seed in seeds:
                flags = RECIPES[group]
                if group == PATIENT:
                    flags += ("--n_epochs", str(find_length(runs, name, seed, places)))
                named = ("--dataset", name, "--group", group, "--seed", str(seed))
                train(*flags, *named, *places)
    print(table(runs))


if __name__ == "__main__":
    main()
