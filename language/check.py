"""Tells, before any training, whether words will help on a dataset, and which.

    python -m language.check cub200 --source_path data

Guidance pulls images together whose words are similar, so the words have to predict looks. For each
kind of words, prompt and text encoder at hand it compares the similarities of classes by words with
those of their images under the untrained backbone, and both with permuted words. It prints advice,
with flags to paste, and writes a page with each class beside the one whose words are nearest. For
images with captions instead of classes the same is done for the images, and the advice is about
pairs. Only training classes are read, never test classes. It takes less than a minute on two cores.
"""

from language import check_flags
from utilities import startup

if __name__ == "__main__":  # a wrong flag need not wait for torch
    startup.begin()
    check_flags.parse()

import argparse
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import architectures
import datasets
from datasets import openclipart, splits
from datasets.caption_index import is_caption_set
from datasets.caption_set import CaptionSet, open_caption_set
from datasets.dry_run import Subset
from datasets.image_set import ImageSet
from datasets.oddities import caption_oddities
from evaluation.extract import predict
from evaluation.feature_cache import cached_features
from evaluation.preprocessing import Preprocessing, preprocessing, preprocessing_of
from evaluation.words_page import Compared, Nearest, write_page
from language import advice, build_encoder, predicts_looks, readability
from language.advice import Advice, Candidate
from language.compared import PROMPTS, Compare, compared_by, words_of_classes
from language.pseudolabels import imagenet_names, top_classes
from language.text_encoder import TextEncoder, embed_captions
from utilities import console, faults
from utilities import device as devices
from utilities.checksums import digest, stamp
from utilities.disk_cache import Entry
from utilities.files import cache_folder
from utilities.memory import keep_freed_memory
from utilities.seeding import derive

PERMUTATIONS = 200
CHANCE = (0.005, 0.995)  # the part of their correlations that is shown
TOP = 5  # pseudolabels of a class, as --language_pseudoclass_topk

# What fits into a minute on two cores, at about 450 images per second at 64 px.
PIXELS = 30_000_000  # of all images that are embedded: 7,324 of 64 px, 597 of 224 px
PER_CLASS = 6  # more images hardly move the mean of a class: see advice.FEW_IMAGES
ENOUGH = 2000  # images in all, where classes are few and may be broad
FEWEST_PER_CLASS = 4  # where there are too many classes, some are left out
MOST_ITEMS = 1000  # compared with all others, 200 times
CLASSIFIED = 600  # images for pseudolabels, or one for each class


class Sample(NamedTuple):
    """The images that are embedded, and what they are of."""

    images: ImageSet | Subset
    labels: NDArray[np.int64]  # (N,) in [0, C); of captioned images, their number
    of: str  # how many of how many


class Measured(NamedTuple):
    """The results of ``of_classes`` and ``of_captions``."""

    advice: Advice
    readings: dict[str, str]  # by encoder, what it cannot read
    candidates: Sequence[Candidate] = ()
    nearest: Nearest | None = None
    partners: predicts_looks.Partners | None = None  # of images with captions


def open_images(name: str, source_path: Path) -> ImageSet | CaptionSet:
    """Return the training images of a dataset, or its images with captions; no image is opened."""
    root = openclipart.prepare(source_path) if name == "openclipart" else source_path / name
    if is_caption_set(root):
        return open_caption_set(root)
    return splits.split(*splits.read_layout(name, source_path)).train


def draw(images: ImageSet | CaptionSet, most: int, seed: int) -> Sample:
    """Draw at most ``most`` images: a few of each class, of some classes if there are too many."""
    rng = np.random.default_rng(derive(seed, "language.check"))
    if isinstance(images, CaptionSet):
        rows = np.sort(rng.permutation(len(images))[:most])
        of = f"{len(rows):,} of {len(images):,} images with captions"
        return Sample(Subset(images, rows), np.arange(len(rows)), of)
    n_classes = min(images.n_classes, MOST_ITEMS, max(1, most // FEWEST_PER_CLASS))
    each = max(1, min(most, max(PER_CLASS * n_classes, ENOUGH)) // n_classes)
    classes = np.sort(rng.permutation(images.n_classes)[:n_classes])
    chosen = [rng.permutation(images.rows_by_class[c])[:each] for c in classes]
    kept = images.subset(np.sort(np.concatenate(chosen)), f"{images.name}.check")
    of = (
        f"{len(kept):,} of {len(images):,} training images, "
        f"{kept.n_classes:,} of {images.n_classes:,} training classes"
    )
    return Sample(kept, kept.labels, of)


def open_embedder(
    dataset: str, arch: str | None, image_size: int | None, captions: bool
) -> tuple[Any, Preprocessing, str]:
    """Return an embedder with ImageNet weights, the preprocessing of its input, and its name.

    Without ``arch`` it is the recipe's, or the packaged one if the recipe's weights cannot be had.
    """
    recipe = datasets.recipe(dataset, captions)
    size = image_size or recipe.image_size
    name = arch or recipe.arch
    try:
        embedder = architectures.create(name, image_size=size)
    except FileNotFoundError:
        if arch:
            raise
        name = check_flags.PACKAGED
        embedder = architectures.create(name, image_size=size)
    flags = {"dataset": dataset, "image_size": size, "augmentation": "base"}
    return embedder.eval(), preprocessing(flags, embedder.mean, embedder.std), name


def embed(
    sample: Sample, embedder: Any, prepare: Preprocessing, device: torch.device
) -> tuple[Sample, NDArray[np.float32]]:
    """Return the pooled features (N, F) of the images that can be read, and these images."""
    features = cached_features(
        embedder.to(device),
        sample.images,
        prepare.transform(),
        cache=cache_folder() / "features",
        workers=devices.at_most_the_cores(6),
        device=device,
    )
    rows = features.rows.numpy()
    if len(rows) < len(sample.images):
        if isinstance(sample.images, ImageSet):
            kept = sample.images.subset(rows, sample.images.name)
            sample = Sample(kept, kept.labels, sample.of)
        else:
            sample = Sample(Subset(sample.images, rows), np.arange(len(rows)), sample.of)
    return sample, features.features.numpy()


def pseudolabels(images: ImageSet, device: torch.device) -> tuple[list[list[str]], float]:
    """Return the ImageNet names of each class, and the share of images that are surely one of them.

    A few images of each class are classified. Nothing is returned without a classifier.
    """
    try:
        classifier = architectures.classifier(check_flags.PACKAGED)
    except FileNotFoundError:
        return [], 0.0
    each = max(1, CLASSIFIED // images.n_classes)
    rows = np.concatenate([rows[:each] for rows in images.rows_by_class])
    some = images.subset(np.sort(rows), f"{images.name}.pseudolabels")
    transform = preprocessing_of(classifier, None).transform()
    workers = devices.at_most_the_cores(6)

    def classify() -> dict[str, Tensor]:
        model = classifier.model.to(device)
        return {"logits": predict(model, some, transform, workers=workers, device=device)}

    fingerprint = digest([check_flags.PACKAGED, str(images.reading), *map(stamp, some.paths)])
    logits = Entry("pseudolabels", some.name, fingerprint).tensors(classify)["logits"]
    sure = logits.softmax(dim=1).amax(dim=1) >= 0.5
    names = imagenet_names()
    best = top_classes(logits, torch.as_tensor(some.labels), topk=TOP)
    return [[names[i] for i in item] for item in best.tolist()], float(sure.float().mean())


def of_classes(
    images: ImageSet,
    features: NDArray[np.float32],
    encoders: dict[str, TextEncoder],
    device: torch.device,
    seed: int,
) -> Measured:
    """Compare the words of classes with the mean features of their images."""
    if images.n_classes < predicts_looks.FEWEST:
        return Measured(advice.too_few(images.n_classes), {})
    found: list[Compare] = []
    notes: dict[str, str] = {}
    for source, compared, read in words_of_classes(images, encoders):
        found += compared
        if str(read):  # the same for all prompts, or nearly
            notes.setdefault(source, f"of {read.n:,} texts, the encoder {read}")
    labels, sure = pseudolabels(images, device)
    made = [
        one
        for model, encoder in encoders.items()
        if labels
        for one in compared_by("pseudolabels", model, encoder, labels, PROMPTS[0])[0]
    ]
    if labels:
        notes["pseudolabels"] = (
            f"{check_flags.PACKAGED} is sure of {sure:.0%} of the images. They are made from "
            "looks, so their correlation says little"
        )
    looks = predicts_looks.looks(predicts_looks.image_similarities(features, images.labels))
    candidates = predictions(found + made, looks, seed)
    given = advice.of_classes(
        candidates[: len(found)],
        images_per_class=float(np.median(np.bincount(images.labels))),
        codes=advice.find_codes(images.class_names),
        pseudolabels=candidates[len(found)].flags if made else "",
        sure=sure,
    )
    place = max(given.chosen, 0)
    if not candidates:
        return Measured(given, notes)
    one, near = (found + made)[place], candidates[place].prediction
    cosines = one.sims[np.arange(len(near.nearest)), near.nearest]
    rows = [rows.tolist() for rows in images.rows_by_class]
    nearest = Nearest(images.class_names, one.texts, rows, near.nearest, cosines, near.places)
    return Measured(given, notes, candidates, nearest)


def of_captions(
    images: Subset, features: NDArray[np.float32], encoders: dict[str, TextEncoder], seed: int
) -> Measured:
    """Compare the captions of images with their features."""
    texts = [images.caption(row) or "" for row in range(len(images))]
    some = readability.sample(texts)
    read = {
        m: readability.examine(e, some, e.encode(some), "captions") for m, e in encoders.items()
    }
    notes = {
        model: f"of {found.n:,} captions, it {found}" for model, found in read.items() if str(found)
    }
    distinct, odd = caption_oddities(texts)
    notes["captions"] = "; ".join([f"{distinct:,} of {len(texts):,} differ", *(t for t, _ in odd)])
    if len(texts) < predicts_looks.FEWEST:
        return Measured(advice.too_few(len(texts), "images"), notes)
    embeds = {
        model: embed_captions(encoder, texts).numpy()
        for model, encoder in encoders.items()
        if not read[model].too_many
    }
    if not embeds:
        return Measured(advice.of_captions([], None), notes)
    rows = np.random.default_rng(derive(seed, "compared")).permutation(len(texts))[:MOST_ITEMS]
    compared = [
        Compare("captions", model, "", "", [], found[rows] @ found[rows].T)
        for model, found in embeds.items()
    ]
    looks = predicts_looks.looks(
        predicts_looks.image_similarities(features[rows], np.arange(len(rows)))
    )
    candidates = predictions(compared, looks, seed)
    model = compared[advice.choose(candidates)].model
    pairs = predicts_looks.partners(embeds[model], features, seed)
    same = np.mean([texts[row] == texts[other] for row, other in enumerate(pairs.nearest)])
    notes["partners"] = f"{same:.0%} have the same caption"
    given = advice.of_captions(candidates, pairs)
    each = [[row] for row in range(len(texts))]
    nearest = Nearest(texts, texts, each, pairs.nearest, pairs.cosines, pairs.places)
    return Measured(given, notes, candidates, nearest, pairs)


def predictions(
    compared: Sequence[Compare], looks: predicts_looks.Looks, seed: int
) -> list[Candidate]:
    """Compare each kind of words with looks, and with the same permutations."""
    orders = predicts_looks.permutations(
        len(looks.pairs), PERMUTATIONS, derive(seed, "permutations")
    )
    found = [predicts_looks.predict(one.sims, looks, orders, seed) for one in compared]
    return [
        Candidate(one.words, one.model, one.prompt, one.option, prediction)
        for one, prediction in zip(compared, found, strict=True)
    ]


def row_of(candidate: Candidate) -> Compared:
    """Return a candidate as a row of the table."""
    one = candidate.prediction
    low, high = np.quantile(one.chance, CHANCE).tolist()
    return Compared(
        words=candidate.words,
        model=candidate.model,
        prompt=candidate.prompt,
        option=candidate.option.removeprefix("--language_"),
        correlation=one.correlation,
        error=advice.CLEAR * one.error,
        chance=(low, high),
        place=one.place,
        chance_place=float(np.median(one.chance_places)),
    )


def printed(rows: Sequence[Compared], chosen: int) -> list[str]:
    """Return the table as lines, best first; a star marks the words that are judged."""
    lines = [
        ("", "words", "encoder", "prompt", "", "correlation", "by chance", "rank", "by chance")
    ]
    for place in sorted(range(len(rows)), key=lambda place: -rows[place].correlation):
        row = rows[place]
        prompt = f'"{row.prompt}"' if row.prompt else "-"
        correlation = f"{row.correlation:.3f} ± {row.error:.3f}"
        chance = f"{row.chance[0]:.3f} to {row.chance[1]:.3f}"
        ranks = f"{row.place:,.0f}", f"{row.chance_place:,.0f}"
        star = "*" if place == chosen else ""
        names = star, row.words, row.model, prompt, row.option
        lines.append((*names, correlation, chance, *ranks))
    widths = [max(map(console.columns, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            console.padded(cell, width, right=at >= 5)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def printed_thresholds(partners: predicts_looks.Partners) -> list[str]:
    """Return, for each threshold, how many images keep a partner, and how many look alike."""
    lines = ["cosine of captions   images with a partner   partners that are visual neighbours"]
    for least in advice.THRESHOLDS:
        kept, near = partners.above(least)
        name = "any" if least == -1 else f"{least:g} or more"
        lines.append(f"{name:<19}  {kept:>21.0%}   {near:>35.0%}")
    return lines


def check(args: argparse.Namespace) -> str:
    """Measure, write the page, and return what is to be printed."""
    start = time.monotonic()
    source_path = (args.source_path or cache_folder() / "datasets").expanduser()
    device = devices.choose(args.device)
    encoders = {name: build_encoder(name, device) for name in args.language_model}
    opened = open_images(args.dataset, source_path)
    with_captions = isinstance(opened, CaptionSet)
    embedder, prepare, arch = open_embedder(args.dataset, args.arch, args.image_size, with_captions)
    sample = draw(opened, max(1, PIXELS // prepare.image_size**2), args.seed)
    sample, features = embed(sample, embedder, prepare, device)
    images = sample.images
    if isinstance(images, ImageSet):
        found = of_classes(images, features, encoders, device, args.seed)
        what, untouched = ("class", "classes"), "; test classes are not used"
    else:
        found = of_captions(images, features, encoders, args.seed)
        what, untouched = ("image", "images"), ""
    facts = [
        f"{sample.of}{untouched}",
        f"looks by {arch} at {prepare.image_size} px, with ImageNet weights",
    ]
    rows = [row_of(candidate) for candidate in found.candidates]
    out = args.out or Path(f"words_{args.dataset}.html")
    write_page(
        out,
        title=args.dataset, what=what, facts=facts, advice=found.advice.sentences,
        flags=found.advice.flags, table=rows, chosen=found.advice.chosen, readings=found.readings,
        nearest=found.nearest, images=images,
    )  # fmt: skip
    lines = [f"{args.dataset}: {facts[0]}", facts[1]]
    lines += [f"{model}: {reading}" for model, reading in found.readings.items()]
    if rows:
        lines += ["", *printed(rows, found.advice.chosen)]
    if found.partners:
        lines += ["", *printed_thresholds(found.partners)]
    lines += ["", *found.advice.sentences, *filter(None, [found.advice.flags]), ""]
    return "\n".join([*lines, f"{out}, after {time.monotonic() - start:.0f} s"])


def main(argv: Sequence[str] | None = None) -> None:
    parser, args = check_flags.parse(argv)
    logging.basicConfig(format="%(message)s")
    keep_freed_memory()
    with faults.reported(parser.error):
        print(check(args))


if __name__ == "__main__":
    main()
