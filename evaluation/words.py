"""Fit the map that lets words find pictures, and keep it beside a checkpoint.

    python -m evaluation.words --checkpoint RUN

A run whose metrics search by words leaves last.words.safetensors itself. This makes it for any
other checkpoint that was trained on classes with names, such as best_*.pt, from the images and
names of its training classes. ``python -m evaluation.retrieve query --words`` reads it.
"""

from evaluation import words_flags
from utilities import startup

if __name__ == "__main__":  # a wrong flag need not wait for torch
    startup.begin()
    words_flags.parse()

import argparse
from collections.abc import Sequence

import datasets
import evaluation
import language
import parameters
from architectures.load import Trained, evaluation_flags, load_embedder
from evaluation.feature_cache import cached_features
from evaluation.word_map import FEWEST
from evaluation.word_map_file import StoredMap, map_file, write
from evaluation.word_search import WordSearch, can_fit
from utilities import device as devices
from utilities import faults, log
from utilities.files import cache_folder

OUTPUT = "embeds"  # what an index of pictures holds


def main(argv: Sequence[str] | None = None) -> None:
    parser, typed = words_flags.parse(argv)
    log.set_up()
    with faults.reported(parser.error, "lower --bs or --kernels"):
        trained = load_embedder(typed.checkpoint)
        stored = fit(trained, flags_of(trained, typed))
        file = map_file(trained.file)
        write(file, stored)
    (dim_text, dim), (images, texts) = stored.map.weight.shape, stored.map.penalties
    print(
        f"{file}: from {stored.language_model} ({dim_text} dimensions) to {OUTPUT} ({dim}), fitted "
        f"to {stored.n_classes:,} classes, penalties {images:g} (images) and {texts:g} (words)"
    )


def flags_of(trained: Trained, typed: argparse.Namespace) -> argparse.Namespace:
    """Return the flags of the checkpoint's run, but for those that are given."""
    defaults = vars(parameters.build_parser().parse_args([]))
    given = {
        "evaluation_language_model" if name == "language_model" else name: value
        for name, value in vars(typed).items()
        if value is not None
    }
    return argparse.Namespace(**evaluation_flags(trained, defaults, given))


def fit(trained: Trained, args: argparse.Namespace) -> StoredMap:
    """Return a map fitted to the training classes of a checkpoint.

    Raises:
        ValueError: they have no names, or are too few; the data have changed.
    """
    device = devices.choose(args.device)
    datasets.fill_by_recipe(args)  # an older run lacks flags that its recipe has now
    data = datasets.build_as_trained(args, trained.flags, trained.data, trained.file)
    names = getattr(data.train, "class_names", ())
    if not isinstance(data.train, datasets.ImageSet) or not can_fit(data.train):
        raise ValueError(
            f"a map from words needs at least {FEWEST} training classes with different names; "
            f"{args.dataset}, which {trained.file} was trained on, has {len(set(names))}"
        )
    preparation = evaluation.preprocessing_of(trained.embedder, trained.flags)
    features = cached_features(
        *(trained.embedder.to(device), data.train, preparation.transform()),
        cache=cache_folder() / "features",
        bs=args.bs,
        workers=devices.at_most_the_cores(args.kernels),
        device=device,
        precision=devices.precision(args.precision, device),
    )
    model = args.evaluation_language_model
    words = {"train": language.NamesReader(device)(model, names)}
    search = WordSearch(data.train, words, [], seed=args.seed)
    search.fit(features.embeds, features.rows)
    return search.stored(model, OUTPUT, args.arch, preparation, trained.embedder)


if __name__ == "__main__":
    main()
