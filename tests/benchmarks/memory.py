"""Measure the peak memory of a training step of a large batch, and of what makes it smaller.

    python -m tests.benchmarks.memory --bs 512 --forward_bs 64 --image_size 64

Each line is a process of its own that takes two steps as main.py does (tests.benchmarks.step):

    the large batch        of --bs images
    a small batch          of --forward_bs images, which is another objective
    the large batch with   --forward_bs; --grad_checkpointing; both

Columns are the memory before the first step (program, weights, images) and its peak, of the process
on a CPU and of tensors on a GPU, and the loss of the first step, which is that of the batch. Takes
the flags of tests.benchmarks.step.
"""

import argparse
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

import torch

from tests.benchmarks.machine import processor
from tests.benchmarks.step import build_objective, noise, parse
from utilities import device as devices
from utilities import optimization
from utilities.memory import keep_freed_memory, peak_memory_mb
from utilities.trainer import Trainer


def measure(words: Sequence[str]) -> tuple[float, float, float]:
    """Return the GiB before the first step and at the peak, and the loss of the first step."""
    keep_freed_memory()
    args = parse(words)
    device = devices.choose(args.device, args.gpu)
    torch.manual_seed(0)
    objective = build_objective(args, device)
    embedder = objective.embedder
    images = [view.to(device).float() / 64 - 2 for view in noise(args, device).views]
    batch = noise(args, device)._replace(views=tuple(images)).to(device)
    groups = embedder.param_groups(args.lr) + objective.criterion.param_groups(args.lr)
    optimizer = optimization.build_optimizer("adam", groups, lr=args.lr, decay=args.decay)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    trainer = Trainer(objective, optimizer, scheduler, device=device, precision=args.precision)
    before = in_use(device)
    first, _ = (trainer.step(batch).loss.item() for _ in range(2))
    return before, in_use(device), first


def in_use(device: torch.device) -> float:
    """Return the peak so far, in GiB."""
    on_gpu = devices.peak_memory_gib(device)
    return peak_memory_mb() / 1024 if on_gpu is None else on_gpu


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--bs", type=int, default=512, help="images of the large batch")
    parser.add_argument("--forward_bs", type=int, default=64, help="images at a time")
    own, rest = parser.parse_known_args(argv)
    large, chunks = ("--bs", str(own.bs)), ("--forward_bs", str(own.forward_bs))
    settings: list[tuple[str, ...]] = [
        large,
        ("--bs", str(own.forward_bs)),
        (*large, *chunks),
        (*large, "--grad_checkpointing"),
        (*large, *chunks, "--grad_checkpointing"),
    ]
    args = parse(rest)
    device = devices.choose(args.device, args.gpu)
    where = processor() if device.type == "cpu" else devices.describe(device)
    print(
        f"{args.arch}, images of {args.image_size} px, --loss {args.loss} with guidance, "
        f"{args.precision}, {where}, GiB"
    )
    print(f"{'':48} {'before':>7} {'peak':>7} {'loss':>9}")
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tests.benchmarks.step"])  # imports of seconds, once
    for setting in settings:
        with ProcessPoolExecutor(1, mp_context=processes) as process:
            before, peak, loss = process.submit(measure, [*rest, *setting]).result()
        print(f"{' '.join(setting):48} {before:7.2f} {peak:7.2f} {loss:9.5f}")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
