"""Time of a linear probe and of few-shot episodes, compared with scikit-learn and a loop.

    python -m tests.benchmarks.probe                        # minutes on two cores
    python -m tests.benchmarks.probe --only digits fewshot --rounds 3
    python -m tests.benchmarks.probe --points 200 --dims 8 --classes 5 --episodes 10   # in seconds

The probe is the whole protocol: costs 1e-6 to 1e6, refinement, refit. scikit-learn searches the
same costs by its own LogisticRegression (L-BFGS, 1,000 iterations, tolerance 1e-4), each from zero,
as it is commonly run. That stops early at weak penalties, so accuracies are also compared at our
cost and a tolerance of 1e-7. Both choose on the same validation images. The contestants take turns,
and times are medians.
"""

import argparse
import os
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from statistics import median
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from evaluation.fewshot import Episodes, draw_episodes, score_episodes
from evaluation.linear_probe import LabelledFeatures, choose_cost, hold_out, linear_probe
from tests.benchmarks.machine import processor

T = TypeVar("T")


class Task(NamedTuple):
    """Points to learn from and points to test on."""

    train: LabelledFeatures
    test: LabelledFeatures


def digits(most: int) -> Task:
    """scikit-learn's digits: 1,797 of 64 pixels, 10 classes; ``most`` of them."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    points = torch.tensor(bunch.data[:most], dtype=torch.float32)
    return halves(points, torch.tensor(bunch.target[:most]))


def synthetic(n: int, d: int, c: int) -> Task:
    """Classes that overlap, with variances that fall like those of a network's features."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.arange(1, d + 1) ** -0.5
    centres = 0.7 * torch.randn(c, d, generator=generator) * scale
    labels = torch.randint(c, (n,), generator=generator)
    points = centres[labels] + torch.randn(n, d, generator=generator) * scale
    rotation = torch.linalg.qr(torch.randn(d, d, generator=generator))[0]
    return halves((points @ rotation).relu_(), labels)


def halves(features: Tensor, labels: Tensor) -> Task:
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    parts = order.chunk(2)
    return Task(*(LabelledFeatures(features[rows], labels[rows]) for rows in parts))


def ours(task: Task) -> tuple[float, float]:
    """Accuracy and cost."""
    found = linear_probe(task.train, None, task.test)
    return found.accuracy, found.cost


def fit_scikit_learn(
    train: LabelledFeatures, cost: float, tolerance: float = 1e-4
) -> LogisticRegression:
    patience = 1000 if tolerance == 1e-4 else 20_000
    solver = LogisticRegression(C=cost, tol=tolerance, max_iter=patience)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return solver.fit(*(part.numpy() for part in train))


def scikit_learn(task: Task) -> tuple[float, float]:
    """Accuracy and cost."""
    train, val = hold_out(task.train, 0)
    cost, _, _ = choose_cost(
        lambda cost, _: fit_scikit_learn(train, cost),
        lambda fit: fit.score(*(part.numpy() for part in val)),
    )
    return fit_scikit_learn(task.train, cost).score(*(part.numpy() for part in task.test)), cost


def take_turns(contestants: dict[str, Callable[[], T]], rounds: int) -> dict[str, tuple[float, T]]:
    """Return the median seconds and the last result of each contestant."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    results = {}
    for _ in range(rounds):
        for name, contestant in contestants.items():
            start = time.perf_counter()
            results[name] = contestant()
            seconds[name].append(time.perf_counter() - start)
    return {name: (median(seconds[name]), results[name]) for name in contestants}


def compare_probes(name: str, task: Task, rounds: int) -> None:
    n, d = task.train.features.shape
    contestants = {"ours": lambda: ours(task), "scikit-learn": lambda: scikit_learn(task)}
    found = take_turns(contestants, rounds)
    print(f"\nlinear probe, {name}: N {n}, D {d}, {int(task.train.labels.max()) + 1} classes")
    for contestant, (seconds, (accuracy, cost)) in found.items():
        print(f"  {contestant:14} {seconds:8.2f} s   {100 * accuracy:.2f} %   C {cost:.3g}")
    ratio = found["scikit-learn"][0] / found["ours"][0]
    accuracy, cost = found["ours"][1]
    converged = fit_scikit_learn(task.train, cost, 1e-7).score(*(p.numpy() for p in task.test))
    print(f"  time ratio {ratio:.1f}")
    print(f"  scikit-learn at our C, tolerance 1e-7: {100 * converged:.2f} %")
    print(f"  difference at the same C: {100 * (accuracy - converged):+.3f} points", flush=True)


def loop(features: Tensor, episodes: Episodes) -> float:
    """Episode by episode, each with matrix products of its own."""
    right = torch.arange(episodes.rows.shape[1]).repeat_interleave(episodes.queries)
    accuracies = []
    for rows in episodes.rows:
        points = features[rows]
        points = F.normalize(points - points[:, : episodes.shots].mean(dim=(0, 1)), dim=2)
        shots, queries = points[:, : episodes.shots], points[:, episodes.shots :]
        distances = torch.cdist(queries.flatten(0, 1), shots.mean(dim=1))
        accuracies.append((distances.argmin(dim=1) == right).double().mean())
    return float(torch.stack(accuracies).mean())


def compare_fewshot(task: Task, n_episodes: int, rounds: int) -> None:
    episodes = draw_episodes(task.train.labels, task.test.labels, episodes=n_episodes)
    features = torch.cat([task.train.features, task.test.features])
    found = take_turns(
        {
            "vectorised": lambda: score_episodes(features, episodes).accuracy,
            "loop": lambda: loop(features, episodes),
        },
        rounds,
    )
    print(f"\nfew-shot, {n_episodes} episodes of 5 ways, 5 shots, 6 queries, D {features.shape[1]}")
    for name, (seconds, accuracy) in found.items():
        print(f"  {name:12}  {seconds:8.2f} s   {100 * accuracy:.3f} %")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.probe")
    names = ("digits", "synthetic", "fewshot")
    add = parser.add_argument
    add("--only", nargs="+", choices=names, default=names, metavar="NAME")
    add("--points", type=int, default=10_000, help="half for train, half for test")
    add("--dims", type=int, default=1280, help="of synthetic points")
    add("--classes", type=int, default=100, help="of synthetic points")
    add("--episodes", type=int, default=5000, help="of few-shot")
    add("--rounds", type=int, default=1, help="turns; medians are printed")
    add("--threads", type=int, default=os.cpu_count(), help="of torch")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "scikit-learn", "scipy"))
    print(f"{processor()}, {args.threads} threads of {os.cpu_count()}; {packages}")
    if "digits" in args.only:
        compare_probes("digits", digits(args.points), args.rounds)
    task = synthetic(args.points, args.dims, args.classes)
    if "synthetic" in args.only:
        compare_probes("synthetic", task, args.rounds)
    if "fewshot" in args.only:
        compare_fewshot(task, args.episodes, args.rounds)


if __name__ == "__main__":
    main()
