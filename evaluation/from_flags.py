"""The evaluation that the flags of a run describe."""

import argparse
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import datasets
import metrics
from datasets import Images
from evaluation.downstream import check, evaluate_downstream
from evaluation.evaluator import Evaluator
from evaluation.extract import Features, extract, predict
from evaluation.pictures import VIEWS, views_picture
from evaluation.preprocessing import Preprocessing, preprocessing_of
from evaluation.scores import Scores
from evaluation.session import EvaluationSession
from evaluation.tower_search import ImageTower, NamesReader, TowerSearch, text_side, zero_shot
from evaluation.word_map import FEWEST
from evaluation.word_map_file import StoredMap
from evaluation.word_search import WordSearch, can_fit
from utilities import device as devices
from utilities import distributed
from utilities.files import cache_folder
from utilities.structures import input_size

LOG = logging.getLogger(__name__)

PARTS = ("train", "val", "test")  # of a downstream dataset
N_DRAWN = 12  # tuples in the picture of views


def build(
    args: argparse.Namespace,
    embedder: nn.Module,
    data: datasets.Data,
    preparation: Preprocessing,
    device: torch.device,
    n_epochs: int,
    embed_names: NamesReader,
    build_image_tower: Callable[[argparse.Namespace], ImageTower | None],
    load_text_side: Callable[[], Any],
    average: Any = None,
) -> EvaluationSession:
    """Return the evaluation that the flags describe: of ``data``, or of other datasets they name.

    Args:
        n_epochs: of the run; 0 evaluates once.
        embed_names: reads the names of classes, for metrics and reports that need words.
        build_image_tower: returns the image tower of CLIP that the backbone was, if it was one.
        load_text_side: returns the run's objective, which may have a text side.
        average: whose ``module`` is an embedder of averaged weights, to be evaluated beside.
    """
    protocols = [name for name in args.evaluations if name != "retrieval"]
    with distributed.first_rank_first():
        downstream = datasets.downstream_sets(args)
        sets = datasets.searched_sets(args, data)
        model = _language_model(args, data)
        words = {name: embed_names(model, s.class_names) for name, s in sets.items() if model}
        word_search = _word_search(args, data, sets, words, partial(embed_names, model or ""))
        tower_searches: list[TowerSearch] = []
        if sets and (of_words := _of_words(args)):
            trained = text_side(load_text_side(), of_words, device)
            tower = build_image_tower(args)
            published = _zero_shot(args, tower, sets, embed_names) if tower else None
            tower_searches = [search for search in (published, trained) if search]
    for dataset in downstream:
        check(protocols, dataset)  # before training
    common: dict[str, Any] = {
        "bs": args.bs,
        "workers": args.kernels,
        "device": device,
        "search_device": "cpu" if args.evaluate_on_cpu else device,
        "precision": devices.precision(args.precision, device),
        "seed": args.seed,
    }
    transform = preparation.transform()
    scored: dict[str, Any] = {
        "metrics": args.evaluation_metrics,
        "evaltypes": args.evaltypes,
        "block_bytes": int(args.eval_memory * 2**30),
        **common,
    }
    searches = word_search, tower_searches
    evaluator = Evaluator(embedder, sets, transform, words, *searches, **scored)
    averaged = average and Evaluator(average.module, sets, transform, words, **scored)
    if not sets and not downstream:
        LOG.warning(
            "nothing is evaluated: retrieval needs folders of labelled images; name some with "
            "--evaluation_datasets, such as emoji"
        )
    cache = None if args.dry_run else cache_folder() / "features"

    def evaluate_features() -> Scores:
        scores = Scores({}, {})
        for dataset in downstream:
            options = {"cache": cache, **common}
            scores.add(evaluate_downstream(protocols, embedder, dataset, transform, **options))
        return scores

    at_end = evaluate_features if downstream else None
    others = {f"{d.name}.{part}": getattr(d, part) for d in downstream for part in PARTS}

    def stored_map() -> StoredMap | None:
        if word_search is None or word_search.map is None:
            return None
        output = args.evaltypes[0]
        return word_search.stored(model or "", output, args.arch, preparation, embedder)

    return EvaluationSession(
        *(evaluator, at_end, others, stored_map, averaged),
        every=args.evaluate_every, n_epochs=n_epochs, cache=cache,
        untrained_flags=of_the_backbone(args.arch),
    )  # fmt: skip


def of_the_backbone(arch: str) -> str:
    """Return the flags of a run that searches with the backbone's features, as unit rows.

    All of their principal axes are a rotation, which leaves cosines as they are.
    """
    parts = [part for part in arch.split("_") if part != "root"]
    parts += [] if "normalize" in parts else ["normalize"]
    return f"--arch {'_'.join(parts)} --embed_dim 0 --embed_init pca --n_epochs 0"


def _language_model(args: argparse.Namespace, data: datasets.Data) -> str | None:
    """Return the encoder of class names; None if neither a metric nor the report reads them.

    Metrics read words by the evaluation's encoder, so that runs with other guidance are comparable.
    """
    parsed = list(map(metrics.parse, args.evaluation_metrics))
    labelled = isinstance(data.train, datasets.ImageSet)
    fitted = labelled and any(metric.words_by for metric in parsed)
    if fitted or any(metric.needs == "class_words" for metric in parsed):
        return args.evaluation_language_model
    if args.language_distill_w and not args.no_report and not args.evaluate_only:
        return args.language_model
    return None


def _word_search(
    args: argparse.Namespace,
    data: datasets.Data,
    sets: Mapping[str, datasets.ImageSet],
    words: Mapping[str, Tensor],
    embed: Callable[[Sequence[str]], Tensor],
) -> WordSearch | None:
    """Return the search by words that metrics ask for; None without, or without enough classes."""
    names, train = _of_words(args), data.train
    if not names or not sets or not isinstance(train, datasets.ImageSet):
        return None
    train = sets.get("train") or datasets.searched(args, train)
    if not can_fit(train):
        LOG.warning(
            "%s are left out: a map from words to images needs at least %d training classes with "
            "different names",
            *(", ".join(names), FEWEST),
        )
        return None
    if "train" not in words:
        words = {**words, "train": embed(train.class_names)}
    for images in sets.values():
        seen = {*images.class_names} & {*train.class_names} if images is not train else ()
        if seen:
            LOG.warning(
                "%s: %d of the names that search its images are also those of training classes",
                *(images.name, len(seen)),
            )
    return WordSearch(train, words, names, seed=args.seed)


def _zero_shot(
    args: argparse.Namespace,
    tower: ImageTower,
    sets: Mapping[str, datasets.ImageSet],
    embed_names: NamesReader,
) -> TowerSearch | None:
    """Return the search by CLIP's own towers; None if no flag names the text tower."""
    side, own = input_size(args.image_size, args.augmentation), tower.images.shape[-1]
    if side != own:
        LOG.warning(
            "zero_shot scores are at %d px, but the weights of --arch %s are made for %d px",
            *(side, args.arch, own),
        )
    flags = "evaluation_language_model", "language_model"
    names = {tuple(images.class_names) for images in sets.values()}
    models = {flag: getattr(args, flag) for flag in flags}
    return zero_shot(tower, models, names, _of_words(args), embed_names)


def _of_words(args: argparse.Namespace) -> list[str]:
    return [name for name in args.evaluation_metrics if metrics.parse(name).words_by]


def embedding(
    args: argparse.Namespace,
    embedder: nn.Module,
    preparation: Preprocessing,
    device: torch.device,
    *,
    shared: bool = True,
    precision: str | None = None,
) -> Callable[[Images], Features]:
    """Return a function that embeds a set of images with the embedder as it is then.

    Args:
        shared: processes that train together embed a share each; else each embeds all.
    """
    return partial(
        extract,
        embedder,
        transform=preparation.transform(),
        bs=args.bs,
        workers=args.kernels,
        device=device,
        precision=devices.precision(precision or args.precision, device),
        shared=shared,
    )


def image_reader(
    args: argparse.Namespace, load: Callable[[str], tuple[Any, str, Any]], device: torch.device
) -> dict[str, Any]:
    """Return the arguments of ``language.image_embedder`` for ``--data_pairs_by visual``.

    Args:
        load: ``architectures.load.load_or_create``.
    """
    embedder, name, flags = load(args.data_pairs_checkpoint or args.arch)
    preparation = preprocessing_of(embedder, flags)
    extract = embedding(
        args, embedder.to(device), preparation, device, shared=False, precision="fp32"
    )  # the same partners at any --precision
    return {
        "backbone": embedder.backbone,
        "name": name,
        "settings": (*preparation, embedder.pooling),
        "extract": extract,
    }


def imagenet_logits(
    args: argparse.Namespace, build: Callable[[Any], Any], images: Images, device: torch.device
) -> Tensor:
    """Return the (N, 1000) logits of a set of images by the classifier that ``build`` makes."""
    classifier = build(args)
    transform = preprocessing_of(classifier, None).transform()
    model = classifier.model.to(device)
    return predict(model, images, transform, bs=args.bs, workers=args.kernels, device=device)


def draw_views(batches: datasets.Batches, images: Images, embedder: Any, folder: Path) -> None:
    """Draw the tuples that training begins with, as the embedder will see them."""
    if not distributed.is_first():
        return
    mean, std = embedder.mean, embedder.std
    batch, tuples = datasets.preview(batches.loader, N_DRAWN)
    views = torch.stack(datasets.finish(batch, mean, std).views, dim=1).permute(0, 1, 3, 4, 2)
    pixels = (views * torch.tensor(std) + torch.tensor(mean)).clamp(0, 1).mul(255).round().byte()
    captions = [[images.caption(row) or "" for row in rows] for rows in tuples]
    views_picture(pixels.numpy(), captions, folder / VIEWS)
