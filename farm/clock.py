"""A time of day that does not jump: machines' clocks are set, by hours, while farms run on them."""

from __future__ import annotations

import time

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # which goes on while a machine sleeps
_BEGAN = time.time() - time.clock_gettime(_CLOCK)


def steady_time() -> float:
    """Seconds since the epoch by the clock as it was when this process started, and by the time since then.

    So no wait ends early or never, and no attempt takes less than nothing, when the clock is set.
    """
    return _BEGAN + time.clock_gettime(_CLOCK)
