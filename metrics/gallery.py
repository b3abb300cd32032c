"""An embedded image set, and the one search through it that all retrieval metrics share.

For each query the search counts the exact rank of every other image of its class, block of queries
by block of queries, so that memory stays bounded and no list of a thousand neighbours cuts the
ranking short. From these ranks follow recall at every k, mAP, mAP@R and R-precision alike.

How equal distances and copies are treated:

* The query is left out by its row, not by its place in the list, so that a copy of it counts as
  the image that it is.
* Among equal distances the images of other classes come first. A tie is never a hit: an embedder
  that collapses to one point scores the least possible, and the order of files moves no score.
* Among equally distant images of other classes the lower row comes first.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metrics.clustering import kmeans

BLOCK_BYTES = 64 << 20  # of similarities and ranks at a time; larger blocks are not faster


class Ranking(NamedTuple):
    """What the search finds for a block of B queries in a gallery of N images."""

    rows: Tensor  # (B,) int64, the queries' rows in the gallery
    ranks: Tensor  # (B, R) int64, ascending, 1 = nearest of the N - 1 others; 0 fills up the row
    n_positives: Tensor  # (B,) int64, other images of the query's class; so many ranks are filled
    wrong: Tensor  # (B, K) int64, rows of the nearest images of other classes; -1 fills up the row


@dataclass(frozen=True)
class Gallery:
    """N embedded images, each of which queries all the others.

    Args:
        embeds: (N, D) float32, on any device; distances are euclidean, ``unit`` gives cosine.
        labels: (N,) int64, >= 0, not necessarily contiguous.
        class_words: (C, Dw) float32 unit rows, row c embeds what class c is called.
        class_groups: C names, of the group that each class belongs to.
        seed: of the starting centroids of k-means.

    Raises:
        ValueError: shapes do not fit, there is no image, or an embedding is not finite.
    """

    embeds: Tensor
    labels: Tensor
    class_words: Tensor | None = None
    class_groups: tuple[str, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.embeds.ndim != 2 or self.labels.shape != self.embeds.shape[:1]:
            raise ValueError(
                f"a gallery needs embeds (N, D) and labels (N,), not {tuple(self.embeds.shape)} "
                f"and {tuple(self.labels.shape)}"
            )
        if not len(self):
            raise ValueError("a gallery needs at least one image; this one is empty")
        n_bad = int((~self.embeds.square().sum(dim=1).isfinite()).sum())
        if n_bad:
            raise ValueError(
                f"{n_bad} of {len(self)} embeddings are not finite, or too large to square; "
                "lower --lr, or evaluate without --use_float16"
            )
        n_named = int(self.labels.max()) + 1
        for name, given in (("class_words", self.class_words), ("class_groups", self.class_groups)):
            if given is not None and len(given) < n_named:
                raise ValueError(f"{name} describes {len(given)} classes, labels need {n_named}")

    def __len__(self) -> int:
        return len(self.embeds)

    @cached_property
    def unit(self) -> "Gallery":
        """The same images with unit embeddings, whose euclidean order is the cosine order.

        Embeddings that are unit already, but for rounding, are left as they are: their euclidean
        and cosine metrics are the same numbers and share one search.
        """
        norms = self.embeds.norm(dim=1)
        if bool(((norms - 1).abs() < 1e-5).all()):
            return self
        return replace(self, embeds=F.normalize(self.embeds, dim=1))

    @cached_property
    def clusters(self) -> Tensor:
        """(N,) int64: k-means with as many clusters as this gallery has classes."""
        return kmeans(self.embeds, len(self.labels.unique()), seed=self.seed)

    @cached_property
    def spherical_clusters(self) -> Tensor:
        """(N,) int64: the same by cosine, with unit centroids."""
        n_classes = len(self.labels.unique())
        return kmeans(self.unit.embeds, n_classes, seed=self.seed, spherical=True)

    def search(self, *, n_wrong: int = 0, block_bytes: int = BLOCK_BYTES) -> Iterator[Ranking]:
        """Rank every image against all others; the blocks together hold each query once.

        Args:
            n_wrong: K, how many nearest images of other classes to find for each query.
            block_bytes: what a block may take, though it holds at least one query. It does not
                change results, but for the last bit of a matrix product.
        """
        n = len(self)
        labels = self.labels.to(self.embeds.device)
        _, labels, sizes = labels.unique(return_inverse=True, return_counts=True)
        by_class = labels.argsort(stable=True)  # (N,) rows, class after class
        first = sizes.cumsum(dim=0) - sizes  # (C,) where a class begins in by_class
        # The largest classes first: a block's rank table is as wide as its first query needs, and
        # holds little filler, because classes of like size share it.
        queries = by_class[sizes[labels[by_class]].argsort(descending=True, stable=True)]
        # |q - g|^2 = |q|^2 - 2 (q.g - |g|^2 / 2): what is in brackets is larger for nearer images.
        offsets = -self.embeds.square().sum(dim=1) / 2  # (N,)
        # One buffer for all blocks: a fresh one each would be faulted in page by page.
        buffer = self.embeds.new_empty(n * max(1, min(block_bytes // (4 * n), n)))

        while len(queries):
            width = int(sizes[labels[queries[0]]])
            n_rows = max(1, block_bytes // (4 * n + 64 * width))
            rows, queries = queries[:n_rows], queries[n_rows:]
            scores = buffer[: len(rows) * n].view(-1, n)  # (B, N)
            torch.addmm(offsets, self.embeds[rows], self.embeds.T, out=scores)

            # A class's images are a run of by_class; places beyond its end repeat the query itself.
            places = torch.arange(width, device=rows.device)
            size = sizes[labels[rows]][:, None]  # (B, 1)
            within = (first[labels[rows]][:, None] + places).clamp(max=n - 1)
            members = torch.where(places < size, by_class[within], rows[:, None])  # (B, width)
            positives = scores.gather(1, members)
            positives[members == rows[:, None]] = -torch.inf  # the query leaves by its row
            positives = positives.sort(dim=1, descending=True).values[:, :-1].contiguous()
            scores.scatter_(1, members, -torch.inf)  # what is left is of other classes

            wrong = _nearest(scores, min(n_wrong, n - 1))
            # (B, R) images of other classes that are as near as the positive or nearer
            n_ahead = n - torch.searchsorted(_sort_rows(scores), positives)
            ranks = (n_ahead + places[1:]) * (places[1:] < size)
            yield Ranking(rows, ranks, size[:, 0] - 1, wrong)


def _nearest(scores: Tensor, k: int) -> Tensor:
    """(B, k) columns of the highest scores, the lower column first among equals; -1 where -inf."""
    if not k:
        return torch.empty(len(scores), 0, dtype=torch.int64, device=scores.device)
    values, columns = scores.topk(k + 1, dim=1)
    last, next_best = values[:, k - 1], values[:, k]
    columns = columns[:, :k].sort(dim=1).values
    # Where the last choice has an equal left behind, topk has picked at will among equals.
    unsure = (last == next_best) & last.isfinite()
    if unsure.any():
        ahead, equal = scores[unsure] > last[unsure, None], scores[unsure] == last[unsure, None]
        n_equal = k - ahead.sum(dim=1, keepdim=True)
        chosen = ahead | (equal & (equal.cumsum(dim=1, dtype=torch.int32) <= n_equal))
        columns[unsure] = chosen.nonzero()[:, 1].view(-1, k)
    values = scores.gather(1, columns)
    order = values.argsort(dim=1, descending=True, stable=True)
    return columns.where(values.isfinite(), -1).gather(1, order)


def _sort_rows(scores: Tensor) -> Tensor:
    """Sort each row in place, ascending."""
    if scores.is_cuda:
        return scores.sort(dim=1).values
    # numpy's vectorised sort: 2 s where torch's takes 45 s (20,000 rows of 20,000, one thread).
    n_threads = torch.get_num_threads()
    with ThreadPoolExecutor(n_threads) as pool:
        list(pool.map(lambda part: part.sort(axis=1), np.array_split(scores.numpy(), n_threads)))
    return scores
