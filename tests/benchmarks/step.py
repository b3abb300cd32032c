"""Time a whole training step against the bare one of the same backbone, batch and optimizer.

    python -m tests.benchmarks.step --bs 32 --rounds 15
    python -m tests.benchmarks.step --bs 112 --precision bf16 --rounds 10     on a GPU

    bare     forward, the product with a fixed matrix as loss, backward, optimizer step
    step     as in main.py: uint8 views normalised on the device, objective with guidance by class
             names, check of the gradients, optimizer and schedule, updates of sampler and progress

Both take turns in each round, each on its own copy of the weights; the table has medians and their
ratio. A turn is one step on a CPU, and several on a GPU with nothing that waits for it in between,
which hides the time of the host as training does. Images and words are noise, which takes as long
as real ones; loading has its own benchmark (tests.benchmarks.inputs). Takes --device, --arch,
--embed_dim, --image_size, --optim and the flags of an objective, as main.py does.
"""

import argparse
import copy
import itertools
import time
from collections.abc import Callable, Sequence
from statistics import median

import torch
import torch.nn.functional as F

import architectures
import batchminer
import criteria
import datasampler
import datasets
import parameters
from datasets import colour
from language import LanguageGuide
from language.words import Words
from tests.benchmarks.machine import processor
from utilities import device as devices
from utilities import optimization
from utilities.device import autocast
from utilities.progress import Progress
from utilities.structures import Batch
from utilities.trainer import Trainer

N_CLASSES = 100
WARM_UP = 2  # turns that are not timed


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Return main.py's flags at the published setting, without pretrained weights."""
    args = parameters.parse(["--dataset", "cub200", "--not_pretrained", *words])
    datasets.fill_by_recipe(args)
    args.precision = args.precision or "fp32"
    return args


def noise(args: argparse.Namespace, device: torch.device) -> Batch:
    """Return a batch as a loader hands it over, in pinned memory where there is a GPU."""
    generator = torch.Generator().manual_seed(0)
    n_views, shape = (
        criteria.CRITERIA[args.loss].load().n_views,
        (args.bs, *[args.image_size] * 2, 3),
    )
    views = [
        torch.randint(256, shape, dtype=torch.uint8, generator=generator) for _ in range(n_views)
    ]
    labels = torch.arange(args.bs) // args.samples_per_class % N_CLASSES
    torch.manual_seed(0)  # of the colours
    drawn = [
        torch.stack([colour.draw(view.strengths) for _ in range(args.bs)])
        if view.strengths
        else None
        for view in datasets.train_views(args.image_size, args.augmentation, n_views)
    ]
    tensors = [*views, labels, torch.arange(args.bs)]
    if device.type != "cpu":
        tensors = [tensor.pin_memory() for tensor in tensors]
    *views, labels, rows = tensors
    in_channels_last = tuple(view.permute(0, 3, 1, 2) for view in views)
    return Batch(in_channels_last, labels, rows, colours=tuple(drawn))


def build_objective(args: argparse.Namespace, device: torch.device) -> criteria.Objective:
    """Return the objective of ``args`` with the guidance by class names, on the device."""
    embedder = architectures.build(args).to(device)
    embedder.train()
    criterion = criteria.build(
        args,
        n_classes=N_CLASSES,
        embed_dim=args.embed_dim,
        feature_dim=embedder.feature_dim,
        miner=batchminer.build(args),
        embedder=embedder,
        n_steps=1000,
        forward_bs=args.forward_bs,
    ).to(device)
    terms = guidance(N_CLASSES), criteria.build_distillation(args), 7.5
    return criteria.Objective(embedder, criterion, *terms, forward_bs=args.forward_bs)


def guidance(n_classes: int) -> LanguageGuide:
    """Return a guide by one random word for each class."""
    generator = torch.Generator().manual_seed(0)
    embeds = F.normalize(torch.randn(n_classes, 512, generator=generator), dim=1)
    names = tuple(map(str, range(n_classes)))
    return LanguageGuide(embeds, Words(names, torch.arange(n_classes)[:, None], "class"))


def steps(args: argparse.Namespace, device: torch.device) -> dict[str, Callable[[], None]]:
    """Return the bare and the whole step, by name."""
    batch = noise(args, device)
    objective = build_objective(args, device)
    embedder, criterion = objective.embedder, objective.criterion
    assert isinstance(embedder, architectures.Embedder)
    bare_embedder = copy.deepcopy(embedder)

    def optimizer_of(model: architectures.Embedder) -> torch.optim.Optimizer:
        groups = model.param_groups(args.lr, args.fc_lr, args.decay)
        return optimization.build_optimizer(args.optim, groups, lr=args.lr, decay=args.decay)

    optimizer = optimizer_of(embedder)
    for group in criterion.param_groups(args.lr):
        optimizer.add_param_group(group)
    trainer = Trainer(
        objective,
        optimizer,
        optimization.build_scheduler(
            "cosine",
            optimizer,
            n_steps=100_000,
            steps_per_epoch=100,
            tau=args.tau,
            gamma=args.gamma,
            lr=args.lr,
        ),
        device=device,
        precision=args.precision,
    )
    rows_by_class = [rows.numpy() for rows in torch.arange(N_CLASSES * 10).split(10)]
    sampler = datasampler.ClassRandom(rows_by_class, args.bs, args.samples_per_class)
    progress = Progress()
    batches = progress.over(itertools.repeat(batch), 1_000_000, "step")
    bare_optimizer = optimizer_of(bare_embedder)
    generator = torch.Generator().manual_seed(1)
    target = torch.randn(args.bs, args.embed_dim, generator=generator).to(device)
    scaler = torch.amp.GradScaler(device.type, enabled=args.precision == "fp16")
    ready = datasets.finish(batch.to(device), embedder.mean, embedder.std).views
    if args.compile:
        embedder.compile()
        bare_embedder.compile()

    def bare() -> None:
        with autocast(device, args.precision):
            products = [(bare_embedder(view).embeds.float() * target).sum() for view in ready]
            loss = torch.stack(products).sum()
        bare_optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(bare_optimizer)
        scaler.update()

    def step() -> None:
        here = datasets.finish(next(batches).to(device), embedder.mean, embedder.std)
        outcome = trainer.step(here, True)
        criterion.after_step(embedder)
        sampler.observe(outcome.rows, outcome.embeds)
        progress.count(len(outcome.rows), loss=outcome.loss, **outcome.terms)

    return {"bare": bare, "step": step}


def measure(
    args: argparse.Namespace, device: torch.device, rounds: int = 15, repeats: int = 1
) -> dict[str, float]:
    """Return the seconds of a bare step and of the whole one, medians over rounds.

    Args:
        args: of ``parse``.
        rounds: each has one turn of both.
        repeats: steps of a turn.
    """
    # Embeddings of noise are nearly equal, so that some gradients are denormal, on which a CPU is
    # slow. Those of images are not: a run on emoji has the same speed and numbers either way.
    torch.set_flush_denormal(True)
    try:
        timed = steps(args, device)
        seconds: dict[str, list[float]] = {name: [] for name in timed}
        for _ in range(rounds + WARM_UP):
            for name, run in timed.items():
                devices.synchronize(device)
                start = time.perf_counter()
                for _ in range(repeats):
                    run()
                devices.synchronize(device)
                seconds[name].append((time.perf_counter() - start) / repeats)
    finally:
        torch.set_flush_denormal(False)
    return {name: median(values[WARM_UP:]) for name, values in seconds.items()}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="turns of each; medians are printed")
    parser.add_argument("--repeats", type=int, help="steps of a turn; 1 on a CPU, else 10")
    own, rest = parser.parse_known_args(argv)
    args = parse(rest)
    device = devices.choose(args.device, args.gpu)
    on_cpu = device.type == "cpu"
    medians = measure(args, device, own.rounds, own.repeats or (1 if on_cpu else 10))
    print(
        f"{args.arch}, {args.bs} images of {args.image_size} px, --loss {args.loss} with guidance, "
        f"{args.precision}{', compiled' if args.compile else ''}, "
        f"{processor() if on_cpu else devices.describe(device)}, "
        f"{torch.get_num_threads()} threads, medians of {own.rounds} rounds"
    )
    for name, value in medians.items():
        print(f"{name:>6} {1000 * value:9.1f} ms  {args.bs / value:8.1f} images/s")
    print(f" ratio {medians['step'] / medians['bare']:9.3f}")


if __name__ == "__main__":
    main()
