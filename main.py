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
    if not early.dry_run:
        exit_if_finished(vars(early), parameters.run_name(early))

import argparse
import hashlib
import logging
import math
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

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
from datasets.passes import Passes
from evaluation import Evaluator, Features, Scores
from evaluation.pictures import views_picture
from evaluation.preprocessing import Preprocessing, preprocessing
from language import LanguageGuide, neighbours
from utilities import (
    checkpoint,
    distributed,
    dry_run,
    faults,
    log,
    optimization,
    processes,
    resume,
    trackers,
)
from utilities import device as devices
from utilities.files import cache_folder
from utilities.interrupt import Interruption
from utilities.memory import keep_freed_memory
from utilities.progress import Progress
from utilities.recorder import Every, Recorder
from utilities.run_folder import RunFolder
from utilities.seeding import derive, seed_everything
from utilities.structures import Batch
from utilities.timing import peak_memory_mb
from utilities.trainer import Trainer

LOG = logging.getLogger("main")

VIEWS = "views.png"  # in the run folder
N_SHOWN = 12  # tuples in it
MOST_WAITING = 0.2  # of an epoch, for images


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Train and evaluate one run, or with ``--evaluate_only`` score the embedder of another.

    Args:
        argv: the words of the command line; None reads ``sys.argv``.

    Returns:
        the scores of the last epoch; ``test/embeds/e_recall@1`` and the like are fractions.

    Raises:
        ValueError, OSError: flags, data or weights that cannot work; the message says what can.
        FloatingPointError: gradients that stay infinite; names the last checkpoint.
    """
    args = parameters.parse(argv)
    keep_freed_memory()
    with processes.together():
        log.set_up(quiet=not processes.is_first())
        with faults.explained():
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
    chosen, device = set_up(args)
    args.evaluation_metrics = list(dict.fromkeys([*args.evaluation_metrics, *args.storage_metrics]))
    folder, saved = resumed(args)

    # Images with labels, an embedder f, a frozen reader of words.
    with processes.first_then_others():
        data = datasets.build(args)
    refuse_unfit(args, data.train)
    embedder = architectures.build(args).to(device)
    with processes.first_then_others():
        guide = build_guide(args, data.train, device) if args.language_distill_w else None
    prepare = preprocessing(vars(args), embedder.mean, embedder.std)
    if args.cache_images:
        data = kept_decoded(args, data, prepare)

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
    if args.compile:
        embedder.compile()
    objective = processes.shared(
        criteria.Objective(embedder, criterion, guide, distill, args.language_distill_w), device
    )

    transforms = datasets.train_views(
        args.image_size,
        args.augmentation,
        criterion.n_views,
        datasets.recipe(args.dataset).train_scale,
    )
    passes = Passes(
        datasets.loader(
            data.train,
            transforms,
            sampler,
            workers=args.kernels,
            seed=args.seed,
            rank=distributed.rank(),
            pin_memory=device.type != "cpu",
        )
    )
    lr = optimization.scaled_lr(args.lr, args.bs, args.lr_base_bs)
    groups = embedder.param_groups(lr, args.fc_lr, args.decay, decay_norms=not args.no_norm_decay)
    groups += criterion.param_groups(lr)
    optimizer = optimization.build_optimizer(args.optim, groups, lr=lr, decay=args.decay)
    scheduler = optimization.build_scheduler(
        args.scheduler,
        optimizer,
        n_steps=n_steps,
        steps_per_epoch=len(sampler),
        tau=args.tau,
        gamma=args.gamma,
        lr=lr,
        warmup_steps=args.warmup_steps,
        warmup_lr=args.warmup_lr,
        final_lr=args.final_lr,
    )
    trainer = Trainer(objective, optimizer, scheduler, device=device, precision=args.precision)

    # What is reported: images of unseen classes, each a query for all the others, and at the end
    # what simple classifiers make of frozen features.
    middle = prepare.transform()
    with processes.first_then_others():
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
            precision=args.precision,
            shared=True,
        )

    rewarding = miner_feedback(args, data) if miner.adapt_every else None

    run = open_run(args, folder, saved, device)
    chosen_on = next(iter(sets), None)  # None: nothing is evaluated before the end
    recorder = Recorder(
        run,
        start_trackers(args, run),
        best_of=[f"{chosen_on}/{args.evaltypes[0]}/{name}" for name in args.storage_metrics],
        keep_all=args.store_improvements,
        writes=processes.is_first(),
    )
    LOG.info(summary(args, data, chosen, device, run.path, n_steps))
    if not sets and not judged:
        LOG.warning(
            "nothing is evaluated: retrieval needs folders of labelled images; name some with "
            "--evaluation_datasets, such as emoji"
        )

    wanted = f"; the run takes {n_steps:,} steps in {args.n_epochs:,} epochs"
    if args.dry_run:
        n_steps = min(n_steps, dry_run.STEPS)
        args.n_epochs = math.ceil(n_steps / len(sampler))
    first_epoch = 1
    progress = Progress()
    adapted: dict[str, float] = {}

    def state() -> dict[str, Any]:
        """All that the rest of the run depends on."""
        return {
            "embedder": embedder.state_dict(),
            "criterion": criterion.state_dict(),
            **trainer.state_dict(),
            "passes": passes.state_dict(),
            "progress": progress.state_dict(),
            "adapted": adapted,
            "rng": checkpoint.rng_state(device),
            "flags": vars(args),
        }

    if saved:
        embedder.load_state_dict(saved["embedder"])
        criterion.load_state_dict(saved["criterion"])
        trainer.load_state_dict(saved)
        passes.load_state_dict(saved["passes"])
        progress.load_state_dict(saved["progress"])
        adapted = saved["adapted"]
        checkpoint.set_rng_state(saved["rng"], device)
        recorder.best = saved["best"]
        kept, before = recorder.untrained()
        untrained = Scores(kept, {})
        first_epoch = recorded(saved) + 1
        LOG.info("goes on after step %d, in epoch %d", trainer.iteration, first_epoch)
    else:
        pairs = args.data_sampler in parameters.PAIR_SAMPLERS and criterion.n_views > 1
        if pairs and not args.no_report and processes.is_first():
            show_views(passes.loader, data.train, embedder, run.path / VIEWS)
        untrained = evaluate()
        if not args.n_epochs:
            untrained.add(judge(args, judged, embedder, middle, device))
        before = evaluate.embeds.get(chosen_on) if chosen_on else None
        recorder.record_untrained(untrained, before)
    measured = untrained
    scores = dict(untrained)
    saving = Every(args.checkpoint_every)

    for epoch in range(first_epoch, args.n_epochs + 1):
        if passes.epoch < epoch:
            progress = Progress()
            if sampler.due(epoch):
                seen = embed(data.train)
                sampler.refresh(seen.embeds, seen.rows)
        embedder.train()
        embedder.train_backbone(epoch > args.warmup)
        left = len(passes) - passes.done if passes.epoch == epoch else len(passes)
        rest = passes.of(epoch) if trainer.iteration < n_steps else ()
        for batch in progress.over(rest, left, f"epoch {epoch}/{args.n_epochs}"):
            if rewarding is not None and trainer.iteration % miner.adapt_every == 0:
                seen = embed(rewarding)
                adapted = miner.adapt(seen.embeds, seen.labels)
            batch = datasets.finish(batch.to(device), embedder.mean, embedder.std)
            try:  # a step on L_DML + w L_match
                outcome = trainer.step(batch, trainer.iteration >= args.language_delay)
            except FloatingPointError as error:
                raise FloatingPointError(not_finite(error, epoch, batch, recorder)) from error
            criterion.after_step(embedder)
            sampler.observe(outcome.rows, outcome.embeds)
            progress.count(len(outcome.rows), loss=outcome.loss, **outcome.terms)
            if trainer.iteration == n_steps:
                break
            stop = processes.any_says(interruption.asked is not None)
            if stop or saving.due(trainer.iteration):
                recorder.save(epoch - 1, state())
            if stop:
                stopped(interruption, recorder)

        recorder.save(epoch - 1, state())  # evaluation may fail, the epoch is kept
        scores = {f"train/{name}": value for name, value in progress.averages().items()}
        scores |= {f"miner/{name}": value for name, value in adapted.items()}
        warn_of_waiting(scores, args)
        if epoch % args.evaluate_every == 0 or epoch == args.n_epochs:
            measured = evaluate()
            if epoch == args.n_epochs:
                measured.add(judge(args, judged, embedder, middle, device))
            scores |= measured
        recorder.record(epoch, scores)
        recorder.save(epoch, state(), scores)
        if processes.any_says(interruption.asked is not None) and epoch < args.n_epochs:
            stopped(interruption, recorder)

    if processes.is_first():
        shown = show(args, run, evaluate, measured, sets, words, before)
        recorder.finish([run.path / VIEWS, *shown])
    if args.dry_run:
        LOG.info(rehearsed(start, device) + wanted)
        return scores
    LOG.info(ending(evaluation.table(untrained, measured), measured, run.path, start))
    return scores


# --------------------------------------------------------------------------------------------------
# A run that is stopped and gone on with
# --------------------------------------------------------------------------------------------------
def resumed(args: argparse.Namespace) -> tuple[Path | None, dict[str, Any] | None]:
    """The folder that ``--resume`` goes on in, and its last good checkpoint; None for what is not.

    Raises:
        ValueError: the run there has other flags.
    """
    if not args.resume:
        return None, None
    folder = RunFolder.newest(Path(args.save_path), args.dataset, parameters.run_name(args))
    saved = resume.last_good(folder) if folder else None
    if folder and saved:
        asked = dict(vars(args))
        if args.max_steps:  # says how many epochs once the batches are counted
            del asked["n_epochs"]
        resume.check_flags(saved["flags"], asked, folder)
    elif folder:
        LOG.info("--resume: %s has no checkpoint yet; the run begins again", folder)
    return folder, saved


def recorded(saved: Mapping[str, Any] | None) -> int:
    """The last epoch whose scores stay: that at the end of a run is evaluated again, for pictures.

    -1 where nothing was saved.
    """
    return min(saved["epoch"], saved["flags"]["n_epochs"] - 1) if saved else -1


def open_run(
    args: argparse.Namespace,
    folder: Path | None,
    saved: Mapping[str, Any] | None,
    device: torch.device,
) -> RunFolder:
    """The run's folder, in which the first of the processes writes."""
    if not processes.is_first():
        return RunFolder(processes.as_first_says(Path()))
    run = (
        RunFolder.reopen(folder, recorded(saved))
        if folder
        else RunFolder.create(Path(args.save_path), args.dataset, parameters.run_name(args))
    )
    log.set_up(run.log_file)
    run.write_config(vars(args), device)
    processes.as_first_says(run.path)
    return run


def start_trackers(args: argparse.Namespace, run: RunFolder) -> trackers.Trackers:
    """W&B and TensorBoard, where they are asked for, of the process that writes."""
    started: list[trackers.Tracker] = []
    if args.wandb_mode != "disabled" and processes.is_first() and not args.dry_run:
        started.append(
            trackers.start_wandb(
                args.wandb_mode,
                project=args.project,
                group=args.group,
                name=run.path.name,
                config=vars(args),
                folder=run.path,
            )
        )
    if args.tensorboard and processes.is_first():
        first = run.rows[-1]["epoch"] + 1 if run.rows else None
        started.append(trackers.TensorBoard(run.path / "tensorboard", first))
    return trackers.Trackers(started)


def stopped(interruption: Interruption, recorder: Recorder) -> NoReturn:
    """Leave after a signal, the run saved."""
    command = shlex.join(["python", *sys.argv, *(() if "--resume" in sys.argv else ["--resume"])])
    LOG.info("stopped by %s; saved in %s. Go on with: %s", interruption.asked or "a signal to "
             "another process", recorder.last, command)  # fmt: skip
    recorder.pause()
    sys.exit(0)


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
    trackers.refuse_missing(args.wandb_mode, args.tensorboard)
    args.kernels = min(args.kernels, os.cpu_count() or 1)
    here = devices.choose(args.device, args.gpu)
    if here.type == "cpu" and args.device == "auto" and (idle := devices.idle_driver()):
        LOG.warning("%s; computing on the CPU", idle)
    if args.precision is None:
        half = "bf16" if here.type == "cpu" else "fp16"
        args.precision = half if args.use_float16 else "fp32"
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS refuses
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    return chosen, here


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
    told = start_trackers(args, run)
    scores = evaluate()
    scores.add(judge(args, judged, embedder, middle, device))
    run.record(trained.epoch, scores)
    told.log(scores, trained.epoch)
    told.show(show(args, run, evaluate, scores, sets, words))
    told.finish()
    if args.dry_run:
        LOG.info(rehearsed(start, device))
        return dict(scores)
    LOG.info(ending(evaluation.listing(scores), scores, run.path, start))
    return dict(scores)


# --------------------------------------------------------------------------------------------------
# A dry run
# --------------------------------------------------------------------------------------------------
def rehearse(argv: Sequence[str] | None) -> dict[str, float]:
    """Do all that a run does, on a few images, in a folder that is gone afterwards."""
    words = sys.argv[1:] if argv is None else argv
    with tempfile.TemporaryDirectory(prefix="dry_run_") as folder:
        words = [*words, *dry_run.AT_ONCE, "--save_path", folder]
        args = parameters.parse(words)
        if args.evaluate_only:
            return evaluate_only(args, words)
        return train(args, Interruption())  # not entered: there is nothing to go on with


def few(args: argparse.Namespace, images: ImageSet) -> ImageSet:
    """Of a dry run two batches, in which queries find an image of their class; else all images."""
    if not args.dry_run:
        return images
    most, labels, queries = dry_run.BATCHES * args.bs, images.labels, images.queries
    if queries is None:
        [rows] = dry_run.few_rows([labels], most, each=2)
    else:
        parts = [np.flatnonzero(queries), np.flatnonzero(~queries)]
        chosen = dry_run.few_rows([labels[part] for part in parts], most // 2, each=1)
        rows = np.concatenate([part[few] for part, few in zip(parts, chosen, strict=True)])
    return images.subset(rows, images.name)


def few_judged(args: argparse.Namespace, dataset: Downstream) -> Downstream:
    """Of a dry run two batches of each set, or as many as few-shot needs; else all images."""
    if not args.dry_run:
        return dataset
    sets = {"train": dataset.train, "val": dataset.val, "test": dataset.test}
    there = {name: images for name, images in sets.items() if images is not None}
    rows = dry_run.few_rows(
        [np.array([images.label(row) for row in range(len(images))]) for images in there.values()],
        max(dry_run.BATCHES * args.bs, dry_run.FEWEST_JUDGED),
        each=dry_run.OF_A_CLASS,
    )
    taken: dict[str, Any] = {
        n: dry_run.Some(images, r) for (n, images), r in zip(there.items(), rows, strict=True)
    }
    return replace(dataset, **taken)


def rehearsed(start: float, device: torch.device) -> str:
    """The last line of a dry run that met no error."""
    memory = f"{peak_memory_mb() / 1024:.2f} GiB"
    if (peak := devices.peak_memory_gib(device)) is not None:
        memory += f" and {peak:.2f} GiB of the GPU"
    return f"dry run: ok, {time.perf_counter() - start:.1f} s, peak memory {memory}"


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


def kept_decoded(args: argparse.Namespace, data: Data, prepare: Preprocessing) -> Data:
    """The same images, decoded once and read from a store from then on."""

    def keep(images: Any) -> Any:  # of any kind, to the same
        return images and datasets.cached(images, prepare.shorter_side, args.kernels)

    with processes.first_then_others():
        return Data(*map(keep, data))


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
        sets: dict[str, ImageSet | None] = {
            name: downstream.labelled(name, source_path) for name in ours
        }
    else:
        assert isinstance(data.train, ImageSet)  # what has test classes has training classes
        sets = {
            "val": data.val,
            "test": None if args.no_test_metrics else data.test,
            "train": None if args.no_train_metrics else data.train,
        }
    return {name: few(args, images) for name, images in sets.items() if images is not None}


def judged_datasets(args: argparse.Namespace) -> list[Downstream]:
    """What the classifiers of ``--evaluations`` are fitted to and tested on; read before training.

    Raises:
        FileNotFoundError, ValueError: a dataset that is not there or not as expected.
    """
    if not set(args.evaluations) - {"retrieval"}:
        return []
    names = args.evaluation_datasets or [args.dataset]
    return [
        few_judged(args, downstream.build(name, datasets.source_folder(args))) for name in names
    ]


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
            evaluation.evaluate_downstream(
                [name for name in args.evaluations if name != "retrieval"],
                embedder,
                dataset,
                transform,
                bs=args.bs,
                workers=args.kernels,
                device=device,
                search_device="cpu" if args.evaluate_on_cpu else device,
                precision=args.precision,
                seed=args.seed,
                cache=None if args.dry_run else cache_folder() / "features",
            )
        )
    return scores


def evaluation_words(
    args: argparse.Namespace, sets: Mapping[str, ImageSet], device: torch.device
) -> dict[str, Tensor]:
    """(C, D) words of each set's classes, where a metric reads them or a guided run's report does.

    Encoder and prompt of metrics are those of the evaluation and not of the guidance, so that runs
    with other guidance are measured alike. A report alone shows what the guidance's encoder says.
    """
    if any(metrics.parse(name).needs == "class_words" for name in args.evaluation_metrics):
        model = args.evaluation_language_model
    elif args.language_distill_w and not args.no_report and not args.evaluate_only:
        model = args.language_model
    else:
        return {}
    encoder = language.build_encoder(model, device)
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
    """Write each set's scores by class, and the pictures and report of the first.

    Returns:
        the tables and the pictures.

    Args:
        before: embeddings of the first set before training, and their rows.
    """
    tables = [run.path / f"classes_{name}.csv" for name in sets]
    for (name, images), table in zip(sets.items(), tables, strict=True):
        evaluation.write_by_class(table, scores, f"{name}/", images)
    if args.no_report or not sets:
        return tables
    name, images = next(iter(sets.items()))
    embeds, rows = evaluate.embeds[name]
    comparable = before is not None and torch.equal(before[1], rows)  # all images were readable
    exhibit = evaluation.build_report_data(
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
    return tables + [path for path in written.values() if path.suffix == ".png"]


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
    n_steps: int,
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
            f"{args.n_epochs:,} epochs of {n_steps:,} steps in all, lr {args.lr:g}, on {device}",
            "  from recipe: "
            + " ".join(f"--{flag} {plain(value)}" for flag, value in chosen.items() if value)
            + f" ({datasets.recipe(args.dataset, isinstance(data.train, CaptionSet)).why})",
            f"    run folder: {'none, a dry run' if args.dry_run else folder}",
        ]
    )


def plain(value: Any) -> str:
    """A flag's value as it would be typed."""
    return " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def not_finite(error: FloatingPointError, epoch: int, batch: Batch, recorder: Recorder) -> str:
    """The error of gradients that stay infinite, with what is left and what helps."""
    kept = recorder.last if recorder.last.is_file() else "none yet"
    return (
        f"{error}, in epoch {epoch}. Rows of its batch: {batch.rows.tolist()}. Last checkpoint: "
        f"{kept}. Lower --lr or --language_distill_w, or train with --precision fp32"
    )


def warn_of_waiting(scores: Mapping[str, float], args: argparse.Namespace) -> None:
    """Say so where the processor waits for images, and what would help."""
    share = scores["train/waiting_for_data"]
    if share <= MOST_WAITING:
        return
    cores = os.cpu_count() or 1
    remedies = [] if args.cache_images else ["keep decoded images with --cache_images"]
    if args.kernels < cores:
        remedies.append(f"load in more processes with --kernels {cores} (now {args.kernels})")
    LOG.warning(
        "%.0f %% of the epoch were spent waiting for images: %s",
        100 * share,
        " or ".join(remedies) or "put them on a faster disk, or train on more cores",
    )


def ending(table: str, scores: Scores, folder: Path, start: float) -> str:
    """The end of a run: its scores, how they were measured, where they lie."""
    minutes = (time.perf_counter() - start) / 60
    return "\n".join(
        [
            table,
            *(f"measured on {protocol}" for protocol in dict.fromkeys(scores.protocols.values())),
            f"{minutes:.1f} minutes, peak memory {peak_memory_mb() / 1024:.2f} GiB beside the "
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
