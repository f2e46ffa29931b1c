"""Ctrl-C and SIGTERM as a wish: the trainer finishes its iteration, saves and stops."""

from __future__ import annotations

import signal
import threading


class Interrupt:
    """``with Interrupt() as interrupt``: ``interrupt.requested`` becomes True. A second Ctrl-C stops at once."""

    def __init__(self):
        self.requested = False
        self._old: dict[int, object] = {}

    def _handle(self, number: int, _frame: object) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._old = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
