"""Ctrl-C and SIGTERM, noted instead of obeyed at once. After `ray.init`, which installs handlers of its own."""

from __future__ import annotations

import signal
from types import FrameType


class StopRequest:
    """Remembers, for the time of the block, Ctrl-C or SIGTERM; the second one ends it at once."""

    def __enter__(self) -> StopRequest:
        self.asked = False
        self.before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *args: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
