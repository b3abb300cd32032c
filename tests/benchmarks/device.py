"""Check a GPU that this code has not run on: print a table to paste into an issue.

    python -m tests.benchmarks.device                          # five minutes on a GPU
    python -m tests.benchmarks.device --only step memory --bs 64
    python -m tests.benchmarks.device --device cpu             # the same, smaller

Each row is printed once it is measured. A row that fails gives the reason, the others still run,
and the exit status is 1. An error, a wrong number or a step that waits for the device fails; speed
and memory are printed beside their targets. Flags of main.py, such as --bs, --arch and
--image_size, set the training steps.
"""

import argparse
import contextlib
import gc
import io
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from typing import Any, NamedTuple

import torch

from tests.benchmarks import device_checks as checks
from tests.benchmarks.agreement import LEAST
from tests.benchmarks.device_checks import Scale, Setting
from tests.benchmarks.evaluation import Size
from tests.benchmarks.step import parse
from utilities import device as devices
from utilities.device import DTYPES

SCALES = {
    "small": Scale(
        ("--arch", "test_resnet_frozen_normalize", "--image_size", "32", "--bs", "8",
         "--embed_dim", "64"),
        rounds=3, repeats=1, images=8, gallery=Size(2000, 64, 100),
    ),
    "full": Scale(
        ("--embed_dim", "512"), rounds=5, repeats=10, images=32, gallery=Size(60502, 512, 11316)
    ),
}  # fmt: skip


class Row(NamedTuple):
    """A line of the table."""

    name: str
    target: str
    measure: Callable[[Setting], str]


def row(name: str, target: str, measure: Callable[..., str], *given: Any) -> Row:
    """Return a row whose measurement takes further arguments."""
    return Row(name, target, lambda setting: measure(setting, *given))


SHARE = ">= 95 % for ResNet50 at 224 px, bs 112"
COPY = "with a second copy of the weights"
BF16 = ("--precision", "bf16")
WORDS = ("--loss", "multisimilarity")
CHECKS = {
    "machine": (
        row("device", "", checks.device_name),
        row("driver", "of the CUDA that torch is built for, or later", checks.driver),
        row("versions", "", checks.versions),
    ),
    "step": tuple(
        row(f"step, {name}", SHARE, checks.speed, "--precision", name) for name in DTYPES
    ),
    "compile": (row("step, bf16, --compile", SHARE, checks.speed, *BF16, "--compile"),),
    "waits": (
        row("waits, multisimilarity and words", "0", checks.waits, 0, *WORDS),
        row("waits, margin, distance miner", "1, to count the triplets", checks.waits, 1),
        row("waits, simclr and its colours", "0", checks.waits, 0, "--loss", "simclr"),
    ),
    "numbers": (
        row("loss and gradient of objectives", "as on the CPU", checks.agrees, "objectives"),
        row("the same of margin with each miner", "as on the CPU", checks.agrees, "miners"),
        row(
            "embeddings, least cosine to those of the CPU",
            ", ".join(f"{name} {least:g}" for name, least in LEAST.items()),
            checks.embeddings,
        ),
    ),
    "evaluation": (
        row("ranks by torch", "", checks.by_torch),
        row("ranks by FAISS", "the same recall@1", checks.by_faiss),
        row("k-means by FAISS", "", checks.clusters),
    ),
    "processes": (row("step of processes", "that of one: 1e-3, 2e-2", checks.several),),
    "memory": (
        row("memory, step, fp32", COPY, checks.memory, checks.some_steps),
        row("memory, step, bf16", COPY, checks.memory, checks.some_steps, *BF16),
        row("memory, evaluation", "", checks.memory, checks.by_torch),
    ),
}


def fill(setting: Setting, line: Row) -> tuple[str, bool]:
    """Measure a row; return its text and whether it passed."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # progress bars
            return line.measure(setting), True
    except Exception as error:
        return f"FAILED: {checks.one_line(error)}", False
    finally:
        release(setting.device)


def release(device: torch.device) -> None:
    """Free torch's memory on the device, which FAISS and other processes cannot use."""
    if device.type != "cpu":
        gc.collect()
        getattr(torch.get_device_module(device), "empty_cache", lambda: None)()


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.device",
        description=(__doc__ or "").partition("\n")[0],
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--size", choices=[*SCALES], help="default: full on an accelerator, small on a CPU")
    add("--only", nargs="+", choices=[*CHECKS], default=[], metavar="CHECK", help=" ".join(CHECKS))
    own, words = parser.parse_known_args(argv)
    flags = parse(words)
    try:
        device = devices.choose(flags.device, flags.gpu)
    except ValueError as error:
        parser.error(str(error))
    size = own.size or ("small" if device.type == "cpu" else "full")
    setting = Setting(device, SCALES[size], tuple(words), tuple(own.only))

    start, failed = time.perf_counter(), []
    print(" ".join([f"{date.today()}, --size {size}", *words]))
    print("\n| check | result | target |\n|---|---|---|", flush=True)
    for line in (line for name in own.only or CHECKS for line in CHECKS[name]):
        result, fine = fill(setting, line)
        print(f"| {line.name} | {result.replace('|', '/')} | {line.target} |", flush=True)
        failed += [] if fine else [line.name]
    print(f"\n{time.perf_counter() - start:.0f} s; failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
