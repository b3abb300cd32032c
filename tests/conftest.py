"""What no test leaves to the next."""

import logging

import pytest

from utilities import log


@pytest.fixture(autouse=True)
def _log_is_taken_down():
    """A run in the tests' process sets up the log, and the next test starts without it."""
    root = logging.getLogger()
    level = root.level
    yield
    log.take_down()
    logging.captureWarnings(False)
    root.setLevel(level)


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """A cache folder of the test's own, empty at first."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "language_guided_similarity"
