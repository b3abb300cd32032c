"""Time and memory of an evaluation, compared with FAISS lists and pytorch-metric-learning.

    python -m tests.benchmarks.evaluation                     # all sizes; an hour on two cores
    python -m tests.benchmarks.evaluation --sizes 5924x128x100 --rounds 5 --threads 2

The floor is the bare matrix product of all images with all others, block by block. Each contestant
runs in a separate process, whose peak memory includes imports, embeddings and libraries; the clock
runs from the embeddings to the scores. Contestants take turns (floor, ours, theirs, floor, ...),
and a time is the median over rounds. Sizes are N x D x C; C are the test classes of CUB200-2011 and
of Stanford Online Products, and class sizes vary as they do there.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from statistics import median
from typing import Any, NamedTuple

import faiss
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

import metrics
from datasets.recipes import Recipe
from metrics.clustering import kmeans
from metrics.search import BLOCK_BYTES
from tests.benchmarks.machine import processor

SIZES = [f"{n}x{d}x{c}" for n in (6000, 20000, 60502) for d in (128, 512) for c in (100, 11316)]
KS = (1, 2, 4, 8, 10, 100, 1000)

RANKS = [
    *(f"recall@{k}" for k in KS),
    *("precision@1", "precision@10", "R_precision", "mAP", "mAP@R", "mAP_1000", "mAP_lim"),
    *("mAP_c", "MRR"),
]
DEFAULT = list(Recipe.evaluation_metrics)
FULL = [
    prefix + name.replace("@k", f"@{k}")
    for name in metrics.METRICS
    for k in (KS if name == "recall@k" else (1, 10) if name.endswith("@k") else (0,))
    for prefix in ("e_", "c_")
]


class Size(NamedTuple):
    """N images of C classes in D dimensions."""

    n: int
    d: int
    c: int


def floor(embeds: Tensor, _labels: Tensor) -> None:
    """The product of all images with all others, a block at a time in one buffer."""
    n_rows = max(1, BLOCK_BYTES // (4 * len(embeds)))
    buffer = embeds.new_empty(n_rows, len(embeds))
    for rows in embeds.split(n_rows):
        torch.mm(rows, embeds.T, out=buffer[: len(rows)])


def ours(names: Sequence[str]) -> Callable[[Tensor, Tensor], Any]:
    """Our scores of these names, of classes with words and in twenty groups where one asks."""

    def score(embeds: Tensor, labels: Tensor) -> dict[str, float]:
        n_classes = int(labels.max()) + 1
        words = F.normalize(torch.randn(n_classes, 64), dim=1)
        groups = tuple(str(c % 20) for c in range(n_classes))
        return metrics.compute(names, metrics.Gallery(embeds, labels, words, groups))

    return score


def lists(embeds: Tensor, labels: Tensor) -> dict[str, float]:
    """The default set as earlier codes do it: lists of 1001 neighbours, k-means of 20 rounds.

    Their loops over queries are written as array operations here, a block of queries at a time.
    """
    from sklearn.metrics import normalized_mutual_info_score
    from sklearn.metrics.cluster import pair_confusion_matrix

    points, classes = embeds.numpy(), labels.numpy()
    index = faiss.IndexFlatL2(points.shape[1])
    index.add(points)
    near = index.search(points, min(1001, len(points)))[1][:, 1:]
    sizes = np.bincount(classes)[classes]
    recalls, legacy = [], []
    for start in range(0, len(points), 1000):
        rows = slice(start, start + 1000)
        hits = classes[near[rows]] == classes[rows, None]  # (B, 1000)
        precisions = hits.cumsum(axis=1) / np.arange(1, hits.shape[1] + 1) * hits
        recalls.append([hits[:, :k].any(axis=1) for k in (1, 2, 4, 10)])
        legacy.append(precisions.sum(axis=1) / sizes[rows])

    clusters = plain_clusters(embeds, labels)
    (_, false), (missed, true) = pair_confusion_matrix(classes, clusters)
    scores = [
        *np.concatenate(recalls, axis=1).mean(axis=1),
        normalized_mutual_info_score(classes, clusters),
        2 * true / (2 * true + false + missed),
        np.concatenate(legacy).mean(),
    ]
    return dict(zip(DEFAULT, map(float, scores), strict=True))


def plain_clusters(embeds: Tensor, labels: Tensor) -> NDArray[np.int64]:
    """FAISS's k-means of 20 iterations in as many clusters as classes, and each point's cluster."""
    solver = faiss.Kmeans(
        embeds.shape[1], len(labels.unique()), niter=20, min_points_per_centroid=1,
        max_points_per_centroid=len(embeds),
    )  # fmt: skip
    solver.train(embeds.numpy())
    return solver.index.search(embeds.numpy(), 1)[1][:, 0]


def pml(*include: str) -> Callable[[Tensor, Tensor], Any]:
    """Their AccuracyCalculator, with as many neighbours as the largest class needs."""

    def score(embeds: Tensor, labels: Tensor) -> dict[str, float]:
        from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

        calculator = AccuracyCalculator(include=include, k="max_bin_count")
        return calculator.get_accuracy(embeds, labels)

    return score


PML_RANKS = (
    "precision_at_1",
    "r_precision",
    "mean_average_precision_at_r",
    "mean_reciprocal_rank",
)
CONTESTANTS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "floor": floor,
    "ours: ranks": ours(RANKS),
    "ours: default": ours(DEFAULT),
    "ours: full": ours(FULL),
    "ours: k-means": lambda embeds, labels: kmeans(embeds, int(labels.max()) + 1, seed=0),
    "FAISS: 20 iterations": plain_clusters,
    "FAISS lists: default": lists,
    "PML: 4 of ranks": pml(*PML_RANKS),
    "PML: those, NMI, AMI": pml(*PML_RANKS, "NMI", "AMI"),
}


class Cost(NamedTuple):
    """Of one run of a contestant."""

    seconds: float
    mebibytes: float  # peak of the whole process


def draw(size: Size) -> tuple[Tensor, Tensor]:
    """Unit rows (N, D) around a centre for each class, and their labels (N,).

    Each class has two images, the others fall to classes by chance; noise is such that retrieval
    errs often.
    """
    generator = torch.Generator().manual_seed(0)
    n_classes = min(size.c, size.n // 2)
    others = torch.randint(n_classes, (size.n - 2 * n_classes,), generator=generator)
    labels = torch.cat([torch.arange(n_classes).repeat(2), others])
    centres = F.normalize(torch.randn(n_classes, size.d, generator=generator), dim=1)
    embeds = torch.randn(size.n, size.d, generator=generator).mul_(1.5 / size.d**0.5)
    return F.normalize(embeds.add_(centres[labels]), dim=1), labels


def run(contestant: str, size: Size) -> Cost:
    """Run a contestant in this process."""
    embeds, labels = draw(size)
    torch.mm(embeds[:256], embeds[:256].T)  # threads have started
    start = time.perf_counter()
    CONTESTANTS[contestant](embeds, labels)
    seconds = time.perf_counter() - start
    unit = 1 << 20 if platform.system() == "Darwin" else 1 << 10
    return Cost(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)


def run_apart(contestant: str, size: Size, threads: int) -> Cost:
    """Run a contestant in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.evaluation", "--run", contestant]
    command += ["--sizes", "x".join(map(str, size)), "--threads", str(threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{contestant} failed at {size}: {done.stderr[-2000:]}")
    return Cost(*json.loads(done.stdout.splitlines()[-1]))


def compare(names: Iterable[str], size: Size, rounds: int, threads: int) -> dict[str, Cost]:
    """Medians of contestants that take turns."""
    costs: dict[str, list[Cost]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, found in costs.items():
            found.append(run_apart(name, size, threads))
            # At once: an hour that is cut short keeps what it has measured.
            print(f"{name}: {found[-1].seconds:.2f} s", file=sys.stderr, flush=True)
    return {
        name: Cost(*(median(column) for column in zip(*found, strict=True)))
        for name, found in costs.items()
    }


def table(costs: dict[str, Cost]) -> str:
    """Format costs as a Markdown table."""
    base = costs["floor"].seconds
    lines = [f"| {'contestant':20} |  seconds | / floor | peak MiB |", "|---|--:|--:|--:|"]
    lines += [
        f"| {name:20} | {cost.seconds:8.2f} | {cost.seconds / base:7.2f} | {cost.mebibytes:8.0f} |"
        for name, cost in costs.items()
    ]
    return "\n".join(lines)


def size_of(text: str) -> Size:
    return Size(*map(int, text.split("x")))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.evaluation")
    add = parser.add_argument
    add("--sizes", nargs="+", type=size_of, default=[*map(size_of, SIZES)], metavar="NxDxC",
        help="images x dimensions x classes, such as 60502x512x11316")  # fmt: skip
    add("--only", nargs="+", choices=[*CONTESTANTS], default=[*CONTESTANTS], metavar="NAME")
    add("--rounds", type=int, default=3, help="turns of each contestant")
    add("--threads", type=int, default=os.cpu_count(), help="of torch, numpy and FAISS")
    add("--run", choices=[*CONTESTANTS], help="run this one here and print its cost as JSON")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    faiss.omp_set_num_threads(args.threads)
    if args.run:
        print(json.dumps(run(args.run, args.sizes[0])))
        return
    packages = ("torch", "numpy", "faiss-cpu", "scikit-learn", "pytorch-metric-learning")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    print(f"{processor()}, {args.threads} threads of {os.cpu_count()}; {versions}")
    names = dict.fromkeys(["floor", *args.only])
    for size in args.sizes:
        classes = min(size.c, size.n // 2)
        print(f"\nN {size.n}, D {size.d}, {classes} classes, medians of {args.rounds} rounds\n")
        print(table(compare(names, size, args.rounds, args.threads)), flush=True)


if __name__ == "__main__":
    main()
