"""Files and folders that are whole or absent, whatever happens while they are written."""

import errno
import os
import stat

import pytest

from utilities import checkpoint
from utilities.files import atomic_folder, atomic_path, cache_folder, refuse_special


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


@pytest.mark.parametrize("kind", ["named pipe", "device", "folder", "broken link"])
def test_what_is_no_regular_file_is_refused_unread(tmp_path, kind):
    path = tmp_path / "a.json"
    refuse_special(path)  # where nothing is, opening it says so
    if kind == "named pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "device" else "nowhere")
    with pytest.raises(OSError, match=rf"a\.json is a {kind}; it must be a regular file"):
        refuse_special(path)
    (tmp_path / "b").write_text("text")
    (tmp_path / "c").symlink_to("b")
    refuse_special(tmp_path / "c")


@pytest.mark.parametrize("kind", ["named pipe", "device"])
def test_a_pipe_or_device_that_a_flag_names_is_refused_unread(tmp_path, kind):
    from architectures.weights import read_state_dict
    from language.word_vectors import WordVectors
    from language.words import from_json

    path = tmp_path / "odd"
    os.mkfifo(path) if kind == "named pipe" else path.symlink_to("/dev/zero")
    for read in (
        read_state_dict,
        checkpoint.load,
        WordVectors,
        lambda path: from_json(path, ["a"]),
    ):
        with pytest.raises(FileNotFoundError, match="odd"):
            read(path)
