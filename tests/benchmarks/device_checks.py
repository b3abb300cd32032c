"""Measurements of ``tests.benchmarks.device``, a function for each kind of row.

Each takes a ``Setting`` and returns the text of its row, or raises ``MissedError``.
"""

import argparse
import functools
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple, TypeVar

import faiss
import torch
import torch.distributed as dist
from torch import Tensor

import metrics
from metrics.clustering import kmeans, nmi
from tests import launch
from tests.benchmarks import agreement
from tests.benchmarks.evaluation import Size, draw
from tests.benchmarks.machine import processor
from tests.benchmarks.step import measure, parse, steps
from utilities import device as devices
from utilities.knn import nearest_neighbours
from utilities.run_folder import git_state

T = TypeVar("T")

COUNTED = 5  # steps whose waits are counted
PATIENCE = 240  # seconds for processes to train together


class Scale(NamedTuple):
    """Sizes of the checks."""

    flags: tuple[str, ...]  # of main.py
    rounds: int  # in which the bare step and the whole one take turns
    repeats: int  # steps of a turn
    images: int  # whose embeddings are compared
    gallery: Size


class Setting(NamedTuple):
    """Device, sizes and flags of a run of the checks."""

    device: torch.device
    scale: Scale
    words: tuple[str, ...] = ()  # flags of main.py, which override those of the scale
    only: tuple[str, ...] = ()  # checks that were named

    def args(self, *words: str) -> argparse.Namespace:
        """Return main.py's flags."""
        return parse([*self.scale.flags, *self.words, *words])

    @property
    def kind(self) -> str:
        """The type of the device in words."""
        return "a CPU" if self.device.type == "cpu" else self.device.type


class MissedError(Exception):
    """A measurement misses its target."""


def one_line(error: Exception) -> str:
    """Return an error as one line that fits a table."""
    text = " ".join(str(error).split())
    text = text if len(text) <= 240 else f"{text[:240]} ..."
    return text if isinstance(error, MissedError) else f"{type(error).__name__}: {text}"


# --------------------------------------------------------------------------------------------------
# The machine
# --------------------------------------------------------------------------------------------------
def device_name(setting: Setting) -> str:
    count = torch.accelerator.device_count()
    where = processor() if setting.device.type == "cpu" else devices.describe(setting.device)
    return f"{where}; {count} accelerator(s) of torch, {torch.get_num_threads()} threads"


def driver(_: Setting) -> str:
    if shutil.which("nvidia-smi") is None:
        return "no nvidia-smi"
    query = ["nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader"]
    answers = [
        subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
        for command in (query, query[:1])
    ]
    cuda = re.search(r"CUDA (?:UMD )?Version:\s*([\d.]+)", answers[1])
    return f"{', '.join(answers[0].splitlines())}; for CUDA {cuda[1] if cuda else '?'}"


def versions(_: Setting) -> str:
    on = "GPU" if hasattr(faiss, "StandardGpuResources") else "CPU"
    cuda, cudnn = torch.version.cuda or "none", torch.backends.cudnn.version()
    python = sys.version.partition(" ")[0]
    state = git_state() or {"commit": "unknown", "dirty": False}
    code = f"{state['commit'][:9]}{' and changes' if state['dirty'] else ''}"
    return (
        f"this code {code}, Python {python}, torch {torch.__version__}, CUDA {cuda}, "
        f"cuDNN {cudnn}, timm {version('timm')}, FAISS {faiss.__version__} for {on}"
    )


# --------------------------------------------------------------------------------------------------
# Training steps
# --------------------------------------------------------------------------------------------------
def speed(setting: Setting, *words: str) -> str:
    args = setting.args(*words)
    if args.compile and setting.device.type == "cpu" and "compile" not in setting.only:
        return "not measured: takes a minute on a CPU, run with --only compile"
    seconds = measure(args, setting.device, setting.scale.rounds, setting.scale.repeats)
    bare, step = (args.bs / seconds[name] for name in ("bare", "step"))
    return f"{step:.0f} images/s, {step / bare:.1%} of the bare step's {bare:.0f}"


def waits(setting: Setting, most: int, *words: str) -> str:
    """Count how often the host waits for the device, by the warnings of CUDA."""
    if setting.device.type != "cuda":
        return f"not counted on {setting.kind}"
    step = steps(setting.args(*words), setting.device)["step"]
    for _ in range(3):
        step()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            for _ in range(COUNTED):
                step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found = [wait for wait in caught if "called a synchronizing" in str(wait.message)]
    lines = {f"{Path(wait.filename).name}:{wait.lineno}" for wait in found}
    text = f"{len(found) / COUNTED:g} a step {', '.join(sorted(lines))}".strip()
    if len(found) > most * COUNTED:
        raise MissedError(text)
    return text


def several(setting: Setting) -> str:
    """Train in as many processes as there are GPUs, up to two."""
    kind = setting.device.type
    backend = dist.Backend.default_device_backend_map.get(kind)
    if backend is None:
        return f"not run: torch has no backend for {kind}"
    n_ranks = 1 if kind == "cpu" else min(2, torch.accelerator.device_count())
    words = [*setting.scale.flags, *setting.words, "--device", kind, "--loss", "multisimilarity"]
    words += ["--bs", str(min(32, setting.args().bs))]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        try:
            launch.run(
                *("-m", "tests.benchmarks.processes", str(out), str(n_ranks), *words),
                timeout=PATIENCE,
            )
        except AssertionError as error:  # with all that they wrote
            raise RuntimeError(str(error).strip().splitlines()[-1]) from None
        found = json.loads(out.read_text())
    text = f"{n_ranks} by {backend}: loss off by {found['loss']:.1e}, "
    text += f"gradient by {found['gradient']:.1e}"
    if not (found["loss"] < 1e-3 and found["gradient"] < 2e-2):
        raise MissedError(text)
    return text


# --------------------------------------------------------------------------------------------------
# Numbers, evaluation, memory
# --------------------------------------------------------------------------------------------------
def agrees(setting: Setting, part: str) -> str:
    """Compare losses and gradients with the CPU's: of the "objectives", or of the "miners"."""
    args = setting.args()
    allowed = agreement.tolerance(args)
    off, broken = {}, {}
    for name, case in agreement.cases(args)[part].items():
        try:
            off[name] = agreement.off(case, setting.device)
        except Exception as error:  # the others are still worth a look
            broken[name] = one_line(error)
    wrong = {name: f"off by {by:.1e}" for name, by in off.items() if not by <= allowed} | broken
    if wrong:
        raise MissedError("; ".join(f"{name}: {reason}" for name, reason in wrong.items()))
    worst = max(off, key=off.__getitem__)
    return f"{len(off)} agree, the worst is off by {off[worst]:.1e} ({worst})"


def embeddings(setting: Setting) -> str:
    found = agreement.cosines(setting.args(), setting.device, setting.scale.images)
    text = ", ".join(f"{precision} {least:.5f}" for precision, least in found.items())
    if not all(found[precision] >= least for precision, least in agreement.LEAST.items()):
        raise MissedError(text)
    return text


@functools.lru_cache(1)
def gallery(setting: Setting) -> tuple[Tensor, Tensor]:
    embeds, labels = draw(setting.scale.gallery)
    return embeds.to(setting.device), labels


@functools.lru_cache(1)
def ranks(setting: Setting) -> tuple[dict[str, float], float]:
    """Score by our own search on the device; return scores and seconds."""
    embeds, labels = gallery(setting)
    names = ["recall@1", "mAP@R"]
    metrics.compute(names, metrics.Gallery(embeds[:500], labels[:500]))  # warms up
    return timed(setting, lambda: metrics.compute(names, metrics.Gallery(embeds, labels)))


def by_torch(setting: Setting) -> str:
    scores, seconds = ranks(setting)
    text = ", ".join(f"{name} {value:.2%}" for name, value in scores.items())
    return f"{seconds:.2f} s: {text}"


def by_faiss(setting: Setting) -> str:
    embeds, labels = gallery(setting)
    n, device = len(labels), setting.device
    rows = torch.arange(n)
    found, seconds = timed(
        setting, lambda: nearest_neighbours(embeds, embeds, 1, own_rows=rows, device=device)
    )
    recall = float((labels[found.rows[:, 0]] == labels).double().mean())
    text = f"{seconds:.2f} s: recall@1 {recall:.2%}"
    if abs(recall - ranks(setting)[0]["recall@1"]) > 1e-4 + 2 / n:  # some distances nearly tie
        raise MissedError(f"{text}, another than ours")
    return text


def clusters(setting: Setting) -> str:
    embeds, labels = gallery(setting)
    n_classes = int(labels.max()) + 1
    found, seconds = timed(setting, lambda: kmeans(embeds, n_classes, seed=0))
    return f"{seconds:.2f} s: NMI {nmi(labels, found.cpu()):.2%}"


def timed(setting: Setting, work: Callable[[], T]) -> tuple[T, float]:
    devices.synchronize(setting.device)
    start = time.perf_counter()
    result = work()
    devices.synchronize(setting.device)
    return result, time.perf_counter() - start


def memory(setting: Setting, work: Callable[..., object], *words: str) -> str:
    for kept in (gallery, ranks):
        kept.cache_clear()
    reset = getattr(
        torch.get_device_module(setting.device), "reset_peak_memory_stats", lambda _: None
    )
    reset(setting.device)
    work(setting, *words)
    peak = devices.peak_memory_gib(setting.device)
    return f"not counted on {setting.kind}" if peak is None else f"{peak:.2f} GiB"


def some_steps(setting: Setting, *words: str) -> None:
    step = steps(setting.args(*words), setting.device)["step"]
    for _ in range(3):
        step()
