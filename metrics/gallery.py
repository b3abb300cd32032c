"""An embedded image set, and the one search through it that all retrieval metrics share.

For each query the search counts the exact rank of every image of its class, block of queries by
block of queries, so that memory stays bounded and no list of a thousand neighbours cuts the ranking
short. From these ranks follow recall at every k, mAP, mAP@R, R-precision and MRR alike.

How equal distances and copies are treated:

* Where the images are their own queries, a query is left out by its row, not by its place in the
  list, so that a copy of it counts as the image that it is. Separate queries leave out nothing.
* Among equal distances the images of other classes come first. A tie is never a hit: an embedder
  that collapses to one point scores the least possible, and the order of files moves no score.
* Among equally distant images of other classes the lower row comes first.
"""

from collections.abc import Callable, Iterator
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
FEW = 16  # positives of a query up to which counting for each is cheaper than sorting for all


class Queries(NamedTuple):
    """Q embedded images that ask for images of their class."""

    embeds: Tensor  # (Q, D) float32
    labels: Tensor  # (Q,) int64, >= 0, of the same numbering as the gallery's


class Ranking(NamedTuple):
    """What the search finds for a block of B queries in a gallery of N images."""

    rows: Tensor  # (B,) int64, the queries' rows: in the gallery, or in the set of queries
    ranks: Tensor  # (B, R) int64, ascending, 1 = nearest; 0 fills up the row
    n_positives: Tensor  # (B,) int64, images of the query's class, itself aside; as many ranks
    wrong: Tensor  # (B, K) int64, rows of the nearest images of other classes; -1 fills up the row
    group_ranks: Tensor  # (B,) int64, rank of the nearest image of the query's group; 0 if none
    potentials: Tensor  # (B,) mean of exp(-2 |q - g|^2) over the gallery, the query itself aside


class Classes(NamedTuple):
    """Class numbers from 0 without gaps, in the order of labels, over gallery and queries."""

    of: Tensor  # (N,) int64, of the gallery's images
    asked: Tensor  # (Q,) int64, of the queries
    sizes: Tensor  # (C,) int64, images in the gallery


class Moments(NamedTuple):
    """Where the gallery's images of each class lie, NaN for a class of queries alone."""

    centres: Tensor  # (C, D) float64, means
    variances: Tensor  # (C,) float64, mean of |g - centre|^2


@dataclass(frozen=True)
class Gallery:
    """N embedded images, among which queries look for their class.

    Args:
        embeds: (N, D) float32, on any device; distances are euclidean, ``unit`` gives cosine.
        labels: (N,) int64, >= 0, not necessarily contiguous.
        class_words: (C, Dw) float32 unit rows, row c embeds what class c is called.
        class_groups: C names, of the group that each class belongs to.
        seed: of the starting centroids of k-means.
        queries: a set of its own, on the device of ``embeds``, as customers' photos are for In-Shop
            (Liu et al., DeepFashion, CVPR 2016); None: each image queries all the others.

    Raises:
        ValueError: shapes do not fit, there is no image, or an embedding is not finite.
    """

    embeds: Tensor
    labels: Tensor
    class_words: Tensor | None = None
    class_groups: tuple[str, ...] | None = None
    seed: int = 0
    queries: Queries | None = None

    def __post_init__(self) -> None:
        _check("a gallery", self.embeds, self.labels)
        n_named = int(self.labels.max()) + 1
        if self.queries is not None:
            _check("a set of queries", *self.queries)
            if self.queries.embeds.shape[1] != self.embeds.shape[1]:
                raise ValueError(
                    f"queries are of {self.queries.embeds.shape[1]} dimensions, "
                    f"the gallery of {self.embeds.shape[1]}; embed both by one model"
                )
            n_named = max(n_named, int(self.queries.labels.max()) + 1)
        for name, given in (("class_words", self.class_words), ("class_groups", self.class_groups)):
            if given is not None and len(given) < n_named:
                raise ValueError(f"{name} describes {len(given)} classes, labels need {n_named}")

    def __len__(self) -> int:
        return len(self.embeds)

    @property
    def asking(self) -> Queries:
        """The queries: a set of their own, or the gallery's images themselves."""
        return self.queries or Queries(self.embeds, self.labels)

    @cached_property
    def is_unit(self) -> bool:
        """Whether all embeddings have length 1, but for rounding."""
        parts = (self.embeds, self.asking.embeds)
        return all(bool(((part.norm(dim=1) - 1).abs() < 1e-5).all()) for part in parts)

    @cached_property
    def unit(self) -> "Gallery":
        """The same images with unit embeddings, whose euclidean order is the cosine order.

        Embeddings that are unit already are left as they are: their euclidean and cosine metrics
        are the same numbers and share one search.
        """
        if self.is_unit:
            return self
        queries = self.queries and self.queries._replace(
            embeds=F.normalize(self.queries.embeds, dim=1)
        )
        return replace(self, embeds=F.normalize(self.embeds, dim=1), queries=queries)

    @cached_property
    def classes(self) -> Classes:
        """What class each image and each query is of."""
        both = torch.cat([self.labels, self.asking.labels]).to(self.embeds.device)
        classes = both.unique(return_inverse=True)[1]
        of, asked = classes[: len(self)], classes[len(self) :]
        return Classes(of, asked, of.bincount(minlength=int(classes.max()) + 1))

    @cached_property
    def moments(self) -> Moments:
        """Mean and variance of each class."""
        of, _, sizes = self.classes
        blocks = list(zip(self.embeds.split(4096), of.split(4096), strict=True))
        centres = self.embeds.new_zeros(len(sizes), self.embeds.shape[1], dtype=torch.float64)
        for embeds, rows in blocks:
            centres.index_add_(0, rows, embeds.double())
        centres /= sizes[:, None]
        variances = centres.new_zeros(len(sizes))
        for embeds, rows in blocks:
            variances.index_add_(0, rows, (embeds - centres[rows]).square().sum(dim=1))
        return Moments(centres, variances / sizes)

    @cached_property
    def clusters(self) -> Tensor:
        """(N,) int64: k-means with as many clusters as this gallery has classes."""
        return kmeans(self.embeds, int((self.classes.sizes > 0).sum()), seed=self.seed)

    @cached_property
    def spherical_clusters(self) -> Tensor:
        """(N,) int64: the same by cosine, with unit centroids."""
        n_classes = int((self.classes.sizes > 0).sum())
        return kmeans(self.unit.embeds, n_classes, seed=self.seed, spherical=True)

    @cached_property
    def groups(self) -> Tensor:
        """(C,) int32, an id for the group of each class.

        Raises:
            ValueError: the gallery has no ``class_groups``.
        """
        if self.class_groups is None:
            raise ValueError("the groups of classes are missing; give the gallery class_groups")
        ids = {name: index for index, name in enumerate(dict.fromkeys(self.class_groups))}
        return torch.tensor(
            [ids[name] for name in self.class_groups], dtype=torch.int32, device=self.embeds.device
        )

    def search(
        self,
        *,
        n_wrong: int = 0,
        group_ranks: bool = False,
        potentials: bool = False,
        block_bytes: int = BLOCK_BYTES,
    ) -> Iterator[Ranking]:
        """Rank the gallery for every query; the blocks together hold each query once.

        Args:
            n_wrong: K, how many nearest images of other classes to find for each query.
            group_ranks: whether to rank the nearest image of each query's group; 0 otherwise.
            potentials: whether to compute them; 0 otherwise.
            block_bytes: what a block may take, though it holds at least one query; above
                ``BLOCK_BYTES`` it makes no difference. It does not change results, but for the last
                bit of a matrix product.
        """
        n, device = len(self), self.embeds.device
        itself = self.queries is None
        embeds = self.asking.embeds  # (Q, D)
        of, asked, sizes = self.classes
        by_class = of.argsort(stable=True)  # (N,) rows, class after class
        first = sizes.cumsum(dim=0) - sizes  # (C,) where a class begins in by_class
        # The largest classes first: a block's rank table is as wide as its first query needs, and
        # holds little filler, because classes of like size share it.
        queue = sizes[asked].argsort(descending=True, stable=True)  # (Q,)
        # |q - g|^2 = |q|^2 - 2 (q.g - |g|^2 / 2): what is in brackets is larger for nearer images.
        # Between unit rows q.g alone says it.
        offsets = -self.embeds.square().sum(dim=1) / 2  # (N,)
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
            torch.mm(embeds[rows], self.embeds.T, out=scores)
            if not self.is_unit:
                scores += offsets
            if itself:
                scores[torch.arange(len(rows), device=device), rows] = -torch.inf  # not a neighbour
            energies = self._potentials(scores, rows) if potentials else scores.new_zeros(len(rows))

            # A class's images are a run of by_class; its last image fills up the places beyond.
            size = sizes[asked[rows]][:, None]  # (B, 1)
            places = torch.arange(width, device=device)
            within = first[asked[rows]][:, None] + places.minimum(size - 1).clamp(min=0)
            members = by_class[within.clamp(max=n - 1)]  # (B, width)
            found = scores.gather(1, members)
            # What is left in scores is of other classes.
            scores.scatter_(1, members, found.masked_fill(size > 0, -torch.inf))
            n_positives = size[:, 0] - int(itself)
            # A query that is in the gallery has -inf itself, and is the last of its class.
            found = _sort_rows(found.masked_fill_(places >= size, -torch.inf))
            positives = found.flip(1)[:, : width - int(itself)].contiguous()  # (B, R)

            mates = torch.zeros_like(rows)
            if group_ranks:
                mates = self._group_ranks(scores, positives, rows)
            wrong = _nearest(scores, min(n_wrong, n - int(itself)))
            ranks = _count_ahead(scores, positives) + places[: positives.shape[1]] + 1
            ranks *= places[: positives.shape[1]] < n_positives[:, None]
            yield Ranking(rows, ranks, n_positives, wrong, mates, energies)

    def _potentials(self, scores: Tensor, rows: Tensor) -> Tensor:
        """(B,) mean of exp(-2 |q - g|^2) over the images whose scores are finite."""
        n = len(self) - int(self.queries is None)
        squares = self.asking.embeds[rows].square().sum(dim=1, keepdim=True)  # (B, 1)
        if self.is_unit:
            squares = torch.full_like(squares, 2)  # |q|^2 + |g|^2, which the scores leave out
        return torch.add(-2 * squares, scores, alpha=4).exp_().sum(dim=1) / n

    def _group_ranks(self, scores: Tensor, positives: Tensor, rows: Tensor) -> Tensor:
        """(B,) rank of the nearest image of the query's group, its class included; 0 if none.

        Args:
            scores: (B, N), -inf for images of the query's class.
            positives: (B, R) descending scores of those.
            rows: (B,) of the queries.
        """
        groups = self.groups[self.labels.to(scores.device)]  # (N,)
        mates = groups == self.groups[self.asking.labels.to(scores.device)[rows]][:, None]  # (B, N)
        best = scores.masked_fill(~mates, -torch.inf).amax(dim=1)
        if positives.shape[1]:
            best = best.maximum(positives[:, 0])
        ahead = (scores >= best[:, None]).logical_and_(mates.logical_not_())
        return (ahead.sum(dim=1, dtype=torch.int32) + 1) * best.isfinite()


def _check(what: str, embeds: Tensor, labels: Tensor) -> None:
    """Refuse what is no set of embedded images."""
    if embeds.ndim != 2 or labels.shape != embeds.shape[:1]:
        raise ValueError(
            f"{what} needs embeds (N, D) and labels (N,), not {tuple(embeds.shape)} "
            f"and {tuple(labels.shape)}"
        )
    if not len(embeds):
        raise ValueError(f"{what} needs at least one image; this one is empty")
    n_bad = int((~embeds.square().sum(dim=1).isfinite()).sum())
    if n_bad:
        raise ValueError(
            f"{n_bad} of {len(embeds)} embeddings are not finite, or too large to square; "
            "lower --lr, or evaluate with --precision fp32"
        )


# The two functions below go through a block row by row in numpy on a CPU: it compares, counts and
# sorts whole vector registers at a time, and the row is in the cache meanwhile. 60,000 scores take
# 12 us for each positive counted, 0.3 ms to sort; torch's own operators on the block take 3 to
# 8 times as long.


def _count_ahead(scores: Tensor, positives: Tensor) -> Tensor:
    """(B, R) int64: how many scores of its row each positive has at its height or above.

    May sort the rows of ``scores`` (B, N) in place. ``positives`` is (B, R).
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


def _nearest(scores: Tensor, k: int) -> Tensor:
    """(B, k) columns of the highest scores, the lower column first among equals; -1 where -inf.

    Args:
        scores: (B, N), N >= k.
    """
    if scores.device.type != "cpu":
        values, columns = scores.sort(dim=1, descending=True, stable=True)
        return columns[:, :k].where(values[:, :k].isfinite(), -1)

    lines = scores.numpy()
    nearest = np.empty((len(lines), k), dtype=np.int64)
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
            nearest[row] = np.where(np.isfinite(line[columns]), columns, -1)

    if k:
        _in_threads(find, len(lines))
    return torch.from_numpy(nearest)


def _sort_rows(values: Tensor) -> Tensor:
    """Sort each row ascending, in place where that can be."""
    if values.device.type != "cpu":
        return values.sort(dim=1).values
    # numpy's vectorised sort: 2 s where torch's takes 45 s (20,000 rows of 20,000, one thread).
    rows = values.numpy()
    _in_threads(lambda part: rows[part.start : part.stop].sort(axis=1), len(rows))
    return values


def _in_threads(work: Callable[[range], None], n: int) -> None:
    """``work`` through rows 0 to n - 1, a part in each of torch's threads."""
    n_threads = torch.get_num_threads()
    bounds = [n * i // n_threads for i in range(n_threads + 1)]
    with ThreadPoolExecutor(n_threads) as pool:
        list(pool.map(work, map(range, bounds, bounds[1:])))
