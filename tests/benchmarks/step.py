"""A whole training step beside the bare one of the same backbone, batch and optimizer.

    python -m tests.benchmarks.step --bs 32 --rounds 15
    python -m tests.benchmarks.step --bs 112 --precision bf16 --rounds 50     on a GPU

    bare     forward, the product with a fixed matrix as loss, backward, optimizer step
    step     main.py's: uint8 views normalised on the device, objective with the guidance by class
             names, gradients looked at, optimizer and schedule, what samplers and progress are told

Both in turn in each round, on a copy of the weights each; the table has medians and their ratio.
Images and words are noise, which costs what real ones do: loading has a benchmark of its own
(tests.benchmarks.inputs). With --arch, --embed_dim, --image_size, --optim and the flags of an
objective, as main.py takes them.
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
from language import LanguageGuide
from language.words import Words
from tests.benchmarks.machine import processor
from utilities import optimization
from utilities.precision import autocast
from utilities.progress import Progress
from utilities.structures import Batch
from utilities.trainer import Trainer

N_CLASSES = 100


def steps(args: argparse.Namespace, device: torch.device) -> dict[str, Callable[[], None]]:
    """What is timed, by name."""
    generator = torch.Generator().manual_seed(0)
    views = torch.randint(
        256, (args.bs, 3, args.image_size, args.image_size), dtype=torch.uint8, generator=generator
    )
    labels = torch.arange(args.bs) // args.samples_per_class
    batch = Batch((views,), labels, torch.arange(args.bs), colours=(None,))
    words = F.normalize(torch.randn(N_CLASSES, 512, generator=generator), dim=1)
    guide = LanguageGuide(
        words,
        Words(tuple(map(str, range(N_CLASSES))), torch.arange(N_CLASSES)[:, None], "class"),
    )

    embedder = architectures.build(args).to(device)
    embedder.train()
    bare_embedder = copy.deepcopy(embedder)

    def optimizer_of(model: architectures.Embedder) -> torch.optim.Optimizer:
        groups = model.param_groups(args.lr, args.fc_lr, args.decay)
        return optimization.build_optimizer(args.optim, groups, lr=args.lr, decay=args.decay)

    criterion = criteria.build(
        args,
        n_classes=N_CLASSES,
        embed_dim=args.embed_dim,
        feature_dim=embedder.feature_dim,
        miner=batchminer.build(args),
        embedder=embedder,
        n_steps=1000,
    ).to(device)
    distill = criteria.build_distillation(args)
    optimizer = optimizer_of(embedder)
    for group in criterion.param_groups(args.lr):
        optimizer.add_param_group(group)
    trainer = Trainer(
        criteria.Objective(embedder, criterion, guide, distill, 7.5),
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
    target = torch.randn(args.bs, args.embed_dim, generator=generator).to(device)
    scaler = torch.amp.GradScaler(device.type, enabled=args.precision == "fp16")
    ready = datasets.finish(batch.to(device), embedder.mean, embedder.std).views[0]
    if args.compile:
        embedder.compile()
        bare_embedder.compile()

    def bare() -> None:
        with autocast(device, args.precision):
            loss = (bare_embedder(ready).embeds.float() * target).sum()
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


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    own, rest = parser.parse_known_args(argv)
    args = parameters.parse(["--dataset", "cub200", "--not_pretrained", *rest])
    datasets.fill_by_recipe(args)
    args.precision = args.precision or "fp32"
    # Embeddings of noise are so alike that some gradients are denormal, on which a CPU is slow.
    # Those of images are not: a run on emoji is neither faster nor other without them.
    torch.set_flush_denormal(True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    timed = steps(args, device)
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for round_ in range(own.rounds + 2):  # the first two warm up
        for name, run in timed.items():
            start = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if round_ > 1:
                seconds[name].append(time.perf_counter() - start)
    medians = {name: median(values) for name, values in seconds.items()}
    where = torch.cuda.get_device_name() if device.type == "cuda" else processor()
    print(
        f"{args.arch}, {args.bs} images of {args.image_size} px, --loss {args.loss} with guidance, "
        f"{args.precision}{', compiled' if args.compile else ''}, {where}, "
        f"{torch.get_num_threads()} threads, medians of {own.rounds} rounds"
    )
    for name, value in medians.items():
        print(f"{name:>6} {1000 * value:9.1f} ms  {args.bs / value:8.1f} images/s")
    print(f" ratio {medians['step'] / medians['bare']:9.3f}")


if __name__ == "__main__":
    main()
