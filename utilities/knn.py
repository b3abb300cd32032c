"""Exact nearest neighbours by FAISS, in memory that grows with N x k, never with N x N."""

from typing import Any, NamedTuple

import faiss
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

MAX_GPU_K = 2048  # of FAISS; longer lists are searched on the CPU


class Neighbours(NamedTuple):
    """The k nearest gallery rows of each of Q queries, nearest first."""

    rows: Tensor  # (Q, k) int64; -1 where the gallery has no more rows
    distances: Tensor  # (Q, k) float32; inf where there is no row


def nearest_neighbours(
    queries: Tensor,
    gallery: Tensor,
    k: int,
    *,
    own_rows: Tensor | None = None,
    cosine: bool = False,
    device: torch.device | str = "cpu",
) -> Neighbours:
    """The exact k nearest rows of ``gallery`` for each row of ``queries``.

    A query that is in the gallery itself is left out by its row, not by its place in the list, so
    that a copy of it is a neighbour like any other. Equal distances come in the order of FAISS.

    Args:
        queries: (Q, D) floating, on any device.
        gallery: (N, D) floating.
        k: neighbours for each query, >= 1.
        own_rows: (Q,) int64, where each query stands in the gallery; None when none does.
        cosine: by cosine distance 1 - cos, in [0, 2], instead of the squared euclidean distance.
        device: where FAISS searches, if it can.

    Returns:
        rows and distances on the CPU.
    """
    data, asked = (_as_numpy(points, cosine) for points in (gallery, queries))
    wanted = k if own_rows is None else k + 1
    index = faiss.IndexFlatIP(data.shape[1]) if cosine else faiss.IndexFlatL2(data.shape[1])
    if wanted <= MAX_GPU_K:
        index = on_gpu(index, torch.device(device))
    index.add(data)
    found, ids = index.search(asked, wanted)
    distances = np.where(ids < 0, np.inf, np.maximum(1 - found, 0) if cosine else found)
    if own_rows is not None:
        # Others first, in their order: the query's own row, where it was found, moves behind them.
        own = ids == own_rows.cpu().numpy()[:, None]
        others = np.argsort(own, axis=1, kind="stable")[:, :k]
        ids, distances = (np.take_along_axis(part, others, axis=1) for part in (ids, distances))
    return Neighbours(torch.from_numpy(ids), torch.from_numpy(distances.astype(np.float32)))


def on_gpu(index: Any, device: torch.device) -> Any:
    """Return a FAISS index on the GPU ``device``; the index itself on any other device.

    FAISS knows CUDA alone, and only in its GPU build. It numbers GPUs as torch does.
    """
    there = hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus()
    if device.type != "cuda" or not there:
        return index
    torch.get_device_module(device).empty_cache()  # FAISS has to find room beside what torch keeps
    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), device.index or 0, index)


def _as_numpy(points: Tensor, cosine: bool) -> np.ndarray:
    points = points.detach().float().cpu()
    return np.ascontiguousarray((F.normalize(points, dim=1) if cosine else points).numpy())
