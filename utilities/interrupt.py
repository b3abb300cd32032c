"""Lets a signal end a run between two steps instead of in the middle of one."""

import signal
import threading
from types import FrameType
from typing import Any

# Of a user or job scheduler who wants the run to end: SLURM sends SIGUSR1 before the time is over.
SIGNALS = (
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU,
)  # fmt: skip
IMPATIENT = (signal.SIGINT, signal.SIGTERM)  # the second ends the run; others may come repeatedly


class Interruption:
    """Notes the first of ``SIGNALS``; then Ctrl-C and SIGTERM act as usual, and others do nothing.

    Signals that are ignored stay so, as SIGHUP under ``nohup``. Outside of the main thread, where
    Python cannot catch signals, none is noted.
    """

    def __init__(self) -> None:
        self.signal: str | None = None  # name of the first
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or signal.Signals(number).name
        self._restore(*IMPATIENT)

    def __exit__(self, *_error: object) -> None:
        self._restore(*SIGNALS)

    def _restore(self, *numbers: signal.Signals) -> None:
        for number in numbers:
            if number in self._before:
                signal.signal(number, self._before.pop(number))
