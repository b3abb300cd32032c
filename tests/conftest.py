"""Fixtures that tests of several folders share."""

import gc
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from utilities import log, startup

# Before torch and numpy are imported, and for the processes that tests start: one thread is fastest
# on tensors as small as those of tests, and leaves the other cores to other test processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
gc.set_threshold(startup.ALLOCATIONS)


def pytest_collection_modifyitems(items):
    """Start with whole runs, the longest files, so that no process is left alone with one."""
    items.sort(key=lambda item: item.path.parent != Path(__file__).parent)


def pytest_collection_finish():
    """Leave what was imported out of all looks for garbage: millions of objects."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _log_is_taken_down():
    """A run in the tests' process sets up the log, and the next test starts without it."""
    root = logging.getLogger()
    level = root.level
    yield
    log.take_down()
    logging.captureWarnings(False)
    root.setLevel(level)


@pytest.fixture(autouse=True)
def _captions_settle_soon(monkeypatch):
    """Captions are indexed after a wait that is long for this file system's clock (4 ms)."""
    if caption_index := sys.modules.get("datasets.caption_index"):
        monkeypatch.setattr(caption_index, "SETTLED", 0.03)


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """A cache folder of the test's own, empty at first."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "language_guided_similarity"


@pytest.fixture(scope="session")
def animals(tmp_path_factory):
    """The --source_path of ``tests.runs.tiny_run``; to be read only."""
    from tests.runs import write_animals  # imports torch, which many tests do without

    return write_animals(tmp_path_factory.mktemp("source"))


@pytest.fixture
def no_curves(monkeypatch):
    """Writes one pixel for curves.png: drawing takes two thirds of a tiny run."""
    from PIL import Image

    from utilities import plots

    one_pixel = Image.new("L", (1, 1))
    monkeypatch.setattr(plots, "learning_curves", lambda rows, path: one_pixel.save(path))


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of its own, of 24 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this user may not mount a disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=False, capture_output=True)
