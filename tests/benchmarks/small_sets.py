"""Trains on four small sets by both recipes, and prints the table of docs/small_sets.md.

    python -m tests.benchmarks.small_sets FOLDER --seeds 0 1 2
    python -m tests.benchmarks.small_sets FOLDER --choose

The second command prints how the whitening was chosen, on validation classes.
The sets are laid out in FOLDER from the packages of `openclipart` and `emoji`, which are fetched if
need be: photographs of things (Tux Paint's stamps, by folder, without cartoons and signs),
illustrations for children (Art4Apps, by topic), drawings of a folder each (Open Clip Art) and of a
concept each (80 of emoji). Half of the classes of each are never trained on. Finished runs are
skipped, so that the command can be repeated.
"""

import argparse
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
from metrics import Gallery, measure
from tests.benchmarks.learning_curve_picture import estimate
from utilities.files import atomic_folder, cache_folder
from utilities.results.runs import collect

STAMPS, ART4APPS = "usr/share/tuxpaint/stamps", "usr/share/games/pysiogame/res/images/art4apps"
CLIP_ART = "usr/share/openclipart/svg"
SETS = ("stamps", "kids", "emoji80", "clipart")
LONGEST, SHORTEST = 320, 48  # pixels, sides of a picture
FEWEST, FEWEST_DRAWN, MOST_DRAWN = 4, 6, 12  # images of a class

ARCH, SIDE = "efficientnet_lite0_frozen_normalize", 128
SHRINKAGES = (1, 3, 10, 30, math.inf)
FLAGS = (
    *("--loss", "multisimilarity", "--image_size", str(SIDE), "--n_epochs", "12"),
    *("--arch", ARCH, "--evaluation_metrics", "e_recall@1"),
    *("mAP@R", "--evaluate_every", "12", "--no_train_metrics", "--resume"),
)
RECIPES = {  # the standard one at a rate and length that fit its embedding layer
    "small": ("--recipe", "small"),
    "standard": ("--recipe", "standard", "--lr", "1e-4"),
}
SCORES = {"Recall@1": "e_recall@1", "mAP@R": "mAP@R"}


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


def lay_out(folder: Path) -> None:
    """Write the sets that ``folder`` lacks."""
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


def copy(classes: Mapping[str, Sequence[Path]], folder: Path) -> None:
    for name, pictures in classes.items():
        (folder / "images" / name).mkdir(parents=True)
        for path in pictures:
            shutil.copyfile(path, folder / "images" / name / path.name)


# --------------------------------------------------------------------------------------------------
# The table
# --------------------------------------------------------------------------------------------------
def table(folders: Sequence[Path]) -> str:
    """Return the scores of runs in percent, with the change since the backbone's features.

    A run's group is its recipe. Intervals are 95 % of Student's t over seeds, which change the
    batches and augmentation alone: all runs of a set test on the same classes.
    """
    found: dict[tuple[str, str, str], list[tuple[float, float, float]]] = defaultdict(list)
    for run in collect(folders, lambda _: True)[0]:
        first, last = run.rows[0], run.rows[-1]
        for name, metric in SCORES.items():
            backbone = first[f"test/backbone/{metric}"]
            scores = backbone, first[f"test/embeds/{metric}"], last[f"test/embeds/{metric}"]
            key = run.dataset, run.group, name
            found[key].append(tuple(100 * value for value in scores))
    lines = [
        "| set | recipe | seeds | score | backbone's features | untrained | trained | change |",
        "|---|---|---:|---|---:|---:|---:|---:|",
    ]
    for (dataset, recipe, name), values in sorted(found.items()):
        backbone, untrained, trained = (estimate(column) for column in zip(*values, strict=True))
        change = estimate([after - before for before, _, after in values])
        lines.append(
            f"| {dataset} | {recipe} | {change.n} | {name} | {backbone.mean:.1f} | "
            f"{untrained.mean:.1f} | {trained.mean:.1f} | {change.mean:+.1f} ± {change.half:.1f} |"
        )
    return "\n".join(lines)


def choices(folder: Path) -> str:
    """Return validation scores of the features as they are, and whitened by several shrinkages.

    They are means over three random halves of the training classes: one is fitted, the other
    searched.
    """
    lines = ["| features | " + " | ".join(SETS) + " |", "|---|" + "---:|" * len(SETS)]
    kinds = {"as they are": None, **{f"whitened, shrinkage {a:g}": a for a in SHRINKAGES}}
    cells: dict[str, list[str]] = {kind: [] for kind in kinds}
    for name in SETS:
        train = splits.split(*splits.read_layout(name, folder)).train
        embedder = architectures.create(ARCH, 0, image_size=SIDE)
        flags = {"dataset": name, "image_size": SIDE, "augmentation": "base"}
        transform = preprocessing_of(embedder, flags).transform()
        found = extract(embedder, train, transform, workers=0)
        for kind, shrinkage in kinds.items():
            scores = [searched(embedder, found, shrinkage, seed) for seed in range(3)]
            recall, precision = (100 * sum(column) / 3 for column in zip(*scores, strict=True))
            cells[kind].append(f"{recall:.1f} / {precision:.1f}")
    return "\n".join([*lines, *(f"| {kind} | {' | '.join(of)} |" for kind, of in cells.items())])


@torch.no_grad()
def searched(
    embedder: Any, found: Features, shrinkage: float | None, seed: int
) -> tuple[float, float]:
    """Return Recall@1 and mAP@R of half of the classes, with features whitened by the others."""
    classes = torch.from_numpy(np.random.default_rng(seed).permutation(int(found.labels.max()) + 1))
    fitted = torch.isin(found.labels, classes[: len(classes) // 2])
    embeds = found.features[~fitted]
    if shrinkage is not None:
        embedder.start_from(found.features[fitted], found.labels[fitted], shrinkage)
        embeds = embedder.embedding(embeds)
    gallery = Gallery(F.normalize(embeds, dim=1), found.labels[~fitted])
    scores, _ = measure(["e_recall@1", "mAP@R"], gallery)
    return scores["e_recall@1"], scores["mAP@R"]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--choose", action="store_true", help="print how whitening was chosen")
    args = parser.parse_args(argv)
    lay_out(args.folder)
    if args.choose:
        print(choices(args.folder))
        return
    runs = args.folder / "runs"
    places = ("--source_path", str(args.folder), "--save_path", str(runs))
    for seed in args.seeds:
        for name in SETS:
            for group, recipe in RECIPES.items():
                named = ("--dataset", name, "--group", group, "--seed", str(seed))
                command = [sys.executable, "main.py", *FLAGS, *recipe, *named, *places]
                subprocess.run(command, check=True)
    print(table([runs]))


if __name__ == "__main__":
    main()
