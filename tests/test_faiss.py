"""FAISS finds the same whether or not its torch_utils are imported.

pytorch-metric-learning imports ``faiss.contrib.torch_utils``, which replaces the methods of every
FAISS index in the process. ``python test_faiss.py first FOLDER`` imports it before our own code and
saves the answers; ``last`` computes once, imports it, and computes again.
"""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
REPLACED = "faiss.contrib.torch_utils"


def answers():
    """Return, by name, the answer of each function that calls FAISS for the same 200 points."""
    import torch

    from metrics.clustering import kmeans
    from utilities.knn import nearest_neighbours

    points = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    found = {}
    for cosine in (False, True):
        rows, distances = nearest_neighbours(
            points, points, 3, own_rows=torch.arange(200), cosine=cosine
        )
        found |= {f"rows {cosine=}": rows.numpy(), f"distances {cosine=}": distances.numpy()}
    found["clusters"] = kmeans(points, 5, seed=0).numpy()
    return found


def test_answers_are_the_same_with_torch_utils(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}  # links in one order
    for order in ("last", "first"):
        done = subprocess.run(
            [sys.executable, __file__, order, str(tmp_path)],
            env=env,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    without, last, first = (
        dict(np.load(tmp_path / f"{name}.npz")) for name in ("without", "last", "first")
    )
    for name, values in without.items():
        np.testing.assert_array_equal(last[name], values, err_msg=name)
        np.testing.assert_array_equal(first[name], values, err_msg=name)


def main(order, folder):
    if order == "last":
        np.savez(folder / "without.npz", **answers())
        assert REPLACED not in sys.modules
    importlib.import_module(REPLACED)
    np.savez(folder / f"{order}.npz", **answers())


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
