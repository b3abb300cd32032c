"""Train an image embedder with language guidance and evaluate retrieval of classes it never saw.

    python main.py --loss multisimilarity --language_distill_w 7.5

Roth, Vinyals and Akata, Integrating Language Guidance into Vision-based Deep Metric Learning,
CVPR 2022: a metric-learning loss, and a distillation that pulls the similarities of a batch's
images toward those of their words, L = L_DML + w L_match. Or captions choose contrastive pairs:
El Banani et al., Learning Visual Representations via Language-Guided Sampling, CVPR 2023.
"""

import parameters
from utilities import startup
from utilities.finished import exit_if_finished

if __name__ == "__main__":  # --help, a wrong flag and a finished run need not wait for torch
    startup.begin()
    early = parameters.parse()
    if not early.dry_run:
        exit_if_finished(vars(early), parameters.run_name(early))

import argparse
import logging
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
    """Train and evaluate one run; return and raise as ``main``."""
    start = time.perf_counter()
    device, (filled, why) = set_up(args)
    location = Path(args.save_path), args.dataset, parameters.run_name(args)
    saved = run.to_resume(*location, datasets.fixed(args, filled)) if args.resume else None
    notes = datasets.settle(args, filled, saved, architectures.at_hand, language.at_hand)

    # Images with labels or captions, an embedder f, a frozen reader of words.
    with distributed.first_rank_first():
        data = datasets.build(args)
        files = language.files(args, data.train, args.loss in parameters.CAPTION_LOSSES)
        described = datasets.describe(args, data._asdict(), files, resumed=saved)
    classes = getattr(data.train, "class_names", ())
    datasets.refuse_lacking(args, data, criteria.CRITERIA[args.loss].needs)
    notes |= datasampler.fit_bs(args, data.train, filled)
    embedder = architectures.build(args).to(device)
    average = architectures.build_average(embedder, args.ema)
    logits = partial(evaluation.imagenet_logits, args, architectures.build_classifier)
    guide = language.build_guide(args, data.train, device, partial(logits, data.train, device))
    preparation = evaluation.preprocessing_of(embedder, vars(args))
    data = datasets.decoded(args, data, preparation.shorter_side)
    embed = evaluation.embedding(args, embedder, preparation, device)
    if not saved:
        architectures.initialise(args, embedder, partial(embed, data.train))

    # Which images meet in a batch. In language_pairs their captions decide.
    visual = partial(evaluation.image_reader, args, load_or_create, device)
    inputs = language.sampler_inputs(args, data.train, device, visual)
    n_views = criteria.CRITERIA[args.loss].load().n_views
    sampler = datasampler.build(args, data.train, n_views=n_views, **inputs)
    pin = device.type != "cpu"
    batches = datasets.training_batches(args, data.train, sampler, n_views, pin=pin)
    length = Length.of(args.max_steps, args.n_epochs, len(batches))

    # The objective: L = L_DML + w L_match + lambda L_proxy.
    miner = batchminer.build(args)
    criterion = criteria.build(
        args,
        n_classes=len(classes),
        embed_dim=embedder.embed_dim,
        forward_bs=args.forward_bs,
        feature_dim=embedder.feature_dim,
        embedder=embedder,
        miner=miner,
        n_steps=length.n_steps,
        **language.caption_readers(args, data.train.captions, device),
    )
    distill = criteria.build_distillation(args)
    dim = embedder.embed_dim if criterion.reads == "embeds" else embedder.feature_dim
    proxies = criteria.build_proxies(args, guide and guide.class_words, len(classes), dim)
    if args.compile:
        embedder.compile()
    objective = criteria.Objective(
        *(embedder, criterion, guide, distill, args.language_distill_w),
        *(proxies, args.language_proxy_w, args.forward_bs),
    ).to(device)

    lr = optimization.scaled_lr(args.lr, args.bs, args.lr_base_bs)
    groups = embedder.param_groups(lr, args.fc_lr, args.decay, decay_norms=not args.no_norm_decay)
    groups += criterion.param_groups(lr) + (proxies.param_groups() if proxies else [])
    flags = "optim", "decay", "scheduler", "tau", "gamma", "warmup_steps", "warmup_lr", "final_lr"
    optimizer, scheduler = optimization.build(
        groups, lr=lr, n_steps=length.n_steps, steps_per_epoch=len(batches), **pick(args, *flags)
    )
    objective = distributed.data_parallel(objective, device)
    options = {"precision": devices.precision(args.precision, device), **pick(args, "clip_grad")}
    trainer = Trainer(objective, optimizer, scheduler, device=device, **options)

    # Evaluation: retrieval of unseen classes; at the end, classifiers on frozen features.
    n_steps, n_epochs = length.shortened(dry_run.STEPS, len(batches)) if args.dry_run else length
    words = language.NamesReader(device), architectures.build_image_tower, lambda: criterion
    session = evaluation.build(args, embedder, data, preparation, device, n_epochs, *words, average)
    others = {name: images for name, images in session.sets.items() if name not in described}
    described |= datasets.describe(args, others, resumed=saved)
    feedback = datasets.feedback(args, data) if miner.adapt_every else None

    config = {**vars(args), "n_epochs": length.n_epochs}  # as planned, even if a dry run is shorter
    folder = run.open_folder(
        *location, flags=config, device=device, resume=args.resume, saved=saved
    )
    progress = Progress()
    parts: dict[str, Any] = {"embedder": embedder, "criterion": criterion, "trainer": trainer}
    parts |= {"proxies": proxies, "ema": average and average.module}
    current = run.Run(
        folder,
        run.State(device, **parts, batches=batches, progress=progress),
        flags=config,
        data=described,
        n_epochs=n_epochs,
        trackers=trackers.start(folder.path, folder.rows, config),
        interruption=interruption,
        best_of=session.best_of(args.storage_metrics),
        keep_all=args.store_improvements,
        **pick(args, "patience", "checkpoint_every"),
        saved=saved,
    )
    sizes = datasets.sizes(data)
    LOG.info(parameters.summary(args, (filled, why), notes, sizes, device, folder.path, length))

    if n_views > 1 and not saved and not args.no_report:
        evaluation.draw_views(batches, data.train, embedder, folder.path)
    scores: dict[str, float] = session.start(current)
    for epoch in current.epochs():
        if batches.epoch < epoch:  # a new epoch, not one resumed partway
            progress.reset()
            if sampler.due(epoch):
                embedded = embed(data.train)
                sampler.refresh(embedded.embeds, embedded.rows)
        embedder.train()
        embedder.train_backbone(epoch > args.warmup)
        n_left = max(0, min(batches.left(epoch), n_steps - trainer.iteration))
        for batch in progress.over(batches.of(epoch, n_left), n_left, f"epoch {epoch}/{n_epochs}"):
            if feedback is not None and trainer.iteration % miner.adapt_every == 0:
                embedded = embed(feedback)
                progress.show("miner", miner.adapt(embedded.embeds, embedded.labels))
            batch = datasets.finish(batch.to(device), embedder.mean, embedder.std)
            guided = trainer.iteration >= args.language_delay
            outcome = trainer.step(batch, guided)
            criterion.after_step(embedder)
            if average is not None:
                average.update(embedder, trainer.iteration)
            sampler.observe(outcome.rows, outcome.embeds)
            progress.count(len(outcome.rows), loss=outcome.loss, **outcome.terms)
            current.after_step(trainer.iteration)
        trainer.check()
        current.save()  # before evaluation, so that a failure there does not lose the epoch
        scores = progress.averages() | session.evaluate_if_due(epoch)
        if current.ends_after(epoch, scores):
            scores |= session.evaluate_features()
        datasets.warn_of_waiting(args, scores["train/waiting_for_data"], epoch)
        current.record(epoch, scores)

    if distributed.is_first():
        pictures = session.report(folder, config, current.last, parameters.changed(args, filled))
        current.finish([folder.path / evaluation.VIEWS, *pictures])
    LOG.info(run.ending(session.conclusion(), folder, device, start, dry_run=args.dry_run))
    return scores


def evaluate_only(typed: argparse.Namespace, argv: Sequence[str] | None) -> dict[str, float]:
    """Evaluate ``--checkpoint`` with its run's flags unless overridden; return as ``main``."""
    start = time.perf_counter()
    trained = load_embedder(Path(typed.checkpoint))
    defaults = vars(parameters.build_parser().parse_args([]))
    args = argparse.Namespace(**evaluation_flags(trained, defaults, parameters.given(argv)))
    device, _ = set_up(args)
    data = datasets.build_as_trained(args, trained.flags, trained.data, trained.file)
    embedder = trained.embedder.to(device)
    preparation = evaluation.preprocessing_of(embedder, vars(args))
    readers = language.caption_readers(args, data.train.captions, device)
    text_side = partial(criteria.load_text_side, args, trained, readers)
    words = language.NamesReader(device), architectures.build_image_tower, text_side
    session = evaluation.build(args, embedder, data, preparation, device, 0, *words)

    name = parameters.run_name(args, usual=f"{trained.file.parent.name}_evaluation")
    place = Path(args.save_path), args.dataset, name
    folder = run.open_folder(*place, flags=vars(args), device=device)
    tracking = trackers.start(folder.path, folder.rows, vars(args))
    current = run.Run(folder, run.State(device), flags=vars(args), trackers=tracking)
    session.evaluate_if_due(0)
    scores = session.evaluate_features()
    current.write(trained.epoch, scores)
    if distributed.is_first():
        current.finish(session.report(folder, vars(args), trained.file, parameters.given(argv)))
    LOG.info(run.ending(session.conclusion(), folder, device, start, dry_run=args.dry_run))
    return dict(scores)


def rehearse(argv: Sequence[str] | None) -> dict[str, float]:
    """Do everything that a run does, in small, in a folder that is deleted afterwards."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    with tempfile.TemporaryDirectory(prefix="dry_run_") as folder:
        arguments += [*dry_run.AT_ONCE, "--save_path", folder]
        args = parameters.parse(arguments)
        if args.evaluate_only:
            return evaluate_only(args, arguments)
        return train(args, Interruption())  # not entered: Ctrl-C acts as usual


def set_up(args: argparse.Namespace) -> tuple[torch.device, tuple[dict[str, Any], str]]:
    """Seed, complete the flags; return the device, and the recipe's flags and its reason."""
    seed_everything(args.seed)
    chosen = datasets.fill_by_recipe(args)
    if not args.evaluate_only:
        names = [*args.evaluation_metrics, *args.storage_metrics]
        args.evaluation_metrics = list(dict.fromkeys(names))
    for name in args.evaluation_metrics:
        metrics.parse(name)  # refuses an unknown one before anything is loaded
    trackers.refuse_missing(args.wandb_mode, args.tensorboard)
    if args.dry_run:
        args.wandb_mode = "disabled"  # nothing is sent
    args.kernels = devices.at_most_the_cores(args.kernels)
    return devices.set_up(**pick(args, "device", "gpu", "deterministic", "compile")), chosen


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError, FloatingPointError) as error:
        LOG.exception("%s", error)  # the traceback goes to log.txt alone
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit("interrupted; finished epochs are in the run folder")
