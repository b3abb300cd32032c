"""Nearest rows by cosine similarity: exact up to some size, approximate with measured recall above.

Three ways to search. *flat* compares with everything, block by block. *ivf* is an inverted file
(Sivic and Zisserman, Video Google, ICCV 2003; Jégou et al., TPAMI 2011): vectors are filed under
their nearest of L centroids, and a query reads the lists of its few nearest centroids. Where FAISS
walks through the lists query by query, here each list meets all queries that ask for it in one
matrix product, since all queries are known beforehand: the same neighbours, and as it stands on a
GPU; tests/benchmarks/neighbours.py compares the two. *hnsw* is the graph of Malkov and Yashunin,
TPAMI 2020, by FAISS.

Rows of one vector are searched once and tie. Among them the next row after the query's own comes
first, and after the last the first: a thousand images of one caption pair up in a ring, where
"lowest row first" would make one image the partner of the other 999. Different vectors that happen
to be equally near come in no set order.
"""

import hashlib
import logging
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import faiss
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from utilities.seeding import derive

LOG = logging.getLogger(__name__)

INDICES = ("auto", "flat", "ivf", "hnsw")
FLAT_UP_TO = 100_000  # distinct vectors on a CPU, about a minute
FLAT_UP_TO_ON_GPU = 2_000_000
SAMPLE = 1000  # queries that choose the effort, and as many others that measure the recall
TOLERANCE = 1e-5  # in cosine: of two neighbours this near neither is a miss

READ_ROWS = 1 << 16  # rows read at a time
BLOCK_BYTES = 1 << 28  # of one block of similarities, or of queries with their candidates
POINTS_PER_LIST = 32  # training vectors of k-means
KMEANS_ROUNDS = 8
HNSW_LINKS = 32  # links of a node in each layer
HNSW_BUILD = 80  # candidates kept while a node is linked in


class Vectors(Protocol):
    """(N, D) floating vectors, in memory or not: an array, a memory map, an ``EmbeddingStore``."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        """The rows of a slice or of an array of int64."""


class Index(Protocol):
    """Searches U unit vectors for those nearest to some of them."""

    name: str

    def choose_effort(self, flat: "Flat", sample: Tensor, recall: float) -> int:
        """The least effort whose recall@1 on the queries ``sample`` is ``recall``, or the most.

        The more effort, the slower the search and the nearer to exact.
        """

    def search(self, queries: Tensor, m: int, effort: int) -> tuple[Tensor, Tensor]:
        """Similarities (Q, m) float32 and units (Q, m) int64, nearest first, -inf and -1 for none.

        A query finds itself too.

        Args:
            queries: (Q,) int64, in [0, U).
        """


class Nearest(NamedTuple):
    """The k nearest rows of each of Q query rows, nearest first, and how they were found."""

    partners: NDArray[np.int64]  # (Q, k); -1 where there is none
    similarities: NDArray[np.float32]  # (Q, k) cosine, in [-1, 1]; -inf where there is none
    method: str  # such as "flat" or "ivf, 4096 lists, 16 read"
    recall: float  # @1, of SAMPLE distinct queries; 1 where the search is exact
    n_distinct: int  # vectors that were searched: a vector counts once in each scope
    n_zero: int  # of the Q, those whose vector is zero


def nearest(
    vectors: Vectors,
    k: int = 1,
    *,
    index: str = "auto",
    scopes: NDArray[np.int64] | None = None,
    texts: NDArray[np.int64] | None = None,
    threshold: float = -1.0,
    rows: tuple[int, int] | None = None,
    recall: float = 0.95,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Nearest:
    """The k nearest other rows of each row.

    A row is never its own partner; it is left out by its number, so that a copy of it is a partner
    like any other. A zero row has no partner and is none.

    Args:
        vectors: (N, D); normalised here, in float32.
        k: partners of each row, >= 1.
        index: "flat", "ivf", "hnsw", or "auto": flat up to ``FLAT_UP_TO`` vectors, ivf above.
        scopes: (N,) int64; only rows of one scope are partners. Each scope is searched by itself.
        texts: (N,) int64, the text of each row; rows of one text are never partners.
        threshold: least cosine of a partner.
        rows: first and last + 1 of the rows that ask; all of them by default. All are candidates.
        recall: share of nearest neighbours to find where the search is approximate.
        device: where it is computed; hnsw always on the CPU.

    Raises:
        ValueError: k below 1, an unknown index, lengths that do not agree, a value that is not
            finite.
    """
    n = vectors.shape[0]
    if k < 1:
        raise ValueError(f"--k {k} is below 1; a row needs at least one partner")
    if index not in INDICES:
        raise ValueError(f"--index {index} is unknown; known: {', '.join(INDICES)}")
    for name, codes in (("scopes", scopes), ("texts", texts)):
        if codes is not None and len(codes) != n:
            raise ValueError(f"{len(codes)} {name} for {n} vectors; each row needs one")
    first, last = rows or (0, n)
    device = torch.device(device)

    partners = np.full((last - first, k), -1, np.int64)
    similarities = np.full((last - first, k), -np.inf, np.float32)
    reports: list[tuple[str, float, int]] = []  # index, recall, distinct vectors
    n_zero = 0
    for members in _scopes(n, scopes, first, last):
        groups, zero = _group(vectors, members, texts)
        asking = (members >= first) & (members < last)
        n_zero += int((zero & asking).sum())
        queries = np.flatnonzero(asking & ~zero)  # places in members
        if not len(queries):
            continue
        found, sims, *report = _search_units(
            vectors, members, groups, np.unique(groups.unit[queries]),
            k, index, recall, texts is not None, device, seed,
        )  # fmt: skip
        reports.append((*report, len(groups.starts) - 1))  # type: ignore[arg-type]
        for block in np.array_split(queries, math.ceil(len(queries) * k * (k + 1) / (1 << 22))):
            own, cosines = _expand(groups, block, found, sims, k, texts is not None)
            own[cosines < threshold], cosines[cosines < threshold] = -1, -np.inf
            at = members[block] - first
            partners[at] = np.where(own < 0, -1, members[own])
            similarities[at] = cosines
    name, worst = _summary(reports)
    return Nearest(
        partners, similarities, name, worst, sum(report[2] for report in reports), n_zero
    )


def _scopes(
    n: int, scopes: NDArray[np.int64] | None, first: int, last: int
) -> Iterator[NDArray[np.int64]]:
    """The rows of each scope that has a query, ascending."""
    if scopes is None:
        yield np.arange(n)
        return
    order = np.argsort(scopes, kind="stable")
    ends = np.flatnonzero(np.diff(scopes[order])) + 1
    parts = np.split(order, ends)
    for members in tqdm(parts, desc="scopes", unit="scope", leave=False, disable=len(parts) < 2):
        at = np.searchsorted(members, [first, last])
        if at[1] > at[0]:
            yield members


def _summary(reports: list[tuple[str, float, int]]) -> tuple[str, float]:
    """What searched, of the largest scope, and the mean recall, each scope by its vectors."""
    if not reports:
        return "none", 1.0
    largest = max(reports, key=lambda report: report[2])
    name = largest[0] + (f", in {len(reports)} scopes" if len(reports) > 1 else "")
    sizes = np.array([report[2] for report in reports], float)
    return name, float(np.average([report[1] for report in reports], weights=sizes))


# --------------------------------------------------------------------------------------------------
# Rows of one vector
# --------------------------------------------------------------------------------------------------
class Groups(NamedTuple):
    """M rows as U units: rows of one vector, or of one text where texts must differ.

    All rows here are places in the scope, 0..M-1.
    """

    unit: NDArray[np.int64]  # (M,) -1 for a zero row
    members: NDArray[np.int64]  # (M - zero rows,) ascending within each unit, unit after unit
    starts: NDArray[np.int64]  # (U + 1,) where each unit begins in members
    keys: NDArray[np.int64]  # unit * M + row of each of members, ascending


def _group(
    vectors: Vectors, members: NDArray[np.int64], texts: NDArray[np.int64] | None
) -> tuple[Groups, NDArray[np.bool_]]:
    """The units of ``members``, and (M,) which of these are zero rows."""
    m = len(members)
    zero = np.zeros(m, bool)
    hashes = np.zeros((m, 2), np.uint64)
    for start in range(0, m, READ_ROWS):
        block = _read(vectors, members[start : start + READ_ROWS])
        if not np.isfinite(block).all():
            raise ValueError(
                f"a vector among rows {members[start]} to {members[min(start + READ_ROWS, m) - 1]} "
                "is not finite; embed again"
            )
        zero[start : start + len(block)] = ~block.any(axis=1)
        if texts is None:
            hashes[start : start + len(block)] = hash_rows(block + block.dtype.type(0))  # no -0
    codes = distinct(hashes) if texts is None else texts[members]
    unit = np.full(m, -1, np.int64)
    _, first, number = np.unique(codes[~zero], return_index=True, return_inverse=True)
    by_first = np.empty(len(first), np.int64)  # so that the first rows of the units ascend
    by_first[first.argsort()] = np.arange(len(first))
    unit[~zero] = by_first[number]
    order = np.argsort(unit, kind="stable")[zero.sum() :]
    sizes = np.bincount(unit[order])
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return Groups(unit, order, starts, unit[order] * m + order), zero


def hash_rows(rows: NDArray[Any]) -> NDArray[np.uint64]:
    """(M, 2): 128 bits of BLAKE2 of each row's bytes."""
    return hash_bytes(memoryview(row) for row in np.ascontiguousarray(rows))


def hash_bytes(contents: Iterable[bytes | memoryview]) -> NDArray[np.uint64]:
    """(M, 2): 128 bits of BLAKE2 of each of M contents; two alike by chance: 1 in 10^24 at 10^7."""
    digests = b"".join(hashlib.blake2b(content, digest_size=16).digest() for content in contents)
    return np.frombuffer(digests, "<u8").reshape(-1, 2).astype(np.uint64)


def distinct(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """(M,) the same number for the same hash (M, 2), in [0, M)."""
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))
    fresh = np.ones(len(order), bool)
    fresh[1:] = (hashes[order[1:]] != hashes[order[:-1]]).any(axis=1)
    codes = np.empty(len(order), np.int64)
    codes[order] = np.cumsum(fresh) - 1
    return codes


def _read(vectors: Vectors, rows: NDArray[np.int64]) -> NDArray[Any]:
    """Those rows, ascending; if none is left out as a slice, which a memory map reads at once."""
    whole = len(rows) > 0 and rows[-1] - rows[0] == len(rows) - 1
    return np.asarray(vectors[int(rows[0]) : int(rows[-1]) + 1] if whole else vectors[rows])


def _expand(
    groups: Groups,
    rows: NDArray[np.int64],
    found: NDArray[np.int64],
    sims: NDArray[np.float32],
    k: int,
    texts_differ: bool,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """From the nearest units of each unit to the nearest rows of ``rows``.

    Args:
        rows: (B,) places in the scope.
        found, sims: (U, k) the other units nearest to each unit and their cosines.
        texts_differ: no row of the own unit is a partner.

    Returns:
        places (B, k), -1 for none, and cosines (B, k), -inf for none.
    """
    own = groups.unit[rows]
    units = np.concatenate([own[:, None], found[own]], axis=1)  # (B, 1 + k), nearest first
    cosines = np.concatenate([np.ones((len(rows), 1), np.float32), sims[own]], axis=1)
    sizes = np.where(units < 0, 0, np.diff(groups.starts)[units])
    counts = sizes.copy()  # how many partners each unit has to give
    counts[:, 0] = 0 if texts_differ else sizes[:, 0] - 1
    ends = np.minimum(counts, k).cumsum(axis=1)
    # The unit that fills each of the k slots, and how many of its rows have gone before.
    which = (ends[:, None, :] <= np.arange(k)[None, :, None]).sum(axis=2)  # (B, k)
    filled = which <= k
    which = np.minimum(which, k)
    unit, size, end, count = (
        np.take_along_axis(part, which, axis=1) for part in (units, sizes, ends, counts)
    )
    gone = np.arange(k) - (end - np.minimum(count, k))
    # The ring: from the first row after the query's own on.
    unit, size = np.where(filled, unit, 0), np.where(filled, size, 1)
    begin = groups.starts[unit]
    after = np.searchsorted(groups.keys, unit * len(groups.unit) + rows[:, None], side="right")
    places = groups.members[begin + (after - begin + gone) % size]
    return (
        np.where(filled, places, -1),
        np.where(filled, np.take_along_axis(cosines, which, axis=1), -np.inf).astype(np.float32),
    )


# --------------------------------------------------------------------------------------------------
# Search among units
# --------------------------------------------------------------------------------------------------
def _search_units(
    vectors: Vectors,
    members: NDArray[np.int64],
    groups: Groups,
    asking: NDArray[np.int64],
    k: int,
    index: str,
    recall: float,
    texts_differ: bool,
    device: torch.device,
    seed: int,
) -> tuple[NDArray[np.int64], NDArray[np.float32], str, float]:
    """The k other units nearest to each of the units ``asking``; (U, k), the others' rows unset."""
    firsts = members[groups.members[groups.starts[:-1]]]
    n = len(firsts)
    found = np.full((n, k), -1, np.int64)
    sims = np.full((n, k), -np.inf, np.float32)
    if not texts_differ:  # a unit of more than k rows finds all partners among its own
        asking = asking[np.diff(groups.starts)[asking] <= k]
    if n < 2 or not len(asking):
        return found, sims, "flat", 1.0
    units = _load(vectors, firsts, device)
    if index == "auto":
        most = FLAT_UP_TO if device.type == "cpu" else FLAT_UP_TO_ON_GPU
        index = "flat" if n <= most else "ivf"
    flat = Flat(units)
    chosen: Index = flat
    if index == "ivf":
        chosen = InvertedLists(units, seed=seed)
    elif index == "hnsw":
        chosen = Graph(units)
    queries = torch.from_numpy(asking)
    rng = np.random.default_rng(derive(seed, "recall sample"))
    effort, measured, name = 0, 1.0, chosen.name
    if chosen is not flat:
        sample = _draw(queries, rng)
        error = math.sqrt(recall * (1 - recall) / len(sample))  # a sample may flatter
        effort = chosen.choose_effort(flat, sample, min(recall + error, 1.0))
        name += f", {effort} {'read' if index == 'ivf' else 'candidates'}"
    best, which = _others(chosen, queries, k, effort)
    found[asking], sims[asking] = which.numpy(), best.numpy()
    if chosen is not flat:
        sample = _draw(queries, rng)
        exact = _others(flat, sample, 1, 0)[0][:, 0]
        measured = float((torch.from_numpy(sims[sample.numpy(), 0]) >= exact - TOLERANCE)
                         .double().mean())  # fmt: skip
        LOG.info("%s: recall@1 %.3f against exact search, of %d", name, measured, len(sample))
    return found, sims, name, measured


def _draw(queries: Tensor, rng: np.random.Generator) -> Tensor:
    return queries[rng.choice(len(queries), min(SAMPLE, len(queries)), replace=False)]


def _others(index: Index, queries: Tensor, k: int, effort: int) -> tuple[Tensor, Tensor]:
    """``index.search`` without the query itself, left out by its number: (Q, k) on the CPU."""
    sims, ids = index.search(queries, k + 1, effort)
    sims = sims.masked_fill(ids == queries[:, None], -torch.inf)
    sims, order = sims.sort(dim=1, descending=True, stable=True)
    ids = ids.gather(1, order).masked_fill(sims.isinf(), -1)
    return torch.where(sims.isinf(), sims, sims.clamp(-1.0, 1.0))[:, :k], ids[:, :k]


def _load(vectors: Vectors, rows: NDArray[np.int64], device: torch.device) -> Tensor:
    """Those rows on the device; half precision stays, anything else becomes float32."""
    half = np.asarray(vectors[:1]).dtype == np.float16
    loaded = torch.empty(
        (len(rows), vectors.shape[1]), dtype=torch.float16 if half else torch.float32, device=device
    )
    for start in range(0, len(rows), READ_ROWS):
        block = _read(vectors, rows[start : start + READ_ROWS])
        loaded[start : start + len(block)] = torch.from_numpy(np.array(block)).to(device)
    return loaded


def _unit(rows: Tensor) -> Tensor:
    """Unit rows in float32: half precision rounds lengths too."""
    return F.normalize(rows.float(), dim=1)


def _enter(best: Tensor, ids: Tensor, rows: Tensor, sims: Tensor, units: Tensor) -> None:
    """Let more units into the lists of the m nearest, in place.

    Finding the m largest of a row costs more than its products did, so only rows are looked at
    whose largest beats the last of their list: soon few do.

    Args:
        best, ids: (Q, m) similarities, descending, and their units.
        rows: (R,) places in these, each once.
        sims: (R, C) similarities of those queries to ``units`` (C,).
    """
    better = (sims.amax(dim=1) > best[rows, -1]).nonzero()[:, 0]
    if not len(better):
        return
    rows, m = rows[better], best.shape[1]
    near, where = sims[better].topk(min(m, sims.shape[1]), dim=1)
    both, of_both = (
        torch.cat([best[rows], near], dim=1),
        torch.cat([ids[rows], units[where]], dim=1),
    )
    best[rows], order = both.topk(m, dim=1)
    ids[rows] = of_both.gather(1, order)


class Flat:
    """Exact: compares each query with every unit."""

    name = "flat"

    def __init__(self, units: Tensor) -> None:
        self.units = units

    def choose_effort(self, flat: "Flat", sample: Tensor, recall: float) -> int:
        return 0  # there is but one

    def search(self, queries: Tensor, m: int, effort: int) -> tuple[Tensor, Tensor]:
        n, columns = len(self.units), 1 << 14
        best, ids = _empty(queries, m)
        with tqdm(total=len(queries), desc="flat", leave=False, disable=n < 1 << 16) as bar:
            for places in torch.arange(len(queries)).split(BLOCK_BYTES // (4 * columns)):
                rows = queries[places].to(self.units.device)
                asked, own = _unit(self.units[rows]), torch.arange(len(rows), device=rows.device)
                near, which = (part.to(rows.device) for part in _empty(rows, m))
                for start in range(0, n, columns):
                    units = torch.arange(start, min(start + columns, n), device=rows.device)
                    sims = asked @ _unit(self.units[start : start + columns]).T
                    _enter(near, which, own, sims, units)
                best[places], ids[places] = near.cpu(), which.cpu()
                bar.update(len(rows))
        return best, ids


def _empty(queries: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """Lists of m nearest units of which none is found yet."""
    shape = (len(queries), m)
    return torch.full(shape, -torch.inf), torch.full(shape, -1)


class InvertedLists:
    """Units filed under their nearest centroid; a query reads the lists of its nearest centroids.

    Args:
        units: (U, D), on any device.
        n_lists: L; by default the power of two near 4 * sqrt(U).
        seed: of the sample that k-means is trained on.

    The effort is the number of lists that a query reads.
    """

    def __init__(self, units: Tensor, n_lists: int | None = None, *, seed: int = 0) -> None:
        self.units = units
        n = len(units)
        wanted = n_lists or 1 << round(math.log2(4 * math.sqrt(n)))
        self.n_lists = max(1, min(wanted, n // 4))
        self.name = f"ivf, {self.n_lists} lists"
        generator = torch.Generator().manual_seed(derive(seed, "k-means"))
        sample = torch.randperm(n, generator=generator)[: POINTS_PER_LIST * self.n_lists]
        self.centroids = _kmeans(_unit(units[sample.to(units.device)]), self.n_lists)
        self.owner = torch.cat([
            self._nearest_lists(_unit(block), 1)[:, 0] for block in units.split(READ_ROWS)
        ])  # fmt: skip
        self.filed = self.owner.argsort(stable=True)  # (U,) units, list after list
        self.ends = torch.bincount(self.owner, minlength=self.n_lists).cumsum(0).tolist()

    def choose_effort(self, flat: "Flat", sample: Tensor, recall: float) -> int:
        # A neighbour is found if its list is read, so no search is needed: where does that list
        # stand among those that the query would read?
        wanted = self.owner[_others(flat, sample, 1, 0)[1][:, 0].to(self.units.device)]
        affinity = _unit(self.units[sample.to(self.units.device)]) @ self.centroids.T  # (Q, L)
        before = (affinity > affinity.gather(1, wanted[:, None])).sum(dim=1).sort().values
        return int(before[math.ceil(recall * len(sample)) - 1]) + 1

    def _nearest_lists(self, asked: Tensor, n: int) -> Tensor:
        """(Q, n) int64, the lists whose centroids are nearest."""
        rows = max(1, BLOCK_BYTES // (8 * self.n_lists))
        blocks = asked.split(rows)
        return torch.cat([(block @ self.centroids.T).topk(n).indices for block in blocks])

    def search(self, queries: Tensor, m: int, effort: int) -> tuple[Tensor, Tensor]:
        # Of a query are held D values in float32 and, sorted by list, what it reads.
        size = max(1, 2 * BLOCK_BYTES // (4 * self.units.shape[1] + 24 * effort + 24 * m))
        best, ids = _empty(queries, m)
        few = len(queries) < 1 << 16
        with tqdm(total=len(queries), desc="ivf", leave=False, disable=few) as bar:
            for places in torch.arange(len(queries)).split(size):
                rows = queries[places].to(self.units.device)
                near, which = self._search(_unit(self.units[rows]), m, effort)
                best[places], ids[places] = near.cpu(), which.cpu()
                bar.update(len(rows))
        return best, ids

    def _search(self, asked: Tensor, m: int, effort: int) -> tuple[Tensor, Tensor]:
        """Each list in turn meets all queries that read it."""
        lists = self._nearest_lists(asked, effort).flatten()  # query after query, (Q * effort,)
        readers = lists.argsort(stable=True) // effort  # list after list
        ends = torch.bincount(lists, minlength=self.n_lists).cumsum(0).tolist()
        best, ids = (part.to(asked.device) for part in _empty(asked, m))
        for here in range(self.n_lists):
            units = self.filed[self.ends[here - 1] if here else 0 : self.ends[here]]
            who = readers[ends[here - 1] if here else 0 : ends[here]]
            if not len(units) or not len(who):
                continue
            members = _unit(self.units[units])
            for rows in who.split(max(1, BLOCK_BYTES // (4 * len(units)))):
                _enter(best, ids, rows, asked[rows] @ members.T, units)
        return best, ids


def _kmeans(points: Tensor, k: int) -> Tensor:
    """Spherical k-means (Dhillon and Modha, Machine Learning 2001): (k, D) unit centroids.

    Starts from the first k points, which are in random order already. A centroid that loses all its
    points stays where it is.
    """
    centroids = points[:k].clone()
    block = max(1, BLOCK_BYTES // (8 * k))
    for _ in tqdm(range(KMEANS_ROUNDS), desc="k-means", leave=False, disable=k < 1000):
        owner = torch.cat([(some @ centroids.T).argmax(dim=1) for some in points.split(block)])
        sums = torch.zeros_like(centroids).index_add_(0, owner, points)
        alone = torch.bincount(owner, minlength=k) == 0
        centroids = F.normalize(torch.where(alone[:, None], centroids, sums), dim=1)
    return centroids


class Graph:
    """HNSW by FAISS, on the CPU. The effort is the number of candidates kept during a search."""

    name = f"hnsw, {HNSW_LINKS} links"
    efforts = (16, 32, 64, 128, 256, 512)

    def __init__(self, units: Tensor) -> None:
        self.units = units.cpu()
        dim = units.shape[1]
        self.index = faiss.IndexHNSWSQ(
            dim, faiss.ScalarQuantizer.QT_fp16, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT
        )
        self.index.hnsw.efConstruction = HNSW_BUILD
        blocks = self.units.split(1 << 12)
        for block in tqdm(blocks, desc="hnsw", unit="block", leave=False, disable=len(blocks) < 9):
            rows = _unit(block).numpy()
            if not self.index.is_trained:
                self.index.train(rows)
            self.index.add(rows)

    def choose_effort(self, flat: "Flat", sample: Tensor, recall: float) -> int:
        exact = _others(flat, sample, 1, 0)[0]
        for effort in self.efforts:
            found = _others(self, sample, 1, effort)[0]
            if (found >= exact - TOLERANCE).double().mean() >= recall:
                break
        return effort

    def search(self, queries: Tensor, m: int, effort: int) -> tuple[Tensor, Tensor]:
        # Not an argument of search: pytorch-metric-learning imports faiss.contrib.torch_utils,
        # which replaces search, in the whole process, with one that takes no parameters.
        self.index.hnsw.efSearch = max(effort, m)
        results = []
        for rows in queries.split(max(1, BLOCK_BYTES // (4 * m * self.units.shape[1]))):
            asked = _unit(self.units[rows])
            ids = torch.from_numpy(self.index.search(asked.numpy(), m)[1])
            # FAISS compares with vectors rounded to half precision once more: from the real ones.
            near = F.normalize(self.units[ids].float(), dim=2)  # (Q, m, D)
            sims = torch.einsum("qd,qmd->qm", asked, near)
            best, order = sims.masked_fill(ids < 0, -torch.inf).sort(dim=1, descending=True)
            results.append((best, ids.gather(1, order)))
        best, ids = (torch.cat(parts) for parts in zip(*results, strict=True))
        return best, ids
