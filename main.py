"""Train an image embedder under language guidance and report retrieval on classes it never saw.

    python main.py --loss multisimilarity --language_distill_w 7.5

Roth, Vinyals and Akata, Integrating Language Guidance into Vision-based Deep Metric Learning,
CVPR 2022. A metric-learning criterion pulls images of one class together; the distillation beside
it pulls the similarities of a batch's images toward those of their words: L = L_DML + w L_match.
"""

import parameters
from utilities.finished import exit_if_finished

if __name__ == "__main__":  # --help, a wrong flag and a finished run need not wait for torch
    early = parameters.parse()
    exit_if_finished(vars(early), parameters.run_name(early))

import argparse
import hashlib
import logging
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

import architectures
import batchminer
import criteria
import datasampler
import datasets
import evaluation
import language
import metrics
from architectures.load import evaluation_flags, load_embedder
from datasets import CaptionSet, Data, Images, ImageSet, downstream
from datasets.caption_index import is_caption_set
from datasets.downstream import Downstream
from datasets.loading import Transform
from evaluation import Evaluator, Features, Scores
from evaluation.pictures import views_picture
from evaluation.preprocessing import preprocessing
from language import LanguageGuide, neighbours
from utilities import checkpoint, log, optimization
from utilities.files import cache_folder
from utilities.memory import keep_freed_memory
from utilities.precision import half_precision
from utilities.progress import Progress
from utilities.recorder import Recorder
from utilities.run_folder import RunFolder
from utilities.seeding import derive, seed_everything
from utilities.structures import Batch
from utilities.timing import peak_memory_mb

LOG = logging.getLogger("main")

VIEWS = "views.png"  # in the run folder
N_SHOWN = 12  # tuples in it


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Train and evaluate one run, or with ``--evaluate_only`` score the embedder of another.

    Args:
        argv: the words of the command line; None reads ``sys.argv``.

    Returns:
        the scores of the last epoch; ``test/embeds/e_recall@1`` and the like are fractions.

    Raises:
        ValueError, OSError: flags, data or weights that cannot work; the message says what can.
        FloatingPointError: a loss that is not finite; names the batch and the last checkpoint.
    """
    start = time.perf_counter()
    args = parameters.parse(argv)
    keep_freed_memory()
    log.set_up()
    if args.evaluate_only:
        return evaluate_only(args, argv)
    exit_if_finished(vars(args), parameters.run_name(args))
    chosen, device = set_up(args)
    args.evaluation_metrics = list(dict.fromkeys([*args.evaluation_metrics, *args.storage_metrics]))
    half = half_precision(device)

    # Images with labels, an embedder f, a frozen reader of words.
    data = datasets.build(args)
    refuse_unfit(args, data.train)
    embedder = architectures.build(args).to(device)
    guide = build_guide(args, data.train, device) if args.language_distill_w else None

    # Which images meet in a batch, and what is asked of their embeddings.
    partners, similarities = caption_partners(args, data.train, device)
    sampler = datasampler.build(
        args,
        data.train,
        n_views=criteria.CRITERIA[args.loss].n_views,
        class_words=neighbour_words(args, data.train, device),
        partners=partners,
        similarities=similarities,
    )
    if args.max_steps:
        args.n_epochs = math.ceil(args.max_steps / len(sampler))
    n_steps = args.max_steps or args.n_epochs * len(sampler)
    miner = batchminer.build(args)
    criterion = criteria.build(
        args,
        n_classes=data.train.n_classes if isinstance(data.train, ImageSet) else 0,
        embed_dim=args.embed_dim,
        feature_dim=embedder.feature_dim,
        miner=miner,
        embedder=embedder,
        n_steps=n_steps,
        tokenizer=lambda length: language.Tokenizer(args.language_model, length),
        encoder=lambda: language.build_encoder(args.language_model, device),
    ).to(device)
    distill = criteria.build_distillation(args)

    transforms = datasets.train_views(
        args.image_size,
        args.augmentation,
        criterion.n_views,
        embedder.mean,
        embedder.std,
        scale=datasets.recipe(args.dataset).train_scale,
    )
    batches = datasets.loader(data.train, transforms, sampler, workers=args.kernels, seed=args.seed)
    lr = optimization.scaled_lr(args.lr, args.bs, args.lr_base_bs)
    groups = embedder.param_groups(lr, args.fc_lr, args.decay, decay_norms=not args.no_norm_decay)
    groups += criterion.param_groups(lr)
    optimizer = optimization.build_optimizer(args.optim, groups, lr=lr, decay=args.decay)
    by_step = args.scheduler == "warmup_cosine" and n_steps > 0
    scheduler = (
        optimization.warmup_cosine(
            optimizer,
            lr,
            max_steps=n_steps,
            warmup_steps=args.warmup_steps,
            warmup_lr=args.warmup_lr,
            final_lr=args.final_lr,
        )
        if by_step
        else optimization.build_scheduler(
            args.scheduler, optimizer, n_epochs=args.n_epochs, tau=args.tau, gamma=args.gamma
        )
    )
    scaler = torch.amp.GradScaler(device.type, enabled=args.use_float16 and half is torch.float16)

    # What is reported: images of unseen classes, each a query for all the others, and at the end
    # what simple classifiers make of frozen features.
    middle = preprocessing(vars(args), embedder.mean, embedder.std).transform()
    judged = judged_datasets(args)
    sets = evaluated_sets(args, data)
    words = evaluation_words(args, sets, device)
    evaluate = evaluation.build(args, embedder, sets, middle, words, device)

    def embed(images: Images) -> Features:
        """The embeddings of a set as the embedder stands, for a sampler or a miner that learns."""
        return evaluation.extract(
            embedder,
            images,
            middle,
            bs=args.bs,
            workers=args.kernels,
            device=device,
            autocast=args.use_float16,
        )

    rewarding = miner_feedback(args, data) if miner.adapt_every else None

    run = RunFolder.create(Path(args.save_path), args.dataset, parameters.run_name(args))
    log.set_up(run.log_file)
    run.write_config(vars(args), device)
    wandb = log.start_wandb(
        args.wandb_mode,
        project=args.project,
        group=args.group,
        name=run.path.name,
        config=vars(args),
        folder=run.path,
    )
    chosen_on = next(iter(sets), None)  # None: nothing is evaluated before the end
    recorder = Recorder(
        run,
        wandb,
        best_of=[f"{chosen_on}/{args.evaltypes[0]}/{name}" for name in args.storage_metrics],
        keep_all=args.store_improvements,
    )
    LOG.info(summary(args, data, chosen, device, run.path))
    if not sets and not judged:
        LOG.warning(
            "nothing is evaluated: retrieval needs folders of labelled images; name some with "
            "--evaluation_datasets, such as emoji"
        )

    pairs = args.data_sampler in parameters.PAIR_SAMPLERS and criterion.n_views > 1
    if pairs and not args.no_report:
        show_views(batches, data.train, embedder, run.path / VIEWS)

    untrained = measured = evaluate()
    if not args.n_epochs:
        measured.add(judge(args, judged, embedder, middle, device))
    before = evaluate.embeds.get(chosen_on) if chosen_on else None
    scores = dict(untrained)
    if scores:
        recorder.record(0, untrained)
    iteration = 0
    adapted: dict[str, float] = {}
    for epoch in range(1, args.n_epochs + 1):
        if sampler.due(epoch):
            seen = embed(data.train)
            sampler.refresh(seen.embeds, seen.rows)
        embedder.train()
        embedder.train_backbone(epoch > args.warmup)
        progress = Progress(batches, f"epoch {epoch}/{args.n_epochs}")
        for batch in progress:
            if rewarding is not None and iteration % miner.adapt_every == 0:
                seen = embed(rewarding)
                adapted = miner.adapt(seen.embeds, seen.labels)
            batch = datasets.finish(batch.to(device), embedder.mean, embedder.std)
            with torch.autocast(device.type, dtype=half, enabled=args.use_float16):
                views = [embedder(view) for view in batch.views]
                loss = loss_dml = criterion.compute(views, batch)
                terms = {"loss_dml": loss_dml}
                if guide is not None and iteration >= args.language_delay:
                    read = getattr(views[0], criterion.reads)  # embeddings, or pooled features
                    match = distill(read, guide.similarity(batch), batch.labels)
                    loss = loss_dml + args.language_distill_w * match  # L_DML + w L_match
                    terms["loss_match"] = match
            if not torch.isfinite(loss):
                raise FloatingPointError(not_finite(terms, epoch, iteration, batch, recorder))

            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            criterion.after_step(embedder)
            iteration += 1
            sampler.observe(batch.rows, views[0].embeds)
            progress.count(len(batch.labels), loss=loss, **terms)
            if by_step:
                scheduler.step()
            if iteration == n_steps:
                break
        if not by_step:
            scheduler.step()

        scores = {f"train/{name}": value for name, value in progress.averages().items()}
        scores |= {f"miner/{name}": value for name, value in adapted.items()}
        if epoch % args.evaluate_every == 0 or epoch == args.n_epochs:
            measured = evaluate()
            if epoch == args.n_epochs:
                measured.add(judge(args, judged, embedder, middle, device))
            scores |= measured
        recorder.record(epoch, scores)
        recorder.save(
            epoch,
            scores,
            {
                "embedder": embedder.state_dict(),
                "criterion": criterion.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(),
                "scaler": scaler.state_dict(),
                "sampler": sampler.state_dict(),
                "rng": checkpoint.rng_state(),
                "iteration": iteration,
                "flags": vars(args),
            },
        )

    shown = show(args, run, evaluate, measured, sets, words, before)
    recorder.finish([run.path / VIEWS, *shown])
    seconds = time.perf_counter() - start
    LOG.info(ending(evaluation.table(untrained, measured), measured, run.path, seconds))
    return scores


def set_up(args: argparse.Namespace) -> tuple[dict[str, Any], torch.device]:
    """Seed everything, fill the flags that are left open, choose the device.

    Returns:
        what the dataset's recipe filled in, by flag, and the device.

    Raises:
        ValueError: a metric is unknown.
    """
    seed_everything(args.seed)
    captions = is_caption_set(datasets.source_folder(args) / args.dataset)
    chosen = datasets.fill_by_recipe(args, captions)
    if args.evaltypes is None:
        args.evaltypes = [criteria.CRITERIA[args.loss].reads]
    for name in (*args.evaluation_metrics, *args.storage_metrics):
        metrics.parse(name)  # an unknown one is refused before anything is loaded
    args.kernels = min(args.kernels, os.cpu_count() or 1)
    device = torch.device("cuda", args.gpu) if torch.cuda.is_available() else torch.device("cpu")
    return chosen, device


def evaluate_only(asked: argparse.Namespace, argv: Sequence[str] | None) -> dict[str, float]:
    """Score ``--checkpoint`` as its run did, but for the flags that the command line names.

    Raises:
        ValueError, OSError: a checkpoint that cannot be read, or flags that do not fit it.
    """
    start = time.perf_counter()
    trained = load_embedder(Path(asked.checkpoint))
    defaults = vars(parameters.build_parser().parse_args([]))
    args = argparse.Namespace(**evaluation_flags(trained, defaults, parameters.given(argv)))
    _, device = set_up(args)

    data = datasets.build(args)
    embedder = trained.embedder.to(device)
    middle = preprocessing(vars(args), embedder.mean, embedder.std).transform()
    judged = judged_datasets(args)
    sets = evaluated_sets(args, data)
    words = evaluation_words(args, sets, device)
    evaluate = evaluation.build(args, embedder, sets, middle, words, device)

    named = args.savename != "group_plus_seed"
    name = args.savename if named else f"{trained.file.parent.name}_evaluation"
    run = RunFolder.create(Path(args.save_path), args.dataset, name)
    log.set_up(run.log_file)
    run.write_config(vars(args), device)
    scores = evaluate()
    scores.add(judge(args, judged, embedder, middle, device))
    run.record(trained.epoch, scores)
    show(args, run, evaluate, scores, sets, words)
    seconds = time.perf_counter() - start
    LOG.info(ending(evaluation.listing(scores), scores, run.path, seconds))
    return dict(scores)


# --------------------------------------------------------------------------------------------------
# Words
# --------------------------------------------------------------------------------------------------
def refuse_unfit(args: argparse.Namespace, train: ImageSet | CaptionSet) -> None:
    """Raise ValueError where a flag asks for classes or captions that the images do not have."""
    if isinstance(train, ImageSet):
        if args.loss in parameters.CAPTION_LOSSES and not train.captions:
            raise ValueError(
                f"--loss {args.loss} reads captions, --dataset {args.dataset} has none; give it a "
                "captions.json, or take a set of images and captions such as openclipart"
            )
        return
    if args.loss in parameters.LABEL_LOSSES:
        raise ValueError(
            f"--loss {args.loss} compares classes, --dataset {args.dataset} has captions instead; "
            "use simclr, clip or another of docs/self_supervision.md"
        )
    classifiers = [name for name in args.evaluations if name != "retrieval"]
    if classifiers and not args.evaluation_datasets:
        raise ValueError(
            f"--evaluations {' '.join(classifiers)} need labels, --dataset {args.dataset} has "
            "captions instead; name labelled images with --evaluation_datasets, such as emoji"
        )
    if args.language_distill_w and args.language_words != "captions":
        raise ValueError(
            f"--language_words {args.language_words} are words of classes, --dataset "
            f"{args.dataset} has captions instead; use --language_words captions"
        )


def build_guide(
    args: argparse.Namespace, train: ImageSet | CaptionSet, device: torch.device
) -> LanguageGuide:
    """The guide of the language flags; its pseudolabels are those of the training images."""
    if not isinstance(train, ImageSet):
        return language.build_guide(
            args,
            class_names=(),
            labels=np.empty(0, np.int64),
            captions=train.captions,
            imagenet_logits=None,
            device=device,
        )
    return language.build_guide(
        args,
        class_names=train.class_names,
        labels=train.labels,
        captions=train.captions,
        imagenet_logits=lambda: imagenet_logits(args, train, device),
        device=device,
    )


def imagenet_logits(args: argparse.Namespace, train: ImageSet, device: torch.device) -> Tensor:
    """(N, 1000) logits of the training images; kept in the cache folder, as they take minutes."""
    name = args.language_pseudoclass_model
    images = [f"{path.name} {path.stat().st_size}" for path in train.paths]
    digest = hashlib.sha256("\n".join([name, *images]).encode()).hexdigest()
    kept = cache_folder() / "pseudolabels" / f"{args.dataset}_{digest[:16]}.pt"
    if kept.is_file():
        try:
            return checkpoint.load(kept)["logits"]
        except ValueError as error:
            LOG.warning("%s; classifying the images again", error)
    classifier = architectures.classifier(name)
    middle = datasets.eval_transform(
        classifier.image_size, classifier.crop_ratio, classifier.mean, classifier.std
    )
    model = classifier.model.to(device)
    logits = evaluation.predict(
        model, train, middle, bs=args.bs, workers=args.kernels, device=device
    )
    checkpoint.save(kept, {"logits": logits})
    return logits


def neighbour_words(
    args: argparse.Namespace, train: ImageSet | CaptionSet, device: torch.device
) -> Tensor | None:
    """(C, D) words of the training classes, for a sampler that lets related classes meet."""
    if args.data_sampler != "class_related" or not isinstance(train, ImageSet):
        return None
    encoder = language.build_encoder(args.language_model, device)
    return language.class_word_embeds(encoder, train.class_names, args.language_prompt)


def caption_partners(
    args: argparse.Namespace, train: ImageSet | CaptionSet, device: torch.device
) -> tuple[NDArray[np.int64] | None, NDArray[np.float32] | None]:
    """(N, k) rows of the images nearest in words, and how near; for a sampler that pairs them."""
    if args.data_sampler != "language_pairs":
        return None, None
    if args.data_pairs_from:
        found = neighbours.read(
            Path(args.data_pairs_from), n=len(train), digest=neighbours.identity(train)
        )
        return found.partners, found.similarities
    found = neighbours.of_images(
        train,
        neighbours.Options(
            k=args.data_pairs_k, scope=args.data_pairs_scope, no_identical=args.data_pairs_distinct
        ),
        by=args.data_pairs_by,
        language_model=args.language_model,
        checkpoint=args.data_pairs_checkpoint or args.arch,
        bs=args.bs,
        workers=args.kernels,
        device=device,
    )
    return found.partners, found.similarities


def miner_feedback(args: argparse.Namespace, data: Data) -> ImageSet:
    """The validation images that reward a miner: a fixed draw, so that rewards can be compared."""
    assert data.val is not None  # parameters.check sees to it
    draw = torch.randperm(
        len(data.val), generator=torch.Generator().manual_seed(derive(args.seed, "miner_feedback"))
    )
    return data.val.subset(draw[: args.feedback_images].sort().values.numpy(), "feedback")


# --------------------------------------------------------------------------------------------------
# Evaluation
# --------------------------------------------------------------------------------------------------
def evaluated_sets(args: argparse.Namespace, data: Data) -> dict[str, ImageSet]:
    """The image sets that are searched, the one that checkpoints are chosen by first.

    Where training has captions and no classes, those of ``--evaluation_datasets`` that are of ours.
    """
    if "retrieval" not in args.evaluations:
        return {}
    if data.test is None:
        names = dict.fromkeys(name.partition(":")[0] for name in args.evaluation_datasets)
        source_path = datasets.source_folder(args)
        ours = [name for name in names if downstream.is_ours(name, source_path)]
        return {name: downstream.labelled(name, source_path) for name in ours}
    assert isinstance(data.train, ImageSet)  # what has test classes has training classes
    sets = {
        "val": data.val,
        "test": None if args.no_test_metrics else data.test,
        "train": None if args.no_train_metrics else data.train,
    }
    return {name: images for name, images in sets.items() if images is not None}


def judged_datasets(args: argparse.Namespace) -> list[Downstream]:
    """What the classifiers of ``--evaluations`` are fitted to and tested on; read before training.

    Raises:
        FileNotFoundError, ValueError: a dataset that is not there or not as expected.
    """
    if not set(args.evaluations) - {"retrieval"}:
        return []
    names = args.evaluation_datasets or [args.dataset]
    return [downstream.build(name, datasets.source_folder(args)) for name in names]


def judge(
    args: argparse.Namespace,
    judged: Sequence[Downstream],
    embedder: architectures.Embedder,
    transform: Transform,
    device: torch.device,
) -> Scores:
    """The scores of ``--evaluations`` but retrieval, of the pooled features as they are now."""
    scores = Scores({}, {})
    for dataset in judged:
        scores.add(
            evaluation.judge(
                [name for name in args.evaluations if name != "retrieval"],
                embedder,
                dataset,
                transform,
                bs=args.bs,
                workers=args.kernels,
                device=device,
                search_device="cpu" if args.evaluate_on_cpu else device,
                autocast=args.use_float16,
                seed=args.seed,
                cache=cache_folder() / "features",
            )
        )
    return scores


def evaluation_words(
    args: argparse.Namespace, sets: Mapping[str, ImageSet], device: torch.device
) -> dict[str, Tensor]:
    """(C, D) words of each set's classes, if a metric reads them.

    Encoder and prompt are those of the evaluation and not of the guidance, so that runs with other
    guidance are measured alike.
    """
    if not any(metrics.parse(name).needs == "class_words" for name in args.evaluation_metrics):
        return {}
    encoder = language.build_encoder(args.evaluation_language_model, device)
    return {
        name: language.class_word_embeds(encoder, images.class_names, "{}")
        for name, images in sets.items()
    }


def show(
    args: argparse.Namespace,
    run: RunFolder,
    evaluate: Evaluator,
    scores: Scores,
    sets: Mapping[str, ImageSet],
    words: Mapping[str, Tensor],
    before: tuple[Tensor, Tensor] | None = None,
) -> list[Path]:
    """Write each set's scores by class, and the pictures and report of the first; returns pictures.

    Args:
        before: embeddings of the first set before training, and their rows.
    """
    for name, images in sets.items():
        evaluation.write_by_class(run.path / f"classes_{name}.csv", scores, f"{name}/", images)
    if args.no_report or not sets:
        return []
    name, images = next(iter(sets.items()))
    embeds, rows = evaluate.embeds[name]
    comparable = before is not None and torch.equal(before[1], rows)  # all images were readable
    exhibit = evaluation.build_exhibit(
        images,
        embeds,
        rows,
        before=before[0] if before is not None and comparable else None,
        class_words=words.get(name),
        seed=args.seed,
    )
    written = evaluation.write_report(
        run.path,
        exhibit,
        rows=run.rows,
        protocols=scores.protocols,
        intervals=scores.intervals,
        config=vars(args),
    )
    return [path for path in written.values() if path.suffix == ".png"]


def show_views(
    batches: DataLoader[Batch], images: Images, embedder: architectures.Embedder, path: Path
) -> None:
    """Draw the tuples that training begins with, as the embedder will see them, to look at."""
    batch, tuples = datasets.preview(batches, N_SHOWN)
    mean, std = torch.tensor(embedder.mean), torch.tensor(embedder.std)
    views = torch.stack(datasets.finish(batch, embedder.mean, embedder.std).views, dim=1)
    pixels = (views.permute(0, 1, 3, 4, 2) * std + mean).clamp(0, 1).mul(255).round().byte()
    said = [[images.caption(row) or "" for row in rows] for rows in tuples]
    views_picture(pixels.numpy(), said, path)


# --------------------------------------------------------------------------------------------------
# What a run says
# --------------------------------------------------------------------------------------------------
def summary(
    args: argparse.Namespace,
    data: Data,
    chosen: Mapping[str, Any],
    device: torch.device,
    folder: Path,
) -> str:
    """What will be trained on what, and who chose the flags that the command line left open."""
    sets = [images for images in data if images is not None]
    counts = [
        f"{len(images):,} images of {images.n_classes:,} classes"
        if isinstance(images, ImageSet)
        else f"{len(images):,} images with captions"
        for images in sets
    ]
    guidance = (
        f"{args.language_distill_w:g} x L_match, {args.language_words} in {args.language_model}"
        if args.language_distill_w
        else "none"
    )
    if args.language_control != "none":
        guidance += f", {args.language_control} as a control"
    return "\n".join(
        [
            *(f"{s.name:>14}: {count}" for s, count in zip(sets, counts, strict=True)),
            f"      embedder: {args.arch}, {args.embed_dim} dimensions, {args.image_size} px",
            f"     objective: {args.loss}; guidance: {guidance}",
            f"       batches: {args.bs} by {args.data_sampler}, {args.augmentation} views, "
            f"{args.n_epochs} epochs, lr {args.lr:g}, on {device}",
            "  from recipe: "
            + " ".join(f"--{flag} {plain(value)}" for flag, value in chosen.items() if value)
            + f" ({datasets.recipe(args.dataset, isinstance(data.train, CaptionSet)).why})",
            f"    run folder: {folder}",
        ]
    )


def plain(value: Any) -> str:
    """A flag's value as it would be typed."""
    return " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def not_finite(
    terms: Mapping[str, Tensor], epoch: int, iteration: int, batch: Batch, recorder: Recorder
) -> str:
    """The error of a loss that is nan or infinite."""
    values = ", ".join(f"{name} {value.item()}" for name, value in terms.items())
    kept = recorder.last if recorder.last.is_file() else "none yet"
    return (
        f"the loss is not finite in epoch {epoch}, iteration {iteration} ({values}). Rows of the "
        f"batch: {batch.rows.tolist()}. Last good checkpoint: {kept}. Lower --lr or "
        "--language_distill_w, or train without --use_float16"
    )


def ending(table: str, scores: Scores, folder: Path, seconds: float) -> str:
    """The end of a run: its scores, how they were measured, where they lie."""
    return "\n".join(
        [
            table,
            *(f"measured on {protocol}" for protocol in dict.fromkeys(scores.protocols.values())),
            f"{seconds / 60:.1f} minutes, peak memory {peak_memory_mb() / 1024:.2f} GiB beside the "
            "loading processes",
            f"run folder: {folder}",
        ]
    )


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError, FloatingPointError) as error:
        LOG.exception("%s", error)  # the traceback goes to log.txt alone
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit("interrupted; finished epochs are in the run folder")
