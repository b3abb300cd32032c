"""Mutual partners and the quality of pairs, against loops over pairs."""

from collections import Counter

import numpy as np
import pytest

from language import neighbours, pair_quality
from language.pair_quality import mutual, quality, reach
from language.pairing import ImageEmbedder, Rows, find
from language.search import Options, search
from tests.language.letters import Letters

N, K = 80, 3


@pytest.fixture
def found():
    """Partners of vectors of which twelve are copies of one, and some have no partner."""
    vectors = np.random.default_rng(0).standard_normal((N, 5)).astype(np.float32)
    vectors[20:32] = vectors[20]
    vectors[[4, 70]] = 0
    return vectors, search(vectors, Options(k=K, threshold=0.3))


def nearer_than(vectors, i, j):
    """How many rows are nearer to j than i is."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    cosines = unit @ unit[j]
    cosines[j] = -9
    return int((cosines > cosines[i] + 1e-5).sum())


def test_mutual_partners_are_among_each_other_s_nearest(found):
    vectors, there = found
    kept = mutual(there.partners, there.similarities, reach(there.partners, there.similarities))
    pairs = [(i, c) for i in range(N) for c in range(K) if there.partners[i, c] >= 0]
    expected = {(i, c) for i, c in pairs if nearer_than(vectors, i, there.partners[i, c]) < K}
    assert set(zip(*map(np.ndarray.tolist, np.nonzero(kept)), strict=True)) == expected
    assert 0 < len(expected) < len(pairs)
    assert kept[20:32].all()  # a ring of twelve copies, more than the three partners of each


@pytest.mark.parametrize("block", [7, 1000])
def test_quality_is_that_of_a_loop(found, monkeypatch, block):
    monkeypatch.setattr(pair_quality, "BLOCK", block)
    vectors, (partners, similarities, *_) = found
    looks = np.random.default_rng(1).integers(0, N, (N, 9))
    looks[::2, 0] = partners[::2, 1]

    def usable(some, sims):
        return (some >= 0) & (sims >= 0.6)

    pairs = [
        (i, int(partners[i, c]), similarities[i, c])
        for i in range(N)
        for c in range(K)
        if partners[i, c] >= 0 and similarities[i, c] >= 0.6
    ]
    chosen = Counter(j for _, j, _ in pairs)
    made = quality(partners, similarities, usable=usable, looks=looks)
    assert (made.images, made.pairs) == (len({i for i, *_ in pairs}), len(pairs))
    assert (made.partners, made.busiest) == (len(chosen), max(chosen.values()))
    assert made.similarity == pytest.approx(np.mean([sim for *_, sim in pairs]))
    assert made.mutual == np.mean([nearer_than(vectors, i, j) < K for i, j, _ in pairs])
    assert made.visual == np.mean([j in looks[i] for i, j, _ in pairs])
    everything = quality(partners, similarities)
    assert everything.pairs == int((partners >= 0).sum()) and everything.visual is None


def test_no_pair_has_no_quality():
    nothing = quality(np.full((5, 1), -1), np.full((5, 1), -np.inf, np.float32))
    assert nothing.pairs == nothing.partners == nothing.busiest == 0
    assert np.isnan([nothing.similarity, nothing.mutual]).all()


def test_the_report_of_the_command(own_cache):
    rng = np.random.default_rng(3)
    captions = ["".join(rng.choice(list("abcdef"), 6)) for _ in range(60)]
    made = find(Rows("toy", 60, "c", captions), Letters())
    images = rng.standard_normal((60, 4)).astype(np.float32)
    embedder = ImageEmbedder(lambda start, stop: images[start:stop], "m", "f")
    looks = find(Rows("toy", 60, "c"), embedder, Options(k=10))
    lines = neighbours.report(made, looks)
    assert [line.split(":")[0].strip() for line in lines] == ["all", "mutual", "random"]
    everything = quality(made.partners, made.similarities, looks=looks.partners)
    assert lines[0] == f"     all: {everything}" and "100.0% mutual" in lines[1]
    assert lines[2].endswith("16.95% by chance (10 of 59)")
    texts = Letters().encode(captions).numpy()
    mean = (texts @ texts.T)[~np.eye(60, dtype=bool)].mean()
    assert float(lines[2].split("similarity ")[1].split(";")[0]) == pytest.approx(mean, abs=0.1)
    assert [line.split(":")[0].strip() for line in neighbours.report(made)] == ["all", "mutual"]
