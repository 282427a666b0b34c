"""Trying again where a distant store throttles, breaks off or is out of order for a moment."""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
TRIES = 7
FIRST_WAIT_S, MAX_WAIT_S = 0.2, 5.0
FINAL = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
FINAL_ERRNO = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
NETWORK_PACKAGES = ("aiohttp", "aiobotocore", "botocore", "gcsfs", "google", "requests", "urllib3")


def patiently(work: Callable[[], T], *, sleep: Callable[[float], None] = time.sleep) -> T:
    """The result of `work`, which is tried again after errors that may pass, with waits that double and are drawn.

    Jitter as in Brooker, "Exponential Backoff and Jitter" (2015): many clients do not come back at once.
    """
    wait_s = FIRST_WAIT_S
    for _ in range(TRIES - 1):
        try:
            return work()
        except Exception as e:
            if not is_passing(e):
                raise
        sleep(random.uniform(wait_s / 2, wait_s))  # no secret
        wait_s = min(2 * wait_s, MAX_WAIT_S)
    return work()


def is_passing(error: Exception) -> bool:
    """Whether another try may succeed: not where something is absent, forbidden or full."""
    if isinstance(error, FINAL) or getattr(error, "errno", None) in FINAL_ERRNO:
        return False
    return isinstance(error, OSError | TimeoutError) or type(error).__module__.split(".")[0] in NETWORK_PACKAGES
