"""Exact nearest neighbours by FAISS, in memory that grows with N x k, never with N x N."""

from typing import Any, NamedTuple

import faiss
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

MAX_GPU_K = 2048  # limit of FAISS; longer lists are searched on the CPU


class NearestNeighbours(NamedTuple):
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
) -> NearestNeighbours:
    """Return the exact k nearest rows of ``gallery`` for each row of ``queries``, on the CPU.

    Args:
        queries, gallery: (Q, D) and (N, D) floating, on any device.
        own_rows: (Q,) int64, the gallery row of each query, which is left out of its list; a
            duplicate of it counts. None if the gallery does not contain the queries.
        cosine: use the cosine distance 1 - cos, in [0, 2], not the squared Euclidean distance.
        device: where FAISS searches, if it can.
    """
    data, points = (_as_numpy(part, cosine) for part in (gallery, queries))
    n_found = k if own_rows is None else k + 1
    index = faiss.IndexFlatIP(data.shape[1]) if cosine else faiss.IndexFlatL2(data.shape[1])
    if n_found <= MAX_GPU_K:
        index = on_gpu(index, torch.device(device))
    index.add(data)
    found, ids = index.search(points, n_found)
    distances = np.where(ids < 0, np.inf, np.maximum(1 - found, 0) if cosine else found)
    if own_rows is not None:
        # Others first, in their order: the query's own row, if found, moves behind them.
        own = ids == own_rows.cpu().numpy()[:, None]
        others = np.argsort(own, axis=1, kind="stable")[:, :k]
        ids, distances = (np.take_along_axis(part, others, axis=1) for part in (ids, distances))
    return NearestNeighbours(torch.from_numpy(ids), torch.from_numpy(distances.astype(np.float32)))


def on_gpu(index: Any, device: torch.device) -> Any:
    """Return a FAISS index on a CUDA device, if this build of FAISS can; else the index itself."""
    supported = hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus()
    if device.type != "cuda" or not supported:
        return index
    torch.get_device_module(device).empty_cache()  # frees what torch caches, for FAISS
    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), device.index or 0, index)


def _as_numpy(points: Tensor, cosine: bool) -> np.ndarray:
    points = points.detach().float().cpu()
    return np.ascontiguousarray((F.normalize(points, dim=1) if cosine else points).numpy())
