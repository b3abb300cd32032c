"""How long nearest neighbours of a million captions take, how many are found, in how much memory.

    python -m tests.benchmarks.neighbours                                # a million rows, ivf
    python -m tests.benchmarks.neighbours --rows 50000 --index ivf flat hnsw faiss

Vectors are synthetic, since two cores encode a million captions in an hour: unit rows in half
precision around N / 20 centres of very unequal popularity, with a spectrum that falls as that of
sentence embeddings does, so that directions are of unequal use; see ``draw``. How fast an encoder
reads is measured apart, on sentences of Python's own documentation.

Each search runs in a process of its own, so that its peak memory is its own, with imports and the
vectors that it reads from disk. *faiss* is FAISS's inverted file with as many lists and as many
read as ivf chose, on as many of the queries as ``--faiss_queries`` says; its time for all follows
from these. *faiss_batch* is the same, searched list by list as ours are (its contrib module
big_batch_search), on all queries; *faiss_pq* scans product-quantised codes of 4 bits and compares
the best 20 candidates anew.
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
from numpy.typing import NDArray

from language import encoders, nearest
from tests.benchmarks.machine import processor

SEED = 0
POPULARITY = 0.7  # of centre i as i ** -POPULARITY: a few are met a thousand times
SPECTRUM = 0.4  # standard deviation of direction i as i ** -SPECTRUM
SPREAD = 0.8  # of rows around their centre, in units of that of the centres

INDICES = ("ivf", "flat", "hnsw", "faiss", "faiss_batch", "faiss_pq")

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
    """``call``, whose time is added to ``seconds[phase]``."""

    def run(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            seconds[phase] += time.perf_counter() - start

    return run


def search(index: str, file: Path, recall: float) -> Result:
    """``language.nearest`` in this process, and what its phases take."""
    vectors = np.load(file, mmap_mode="r")
    seconds: dict[str, float] = defaultdict(float)
    kinds = {"flat": nearest.Flat, "ivf": nearest.InvertedLists, "hnsw": nearest.Graph}
    kind: Any = kinds[index]
    with ExitStack() as patches:
        for owner, name, phase in (
            (nearest, "_group", "read"), (nearest, "_load", "read"), (nearest, "_kmeans", "train"),
            (kind, "choose_effort", "choose"), (kind, "__init__", "build"),
        ):  # fmt: skip
            call = timed(seconds, phase, getattr(owner, name))
            patches.enter_context(patch.object(owner, name, call))
        start = time.perf_counter()
        found = nearest.nearest(vectors, 1, index=index, recall=recall, seed=SEED)
        total = time.perf_counter() - start
    sims = found.similarities[:, 0]
    known = seconds["read"] + seconds["build"] + seconds["choose"]
    return {
        "method": found.method, "recall": found.recall, "read": seconds["read"],
        "train": seconds["train"], "file": seconds["build"] - seconds["train"],
        "choose": seconds["choose"], "search": total - known, "total": total,
        "similarity": float(sims[np.isfinite(sims)].mean()),
    }  # fmt: skip


def search_by_faiss(kind: str, file: Path, lists: int, read: int, n_queries: int) -> Result:
    """FAISS's inverted file; k-means on as many points as ours."""
    import faiss
    from faiss.contrib.big_batch_search import big_batch_search

    start = time.perf_counter()
    vectors: NDArray[np.float16] = np.load(file, mmap_mode="r").view(np.ndarray)  # as FAISS asks
    n, dim = vectors.shape
    rng = np.random.default_rng(SEED)
    codes = {"faiss": "SQfp16", "faiss_batch": "Flat", "faiss_pq": f"PQ{dim // 2}x4fs,RFlat"}[kind]
    index = faiss.index_factory(dim, f"IVF{lists},{codes}", faiss.METRIC_INNER_PRODUCT)
    inverted = faiss.extract_index_ivf(index)
    inverted.cp.spherical, inverted.cp.niter = True, nearest.KMEANS_ROUNDS
    sample = np.sort(rng.choice(n, min(n, nearest.POINTS_PER_LIST * lists), replace=False))
    index.train(vectors[sample].astype(np.float32))
    trained = time.perf_counter()
    for first in range(0, n, 1 << 16):
        index.add(vectors[first : first + (1 << 16)].astype(np.float32))
    added = time.perf_counter()
    inverted.nprobe = read
    if kind == "faiss_pq":
        index.k_factor = 10  # times the 2 that are asked for
    n_queries = n if kind == "faiss_batch" else min(n, n_queries)
    queries = np.sort(rng.choice(n, n_queries, replace=False))
    asked = vectors[queries].astype(np.float32)
    if kind == "faiss_batch":
        sims, ids = big_batch_search(index, asked, 2, method="knn_function", threaded=0)
    else:
        sims, ids = index.search(asked, 2)
    took = (time.perf_counter() - added) * n / len(queries)
    few = torch.from_numpy(rng.choice(len(queries), min(1000, len(queries)), replace=False))
    flat = nearest.Flat(torch.from_numpy(np.array(vectors)))
    exact, _ = nearest._others(flat, torch.from_numpy(queries)[few], 1, 0)
    own = ids == queries[:, None]
    best = np.where(own, -np.inf, sims).max(axis=1)[few.numpy()]
    return {
        "method": f"{kind}, {lists} lists, {read} read, {len(queries)} queries",
        "recall": float((best >= exact[:, 0].numpy() - 1e-3).mean()), "read": 0.0,
        "train": trained - start, "file": added - trained, "choose": 0.0, "search": took,
        "total": added - start + took, "similarity": float(best.mean()),
    }  # fmt: skip


def sentences() -> list[str]:
    """Some thousand distinct English sentences, of Python's reference that comes with it."""
    from pydoc_data.topics import topics

    text = " ".join(topics.values())
    found = (re.sub(r"[^\w ,'-]+", "", part).strip() for part in re.split(r"[.\n]\s+", text))
    return list(dict.fromkeys(part for part in found if 4 <= len(part.split()) <= 30))


def encoding(model: str, n: int) -> str:
    """How many captions a second an encoder reads here."""
    texts = sentences()[:n]
    encoder = encoders.build(model, torch.device("cpu"), None)
    encoder.encode(texts[:16])  # loaded
    start = time.perf_counter()
    encoder.encode(texts)
    speed = len(texts) / (time.perf_counter() - start)
    words = sum(len(text.split()) for text in texts) / len(texts)
    return (
        f"{model}: {speed:.0f} captions/s ({len(texts)} of {words:.1f} words on average), a "
        f"million in {1e6 / speed / 3600:.2f} h"
    )


def apart(args: argparse.Namespace, index: str, file: Path, *more: str) -> Result:
    """One search in a process of its own, with its peak memory in GiB."""
    command = [sys.executable, "-m", "tests.benchmarks.neighbours", "--run", index]
    command += ["--file", str(file), "--threads", str(args.threads), "--recall", str(args.recall)]
    command += ["--faiss_queries", str(args.faiss_queries), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{index} failed")
    return json.loads(done.stdout.splitlines()[-1])


COLUMNS = ("read", "train", "file", "choose", "search", "total")


def table(results: Sequence[Result]) -> str:
    """A Markdown table; seconds, and peak memory of the whole process."""
    head = ["search", *COLUMNS, "recall@1", "mean similarity", "peak GiB"]
    lines = [head, ["-" * 3, *["--:"] * (len(head) - 1)]]
    for result in results:
        seconds = [f"{result[column]:.1f}" for column in COLUMNS]
        scores = [f"{result['recall']:.3f}", f"{result['similarity']:.3f}", f"{result['peak']:.2f}"]
        lines.append([result["method"], *seconds, *scores])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.neighbours")
    add = parser.add_argument
    add("--rows", type=int, default=1_000_000)
    add("--dim", type=int, default=384, help="384: MiniLM; 768: MPNet")
    add("--index", nargs="+", choices=INDICES, default=["ivf"])
    add("--recall", type=float, default=0.95, help="@1 that ivf and hnsw aim at")
    add("--texts", type=int, default=2000, help="that an encoder reads; 0: none is measured")
    add("--language_model", default="minilm")
    add("--faiss_queries", type=int, default=20_000)
    add("--threads", type=int, default=os.cpu_count())
    add("--run", choices=INDICES, help=argparse.SUPPRESS)
    add("--file", type=Path, help=argparse.SUPPRESS)
    add("--lists", type=int, nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    torch.set_num_threads(args.threads)
    if args.run:
        result = (
            search_by_faiss(args.run, args.file, args.lists[0], args.lists[1], args.faiss_queries)
            if args.run.startswith("faiss")
            else search(args.run, args.file, args.recall)
        )
        unit = 1 << 30 if platform.system() == "Darwin" else 1 << 20
        print(
            json.dumps(result | {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit})
        )
        return
    packages = ("torch", "numpy", "faiss-cpu")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    print(f"{processor()}, {args.threads} threads of {os.cpu_count()}; {versions}")
    if args.texts:
        print(encoding(args.language_model, args.texts), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vectors.npy"
        draw(args.rows, args.dim, file)
        results: list[Result] = []
        lists = [str(max(1, args.rows // 256)), "16"]  # unless ivf has chosen
        for index in args.index:
            more = ["--lists", *lists] if index.startswith("faiss") else []
            results.append(apart(args, index, file, *more))
            if index == "ivf":
                lists = re.findall(r"\d+", results[-1]["method"])
        print(
            f"\nN {args.rows:,}, D {args.dim}, {file.stat().st_size / 1e9:.2f} GB on disk; seconds"
        )
    print(table(results))


if __name__ == "__main__":
    main()
