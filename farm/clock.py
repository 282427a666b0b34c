"""A time of day that does not jump: machines' clocks are set, by hours, while farms run on them."""

from __future__ import annotations

import time

_BEGAN = time.time() - time.monotonic()


def steady_time() -> float:
    """Seconds since the epoch by the clock as it was when this process started, and by its monotonic clock since.

    So no wait ends early or never, and no attempt takes less than nothing, when the clock is set.
    """
    return _BEGAN + time.monotonic()
