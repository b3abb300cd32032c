"""The partners of each row: the nearest other rows by cosine similarity, under the user's rules.

Exact up to some size, above it approximate with measured recall (``language.lists``). Rows of one
vector pair up in a ring (``language.copies``); other ties come in no set order.
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from language import INDICES
from language.copies import READ_ROWS, Floats, Groups, Ints, Vectors, group, read_rows, share_out
from language.lists import Flat, InvertedFile
from language.partner_folder import Partners
from utilities.progress import bar
from utilities.seeding import derive

LOG = logging.getLogger(__name__)

FLAT_UP_TO = 100_000  # distinct vectors on a CPU, about a minute
FLAT_UP_TO_ON_GPU = 2_000_000
SAMPLE = 1000  # queries that choose how many lists are read, and as many that measure the recall
TOLERANCE = 1e-5  # in cosine: of two neighbours this near neither is a miss
SHARED_OUT = 1 << 22  # numbers in a block that is shared out among copies


@dataclass(frozen=True, kw_only=True)
class Options:
    """Rules for partners, and how they are searched.

    Args:
        k: partners of each row, >= 1.
        threshold: least cosine of a partner, in [-1, 1).
        scope: one of ``language.SCOPES``; only rows of one scope are partners.
        distinct: rows of one text are never partners.
        csls: 0 ranks the partners j of i by their cosine. A number m ranks them by cos(i, j)
            - r(j) / 2, where r(j) is the mean cosine of j with the m other vectors nearest to it
            in its scope, so that a caption near to everything is chosen less often. That is the
            order of Conneau et al., Word Translation Without Parallel Data, ICLR 2018, eq. 2, with
            one set for both languages. Rows of one vector come first all the same.
        index: "flat" (exact), "ivf" (approximate), or "auto": flat up to ``FLAT_UP_TO`` vectors.
        recall: share of nearest neighbours to find where the search is approximate, in (0, 1).
    """

    k: int = 1
    threshold: float = -1.0
    scope: str = "none"
    distinct: bool = False
    csls: int = 0
    index: str = "auto"
    recall: float = 0.95

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k must be >= 1; got {self.k}")
        if self.csls < 0:
            raise ValueError(f"csls must be >= 1, such as 10, or 0 for none; got {self.csls}")
        if not -1 <= self.threshold < 1:
            raise ValueError(
                f"threshold must be a cosine in [-1, 1), such as 0.7; got {self.threshold}"
            )
        if self.index not in INDICES:
            raise ValueError(f"index must be one of {', '.join(INDICES)}; got {self.index}")
        if not 0 < self.recall < 1:
            raise ValueError(f"recall must be in (0, 1), such as 0.95; got {self.recall}")


def search(
    vectors: Vectors,
    options: Options,
    *,
    scopes: Ints | None = None,
    texts: Ints | None = None,
    rows: tuple[int, int] | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Partners:
    """Find the nearest other rows of each row, (Q, k); a zero row has no partner and is nobody's.

    Args:
        vectors: (N, D) of any length.
        scopes: (N,) int64, the scope of each row; None is one scope.
        texts: (N,) int64, the text of each row, for ``distinct``; None lets texts be equal.
        rows: first row, and last + 1, of the Q whose partners are searched among all N.

    ``about`` has "searched_by", "recall@1" (of SAMPLE distinct queries), "distinct_vectors" (a
    vector counts once in each scope) and "zero_rows" (of the Q).
    """
    n, k = vectors.shape[0], options.k
    for name, codes in (("scopes", scopes), ("texts", texts)):
        if codes is not None and len(codes) != n:
            raise ValueError(f"{name} must have a value for each of {n} vectors; got {len(codes)}")
    first, last = rows or (0, n)
    partners = np.full((last - first, k), -1, np.int64)
    similarities = np.full((last - first, k), -np.inf, np.float32)
    reports: list[tuple[str, float, int]] = []  # how, recall, distinct vectors
    n_zero = 0
    for scope in _scopes(n, scopes, first, last):
        groups, zero = group(vectors, scope, texts)
        asking = (scope >= first) & (scope < last)
        n_zero += int((zero & asking).sum())
        queries = np.flatnonzero(asking & ~zero)  # places in scope
        if not len(queries):
            continue
        wanted = np.unique(groups.group[queries])
        if texts is None:  # a group of more than k rows finds all partners among its own
            wanted = wanted[np.diff(groups.starts)[wanted] <= k]
        found, sims, *report = _search_groups(
            vectors, scope, groups, wanted, options, torch.device(device), seed
        )
        reports.append((*report, len(groups.starts) - 1))  # type: ignore[arg-type]
        for block in np.array_split(queries, math.ceil(len(queries) * k * (k + 1) / SHARED_OUT)):
            places, cosines = share_out(groups, block, found, sims, own_too=texts is None)
            far = cosines < options.threshold
            places[far], cosines[far] = -1, -np.inf
            at = scope[block] - first
            partners[at] = np.where(places < 0, -1, scope[places])
            similarities[at] = cosines
    return Partners(partners, similarities, {**_summary(reports), "zero_rows": n_zero})


def _scopes(n: int, scopes: Ints | None, first: int, last: int) -> Iterator[Ints]:
    """The rows of each scope that has a query, ascending."""
    if scopes is None:
        yield np.arange(n)
        return
    order = np.argsort(scopes, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(scopes[order])) + 1)
    for scope in bar(parts, desc="scopes", unit="scope", hidden=len(parts) < 2):
        at = np.searchsorted(scope, [first, last])
        if at[1] > at[0]:
            yield scope


def _summary(reports: list[tuple[str, float, int]]) -> dict[str, str | float | int]:
    """The search of the largest scope, and the mean recall weighted by distinct vectors."""
    if not reports:
        return {"searched_by": "none", "recall@1": 1.0, "distinct_vectors": 0}
    largest = max(reports, key=lambda report: report[2])
    name = largest[0] + (f", in {len(reports)} scopes" if len(reports) > 1 else "")
    sizes = [report[2] for report in reports]
    recall = float(np.average([report[1] for report in reports], weights=sizes))
    return {"searched_by": name, "recall@1": round(recall, 4), "distinct_vectors": sum(sizes)}


def _search_groups(
    vectors: Vectors,
    scope: Ints,
    groups: Groups,
    wanted: Ints,
    options: Options,
    device: torch.device,
    seed: int,
) -> tuple[Ints, Floats, str, float]:
    """The k other groups nearest to each of the groups ``wanted``: (U, k), other rows unset."""
    rows = scope[groups.members[groups.starts[:-1]]]  # the first of each group
    n, k = len(rows), options.k
    found = np.full((n, k), -1, np.int64)
    sims = np.full((n, k), -np.inf, np.float32)
    if n < 2 or not len(wanted):
        return found, sims, "flat", 1.0
    index = options.index
    if index == "auto":
        most = FLAT_UP_TO if device.type == "cpu" else FLAT_UP_TO_ON_GPU
        index = "flat" if n <= most else "ivf"
    loaded = _load(vectors, rows, device)
    flat = Flat(loaded)
    queries = torch.from_numpy(wanted)
    if index == "flat":
        if options.csls:
            flat.handicaps = _handicaps(flat, options.csls)
        sims[wanted], found[wanted] = map(torch.Tensor.numpy, flat.others(queries, k))
        return found, sims, flat.name, 1.0

    inverted = InvertedFile(loaded, seed=seed)
    rng = np.random.default_rng(derive(seed, "recall sample"))
    sample = _draw(queries, rng)
    error = math.sqrt(options.recall * (1 - options.recall) / len(sample))  # a sample may flatter
    aim = min(options.recall + error, 1.0)
    n_read = inverted.lists_to_read(flat, sample, aim)
    if options.csls:
        inverted.handicaps = flat.handicaps = _handicaps(inverted, options.csls, n_read)
        n_read = inverted.lists_to_read(flat, sample, aim)
    sims[wanted], found[wanted] = map(torch.Tensor.numpy, inverted.others(queries, k, n_read))
    sample = _draw(queries, rng)
    best, nearest = flat.others(sample, 1)
    exact = (best - flat.handicaps_of(nearest))[:, 0].numpy()
    reached = sims - inverted.handicaps_of(torch.from_numpy(found)).numpy()
    recall = float((reached[sample.numpy(), 0] >= exact - TOLERANCE).mean())
    name = f"{inverted.name}, {n_read} read"
    LOG.info("%s: recall@1 %.3f against exact search of %d queries", name, recall, len(sample))
    return found, sims, name, recall


def _handicaps(index: Flat, m: int, n_read: int = 0) -> torch.Tensor:
    """Return (U,) half the mean cosine of each vector with the m nearest others, by ``index``."""
    n = len(index.vectors)
    cosines, ids = index.others(torch.arange(n), min(m, n - 1), n_read)
    there = ids >= 0
    mean = torch.where(there, cosines, 0.0).sum(dim=1) / there.sum(dim=1).clamp(min=1)
    return (mean / 2).to(index.vectors.device)


def _draw(queries: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    return queries[rng.choice(len(queries), min(SAMPLE, len(queries)), replace=False)]


def _load(vectors: Vectors, rows: Ints, device: torch.device) -> torch.Tensor:
    """Those rows on the device; half precision stays, anything else becomes float32."""
    half = np.asarray(vectors[:1]).dtype == np.float16
    loaded = torch.empty(
        (len(rows), vectors.shape[1]), dtype=torch.float16 if half else torch.float32, device=device
    )
    for start in range(0, len(rows), READ_ROWS):
        block = read_rows(vectors, rows[start : start + READ_ROWS])
        loaded[start : start + len(block)] = torch.from_numpy(np.array(block)).to(device)
    return loaded
