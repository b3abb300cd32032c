"""Measures the search for partners of a million captions: its time, recall and memory.

    python -m tests.benchmarks.neighbours                                # a million rows, ivf
    python -m tests.benchmarks.neighbours --rows 50000 --index ivf flat faiss faiss_flat

Vectors are synthetic, since two cores encode a million captions in an hour: unit rows in half
precision around N / 20 centres of very unequal popularity, with a spectrum that falls like that of
sentence embeddings (``draw``). The speed of an encoder is measured apart, on sentences of Python's
own documentation.

Each search runs in a process of its own, which gives its peak memory. *faiss* is FAISS's inverted
file with as many lists, and as many read, as ivf chose, on ``--faiss_queries`` of the queries; its
time for all follows from these. *faiss_batch* is the same, searched list by list as ours is (its
contrib module big_batch_search), on all queries; *faiss_pq* scans product-quantised codes of 4 bits
and compares the best 20 candidates anew; *faiss_flat* is FAISS's exact search.
"""

import argparse
import json
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from language import encoders, lists, search
from tests.benchmarks.machine import processor

SEED = 0
POPULARITY = 0.7  # of centre i as i ** -POPULARITY: a few are met a thousand times
SPECTRUM = 0.4  # standard deviation of direction i as i ** -SPECTRUM
SPREAD = 0.8  # of rows around their centre, in units of that of the centres
INDICES = ("ivf", "flat", "faiss", "faiss_batch", "faiss_pq", "faiss_flat")
COLUMNS = ("read", "train", "file", "choose", "search", "total")

Result = dict[str, Any]


def draw(n: int, dim: int, file: Path) -> None:
    """Write (n, dim) float16 unit rows as ``file``, a block at a time."""
    rng = np.random.default_rng(SEED)
    scales = np.arange(1, dim + 1, dtype=np.float32) ** -SPECTRUM
    centres = rng.standard_normal((max(n // 20, 1), dim), dtype=np.float32) * scales
    weights = np.arange(1, len(centres) + 1) ** -POPULARITY
    rows = np.lib.format.open_memmap(file, "w+", np.float16, (n, dim))
    for start in range(0, n, 1 << 16):
        size = min(1 << 16, n - start)
        block = centres[rng.choice(len(centres), size, p=weights / weights.sum())]
        block += SPREAD * scales * rng.standard_normal((size, dim), dtype=np.float32)
        rows[start : start + size] = block / np.linalg.norm(block, axis=1, keepdims=True)
    rows.flush()


def timed(seconds: dict[str, float], phase: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``call``, whose time is added to ``seconds[phase]``."""

    def run(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            seconds[phase] += time.perf_counter() - start

    return run


def ours(index: str, file: Path, recall: float) -> Result:
    """Search by ``language.search``, and time its phases."""
    seconds: dict[str, float] = defaultdict(float)
    with ExitStack() as patches:
        for owner, name, phase in (
            (search, "group", "read"), (search, "_load", "read"), (lists, "_kmeans", "train"),
            (lists.InvertedFile, "lists_to_read", "choose"),
            (lists.InvertedFile, "__init__", "build"),
        ):  # fmt: skip
            call = timed(seconds, phase, getattr(owner, name))
            patches.enter_context(patch.object(owner, name, call))
        start = time.perf_counter()
        options = search.Options(index=index, recall=recall)
        found = search.search(np.load(file, mmap_mode="r"), options, seed=SEED)
        total = time.perf_counter() - start
    sims = found.similarities[:, 0]
    known = seconds["read"] + seconds["build"] + seconds["choose"]
    return {
        "method": found.about["searched_by"], "recall": found.about["recall@1"],
        "read": seconds["read"], "train": seconds["train"],
        "file": seconds["build"] - seconds["train"], "choose": seconds["choose"],
        "search": total - known, "total": total,
        "similarity": float(sims[np.isfinite(sims)].mean()),
    }  # fmt: skip


def by_faiss(kind: str, file: Path, n_lists: int, n_read: int, n_queries: int) -> Result:
    """Search by FAISS; its k-means sees as many points as ours."""
    import faiss
    from faiss.contrib.big_batch_search import big_batch_search

    start = time.perf_counter()
    vectors = np.load(file, mmap_mode="r").view(np.ndarray)  # the type that FAISS takes
    n, dim = vectors.shape
    rng = np.random.default_rng(SEED)
    index = faiss.index_factory(dim, {
        "faiss": f"IVF{n_lists},SQfp16", "faiss_batch": f"IVF{n_lists},Flat",
        "faiss_pq": f"IVF{n_lists},PQ{dim // 2}x4fs,RFlat", "faiss_flat": "Flat",
    }[kind], faiss.METRIC_INNER_PRODUCT)  # fmt: skip
    method = kind
    if kind != "faiss_flat":
        method += f", {n_lists} lists, {n_read} read"
        inverted = faiss.extract_index_ivf(index)
        inverted.cp.spherical, inverted.cp.niter = True, lists.KMEANS_ROUNDS
        inverted.nprobe = n_read
        sample = rng.choice(n, min(n, lists.POINTS_PER_LIST * n_lists), replace=False)
        index.train(vectors[np.sort(sample)].astype(np.float32))
    if kind == "faiss_pq":
        index.k_factor = 10  # times the 2 neighbours asked for
    trained = time.perf_counter()
    for first in range(0, n, 1 << 16):
        index.add(vectors[first : first + (1 << 16)].astype(np.float32))
    added = time.perf_counter()
    n_queries = n if kind == "faiss_batch" else min(n, n_queries)
    queries = np.sort(rng.choice(n, n_queries, replace=False))
    asked = vectors[queries].astype(np.float32)
    if kind == "faiss_batch":
        sims, ids = big_batch_search(index, asked, 2, method="knn_function", threaded=0)
    else:
        sims, ids = index.search(asked, 2)
    took = (time.perf_counter() - added) * n / n_queries
    few = rng.choice(n_queries, min(1000, n_queries), replace=False)
    flat = lists.Flat(torch.from_numpy(np.array(vectors)))
    exact = flat.others(torch.from_numpy(queries[few]), 1)[0][:, 0].numpy()
    best = np.where(ids == queries[:, None], -np.inf, sims).max(axis=1)[few]
    return {
        "method": f"{method}, {n_queries} queries", "recall": float((best >= exact - 1e-3).mean()),
        "read": 0.0, "train": trained - start, "file": added - trained, "choose": 0.0,
        "search": took, "total": added - start + took, "similarity": float(best.mean()),
    }  # fmt: skip


def encoding(model: str, n: int) -> str:
    """Measure how many sentences of Python's reference an encoder embeds per second."""
    from pydoc_data.topics import topics

    text = " ".join(topics.values())
    found = (re.sub(r"[^\w ,'-]+", "", part).strip() for part in re.split(r"[.\n]\s+", text))
    texts = list(dict.fromkeys(part for part in found if 4 <= len(part.split()) <= 30))[:n]
    encoder = encoders.build(model, torch.device("cpu"), None)
    encoder.encode(texts[:16])  # loads the model
    start = time.perf_counter()
    encoder.encode(texts)
    speed = len(texts) / (time.perf_counter() - start)
    words = sum(len(text.split()) for text in texts) / len(texts)
    return (
        f"{model}: {speed:.0f} captions/s ({len(texts)} of {words:.1f} words on average), a "
        f"million in {1e6 / speed / 3600:.2f} h"
    )


def apart(args: argparse.Namespace, index: str, file: Path, n_lists: Sequence[str]) -> Result:
    """Run one search in a process of its own, with its peak memory in GiB."""
    command = [sys.executable, "-m", "tests.benchmarks.neighbours", "--run", index]
    command += ["--file", str(file), "--threads", str(args.threads), "--recall", str(args.recall)]
    command += ["--faiss_queries", str(args.faiss_queries), "--lists", *n_lists]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def table(results: Sequence[Result]) -> str:
    """Return a Markdown table: seconds, and peak memory of the whole process."""
    head = ["search", *COLUMNS, "recall@1", "mean similarity", "peak GiB"]
    lines = [head, ["-" * 3, *["--:"] * (len(head) - 1)]]
    for result in results:
        seconds = [f"{result[column]:.1f}" for column in COLUMNS]
        scores = [f"{result['recall']:.3f}", f"{result['similarity']:.3f}", f"{result['peak']:.2f}"]
        lines.append([result["method"], *seconds, *scores])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.neighbours")
    add = parser.add_argument
    add("--rows", type=int, default=1_000_000)
    add("--dim", type=int, default=384, help="384: MiniLM; 768: MPNet")
    add("--index", nargs="+", choices=INDICES, default=["ivf"])
    add("--recall", type=float, default=0.95, help="recall@1 of ivf")
    add("--texts", type=int, default=2000, help="texts that the encoder embeds; 0: none")
    add("--language_model", default="minilm")
    add("--faiss_queries", type=int, default=20_000)
    add("--threads", type=int, default=os.cpu_count())
    add("--run", choices=INDICES, help=argparse.SUPPRESS)
    add("--file", type=Path, help=argparse.SUPPRESS)
    add("--lists", type=int, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.run:
        result = (
            by_faiss(args.run, args.file, args.lists[0], args.lists[1], args.faiss_queries)
            if args.run.startswith("faiss")
            else ours(args.run, args.file, args.recall)
        )
        unit = 1 << 30 if platform.system() == "Darwin" else 1 << 20
        result["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
        print(json.dumps(result))
        return
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy"))
    print(f"{processor()}, {args.threads} threads of {os.cpu_count()}; {packages}")
    if args.texts:
        print(encoding(args.language_model, args.texts), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vectors.npy"
        draw(args.rows, args.dim, file)
        results: list[Result] = []
        n_lists = [str(max(1, args.rows // 256)), "16"]  # until ivf has chosen
        for index in args.index:
            results.append(apart(args, index, file, n_lists))
            if index == "ivf":
                n_lists = re.findall(r"\d+", results[-1]["method"])
        size = file.stat().st_size / 1e9
        print(f"\nN {args.rows:,}, D {args.dim}, {size:.2f} GB on disk; seconds")
    print(table(results))


if __name__ == "__main__":
    main()
