"""Nearest unit vectors by cosine similarity: exact, or by an inverted file.

Both keep the vectors on lists, and each list meets all queries that read it in one matrix product.
Not FAISS, because this runs on any device of torch and its inverted file takes a third of the time
of FAISS's from 200,000 vectors on (docs/scaling.md).
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from utilities.progress import bar
from utilities.seeding import derive

READ_ROWS = 1 << 16  # rows read at a time
BLOCK_BYTES = 1 << 28  # of one block of similarities, or of queries with their candidates
CPU_BLOCK_BYTES = 1 << 24  # of one block of similarities on a CPU
RUN = 1 << 10  # vectors on a list of the exact search: their similarities stay in the CPU's cache
BAR_FROM = 1 << 16  # queries that take long enough for a progress bar
POINTS_PER_LIST = 32  # training vectors of k-means
KMEANS_ROUNDS = 8


class Flat:
    """Exact search among (U, D) vectors of any length: every query reads all lists.

    With ``handicaps`` (U,), vectors are ranked by their cosine less their handicap.
    """

    name = "flat"

    def __init__(self, vectors: Tensor) -> None:
        self.vectors = vectors
        self.handicaps: Tensor | None = None
        self.lists: Sequence[Tensor] = torch.arange(len(vectors), device=vectors.device).split(RUN)

    def search(self, queries: Tensor, m: int, n_read: int = 0) -> tuple[Tensor, Tensor]:
        """Return ranks and vectors (Q, m) on the CPU, nearest first; -inf and -1 for none.

        A rank is the cosine less the handicap. A query finds itself too. An inverted file reads
        ``n_read`` lists for each query.
        """
        # Of a query are held D values in float32 and, sorted by list, what it reads.
        size = max(1, 2 * BLOCK_BYTES // (4 * self.vectors.shape[1] + 24 * n_read + 24 * m))
        most = CPU_BLOCK_BYTES if self.vectors.device.type == "cpu" else BLOCK_BYTES
        best, ids = _empty(len(queries), m)
        few = len(queries) < BAR_FROM
        with bar(total=len(queries), desc=self.name, hidden=few) as shown:
            for places in torch.arange(len(queries)).split(size):
                points = unit(self.vectors[queries[places].to(self.vectors.device)])
                near, which = (part.to(points.device) for part in _empty(len(points), m))
                readers = self._readers(points, n_read)
                for members, reading in zip(self.lists, readers, strict=True):
                    if not len(members) or not len(reading):
                        continue
                    others = unit(self.vectors[members])
                    less = None if self.handicaps is None else self.handicaps[members]
                    for rows in reading.split(max(1, most // (4 * len(members)))):
                        sims = points[rows] @ others.T
                        _enter(near, which, rows, sims if less is None else sims - less, members)
                best[places], ids[places] = near.cpu(), which.cpu()
                shown.update(len(points))
        return best, ids

    def others(self, queries: Tensor, k: int, n_read: int = 0) -> tuple[Tensor, Tensor]:
        """Return cosines and vectors as ``search``, without the query itself, with k columns."""
        sims, ids = self.search(queries, k + 1, n_read)
        sims = sims.masked_fill(ids == queries[:, None], -torch.inf)
        sims, order = sims.sort(dim=1, descending=True, stable=True)
        ids = ids.gather(1, order).masked_fill(sims.isinf(), -1)
        sims = sims + self.handicaps_of(ids)
        return torch.where(sims.isinf(), sims, sims.clamp(-1.0, 1.0))[:, :k], ids[:, :k]

    def handicaps_of(self, ids: Tensor) -> Tensor:
        """Return the handicap of each of ``ids``, on the CPU; 0 for an id of -1."""
        if self.handicaps is None:
            return torch.zeros(ids.shape)
        return self.handicaps.cpu()[ids.clamp(min=0)].masked_fill(ids < 0, 0.0)

    def _readers(self, points: Tensor, n_read: int) -> Sequence[Tensor]:
        """For each list the places of its readers among the queries ``points`` (Q, D)."""
        return [torch.arange(len(points), device=points.device)] * len(self.lists)


class InvertedFile(Flat):
    """Approximate search: vectors lie on the list of their nearest centroid.

    Source: Sivic and Zisserman, Video Google, ICCV 2003; Jégou et al., TPAMI 2011.
    """

    def __init__(self, vectors: Tensor, *, seed: int = 0) -> None:
        super().__init__(vectors)
        n = len(vectors)
        # The power of two near 4 sqrt(n), but four or more vectors a list.
        self.n_lists = max(1, min(1 << round(math.log2(4 * math.sqrt(n))), n // 4))
        self.name = f"ivf, {self.n_lists} lists"
        generator = torch.Generator().manual_seed(derive(seed, "k-means"))
        sample = torch.randperm(n, generator=generator)[: POINTS_PER_LIST * self.n_lists]
        self.centroids = _kmeans(unit(vectors[sample.to(vectors.device)]), self.n_lists)
        blocks = vectors.split(READ_ROWS)
        self.owner = torch.cat([self._nearest_lists(unit(block), 1)[:, 0] for block in blocks])
        sizes = torch.bincount(self.owner, minlength=self.n_lists).tolist()
        self.lists = self.owner.argsort(stable=True).split(sizes)

    def lists_to_read(self, flat: Flat, sample: Tensor, recall: float) -> int:
        """Return the least n_read whose recall@1 on the queries ``sample`` is ``recall``."""
        # A neighbour is found if its list is read, so no search is needed: where does that list
        # stand among those that the query would read?
        wanted = self.owner[flat.others(sample, 1)[1][:, 0].to(self.vectors.device)]
        affinity = unit(self.vectors[sample.to(self.vectors.device)]) @ self.centroids.T  # (Q, L)
        before = (affinity > affinity.gather(1, wanted[:, None])).sum(dim=1).sort().values
        return int(before[math.ceil(recall * len(sample)) - 1]) + 1

    def _readers(self, points: Tensor, n_read: int) -> Sequence[Tensor]:
        lists = self._nearest_lists(points, n_read).flatten()  # query after query, (Q * n_read,)
        sizes = torch.bincount(lists, minlength=self.n_lists).tolist()
        return (lists.argsort(stable=True) // n_read).split(sizes)

    def _nearest_lists(self, points: Tensor, n: int) -> Tensor:
        """(Q, n) int64, the lists whose centroids are nearest."""
        blocks = points.split(max(1, BLOCK_BYTES // (8 * self.n_lists)))
        return torch.cat([(block @ self.centroids.T).topk(n).indices for block in blocks])


def unit(rows: Tensor) -> Tensor:
    """Return unit rows in float32: half precision rounds lengths too."""
    return F.normalize(rows.float(), dim=1)


def _empty(n: int, m: int) -> tuple[Tensor, Tensor]:
    """Similarities and vectors of n queries that have found none of their m nearest yet."""
    return torch.full((n, m), -torch.inf), torch.full((n, m), -1)


def _enter(best: Tensor, ids: Tensor, rows: Tensor, sims: Tensor, members: Tensor) -> None:
    """Enter ``members`` (C,) into the nearest (Q, m) of ``rows`` (R,), by ``sims`` (R, C)."""
    # Finding the m largest of a row costs more than its products did: skip rows that gain nothing.
    better = (sims.amax(dim=1) > best[rows, -1]).nonzero()[:, 0]
    if not len(better):
        return
    rows, m = rows[better], best.shape[1]
    near, where = sims[better].topk(min(m, sims.shape[1]), dim=1)
    both = torch.cat([best[rows], near], dim=1)
    of_both = torch.cat([ids[rows], members[where]], dim=1)
    best[rows], order = both.topk(m, dim=1)
    ids[rows] = of_both.gather(1, order)


def _kmeans(points: Tensor, k: int) -> Tensor:
    """Spherical k-means (Dhillon and Modha, Machine Learning 2001): (k, D) unit centroids."""
    centroids = points[:k].clone()  # points come in random order
    block = max(1, BLOCK_BYTES // (8 * k))
    for _ in bar(range(KMEANS_ROUNDS), desc="k-means", hidden=k < 1000):
        owner = torch.cat([(some @ centroids.T).argmax(dim=1) for some in points.split(block)])
        sums = torch.zeros_like(centroids).index_add_(0, owner, points)
        alone = torch.bincount(owner, minlength=k) == 0
        centroids = F.normalize(torch.where(alone[:, None], centroids, sums), dim=1)
    return centroids
