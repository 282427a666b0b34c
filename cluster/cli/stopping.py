"""Ctrl-C and SIGTERM, noted instead of obeyed at once. After `ray.init`, which installs handlers of its own."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType

TWICE_S = 1.0  # systemd and others signal the parent, which passes it on, and us: within this it is one signal


class StopRequest:
    """Remembers, for the time of the block, Ctrl-C or SIGTERM; another one, after TWICE_S, ends it at once.

    Signals reach the main thread alone: a block in another thread is not asked to stop.
    """

    def __enter__(self) -> StopRequest:
        self.asked, self.asked_at = False, 0.0
        numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
        self.before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *args: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked and time.monotonic() - self.asked_at > TWICE_S:
            raise KeyboardInterrupt
        if not self.asked:
            self.asked, self.asked_at = True, time.monotonic()
