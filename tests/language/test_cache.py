import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from language import cache
from language.cache import CachedEncoder
from language.text_encoder import TextEncoder

ROOT = Path(__file__).parents[2]


class Counting(TextEncoder):
    """Embeds a text by its letters and remembers what it was asked."""

    def __init__(self, fingerprint="counting 1"):
        self.name = "some/counting model"
        self.fingerprint = fingerprint
        self.asked = []

    def encode(self, texts):
        self.asked += texts
        rows = torch.zeros(len(texts), 26)
        for row, text in enumerate(texts):
            for letter in text:
                if letter.isascii() and letter.islower():
                    rows[row, ord(letter) - ord("a")] += 1
        return F.normalize(rows, dim=1)


TEXTS = ["fox", "kit fox", "fox", "", "cat", "Ünïcode \ud800"]


def test_second_encoder_asks_nothing(tmp_path):
    first, second = Counting(), Counting()
    rows = CachedEncoder(first, tmp_path).encode(TEXTS)
    torch.testing.assert_close(rows, Counting().encode(TEXTS), atol=0, rtol=0)
    assert first.asked == list(dict.fromkeys(TEXTS))  # each distinct text once
    assert torch.equal(CachedEncoder(second, tmp_path).encode(TEXTS), rows)
    assert second.asked == []


def test_only_new_texts_are_asked(tmp_path):
    CachedEncoder(Counting(), tmp_path).encode(["fox", "cat"])
    encoder = Counting()
    rows = CachedEncoder(encoder, tmp_path).encode(["dog", "cat", "fox"])
    assert encoder.asked == ["dog"]
    assert torch.equal(rows, Counting().encode(["dog", "cat", "fox"]))


def test_rows_can_be_written_to(tmp_path):
    encoder = CachedEncoder(Counting(), tmp_path)
    encoder.encode(TEXTS)[0] = 0
    assert torch.equal(encoder.encode(TEXTS), Counting().encode(TEXTS))


def test_no_texts(tmp_path):
    assert CachedEncoder(Counting(), tmp_path).encode([]).shape == (0, 26)


def test_models_do_not_share_rows(tmp_path):
    CachedEncoder(Counting("counting 1"), tmp_path).encode(["fox"])
    other = Counting("counting 2")
    CachedEncoder(other, tmp_path).encode(["fox"])
    assert other.asked == ["fox"]


def test_more_texts_than_a_query_and_a_write_hold(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "CHUNK", 7)
    monkeypatch.setattr(cache, "LOOKUP", 5)
    texts = [chr(97 + i // 26) + chr(97 + i % 26) for i in range(40)]
    CachedEncoder(Counting(), tmp_path).encode(texts)
    encoder = Counting()
    assert torch.equal(CachedEncoder(encoder, tmp_path).encode(texts), Counting().encode(texts))
    assert encoder.asked == []


def test_an_interrupted_run_keeps_what_it_wrote(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "CHUNK", 2)
    encoder = Counting()
    plain = encoder.encode

    def fail_on_third_chunk(texts):
        if "e" in texts:
            raise KeyboardInterrupt
        return plain(texts)

    encoder.encode = fail_on_third_chunk
    with pytest.raises(KeyboardInterrupt):
        CachedEncoder(encoder, tmp_path).encode(list("abcdef"))
    again = Counting()
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


@pytest.mark.parametrize("damage", [overwrite_all, cut_in_half, flip_a_value])
def test_a_damaged_file_is_noticed_and_made_again(tmp_path, damage):
    texts = [f"text {i}" for i in range(100)]
    first = CachedEncoder(Counting(), tmp_path)
    rows = first.encode(texts)
    damage(first.path)
    encoder = Counting()
    with pytest.warns(UserWarning, match="is damaged .*; discarded"):
        again = CachedEncoder(encoder, tmp_path).encode(texts)
    assert torch.equal(again, rows)
    assert encoder.asked == texts
    afterwards = Counting()
    assert torch.equal(CachedEncoder(afterwards, tmp_path).encode(texts), rows)
    assert afterwards.asked == []


def test_a_folder_that_cannot_be_had_costs_the_cache_only(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="embedding without it"):
        rows = CachedEncoder(Counting(), tmp_path / "file" / "text").encode(TEXTS)
    assert torch.equal(rows, Counting().encode(TEXTS))


def test_two_processes_write_one_file(tmp_path):
    script = """
import sys
from pathlib import Path
import torch
from language import cache
from language.text_encoder import TextEncoder
cache.CHUNK = 3

class Letters(TextEncoder):
    name, fingerprint = "letters", "letters"
    def encode(self, texts):
        return torch.tensor([[float(len(t)), float(ord(t[-1]))] for t in texts])

own = [f"{sys.argv[2]} {i}" for i in range(60)]
shared = [f"shared {i}" for i in range(60)]
rows = cache.CachedEncoder(Letters(), Path(sys.argv[1])).encode(own + shared)
assert torch.equal(rows, Letters().encode(own + shared))
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", script, str(tmp_path), name], cwd=ROOT
        )
        for name in ("one", "two")
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    (file,) = tmp_path.glob("*.sqlite")
    with closing(sqlite3.connect(file)) as database:
        assert database.execute("SELECT count(*) FROM texts").fetchone() == (180,)
