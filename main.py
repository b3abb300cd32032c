"""Train an image embedder with language guidance and evaluate retrieval of classes it never saw.

    python main.py --loss multisimilarity --language_distill_w 7.5

Roth, Vinyals and Akata, Integrating Language Guidance into Vision-based Deep Metric Learning,
CVPR 2022. A metric-learning criterion pulls images of one class together; the distillation beside
it pulls the similarities of a batch's images toward those of their words: L = L_DML + w L_match.
With --data_sampler language_pairs, captions choose the two images of a contrastive pair instead: El
Banani et al., Learning Visual Representations via Language-Guided Sampling, CVPR 2023.
"""

import parameters
from utilities.finished import exit_if_finished

if __name__ == "__main__":  # --help, a wrong flag and a finished run need not wait for torch
    early = parameters.parse()
    if not early.dry_run:
        exit_if_finished(vars(early), parameters.run_name(early))

import argparse
import logging
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

import architectures
import batchminer
import criteria
import datasampler
import datasets
import evaluation
import language
import metrics
from architectures.load import evaluation_flags, load_embedder, load_or_create
from utilities import device as devices
from utilities import distributed, dry_run, faults, log, optimization, run, trackers
from utilities.interrupt import Interruption
from utilities.memory import keep_freed_memory
from utilities.progress import Progress
from utilities.registry import pick
from utilities.seeding import seed_everything
from utilities.trainer import Length, Trainer

LOG = logging.getLogger("main")


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Train and evaluate one run, or with ``--evaluate_only`` evaluate the embedder of another.

    Args:
        argv: the words of the command line; None reads ``sys.argv``.

    Returns:
        the scores of the last epoch; ``test/embeds/e_recall@1`` and the like are fractions.

    Raises:
        ValueError, OSError: flags, data or weights that cannot work; the message names a remedy.
        FloatingPointError: losses or gradients that stay infinite.
    """
    args = parameters.parse(argv)
    keep_freed_memory()
    with distributed.process_group(), faults.explained():
        log.set_up(quiet=not distributed.is_first())
        if args.dry_run:
            return rehearse(argv)
        if args.evaluate_only:
            return evaluate_only(args, argv)
        exit_if_finished(vars(args), parameters.run_name(args))
        with Interruption() as interruption:
            return train(args, interruption)


def train(args: argparse.Namespace, interruption: Interruption) -> dict[str, float]:
    """Train and evaluate one run; as ``main``."""
    start = time.perf_counter()
    device, recipe = set_up(args)
    place = Path(args.save_path), args.dataset, parameters.run_name(args)
    saved = run.to_resume(*place, vars(args)) if args.resume else None

    # Images with labels or captions, an embedder f, a frozen reader of words.
    with distributed.first_rank_first():
        data = datasets.build(args)
    classes = getattr(data.train, "class_names", ())
    parameters.check_data(args, classes=bool(classes), captions=len(data.train.captions) > 0)
    embedder = architectures.build(args).to(device)
    classifier = partial(architectures.build_classifier, args)
    classify = partial(evaluation.imagenet_logits, args, classifier, data.train, device)
    guide = language.build_guide(args, data.train, device, classify)
    preparation = evaluation.preprocessing_of(embedder, vars(args))
    data = datasets.decoded(args, data, preparation.shorter_side)

    # Which images meet in a batch. In language_pairs their captions decide.
    pairs = language.partners(args, data.train, device, partial(image_reader, args, data, device))
    n_views = criteria.CRITERIA[args.loss].load().n_views
    sampler = datasampler.build(
        args,
        data.train,
        n_views=n_views,
        class_words=language.sampler_words(args, data.train, device),
        partners=pairs.partners if pairs else None,
        similarities=pairs.similarities if pairs else None,
    )
    batches = datasets.batches(args, data.train, sampler, n_views, pin=device.type != "cpu")
    length = Length.of(args.max_steps, args.n_epochs, len(batches))

    # What is asked of their embeddings: L = L_DML + w L_match.
    miner = batchminer.build(args)
    criterion = criteria.build(
        args,
        n_classes=len(classes),
        embed_dim=args.embed_dim,
        feature_dim=embedder.feature_dim,
        embedder=embedder,
        miner=miner,
        n_steps=length.n_steps,
        **language.caption_readers(args, device),
    ).to(device)
    distill = criteria.build_distillation(args)
    if args.compile:
        embedder.compile()
    objective = criteria.Objective(embedder, criterion, guide, distill, args.language_distill_w)

    lr = optimization.scaled_lr(args.lr, args.bs, args.lr_base_bs)
    groups = embedder.param_groups(lr, args.fc_lr, args.decay, decay_norms=not args.no_norm_decay)
    groups += criterion.param_groups(lr)
    optimizer = optimization.build_optimizer(args.optim, groups, lr=lr, decay=args.decay)
    scheduler = optimization.build_scheduler(
        args.scheduler,
        optimizer,
        n_steps=length.n_steps,
        steps_per_epoch=len(batches),
        lr=lr,
        **pick(args, "tau", "gamma", "warmup_steps", "warmup_lr", "final_lr"),
    )
    precision = devices.precision(args.precision, device)
    objective = distributed.data_parallel(objective, device)
    trainer = Trainer(objective, optimizer, scheduler, device=device, precision=precision)

    # What is evaluated: retrieval of unseen classes, and at the end classifiers of frozen features.
    n_epochs, n_steps = length
    if args.dry_run:
        n_steps, n_epochs = length.shortened(dry_run.STEPS, len(batches))
    read_names = language.names_reader(device)
    session = evaluation.build(args, embedder, data, preparation, device, n_epochs, read_names)
    embed = evaluation.embedding(args, embedder, preparation, device)
    rewarding = datasets.feedback(args, data) if miner.adapt_every else None

    flags = {**vars(args), "n_epochs": length.n_epochs}
    folder = run.open_folder(*place, flags=flags, device=device, saved=saved)
    progress = Progress()
    parts = {"embedder": embedder, "criterion": criterion, "trainer": trainer}
    current = run.Run(
        folder,
        run.State(device, **parts, batches=batches, progress=progress),
        flags=flags,
        n_epochs=n_epochs,
        trackers=trackers.start(folder.path, folder.rows, flags),
        interruption=interruption,
        best_of=session.best_of(args.storage_metrics),
        keep_all=args.store_improvements,
        checkpoint_every=args.checkpoint_every,
        saved=saved,
    )
    LOG.info(parameters.summary(args, *recipe, datasets.sizes(data), device, folder.path, length))

    scores: dict[str, float] = {}
    if saved:
        session.resume(*current.untrained())
    else:
        if args.data_sampler in parameters.PAIR_SAMPLERS and not args.no_report:
            looks = embedder.mean, embedder.std, folder.path
            evaluation.draw_views(batches, data.train, *looks)
        scores, before = session.start()
        current.record_untrained(scores, before)
    for epoch in current.epochs():
        if batches.epoch < epoch:  # otherwise it is resumed within
            progress.reset()
            if sampler.due(epoch):
                seen = embed(data.train)
                sampler.refresh(seen.embeds, seen.rows)
        embedder.train()
        embedder.train_backbone(epoch > args.warmup)
        rest = min(batches.left(epoch), n_steps - trainer.iteration)
        for batch in progress.over(batches.of(epoch, rest), rest, f"epoch {epoch}/{n_epochs}"):
            if rewarding is not None and trainer.iteration % miner.adapt_every == 0:
                seen = embed(rewarding)
                progress.show("miner", miner.adapt(seen.embeds, seen.labels))
            batch = datasets.finish(batch.to(device), embedder.mean, embedder.std)
            outcome = trainer.step(batch, trainer.iteration >= args.language_delay)
            criterion.after_step(embedder)
            sampler.observe(outcome.rows, outcome.embeds)
            progress.count(len(outcome.rows), loss=outcome.loss, **outcome.terms)
            current.after_step(trainer.iteration)
        current.save()  # evaluation may fail, the epoch is kept
        scores = progress.averages() | session.due(epoch)
        datasets.warn_of_waiting(args, scores["train/waiting_for_data"])
        current.record(epoch, scores)

    if distributed.is_first():
        pictures = session.report(folder, vars(args))
        current.finish([folder.path / evaluation.VIEWS, *pictures])
    LOG.info(run.ending(session.conclusion(), folder, device, start, dry_run=args.dry_run))
    return scores


def evaluate_only(typed: argparse.Namespace, argv: Sequence[str] | None) -> dict[str, float]:
    """Evaluate ``--checkpoint`` as its run did, but for the flags that the command line names.

    Raises:
        ValueError, OSError: a checkpoint that cannot be read, or flags that do not fit it.
    """
    start = time.perf_counter()
    trained = load_embedder(Path(typed.checkpoint))
    defaults = vars(parameters.build_parser().parse_args([]))
    args = argparse.Namespace(**evaluation_flags(trained, defaults, parameters.given(argv)))
    device, _ = set_up(args)
    data = datasets.build(args)
    embedder = trained.embedder.to(device)
    preparation = evaluation.preprocessing_of(embedder, vars(args))
    read_names = language.names_reader(device)
    session = evaluation.build(args, embedder, data, preparation, device, 0, read_names)

    named = args.savename != "group_plus_seed"
    name = args.savename if named else f"{trained.file.parent.name}_evaluation"
    place = Path(args.save_path), args.dataset, name
    folder = run.open_folder(*place, flags=vars(args), device=device)
    tracking = trackers.start(folder.path, folder.rows, vars(args))
    current = run.Run(folder, run.State(device), flags=vars(args), trackers=tracking)
    scores = session.due(0)
    current.write(trained.epoch, scores)
    current.finish(session.report(folder, vars(args)))
    LOG.info(run.ending(session.conclusion(), folder, device, start, dry_run=args.dry_run))
    return dict(scores)


def rehearse(argv: Sequence[str] | None) -> dict[str, float]:
    """Do everything that a run does, in small, in a folder that is deleted afterwards."""
    words = sys.argv[1:] if argv is None else list(argv)
    with tempfile.TemporaryDirectory(prefix="dry_run_") as folder:
        words += [*dry_run.AT_ONCE, "--save_path", folder]
        args = parameters.parse(words)
        if args.evaluate_only:
            return evaluate_only(args, words)
        return train(args, Interruption())  # not entered: there is nothing to resume


def set_up(args: argparse.Namespace) -> tuple[torch.device, tuple[dict[str, Any], str]]:
    """Seed everything, complete the flags, choose the device.

    Returns:
        the device, and what the dataset's recipe filled in, with the reason.

    Raises:
        ValueError: a metric or device is unknown, or a tracker is not installed.
    """
    seed_everything(args.seed)
    captions = datasets.has_captions(args)
    chosen = datasets.fill_by_recipe(args, captions)
    why = datasets.recipe(args.dataset, captions).why
    if not args.evaluate_only:
        names = [*args.evaluation_metrics, *args.storage_metrics]
        args.evaluation_metrics = list(dict.fromkeys(names))
    for name in args.evaluation_metrics:
        metrics.parse(name)  # refuses an unknown one before anything is loaded
    trackers.refuse_missing(args.wandb_mode, args.tensorboard)
    if args.dry_run:
        args.wandb_mode = "disabled"  # nothing is sent
    args.kernels = min(args.kernels, os.cpu_count() or 1)
    device = devices.set_up(args.device, args.gpu, deterministic=args.deterministic)
    return device, (chosen, why)


def image_reader(
    args: argparse.Namespace, data: datasets.Data, device: torch.device
) -> language.ImageEmbedder:
    """Return what embeds the training images for ``--data_pairs_by visual``."""
    embedder, name, flags = load_or_create(args.data_pairs_checkpoint or args.arch)
    preparation = evaluation.preprocessing_of(embedder, flags)
    extract = evaluation.embedding(args, embedder.to(device), preparation, device, shared=False)
    return language.image_embedder(
        data.train, embedder.backbone, name, settings=preparation, extract=extract
    )


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError, FloatingPointError) as error:
        LOG.exception("%s", error)  # the traceback goes to log.txt alone
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit("interrupted; finished epochs are in the run folder")
