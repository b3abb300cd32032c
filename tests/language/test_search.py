"""The search for partners, against a search pair by pair."""

import logging
import re

import numpy as np
import pytest
import torch

from language import copies, lists, search
from language.copies import distinct, hash_rows, hash_texts
from language.embedding_store import EmbeddingStore
from language.lists import Flat, InvertedFile
from language.search import Options

N, D = 90, 6


def draw(n=N, seed=0, half=True):
    """Vectors with copies (rows 10 to 19 are rows 0 to 9, 20 to 29 are all row 3) and zero rows."""
    vectors = np.random.default_rng(seed).standard_normal((n, D))
    vectors[10:20] = vectors[:10]
    vectors[20:30] = vectors[3]
    vectors[[5, 40, n - 1]] = 0
    vectors[50] = -vectors[49]
    return vectors.astype(np.float16 if half else np.float32)


def by_brute_force(vectors, k, scopes=None, texts=None, threshold=-1.0):
    """Row by row, pair by pair; among rows of one vector the next row after the query's first."""
    vectors = vectors.astype(np.float64)
    n = len(vectors)
    partners = np.full((n, k), -1)
    sims = np.full((n, k), -np.inf)
    for i in range(n):
        candidates = []
        for j in range(n):
            if i == j or not vectors[i].any() or not vectors[j].any():
                continue
            if scopes is not None and scopes[i] != scopes[j]:
                continue
            if texts is not None and texts[i] == texts[j]:
                continue
            cosine = vectors[i] @ vectors[j]
            cosine /= np.sqrt((vectors[i] @ vectors[i]) * (vectors[j] @ vectors[j]))
            if cosine >= threshold - 1e-9:
                candidates.append((-round(cosine, 8), (j - i) % n, j, cosine))
        for place, (_, _, j, cosine) in enumerate(sorted(candidates)[:k]):
            partners[i, place], sims[i, place] = j, cosine
    return partners, sims


def check(found, expected):
    partners, sims = expected[:2]
    np.testing.assert_allclose(found.similarities, sims, atol=2e-6)
    np.testing.assert_array_equal(found.partners, partners)
    assert found.partners.dtype == np.int64 and found.similarities.dtype == np.float32
    np.testing.assert_array_equal(found.partners < 0, np.isneginf(found.similarities))


def find(vectors, k=1, *, index="auto", threshold=-1.0, recall=0.95, csls=0, **options):
    asked = Options(k=k, index=index, threshold=threshold, recall=recall, csls=csls)
    return search.search(vectors, asked, **options)


SCOPES = np.random.default_rng(1).integers(0, 9, N) * 1000
SCOPES[60] = 7  # alone
SCOPES[5] = 8  # alone, and a zero row


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("k", [1, 3, 12, 100])  # 12: more than a group of copies; 100: than rows
def test_exact_search_is_brute_force(k, half):
    vectors = draw(half=half)
    found = find(vectors, k)
    check(found, by_brute_force(vectors, k))
    expected = {"searched_by": "flat", "recall@1": 1, "zero_rows": 3, "distinct_vectors": 68}
    assert found.about == expected
    assert not (found.partners == np.arange(N)[:, None]).any()


@pytest.mark.parametrize("index", ["flat", "ivf"])
@pytest.mark.parametrize(
    "rules",
    [
        {"scopes": SCOPES},
        {"threshold": 0.9},
        {"texts": distinct(hash_rows(draw()))},
        {"scopes": SCOPES, "texts": distinct(hash_rows(draw())), "threshold": 0.2},
    ],
)
def test_rules_are_those_of_brute_force(monkeypatch, rules, index):
    """Of the inverted file, where it reads all lists."""
    monkeypatch.setattr(InvertedFile, "lists_to_read", lambda self, *_: self.n_lists)
    vectors = draw()
    found = find(vectors, 3, index=index, **rules)
    check(found, by_brute_force(vectors, 3, **rules))
    if "scopes" in rules:  # nine drawn, and that of row 60
        assert found.about["searched_by"].endswith(", in 10 scopes")
        assert (found.partners[60] == -1).all()


def by_csls(vectors, k, m, scopes=None, texts=None):
    """Conneau et al., eq. 2, pair by pair; the k best of each row, of vectors that differ."""
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1)[:, None]
    n = len(unit)
    scopes = np.zeros(n) if scopes is None else scopes
    texts = np.arange(n) if texts is None else texts
    means = []
    for i in range(n):
        first = {}  # the vector of a text is that of its first row
        for j in range(n):
            if scopes[j] == scopes[i] and texts[j] != texts[i]:
                first.setdefault(texts[j], unit[i] @ unit[j])
        means.append(np.mean(sorted(first.values())[-m:]) if first else 0)
    partners, sims = np.full((n, k), -1), np.full((n, k), -np.inf)
    for i in range(n):
        of_i = [
            (2 * (unit[i] @ unit[j]) - means[i] - means[j], j)
            for j in range(n)
            if scopes[j] == scopes[i] and texts[j] != texts[i]
        ]
        for place, (_, j) in enumerate(sorted(of_i, reverse=True)[:k]):
            partners[i, place], sims[i, place] = j, unit[i] @ unit[j]
    return partners, sims


@pytest.mark.parametrize("index", ["flat", "ivf"])
@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("m", [1, 5, 500])
def test_csls_is_that_of_its_equation(monkeypatch, index, k, m):
    """Where the inverted file reads all lists, it too; similarities stay cosines."""
    monkeypatch.setattr(InvertedFile, "lists_to_read", lambda self, *_: self.n_lists)
    vectors = np.random.default_rng(2).standard_normal((70, D)).astype(np.float32) + 0.4
    found = find(vectors, k, index=index, csls=m)
    check(found, by_csls(vectors, k, m))
    assert found.about["recall@1"] == 1
    scopes = np.random.default_rng(3).integers(0, 6, 70)
    scopes[7] = 99  # alone
    check(find(vectors, k, index=index, csls=m, scopes=scopes), by_csls(vectors, k, m, scopes))


def test_csls_with_texts_a_range_of_rows_and_blocks(monkeypatch):
    vectors = np.random.default_rng(2).standard_normal((70, D)).astype(np.float32) + 0.4
    texts = np.arange(70)
    vectors[50:60], texts[50:60] = vectors[:10], texts[:10]
    found = find(vectors, 1, csls=5, texts=texts)
    expected, sims = by_csls(vectors, 1, 5, texts=texts)
    np.testing.assert_allclose(found.similarities, sims, atol=2e-6)
    np.testing.assert_array_equal(texts[found.partners], texts[expected])
    part = find(vectors, 1, csls=5, texts=texts, rows=(20, 45))
    np.testing.assert_array_equal(part.partners, found.partners[20:45])
    monkeypatch.setattr(lists, "RUN", 8)
    monkeypatch.setattr(lists, "CPU_BLOCK_BYTES", 160)
    check(find(vectors, 1, csls=5, texts=texts), found)


def test_csls_keeps_rows_of_one_vector_together_and_chooses_hubs_less_often():
    rng = np.random.default_rng(4)
    vectors = rng.standard_normal((400, 20)).astype(np.float32)
    vectors[:12] = vectors[12:].mean(axis=0) + rng.normal(0, 0.02, (12, 20))  # near to everything
    vectors[390:] = vectors[380:390]
    plain, scaled = find(vectors), find(vectors, csls=10)
    np.testing.assert_array_equal(scaled.partners[380:390, 0], np.arange(390, 400))
    np.testing.assert_array_equal(scaled.similarities[380:], 1)
    busiest = [np.bincount(found.partners[:, 0]).max() for found in (plain, scaled)]
    assert busiest[1] < busiest[0]


def test_blocks_change_nothing(monkeypatch):
    vectors = draw()
    whole = find(vectors, 4)
    monkeypatch.setattr(copies, "READ_ROWS", 7)
    monkeypatch.setattr(search, "READ_ROWS", 7)
    monkeypatch.setattr(search, "SHARED_OUT", 100)
    monkeypatch.setattr(lists, "RUN", 8)
    monkeypatch.setattr(lists, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(lists, "CPU_BLOCK_BYTES", 160)  # five queries at a time
    np.testing.assert_array_equal(hash_texts(["a"] * 20), hash_texts(["a"])[[0] * 20])
    check(find(vectors, 4), whole)


def test_copies_of_one_vector_pair_up_in_a_ring():
    """No row becomes the partner of all its copies."""
    found = find(np.ones((7, D), np.float16), 2)
    rows = np.arange(7)
    np.testing.assert_array_equal(found.partners, np.stack([rows + 1, rows + 2], axis=1) % 7)
    np.testing.assert_array_equal(found.similarities, 1)


def test_corner_cases():
    for n in (1, 2):
        vectors = np.eye(2, D, dtype=np.float32)[:n]
        check(find(vectors, 3), by_brute_force(vectors, 3))
    found = find(np.zeros((5, D), np.float16), 2)
    assert (found.partners == -1).all()
    expected = {"searched_by": "none", "recall@1": 1, "zero_rows": 5, "distinct_vectors": 0}
    assert found.about == expected
    opposite = np.array([[0.6, 0.8], [-0.6, -0.8]], np.float32)  # without a threshold, partners
    np.testing.assert_array_equal(find(opposite).partners, [[1], [0]])


def test_one_vector_of_two_texts_is_a_partner():
    """Two captions that an encoder does not tell apart, such as by case."""
    vectors = draw()
    texts = np.arange(N)
    texts[20:25] = 3  # of the ten rows that have the vector of row 3, and row 13
    found = find(vectors, texts=texts)
    _, sims = by_brute_force(vectors, 1, texts=texts)
    np.testing.assert_allclose(found.similarities, sims, atol=2e-6)
    assert set(found.partners[20:25, 0]) <= {13, *range(25, 30)}


def test_queries_of_a_range_find_partners_everywhere():
    vectors = draw()
    for options in ({}, {"scopes": np.arange(N) % 4}):
        whole = find(vectors, 2, **options)
        parts = [find(vectors, 2, rows=span, **options) for span in [(0, 37), (37, N)]]
        check(whole, [np.concatenate([part[i] for part in parts]) for i in range(2)])
        assert sum(part.about["zero_rows"] for part in parts) == whole.about["zero_rows"]


def test_approximate_search_finds_what_it_says(caplog):
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((60, 16))
    vectors = centres[rng.integers(60, size=1500)] + 0.7 * rng.standard_normal((1500, 16))
    vectors[1200:] = vectors[:300]  # copies
    vectors[7] = 0
    exact = find(vectors, 2)
    with caplog.at_level(logging.INFO):
        found = find(vectors, 2, index="ivf", recall=0.9)
    assert found.about["searched_by"].startswith("ivf") and "recall@1" in caplog.text
    hits = found.similarities >= exact.similarities - 1e-4
    assert found.about["recall@1"] >= 0.9
    assert hits[:, 0].mean() >= found.about["recall@1"] - 0.03
    assert not (found.partners == np.arange(1500)[:, None]).any()
    assert (found.partners[7] == -1).all() and not (found.partners == 7).any()
    # The reported cosine is that of the reported partner.
    unit = vectors / np.where(vectors.any(axis=1), np.linalg.norm(vectors, axis=1), 1)[:, None]
    cosines = np.einsum("nd,nkd->nk", unit, unit[found.partners])
    there = found.partners >= 0
    np.testing.assert_allclose(found.similarities[there], cosines[there], atol=2e-3)
    copied = np.where(np.arange(300) == 7, -1, np.arange(1200, 1500))
    np.testing.assert_array_equal(found.partners[:300, 0], copied)


def test_more_lists_find_more_and_no_more_are_read_than_needed():
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(2000, 24, generator=generator)
    index, flat = InvertedFile(vectors), Flat(vectors)
    assert sorted(torch.cat(list(index.lists)).tolist()) == list(range(2000))  # each on one list
    sample = torch.arange(500)
    exact, _ = flat.others(sample, 5)
    torch.testing.assert_close(index.others(sample, 5, index.n_lists)[0], exact)

    def recall(n_read):
        found = index.others(sample, 1, n_read)[0]
        return (found >= exact[:, :1] - 1e-5).double().mean()

    recalls = [recall(n_read) for n_read in (1, 2, 4, 8, 16, 32, 64, index.n_lists)]
    assert recalls == sorted(recalls) and recalls[-1] == 1 and recalls[0] < 0.8
    n_read = index.lists_to_read(flat, sample, 0.8)
    assert recall(n_read) >= 0.8 > recall(n_read - 1)
    assert index.lists_to_read(flat, sample, 1.0) <= index.n_lists


def test_auto_is_flat_for_few_and_ivf_for_many(monkeypatch):
    monkeypatch.setattr(search, "FLAT_UP_TO", 20)
    assert find(draw()).about["searched_by"].startswith("ivf")


def test_a_store_is_searched_like_an_array(tmp_path):
    vectors = draw()
    store = EmbeddingStore(tmp_path / "s", N, part_rows=16)
    store.fill(lambda start, stop: vectors[start:stop])
    for options in ({}, {"scopes": np.arange(N) % 3}):
        check(find(store, 3, **options), by_brute_force(store[:], 3, **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k must be >= 1; got 0"),
        ({"threshold": 1.0}, "threshold must be a cosine in [-1, 1), such as 0.7; got 1.0"),
        ({"index": "hnsw"}, "index must be one of auto, flat, ivf; got hnsw"),
        ({"recall": 1.0}, "recall must be in (0, 1), such as 0.95; got 1.0"),
        ({"scopes": np.zeros(3, np.int64)}, "scopes must have a value for each of 90 vectors"),
        ({"texts": np.zeros(4, np.int64)}, "texts must have a value for each of 90 vectors; got 4"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        find(draw(), **options)


def test_values_that_are_not_finite_are_refused():
    vectors = draw()
    vectors[70, 2] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        find(vectors)
