"""Files and folders that are whole or absent, whatever happens while they are written."""

import errno
import os
import stat

import pytest

from utilities.files import atomic_folder, atomic_path, cache_folder, read_json


def test_file_appears_whole_and_readable(tmp_path):
    target = tmp_path / "new" / "scores.csv"
    with atomic_path(target) as temporary:
        temporary.write_text("epoch\n")
        assert not target.exists()
    assert target.read_text() == "epoch\n"
    assert stat.S_IMODE(target.stat().st_mode) == 0o644
    assert os.listdir(target.parent) == ["scores.csv"]  # noqa: PTH208


def test_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "scores.csv"
    target.write_text("old")
    with pytest.raises(KeyError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_disk_names_the_file(tmp_path):
    target = tmp_path / "scores.csv"
    with pytest.raises(OSError, match=r"No space left.*scores\.csv") as caught, atomic_path(target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_folder_appears_whole(tmp_path):
    target = tmp_path / "emoji"
    with atomic_folder(target) as temporary:
        (temporary / "a.jpg").write_bytes(b"1")
        assert not target.exists()
    assert [file.name for file in target.iterdir()] == ["a.jpg"]
    assert list(tmp_path.iterdir()) == [target]


def test_folder_replaces_the_old_one_wholly(tmp_path):
    target = tmp_path / "emoji"
    target.mkdir()
    (target / "stale.jpg").write_bytes(b"0")
    with atomic_folder(target) as temporary:
        (temporary / "a.jpg").write_bytes(b"1")
    assert [file.name for file in target.iterdir()] == ["a.jpg"]
    assert list(tmp_path.iterdir()) == [target]


def test_failure_keeps_the_old_folder(tmp_path):
    target = tmp_path / "emoji"
    target.mkdir()
    (target / "kept.jpg").write_bytes(b"0")
    with pytest.raises(KeyboardInterrupt), atomic_folder(target) as temporary:
        (temporary / "a.jpg").write_bytes(b"1")
        raise KeyboardInterrupt
    assert [file.name for file in target.iterdir()] == ["kept.jpg"]
    assert list(tmp_path.iterdir()) == [target]


def test_cache_folder_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "language_guided_similarity"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "language_guided_similarity"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_json_with_and_without_a_mark(tmp_path, encoding):
    file = tmp_path / "a.json"
    file.write_text('{"é": [1, "\\ud83e\\udd8a"]}', encoding=encoding)
    assert read_json(file) == {"é": [1, "\N{FOX FACE}"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b'{"a": 1', "is not JSON"),
        (b'{"a": "\xe9"}', "is not JSON"),
        (b'{"a": "\\ud800"}', "is not JSON"),  # half a character
        (b'{"a": ' + b"1" * 5000 + b"}", "is not JSON"),
        (b"[" * 100_000, "is nested too deeply"),
        (b'{"a": ' * 100_000, "is nested too deeply"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "is not JSON: the key 'c' appears twice"),
        (b"[]", "must hold an object; got a list"),
        (b"null", "must hold an object; got null"),
        (b'"text"', "must hold an object; got a text"),
    ],
)
def test_json_of_another_shape_is_refused_by_file(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.json {message}"):
        read_json(tmp_path / "a.json")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(ValueError, match=r"a\.json must be a regular file"):
        read_json(tmp_path / "a.json")
