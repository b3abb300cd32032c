"""FAISS finds the same whether or not its torch_utils are imported.

pytorch-metric-learning imports ``faiss.contrib.torch_utils``, which replaces the methods of every
FAISS index in the process. ``python test_faiss.py first FOLDER`` imports it before our own code and
saves what that computes; ``last`` computes once, imports it, and computes again.
"""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
REPLACED = "faiss.contrib.torch_utils"


def answers():
    """Return, by name, what each function that calls FAISS makes of the same 200 points."""
    import torch

    from evaluation import image_index
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
    with TemporaryDirectory() as folder:
        provenance = image_index.Provenance(Path("images"), Path("run"), 1, "digest", 8)
        files = [image_index.ImageFile(f"{row}.png", 1, 1) for row in range(200)]
        embedded = image_index.EmbeddedFiles(files, points.numpy(), {})
        image_index.write_index(Path(folder), image_index.ImageIndex(provenance, embedded))
        found["index"] = image_index.read_index(Path(folder)).embedded.vectors
    assert all(type(values) is np.ndarray for values in found.values())
    return found


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """The answers without torch_utils, and with them imported last and first."""
    folder = tmp_path_factory.mktemp("faiss")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}  # links in one order
    for order in ("last", "first"):
        made = subprocess.run(
            [sys.executable, __file__, order, str(folder)], env=env, capture_output=True, text=True
        )
        assert made.returncode == 0, made.stderr
    return {name: dict(np.load(folder / f"{name}.npz")) for name in ("without", "last", "first")}


@pytest.mark.parametrize("order", ["last", "first"])
def test_answers_are_the_same_with_torch_utils(told, order):
    wanted = told["without"]
    assert told[order].keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_array_equal(told[order][name], values, err_msg=name)


def main(order, folder):
    if order == "last":
        np.savez(folder / "without.npz", **answers())
        assert REPLACED not in sys.modules
    importlib.import_module(REPLACED)
    np.savez(folder / f"{order}.npz", **answers())


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
