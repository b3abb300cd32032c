"""Lets one process build what several need."""

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)


@contextmanager
def alone(lock: Path, what: str) -> Iterator[None]:
    """Hold ``lock``; wait for whoever holds it. The system frees it when its holder dies.

    Args:
        what: is built, for the message to those who wait: "the emoji dataset".
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("another process builds %s; waiting for it", what)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
