"""Ends a run between two steps when it is asked to stop, instead of in the middle of one."""

import signal
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Within it, the first Ctrl-C or SIGTERM is only noted; the second is as always.

    SIGTERM is what job schedulers and torchrun send before they kill. Loading processes leave the
    Ctrl-C of a terminal to this one (``datasets.loading``).

    Attributes:
        asked: the name of the signal that came; None before.
    """

    def __init__(self) -> None:
        self.asked: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interruption":
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = signal.Signals(number).name
        self._restore()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())
