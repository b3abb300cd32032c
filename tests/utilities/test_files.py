"""Files and folders that are whole or absent, whatever happens while they are written."""

import errno
import fcntl
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.runs import ROOT, odd_file
from utilities import checkpoint, files
from utilities.files import (
    atomic_folder,
    atomic_path,
    cache_folder,
    read_json,
    refuse_special,
    take_lock,
)


def test_file_appears_whole_and_readable(tmp_path):
    target = tmp_path / "new" / "scores.csv"
    with atomic_path(target) as temporary:
        temporary.write_text("epoch\n")
        assert not target.exists()
    assert target.read_text() == "epoch\n"
    assert os.listdir(target.parent) == ["scores.csv"]  # noqa: PTH208


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077, 0o027])
def test_modes_follow_the_umask_from_the_beginning(tmp_path, mask):
    """And the group follows the folder's, which a change of mode would undo."""
    before = os.umask(mask)
    tmp_path.chmod(0o2777)
    try:
        with atomic_path(tmp_path / "file") as file, atomic_folder(tmp_path / "folder") as folder:
            file.write_text("new")
            (folder / "inner").touch()
            modes = [stat.S_IMODE(path.stat().st_mode) for path in (file, folder)]
    finally:
        os.umask(before)
    paths = tmp_path / "file", tmp_path / "folder"
    assert modes == [stat.S_IMODE(path.stat().st_mode) for path in paths]
    assert modes == [0o666 & ~mask, 0o2777 & ~mask]


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


def full_disk(folder):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_quota(folder):
    raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))


def full_for_numpy(folder):
    with open("/dev/full", "wb", buffering=0) as file:  # noqa: PTH123
        np.arange(9999).tofile(file)


@pytest.mark.parametrize("fill", [full_disk, full_quota, full_for_numpy])
def test_a_full_disk_names_the_folder(tmp_path, fill):
    with (
        pytest.raises(OSError, match=r"(No space|quota).* while writing.*emoji'$"),
        atomic_folder(tmp_path / "emoji") as folder,
    ):
        (folder / "a.jpg").touch()
        fill(folder)
    assert list(tmp_path.iterdir()) == []


def test_other_errors_keep_their_text(tmp_path):
    """Of a source that is read, or with a remedy."""
    for error in (
        FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "source.jpg"),
        OSError(errno.ENOSPC, "--cache_images: make room"),
        OSError("none of the images can be read"),
    ):
        with pytest.raises(OSError) as caught, atomic_folder(tmp_path / "emoji"):
            raise error
        assert caught.value is error


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
    odd_file(path, kind)
    with pytest.raises(OSError, match=rf"a\.json is a {kind}; it must be a regular file"):
        refuse_special(path)
    (tmp_path / "b").write_text("text")
    (tmp_path / "c").symlink_to("b")
    refuse_special(tmp_path / "c")


def test_without_a_home_the_cache_lasts_as_long_as_the_process():
    """As in a container, for a user without an account."""
    code = (
        "import pathlib\ndef no_home(): raise RuntimeError('Could not determine home directory.')\n"
        "pathlib.Path.home = no_home\nfrom utilities.files import cache_folder\n"
        "folder = cache_folder()\nfolder.mkdir()\nassert cache_folder() == folder\nprint(folder)"
    )
    kept = {key: value for key, value in os.environ.items() if key != "XDG_CACHE_HOME"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=kept, capture_output=True, text=True, check=True)
    assert done.stderr.count("set XDG_CACHE_HOME") == 1
    assert not Path(done.stdout.strip()).parent.exists()


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, caplog, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with take_lock(tmp_path / ".lock", "held") as lock:
        assert not lock.closed
    assert f"{tmp_path / '.lock'} cannot be locked" in caplog.text


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.EACCES])
def test_a_lock_that_is_held_is_an_error(tmp_path, monkeypatch, code):
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(code, "")))
    with pytest.raises(OSError, match="held"):
        files.take_lock(tmp_path / ".lock", "held")


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
    with pytest.raises(OSError, match=r"a\.json is a named pipe; it must be a regular file"):
        read_json(tmp_path / "a.json")


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
        with pytest.raises(OSError, match="odd"):
            read(path)
