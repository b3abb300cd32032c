import sqlite3
import subprocess
import sys
import warnings
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from language import cache
from language.cache import CachedEncoder
from tests.language.letters import Letters

ROOT = Path(__file__).parents[2]


TEXTS = ["fox", "kit fox", "fox", "", "cat", "Ünïcode \ud800"]


def test_second_encoder_asks_nothing(tmp_path):
    first, second = Letters(), Letters()
    rows = CachedEncoder(first, tmp_path).encode(TEXTS)
    assert torch.equal(rows, Letters().encode(TEXTS))
    assert first.asked == list(dict.fromkeys(TEXTS))  # each distinct text once
    assert torch.equal(CachedEncoder(second, tmp_path).encode(TEXTS), rows)
    assert second.asked == []


def test_only_new_texts_are_asked(tmp_path):
    CachedEncoder(Letters(), tmp_path).encode(["fox", "cat"])
    encoder = Letters()
    rows = CachedEncoder(encoder, tmp_path).encode(["dog", "cat", "fox"])
    assert encoder.asked == ["dog"]
    assert torch.equal(rows, Letters().encode(["dog", "cat", "fox"]))
    rows[0] = 0  # of the reader's own
    assert torch.equal(CachedEncoder(encoder, tmp_path).encode(["dog"]), encoder.encode(["dog"]))
    assert CachedEncoder(Letters(), tmp_path).encode([]).shape == (0, 26)
    other = Letters("letters 2")
    CachedEncoder(other, tmp_path).encode(["fox"])
    assert other.asked == ["fox"]  # models do not share rows


def test_more_texts_than_a_write_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "CHUNK", 7)
    texts = [chr(97 + i // 26) + chr(97 + i % 26) for i in range(40)]
    CachedEncoder(Letters(), tmp_path).encode(texts)
    encoder = Letters()
    assert torch.equal(CachedEncoder(encoder, tmp_path).encode(texts), Letters().encode(texts))
    assert encoder.asked == []


def test_an_interrupted_run_keeps_what_it_wrote(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "CHUNK", 2)
    with pytest.raises(KeyboardInterrupt):
        CachedEncoder(Letters(fails_on="e"), tmp_path).encode(list("abcdef"))
    again = Letters()
    CachedEncoder(again, tmp_path).encode(list("abcdef"))
    assert again.asked == ["e", "f"]


def overwrite_all(path):
    path.write_bytes(b"no database" * 1000)


def cut_in_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_value(path):
    with closing(sqlite3.connect(path)) as database, database:
        key, row = database.execute("SELECT key, row FROM texts").fetchone()
        flipped = bytes([row[0] ^ 1]) + row[1:]
        database.execute("UPDATE texts SET row = ? WHERE key = ?", (flipped, key))


def swap_two_rows(path):
    """As a byte of SQLite's index does that leads to another row, whose checksum is right."""
    with closing(sqlite3.connect(path)) as database, database:
        (a, *of_a), (b, *of_b) = database.execute("SELECT * FROM texts LIMIT 2").fetchall()
        update = "UPDATE texts SET row = ?, checksum = ? WHERE key = ?"
        database.executemany(update, [(*of_a, b), (*of_b, a)])


def make_text_of_a_value(path):
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE texts SET row = 'a' WHERE rowid = 7")


@pytest.mark.parametrize(
    "damage", [overwrite_all, cut_in_half, flip_a_value, swap_two_rows, make_text_of_a_value]
)
def test_a_damaged_file_is_noticed_and_made_again(tmp_path, damage):
    texts = [f"text {i}" for i in range(100)]
    first = CachedEncoder(Letters(), tmp_path)
    rows = first.encode(texts)
    damage(first.path)
    encoder = Letters()
    with pytest.warns(UserWarning, match="is damaged .*; discarded"):
        again = CachedEncoder(encoder, tmp_path).encode(texts)
    assert torch.equal(again, rows)
    assert encoder.asked == texts
    afterwards = Letters()
    assert torch.equal(CachedEncoder(afterwards, tmp_path).encode(texts), rows)
    assert afterwards.asked == []


def test_no_flipped_byte_changes_a_number(tmp_path):
    """Wherever it is in the file: rows, keys, pages or header."""
    texts = [f"text {chr(97 + i)} {i}" for i in range(26)]
    first = CachedEncoder(Letters(), tmp_path)
    rows, content = first.encode(texts), first.path.read_bytes()
    warned = 0
    for at in np.random.default_rng(0).integers(0, len(content), 300).tolist():
        flipped = bytearray(content)
        flipped[at] ^= 0b10
        first.path.write_bytes(flipped)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            again = CachedEncoder(Letters(), tmp_path).encode(texts)
        assert torch.equal(again, rows), at
        warned += bool(caught)
    assert warned > 30


def test_unknown_shares_are_kept_beside_the_embeddings(tmp_path):
    class Half(Letters):
        def unknown(self, texts):
            self.asked += texts
            return torch.full((len(texts),), 0.5)

    first, second = Half(), Half()
    CachedEncoder(first, tmp_path).encode(["fox", "owl"])
    for encoder, asked in ((first, ["fox", "owl", "fox"]), (second, [])):
        kept = CachedEncoder(encoder, tmp_path)
        assert kept.unknown(["fox", "fox"]).tolist() == [0.5, 0.5]
        assert torch.equal(kept.encode(["owl"]), Letters().encode(["owl"]))
        assert encoder.asked == asked


def test_a_folder_that_cannot_be_had_costs_the_cache_only(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="embedding without it"):
        rows = CachedEncoder(Letters(), tmp_path / "file" / "text").encode(TEXTS)
    assert torch.equal(rows, Letters().encode(TEXTS))


def test_two_processes_write_one_file(tmp_path):
    script = """
import sys
from pathlib import Path
import torch
from language import cache
from tests.language.letters import Letters
cache.CHUNK = 3
texts = [f"{sys.argv[2]} {i}" for i in range(60)] + [f"shared {i}" for i in range(60)]
rows = cache.CachedEncoder(Letters(), Path(sys.argv[1])).encode(texts)
assert torch.equal(rows, Letters().encode(texts))
"""
    command = [sys.executable, "-W", "error", "-c", script, str(tmp_path)]
    processes = [subprocess.Popen([*command, name], cwd=ROOT) for name in ("one", "two")]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    (file,) = tmp_path.glob("*.sqlite")
    with closing(sqlite3.connect(file)) as database:
        assert database.execute("SELECT count(*) FROM texts").fetchone() == (180,)
