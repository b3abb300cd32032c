import json
import logging
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from language import embedding_store, nearest, neighbours
from language.embedding_store import EmbeddingStore
from language.nearest import distinct, hash_rows
from language.neighbours import Options, Rank, build, build_visual, from_released_json, read
from tests.language.test_embedding_store import Letters

N, D = 90, 6


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)


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
    partners, sims = expected
    np.testing.assert_allclose(found.similarities, sims, atol=2e-6)
    np.testing.assert_array_equal(found.partners, partners)
    assert found.partners.dtype == np.int64 and found.similarities.dtype == np.float32
    np.testing.assert_array_equal(found.partners < 0, np.isneginf(found.similarities))


# --------------------------------------------------------------------------------- the search
@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("k", [1, 3, 12, 100])  # 12: more than a group of copies; 100: than rows
def test_flat_is_brute_force(k, half):
    vectors = draw(half=half)
    found = nearest.nearest(vectors, k)
    check(found, by_brute_force(vectors, k))
    assert found.method == "flat" and found.recall == 1 and found.n_zero == 3
    assert not (found.partners == np.arange(N)[:, None]).any()


def test_blocks_change_nothing(monkeypatch):
    vectors = draw()
    whole = nearest.nearest(vectors, 4)
    monkeypatch.setattr(nearest, "READ_ROWS", 7)
    monkeypatch.setattr(nearest, "BLOCK_BYTES", 5 << 16)  # five queries at a time
    check(nearest.nearest(vectors, 4), (whole.partners, whole.similarities))


def test_copies_of_one_vector_pair_up_in_a_ring():
    """No row becomes the partner of all its copies."""
    found = nearest.nearest(np.ones((7, D), np.float16), 2)
    rows = np.arange(7)
    np.testing.assert_array_equal(found.partners, np.stack([rows + 1, rows + 2], axis=1) % 7)
    np.testing.assert_array_equal(found.similarities, 1)


@pytest.mark.parametrize("n", [1, 2])
def test_one_and_two_rows(n):
    vectors = np.eye(2, D, dtype=np.float32)[:n]
    check(nearest.nearest(vectors, 3), by_brute_force(vectors, 3))


def test_all_rows_zero():
    found = nearest.nearest(np.zeros((5, D), np.float16), 2)
    assert (found.partners == -1).all() and found.n_zero == 5 and found.n_distinct == 0


def test_scopes_are_kept_apart():
    vectors = draw()
    scopes = np.random.default_rng(1).integers(0, 9, N) * 1000
    scopes[60] = 7  # alone
    scopes[5] = 8  # alone, and a zero row
    found = nearest.nearest(vectors, 3, scopes=scopes)
    check(found, by_brute_force(vectors, 3, scopes=scopes))
    assert (found.partners[60] == -1).all()
    assert found.method == "flat, in 10 scopes"  # nine drawn, and that of row 60


def test_threshold():
    vectors = draw()
    found = nearest.nearest(vectors, 3, threshold=0.9)
    check(found, by_brute_force(vectors, 3, threshold=0.9))
    assert 0 < (found.partners[:, 0] < 0).sum() < N


def test_opposite_vectors_are_partners_where_there_is_no_threshold():
    vectors = np.array([[0.6, 0.8], [-0.6, -0.8]], np.float32)
    np.testing.assert_array_equal(nearest.nearest(vectors, 1).partners, [[1], [0]])


def test_rows_of_one_text_are_never_partners():
    vectors = draw()
    texts = distinct(hash_rows(vectors))
    check(nearest.nearest(vectors, 4, texts=texts), by_brute_force(vectors, 4, texts=texts))


def test_one_vector_of_two_texts_is_a_partner():
    """Two captions that an encoder does not tell apart, such as by case."""
    vectors = draw()
    texts = np.arange(N)
    texts[20:25] = 3  # of the ten rows that have the vector of row 3, and row 13
    found = nearest.nearest(vectors, 1, texts=texts)
    _, sims = by_brute_force(vectors, 1, texts=texts)
    np.testing.assert_allclose(found.similarities, sims, atol=2e-6)
    assert set(found.partners[20:25, 0]) <= {13, *range(25, 30)}


def test_queries_of_a_range_find_partners_everywhere():
    vectors = draw()
    scopes = np.arange(N) % 4
    for options in ({}, {"scopes": scopes}):
        whole = nearest.nearest(vectors, 2, **options)
        parts = [nearest.nearest(vectors, 2, rows=span, **options) for span in [(0, 37), (37, N)]]
        check(whole, [np.concatenate([part[i] for part in parts]) for i in range(2)])
        assert sum(part.n_zero for part in parts) == whole.n_zero


@pytest.mark.parametrize("index", ["ivf", "hnsw"])
def test_approximate_search_finds_what_it_says(index, caplog):
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((60, 16))
    vectors = centres[rng.integers(60, size=1500)] + 0.7 * rng.standard_normal((1500, 16))
    vectors[1200:] = vectors[:300]  # copies
    vectors[7] = 0
    exact = nearest.nearest(vectors, 2)
    with caplog.at_level(logging.INFO):
        found = nearest.nearest(vectors, 2, index=index, recall=0.9)
    assert found.method.startswith(index) and "recall@1" in caplog.text
    hits = found.similarities >= exact.similarities - 1e-4
    assert found.recall >= 0.9
    assert hits[:, 0].mean() >= found.recall - 0.03
    assert not (found.partners == np.arange(1500)[:, None]).any()
    assert (found.partners[7] == -1).all() and not (found.partners == 7).any()
    # The reported cosine is that of the reported partner.
    unit = vectors / np.where(vectors.any(axis=1), np.linalg.norm(vectors, axis=1), 1)[:, None]
    cosines = np.einsum("nd,nkd->nk", unit, unit[found.partners])
    there = found.partners >= 0
    np.testing.assert_allclose(found.similarities[there], cosines[there], atol=2e-3)
    copies = np.where(np.arange(300) == 7, -1, np.arange(1200, 1500))
    np.testing.assert_array_equal(found.partners[:300, 0], copies)


def test_reading_all_lists_is_exact():
    vectors = torch.from_numpy(draw(300, half=False))
    index = nearest.InvertedLists(vectors, n_lists=8)
    queries = torch.arange(300)
    sims, _ = index.search(queries, 5, 8)
    exact, _ = nearest.Flat(vectors).search(queries, 5, 0)
    torch.testing.assert_close(sims, exact)
    assert sorted(index.filed.tolist()) == list(range(300))  # each unit on one list


def test_fewer_lists_find_less_and_effort_is_no_more_than_needed():
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(2000, 24, generator=generator)
    index, flat = nearest.InvertedLists(vectors), nearest.Flat(vectors)
    sample = torch.arange(500)
    exact = nearest._others(flat, sample, 1, 0)[0]
    recalls = {
        effort: (nearest._others(index, sample, 1, effort)[0] >= exact - 1e-5).double().mean()
        for effort in (1, 2, 4, 8, 16, 32, 64, index.n_lists)
    }
    assert list(recalls.values()) == sorted(recalls.values()) and recalls[index.n_lists] == 1
    assert recalls[1] < 0.8
    effort = index.choose_effort(flat, sample, 0.8)
    found = nearest._others(index, sample, 1, effort)[0]
    less = nearest._others(index, sample, 1, effort - 1)[0]
    assert (found >= exact - 1e-5).double().mean() >= 0.8 > (less >= exact - 1e-5).double().mean()
    assert index.choose_effort(flat, sample, 1.0) <= index.n_lists


def test_auto_is_flat_for_few_and_ivf_for_many(monkeypatch):
    vectors = draw()
    assert nearest.nearest(vectors, 1, index="auto").method == "flat"
    monkeypatch.setattr(nearest, "FLAT_UP_TO", 20)
    assert nearest.nearest(vectors, 1, index="auto").method.startswith("ivf")


def test_a_store_is_searched_like_an_array(tmp_path):
    vectors = draw()
    store = EmbeddingStore(tmp_path / "s", N, encoder="e", content="c", part_rows=16)
    store.fill(lambda start, stop: vectors[start:stop])
    scopes = np.arange(N) % 3
    for options in ({}, {"scopes": scopes}):
        check(nearest.nearest(store, 3, **options), by_brute_force(store[:], 3, **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "--k 0 is below 1"),
        ({"index": "tree"}, "--index tree is unknown; known: auto, flat, ivf, hnsw"),
        ({"scopes": np.zeros(3, np.int64)}, "3 scopes for 90 vectors"),
        ({"texts": np.zeros(4, np.int64)}, "4 texts for 90 vectors"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        nearest.nearest(draw(), **options)


def test_values_that_are_not_finite_are_refused():
    vectors = draw()
    vectors[70, 2] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        nearest.nearest(vectors, 1)


# --------------------------------------------------------------------------------- the folder
CAPTIONS = ["a fox", "the red fox", "a fox", "", "a cat", "cats act", "dog", "12", "a god", "a fox"]


def test_neighbours_of_captions(tmp_path):
    made = build("toy", CAPTIONS, Letters(), Options(k=2))
    rows = Letters().encode(CAPTIONS).numpy().astype(np.float16)
    _, sims = by_brute_force(rows, 2)
    np.testing.assert_allclose(made.similarities, sims, atol=2e-6)
    assert made.partners[0].tolist() == [2, 9] and made.partners[9].tolist() == [0, 2]
    assert made.partners[3].tolist() == [-1, -1] and made.partners[7].tolist() == [-1, -1]
    assert made.folder.parent == tmp_path / "cache/language_guided_similarity/neighbours"
    about = made.about
    assert about["zero_rows"] == 2 and about["without_partner"] == 2 and about["rows"] == 10
    assert about["distinct_captions"] == 8 and about["k"] == 2 and about["recall@1"] == 1
    nearest_sims = sims[:, 0][np.isfinite(sims[:, 0])]
    assert about["mean_similarity"] == pytest.approx(nearest_sims.mean(), abs=1e-4)
    assert about["encoder"] == "letters" and "numpy" in about["versions"]


def test_what_is_there_is_read_and_embeddings_serve_other_options():
    build("toy", CAPTIONS, Letters(), Options(k=2))
    encoder = Letters()
    assert build("toy", CAPTIONS, encoder, Options(k=2)).partners.shape == (10, 2)
    other = build("toy", CAPTIONS, encoder, Options(k=1, no_identical=True))
    assert encoder.asked == []
    assert 2 not in other.partners[0] and 9 not in other.partners[0]
    encoder = Letters()
    encoder.fingerprint = "letters 2"
    assert build("toy", CAPTIONS, encoder).folder != other.folder
    assert encoder.asked  # another encoder, other embeddings
    encoder = Letters()
    build("toy", [*CAPTIONS[:-1], "owl"], encoder)
    assert "owl" in encoder.asked  # other captions, other embeddings


def test_interrupted_embedding_goes_on(monkeypatch):
    monkeypatch.setattr(
        neighbours, "EmbeddingStore", lambda *a, **k: EmbeddingStore(*a, **k, part_rows=4)
    )
    with pytest.raises(KeyboardInterrupt):
        build("toy", CAPTIONS, Letters(fails_on="dog"))
    encoder = Letters()
    made = build("toy", CAPTIONS, encoder)
    assert "the red fox" not in encoder.asked and "dog" in encoder.asked
    assert made.partners[0].tolist() == [2]


def test_two_processes_find_what_one_finds(monkeypatch, tmp_path):
    """Rank 1 goes first and, where it would wait for rank 0, rank 0 runs. Both find the embeddings
    of the one; that ranks share these is for the test of the store."""
    one = build("toy", CAPTIONS, Letters(), Options(k=2), folder=tmp_path / "one")
    made = []

    def rank_0(left, what):
        if not left():
            return
        monkeypatch.setattr(neighbours, "wait_for", lambda left, what: None)
        made.append(
            build(
                "toy", CAPTIONS, Letters(), Options(k=2), folder=tmp_path / "two", rank=Rank(0, 2)
            )
        )
        assert left() == 0

    monkeypatch.setattr(neighbours, "wait_for", rank_0)
    monkeypatch.setattr(embedding_store, "wait_for", lambda left, what: None)
    made.append(
        build("toy", CAPTIONS, Letters(), Options(k=2), folder=tmp_path / "two", rank=Rank(1, 2))
    )
    assert len(made) == 2
    for result in made:
        check(result, (one.partners, one.similarities))
        assert result.about["processes"] == 2 and result.about["zero_rows"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "one", "two"]


def test_ranks_are_those_of_torchrun(monkeypatch):
    assert Rank.of_process() == (0, 1)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert Rank.of_process() == (3, 8)


def test_scopes_limit_the_partners():
    scopes = np.array([0, 1, 1, 0, 0, 1, 0, 0, 1, 1])
    made = build("toy", CAPTIONS, Letters(), Options(scope="year"), scopes=scopes)
    assert made.partners[2].tolist() == [9] and made.partners[9].tolist() == [2]
    assert all(scopes[i] == scopes[j] for i, (j,) in enumerate(made.partners) if j >= 0)
    with pytest.raises(ValueError, match="--scope year needs the scope of each of the 10 rows"):
        build("toy", CAPTIONS, Letters(), Options(scope="year"))


def test_visual_neighbours(tmp_path):
    vectors = draw()
    captions = [str(i // 2) for i in range(N)]
    options = {"model": "m", "fingerprint": "f", "digest": "d", "captions": captions}
    made = build_visual("v", N, lambda a, b: vectors[a:b], Options(k=2), **options)
    unit = vectors.astype(np.float32)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-9)
    check(made, by_brute_force(unit.astype(np.float16), 2))
    assert made.about["by"] == "visual"
    other = build_visual("v", N, lambda a, b: vectors[a:b], Options(no_identical=True), **options)
    assert all(j < 0 or captions[i] != captions[j] for i, (j,) in enumerate(other.partners))
    with pytest.raises(ValueError, match="--no_identical needs a caption of each image"):
        build_visual(
            "v", N, lambda a, b: vectors[a:b], Options(no_identical=True), model="m",
            fingerprint="f", digest="d",
        )  # fmt: skip


def test_a_folder_of_others_is_refused(tmp_path):
    folder = tmp_path / "out"
    made = build("toy", CAPTIONS, Letters(), folder=folder)
    with pytest.raises(ValueError, match=r"holds other neighbours: k 1 \(now 2\)"):
        build("toy", CAPTIONS, Letters(), Options(k=2), folder=folder)
    with pytest.raises(ValueError, match="10 rows of toy, but there are 9 now"):
        build("toy", CAPTIONS[:9], Letters(), folder=folder)
    with pytest.raises(ValueError, match="other neighbours: content"):
        build("toy", CAPTIONS[::-1], Letters(), folder=folder)
    with pytest.raises(ValueError, match="of other images or captions"):
        read(folder, digest="abc")
    assert read(folder, n=10, digest=made.about["content"]).partners.shape == (10, 1)


def test_damaged_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no neighbours; make them"):
        read(tmp_path / "nothing")
    folder = tmp_path / "out"
    build("toy", CAPTIONS, Letters(), folder=folder)
    np.save(folder / "partners.npy", np.zeros((4, 1), np.int64))
    with pytest.raises(ValueError, match=r"cannot be read \(\(4, 1\) partners"):
        read(folder)
    (folder / "partners.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(ValueError, match="cannot be read"):
        read(folder)
    (folder / "about.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(ValueError, match="format 99 is newer"):
        read(folder)


def test_half_written_folders_are_passed_over(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    np.save(folder / "partners.npy", np.zeros((10, 1), np.int64))  # and nothing else
    made = build("toy", CAPTIONS, Letters(), folder=folder)
    assert made.partners[0].tolist() == [2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "--k 0 is below 1"),
        ({"threshold": 1.0}, "--threshold 1.0 is no cosine in [-1, 1)"),
        ({"index": "tree"}, "--index tree is unknown"),
        ({"recall": 1.0}, "a recall of 1.0"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Options(**options)
    assert replace(Options(), k=3).k == 3


def test_no_captions_at_all():
    with pytest.raises(ValueError, match="toy has no images"):
        build("toy", [], Letters())


# ----------------------------------------------------------------------------- the released files
KEYS = [
    "cats_2017_000001/aa.jpg",
    "cats_2017_000001/bb.jpeg",
    "dogs_2018.tar/cc.png",
    "x/dogs_2018/dd",
]


def released(tmp_path, entries):
    file = tmp_path / "redcaps.json"
    file.write_text(json.dumps(entries))
    return file


@pytest.mark.parametrize("chunk", [1, 7, 1 << 16])  # entries that end at no end of a piece
def test_released_neighbours(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(neighbours, "CHUNK", chunk)
    file = released(tmp_path, [
        [["cats_2017_000001", "aa"], ["dogs_2018", "cc"], 0.5],
        [["cats_2017_000001", "aa"], ["dogs_2018", "dd"], 0.75],
        [["dogs_2018", "cc"], ["cats_2017_000001", "bb"], 0.25, 0.9],
        [["gone", "zz"], ["cats_2017_000001", "bb"], 0.25],
        [["dogs_2018", "dd"], ["gone", "zz"], 0.25],
        [["dogs_2018", "dd"], ["dogs_2018", "dd"], 1.0],
    ])  # fmt: skip
    found = from_released_json(file, KEYS)
    assert found.partners.tolist() == [[3, 2], [-1, -1], [1, -1], [-1, -1]]
    none = -np.inf
    assert found.similarities.tolist() == [[0.75, 0.5], [none, none], [0.25, none], [none, none]]
    assert (found.n_pairs, found.n_unknown) == (6, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1}', "no JSON list"),
        ('[["a", "b"]]', r"entry 0 is \['a', 'b'\], expected"),
        ('[[["a", "b"], ["c", "d"], 0.5], ', "cut short"),
        ("[]", "none of its 0 pairs"),
        (
            '[[["a", "b"], ["c", "d"], 0.5]]',
            "its last is of a/b, and the set begins with cats_2017",
        ),
    ],
)
def test_other_files_are_refused(tmp_path, text, message):
    file = tmp_path / "file.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        from_released_json(file, KEYS)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--from_json .*nothing\.json does not exist"):
        from_released_json(tmp_path / "nothing.json", KEYS)
