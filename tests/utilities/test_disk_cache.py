"""The one disk cache: whole or absent, verified, computed once, and no part of a run's chance."""

import json
import logging
import multiprocessing
import os
import random
import stat
import time

import filelock
import numpy as np
import pytest
import torch

from utilities.checksums import CONTENTS, digest, digest_of_file, stamp
from utilities.disk_cache import TENSORS, Entry


@pytest.fixture
def entry(tmp_path):
    return Entry("features", "my photos", "resnet50 v1", root=tmp_path / "cache")


def filler(text="hello", calls=None):
    def fill(folder):
        if calls is not None:
            calls.append(folder)
        (folder / "a.txt").write_text(text)
        (folder / "part").mkdir()
        (folder / "part" / "b.bin").write_bytes(b"\0" * 100)

    return fill


def test_an_entry_is_computed_once(entry):
    calls = []
    folder = entry.get(filler(calls=calls))
    assert entry.get(filler(calls=calls)) == folder == entry.folder and len(calls) == 1
    assert (folder / "a.txt").read_text() == "hello"
    assert set(json.loads((folder / CONTENTS).read_text())) == {"a.txt", "part/b.bin"}


def test_the_fingerprint_and_nothing_else_tells_entries_apart(entry, tmp_path):
    other = Entry("features", "my photos", "resnet50 v2", root=tmp_path / "cache")
    assert other.folder != entry.folder and other.folder.parent == entry.folder.parent
    assert "/" not in Entry("features", "a/../b", "x", root=tmp_path).folder.name
    assert digest(["ab", "c"]) != digest(["a", "bc"])


@pytest.mark.parametrize("at", [0.0, 0.3, 0.999])
@pytest.mark.parametrize("name", ["a.txt", "part/b.bin"])
def test_a_flipped_byte_anywhere_is_a_miss_with_one_warning(entry, caplog, name, at):
    file = entry.get(filler()) / name
    content = bytearray(file.read_bytes())
    content[int(at * len(content))] ^= 1
    file.write_bytes(content)
    calls = []
    entry.get(filler(calls=calls))
    assert len(calls) == 1
    assert [r.getMessage() for r in caplog.records if "is damaged" in r.getMessage()] == [
        f"{entry.folder} in the cache is damaged ({name} does not match its checksum); "
        "computing it again"
    ]
    assert entry.read() == entry.folder


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "a.txt").unlink(),
        lambda folder: (folder / "a.txt").write_text("cut"),
        lambda folder: (folder / CONTENTS).unlink(),
        lambda folder: (folder / CONTENTS).write_text("{"),
        lambda folder: (folder / CONTENTS).write_text("[1]"),
        lambda folder: (folder / CONTENTS).write_bytes(b"\xff\xfe"),
    ],
)
def test_an_entry_that_is_not_as_written_is_a_miss(entry, caplog, spoil):
    spoil(entry.get(filler()))
    assert entry.read() is None and len(caplog.records) == 1
    assert (entry.get(filler("again")) / "a.txt").read_text() == "again"


def test_unhashed_files_are_checked_by_size(tmp_path):
    entry = Entry("images", "x", "y", unhashed=("a.txt",), root=tmp_path)
    folder = entry.get(filler())
    (folder / "a.txt").write_text("hellO")
    assert entry.read() == folder
    (folder / "a.txt").write_text("hell")
    assert entry.read() is None


def test_nothing_is_left_where_computing_fails(entry):
    def fail(folder):
        (folder / "a.txt").write_text("half")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        entry.get(fail)
    assert entry.read() is None
    assert [p.name for p in entry.folder.parent.iterdir() if p.suffix != ".lock"] == []


def test_an_unwritable_folder_costs_a_warning_and_not_the_run(tmp_path, caplog):
    blocked = tmp_path / "cache"
    blocked.write_text("a file where the folder should be")  # holds for root, too
    entry = Entry("features", "x", "y", root=blocked)
    folder = entry.get(filler())
    assert (folder / "a.txt").read_text() == "hello"
    assert "cannot be written" in caplog.text and "XDG_CACHE_HOME" in caplog.text
    caplog.clear()
    kept = entry.tensors(lambda: {"x": torch.ones(2)})
    assert torch.equal(kept["x"], torch.ones(2)) and len(caplog.records) == 1


def test_files_follow_the_users_umask(entry):
    before = os.umask(0o027)
    try:
        entry.tensors(lambda: {"x": 1})
    finally:
        os.umask(before)
    assert stat.S_IMODE(entry.folder.stat().st_mode) == 0o750
    assert stat.S_IMODE((entry.folder / TENSORS).stat().st_mode) == 0o640


def test_tensors_come_back_as_they_were(entry):
    first = entry.tensors(lambda: {"x": torch.arange(5), "name": "a"})
    again = entry.tensors(lambda: pytest.fail("computed twice"))
    assert torch.equal(first["x"], again["x"]) and again["name"] == "a"


def test_a_cold_and_a_warm_cache_leave_the_same_random_state(entry):
    def draws():
        return random.random(), np.random.random(), torch.rand(1).item()  # noqa: NPY002

    def compute():
        draws()
        return {"x": 1}

    results = []
    for _ in range(2):
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        torch.manual_seed(0)
        entry.tensors(compute)
        Entry(entry.kind, "other", "z", root=entry.root).get(lambda folder: draws())
        results.append(draws())
    assert results[0] == results[1]


def _hold(entry, started, release):
    with entry.locked():
        started.set()
        release.wait(20)


@pytest.mark.parametrize("soft", [False, True], ids=["system locks", "no system locks"])
def test_one_process_computes_while_others_wait(entry, caplog, monkeypatch, soft):
    if soft:
        monkeypatch.setattr(filelock, "FileLock", filelock.SoftFileLock)
    caplog.set_level(logging.INFO)
    context = multiprocessing.get_context("fork")
    started, release = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(entry, started, release))
    other.start()
    assert started.wait(20)
    timer = context.Process(target=lambda: (time.sleep(0.3), release.set()))
    timer.start()
    begin = time.monotonic()
    entry.get(filler())
    assert time.monotonic() - begin > 0.2
    assert "another process computes" in caplog.text
    other.join()
    timer.join()


def test_stamp_and_digest_change_with_the_file(tmp_path):
    file = tmp_path / "a"
    assert stamp(file).endswith("missing")
    file.write_text("a")
    before = stamp(file), digest_of_file(file)
    file.write_text("bb")
    assert stamp(file) != before[0] and digest_of_file(file) != before[1]
