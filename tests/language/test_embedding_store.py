import json
import logging
import re

import numpy as np
import pytest

from language.copies import hash_texts
from language.embedding_store import EmbeddingStore
from tests.language.letters import Letters

TEXTS = ["fox", "kit fox", "fox", "", "cat", "Ünïcode \ud800", "dog", "cat", "owl", "an owl"]


def store(folder, n=10, **options):
    return EmbeddingStore(folder, n, **({"part_rows": 4} | options))


def filled(folder, encoder=None):
    made = store(folder)
    made.fill_with_texts(TEXTS, encoder or Letters())
    return made


def expected(texts=TEXTS):
    return Letters().encode(texts).numpy().astype(np.float16)


def test_parts_hold_the_embeddings_in_the_order_of_the_texts(tmp_path):
    encoder = Letters()
    store(tmp_path, about={"encoder": "letters 1"})
    filled(tmp_path, encoder)
    files = sorted((tmp_path / "text_emb").glob("*"))
    assert [path.name for path in files] == [f"text_emb_000{i}.npy" for i in range(3)]
    parts = [np.load(path) for path in files]
    assert [part.shape for part in parts] == [(4, 26), (4, 26), (2, 26)]
    assert all(part.dtype == np.float16 for part in parts)
    np.testing.assert_array_equal(np.concatenate(parts), expected())
    assert encoder.asked[:3] == ["fox", "kit fox", ""]  # "fox" once in its part
    about = json.loads((tmp_path / "store.json").read_text())
    assert about == {"kind": "text", "rows": 10, "part_rows": 4, "encoder": "letters 1"}


def test_headers_are_those_that_embedding_reader_parses(tmp_path):
    """embedding-reader, which autofaiss reads with, takes shape and dtype from the first line."""
    content = filled(tmp_path).path(0).read_bytes()
    line = content.split(b"\n")[0].decode("latin")
    assert re.search(r"'shape': \((\d+), (\d+)\)", line).groups() == ("4", "26")
    assert re.search(r"'descr': '([<f0-9]+)'", line).group(1) == "<f2"


def test_rows_by_slice_and_by_number(tmp_path):
    made = filled(tmp_path)
    rows = expected()
    assert made.shape == rows.shape
    for some in (slice(3, 9), slice(4, 8), slice(5, 6), slice(2, 2), slice(None), slice(0, 10, 3)):
        np.testing.assert_array_equal(made[some], rows[some])
    for numbers in ([9, 0, 4, 4, -1], [], [7]):
        numbers = np.array(numbers, np.int64)
        np.testing.assert_array_equal(made[numbers], rows[numbers])


def test_an_interrupted_pass_resumes(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        filled(tmp_path, Letters(fails_on="dog"))  # in part 1
    assert store(tmp_path).missing() == [1, 2]
    assert len(list((tmp_path / "text_emb").iterdir())) == 1  # nothing half-written
    with pytest.raises(FileNotFoundError, match="not complete; run the same command again"):
        store(tmp_path)[:]
    encoder = Letters()
    made = filled(tmp_path, encoder)
    assert "kit fox" not in encoder.asked
    np.testing.assert_array_equal(made[:], expected())


def test_half_written_and_damaged_parts_are_embedded_again(tmp_path, caplog):
    made = filled(tmp_path)
    whole = made.path(1).read_bytes()
    made.path(1).with_name(".text_emb_0001.npy.abc").write_bytes(whole[:100])  # a killed writer's
    made.path(1).write_bytes(whole[:-7])
    np.save(made.path(2), np.zeros((5, 26), np.float16))  # of another length
    with caplog.at_level(logging.WARNING):
        assert store(tmp_path).missing() == [1, 2]
    assert "text_emb_0001.npy is damaged" in caplog.text
    np.testing.assert_array_equal(filled(tmp_path)[:], expected())


@pytest.mark.parametrize("place", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("of", ["part", "checksum"])
def test_a_flipped_byte_is_embedded_again(tmp_path, caplog, place, of):
    made = filled(tmp_path)
    path = made.path(1) if of == "part" else tmp_path / "checksums" / "text_emb_0001"
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)
    encoder = Letters()
    again = filled(tmp_path, encoder)
    np.testing.assert_array_equal(again[:], expected())
    assert "text_emb_0001.npy is damaged (it differs from its checksum)" in caplog.text
    assert encoder.asked == ["cat", "Ünïcode \ud800", "dog"]  # those of part 1


def test_a_part_without_its_checksum_is_embedded_again(tmp_path, caplog):
    filled(tmp_path)
    (tmp_path / "checksums" / "text_emb_0002").unlink()
    again = store(tmp_path)
    for _ in range(3):  # as while waiting for other processes
        assert again.missing() == [2]
    assert caplog.text.count("text_emb_0002.npy is damaged") == 1


def test_ranks_share_the_parts(tmp_path):
    encoders = [Letters(), Letters()]
    for rank, encoder in enumerate(encoders):
        made = store(tmp_path)
        made.fill_with_texts(TEXTS, encoder, rank=rank, world=2)
    made.wait()
    assert "dog" in encoders[1].asked and "dog" not in encoders[0].asked
    assert len(encoders[0].asked) + len(encoders[1].asked) == 3 + 3 + 2  # distinct in each part
    np.testing.assert_array_equal(made[:], expected())


def test_rows_become_unit_rows_and_zero_rows_stay(tmp_path):
    made = store(tmp_path, 3, kind="img")
    made.fill(lambda start, stop: np.array([[3.0, 4], [0, 0], [0, -2]])[start:stop])
    np.testing.assert_allclose(made[:], [[0.6, 0.8], [0, 0], [0, -1]], atol=1e-3)
    assert made.path(0).relative_to(tmp_path).as_posix() == "img_emb/img_emb_0000.npy"


@pytest.mark.parametrize(
    ("rows", "message"),
    [(np.ones((2, 3)), "2 embeddings for rows 0 to 2"), (np.full((3, 3), np.nan), "not finite")],
)
def test_wrong_embeddings_are_refused(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        store(tmp_path, 3).fill(lambda start, stop: rows)
    assert store(tmp_path, 3).missing() == [0]


def test_names_sort_in_the_order_of_the_rows(tmp_path):
    made = store(tmp_path, 12_000, part_rows=1)
    names = [made.path(part).name for part in range(made.n_parts)]
    assert names == sorted(names) and names[0] == "text_emb_00000.npy"


def test_hashes_tell_texts_apart():
    hashes = hash_texts(TEXTS)
    assert hashes.shape == (10, 2)
    same = (hashes[:, None] == hashes[None]).all(axis=2)
    np.testing.assert_array_equal(same, [[a == b for b in TEXTS] for a in TEXTS])
