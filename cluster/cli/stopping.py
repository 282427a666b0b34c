"""Ctrl-C and SIGTERM, noted instead of obeyed at once. After `ray.init`, which installs handlers of its own."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class StopRequest:
    """Remembers, for the time of the block, Ctrl-C or SIGTERM; the second one ends it at once. Signals reach the main
    thread alone: a block in another thread is not asked to stop."""

    def __enter__(self) -> StopRequest:
        self.asked = False
        numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
        self.before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *args: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
