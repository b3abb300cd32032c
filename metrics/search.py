"""The one search through a gallery that all retrieval metrics share.

For each query it counts the exact rank of every image of its class, block of queries by block of
queries, so that memory stays bounded and no list of a thousand neighbours truncates the ranking.

* If images are their own queries, a query is left out by its row, not by its place in the list, so
  that a copy of it counts as the image that it is. Separate queries leave out nothing.
* Among equal distances the images of other classes come first, so that an embedder that collapses
  to one point scores the least possible; among these the lower row comes first.

On a CPU the kernels below go through a block row by row in numpy, which compares, counts and sorts
several times faster than torch's operators or lists of FAISS (docs/evaluation.md).
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from metrics.gallery import Gallery

BLOCK_BYTES = 64 << 20  # of similarities and ranks at a time; larger blocks are not faster
FEW = 16  # positives of a query up to which counting for each is cheaper than sorting for all


class Ranking(NamedTuple):
    """The ranks that the search finds for a block of B queries in a gallery of N images."""

    rows: Tensor  # (B,) int64, the queries' rows: in the gallery, or in the set of queries
    ranks: Tensor  # (B, R) int64, ascending, 1 = nearest; padded with 0
    n_positives: Tensor  # (B,) int64, images of the query's class, itself excluded; as many ranks
    wrong: Tensor  # (B, K) int64, rows of the nearest images of other classes; padded with -1
    group_ranks: Tensor  # (B,) int64, rank of the nearest image of the query's group; 0 if none
    potentials: Tensor  # (B,) mean of exp(-2 |q - g|^2) over the gallery, the query excluded


def rank(
    gallery: Gallery,
    *,
    n_wrong: int = 0,
    group_ranks: bool = False,
    potentials: bool = False,
    block_bytes: int = BLOCK_BYTES,
) -> Iterator[Ranking]:
    """Rank the gallery for every query; the blocks together hold each query once.

    Args:
        n_wrong: K, how many nearest images of other classes to find for each query.
        group_ranks, potentials: whether to compute these fields; 0 otherwise.
        block_bytes: memory that a block may take, though it holds at least one query; at most
            ``BLOCK_BYTES`` is used. Changes results by at most the last bit of a matrix product.
    """
    n, device = len(gallery), gallery.embeds.device
    itself = gallery.queries is None
    embeds = gallery.asking.embeds  # (Q, D)
    of, asked, sizes = gallery.classes
    by_class = of.argsort(stable=True)  # (N,) rows, class after class
    first = sizes.cumsum(dim=0) - sizes  # (C,) start of each class in by_class
    # The largest classes first: the rank table of a block is as wide as its first query needs, and
    # has little padding, because the classes in it are of similar size.
    queue = sizes[asked].argsort(descending=True, stable=True)  # (Q,)
    # |q - g|^2 = |q|^2 - 2 (q.g - |g|^2 / 2): the term in brackets is larger for nearer images.
    # Between unit rows q.g alone gives the order.
    offsets = -gallery.embeds.square().sum(dim=1) / 2  # (N,)
    # One buffer for all blocks: a fresh one each would be faulted in page by page.
    block_bytes = min(block_bytes, BLOCK_BYTES)
    listed = 24 * (device.type != "cpu") * bool(n_wrong)  # a sorted copy with its columns
    row_bytes = n * (4 + listed + 8 * group_ranks + 8 * potentials)
    buffer = embeds.new_empty(n * max(1, min(block_bytes // row_bytes, len(queue))))

    while len(queue):
        width = int(sizes[asked[queue[0]]])
        n_rows = max(1, block_bytes // (row_bytes + 96 * width))
        rows, queue = queue[:n_rows], queue[n_rows:]
        scores = buffer[: len(rows) * n].view(-1, n)  # (B, N)
        torch.mm(embeds[rows], gallery.embeds.T, out=scores)
        if not gallery.is_unit:
            scores += offsets
        if itself:
            scores[torch.arange(len(rows), device=device), rows] = -torch.inf  # not a neighbour
        energies = _potentials(gallery, scores, rows) if potentials else scores.new_zeros(len(rows))

        # A class is a run of by_class; its last image fills the places beyond its end.
        size = sizes[asked[rows]][:, None]  # (B, 1)
        places = torch.arange(width, device=device)
        within = first[asked[rows]][:, None] + places.minimum(size - 1).clamp(min=0)
        members = by_class[within.clamp(max=n - 1)]  # (B, width)
        found = scores.gather(1, members)
        # Only scores of other classes remain in scores.
        scores.scatter_(1, members, found.masked_fill(size > 0, -torch.inf))
        n_positives = size[:, 0] - int(itself)
        # A query that is in the gallery has -inf itself, and is the last of its class.
        found = _sort_rows(found.masked_fill_(places >= size, -torch.inf))
        positives = found.flip(1)[:, : width - int(itself)].contiguous()  # (B, R)

        mates = torch.zeros_like(rows)
        if group_ranks:
            mates = _group_ranks(gallery, scores, positives, rows)
        wrong = _top_columns(scores, min(n_wrong, n - int(itself)))
        places = places[: positives.shape[1]]
        ranks = _count_ahead(scores, positives) + places + 1
        ranks *= places < n_positives[:, None]
        yield Ranking(rows, ranks, n_positives, wrong, mates, energies)


def _potentials(gallery: Gallery, scores: Tensor, rows: Tensor) -> Tensor:
    """Return the (B,) mean of exp(-2 |q - g|^2) over the images whose scores are finite."""
    n = len(gallery) - int(gallery.queries is None)
    squares = gallery.asking.embeds[rows].square().sum(dim=1, keepdim=True)  # (B, 1)
    if gallery.is_unit:
        squares = torch.full_like(squares, 2)  # |q|^2 + |g|^2, which the scores leave out
    return torch.add(-2 * squares, scores, alpha=4).exp_().sum(dim=1) / n


def _group_ranks(gallery: Gallery, scores: Tensor, positives: Tensor, rows: Tensor) -> Tensor:
    """Return the (B,) rank of the nearest image of the query's group, its class included; 0: none.

    ``scores`` (B, N) are -inf for the query's class, whose own descending scores are ``positives``.
    """
    groups = gallery.groups[gallery.labels.to(scores.device)]  # (N,)
    own = gallery.groups[gallery.asking.labels.to(scores.device)[rows]]
    mates = groups == own[:, None]  # (B, N)
    best = scores.masked_fill(~mates, -torch.inf).amax(dim=1)
    if positives.shape[1]:
        best = best.maximum(positives[:, 0])
    ahead = (scores >= best[:, None]).logical_and_(mates.logical_not_())
    return (ahead.sum(dim=1, dtype=torch.int32) + 1) * best.isfinite()


def _count_ahead(scores: Tensor, positives: Tensor) -> Tensor:
    """Return (B, R) int64: how many scores of its row are at least as high as each positive.

    May sort the rows of ``scores`` (B, N) in place.
    """
    few = positives.shape[1] <= FEW
    if scores.device.type != "cpu":
        if not few:
            ordered = scores.sort(dim=1).values
            return scores.shape[1] - torch.searchsorted(ordered, positives)
        counts = [(scores >= column[:, None]).sum(dim=1) for column in positives.unbind(dim=1)]
        return torch.stack(counts, dim=1) if counts else positives.long()

    lines, heights = scores.numpy(), positives.numpy()
    counted = np.empty(heights.shape, dtype=np.int64)
    if few:  # in one thread: several would pass the interpreter's lock around every 12 us
        ahead = np.empty(lines.shape[1], dtype=bool)
        for line, highs, counts in zip(lines, heights, counted, strict=True):
            for place, height in enumerate(highs):
                np.greater_equal(line, height, out=ahead)
                counts[place] = np.count_nonzero(ahead)
        return torch.from_numpy(counted)

    def count(rows: range) -> None:
        for row in rows:
            line = lines[row]
            line.sort()
            counted[row] = len(line) - line.searchsorted(heights[row])

    _in_threads(count, len(lines))
    return torch.from_numpy(counted)


def _top_columns(scores: Tensor, k: int) -> Tensor:
    """Return the (B, k) columns of the highest scores, the lower among equals; -1 for -inf."""
    if scores.device.type != "cpu":
        values, columns = scores.sort(dim=1, descending=True, stable=True)
        return columns[:, :k].where(values[:, :k].isfinite(), -1)

    lines = scores.numpy()
    top = np.empty((len(lines), k), dtype=np.int64)
    n_strands = lines.shape[1] // 16

    def find(rows: range) -> None:
        for row in rows:
            line, floor = lines[row], -np.inf
            if n_strands > k:
                # Of the maxima of strands of 16 scores, k reach this floor, so k scores do.
                maxima = line[: 16 * n_strands].reshape(16, n_strands).max(axis=0)
                floor = np.partition(maxima, n_strands - k)[n_strands - k]
            columns = np.flatnonzero(line >= floor)
            columns = columns[np.argsort(-line[columns], kind="stable")[:k]]
            top[row] = np.where(np.isfinite(line[columns]), columns, -1)

    if k:
        _in_threads(find, len(lines))
    return torch.from_numpy(top)


def _sort_rows(values: Tensor) -> Tensor:
    """Sort each row ascending, in place on a CPU."""
    if values.device.type != "cpu":
        return values.sort(dim=1).values
    # numpy's vectorised sort: 2 s where torch's takes 45 s (20,000 rows of 20,000, one thread).
    rows = values.numpy()
    _in_threads(lambda part: rows[part.start : part.stop].sort(axis=1), len(rows))
    return values


def _in_threads(work: Callable[[range], None], n: int) -> None:
    """Split rows 0 to n - 1 among torch's number of threads, and run ``work`` on each part."""
    n_threads = torch.get_num_threads()
    bounds = [n * i // n_threads for i in range(n_threads + 1)]
    with ThreadPoolExecutor(n_threads) as pool:
        list(pool.map(work, map(range, bounds, bounds[1:])))
