"""The controller of a farm, as a server reaches it."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from contextlib import suppress
from typing import Any

log = logging.getLogger(__name__)
LINK_S = 10.0  # between looks whether the controller lives
VIEW_TIMEOUT_S = 3.0
VIEW_FRESH_S = 0.2  # many who look at one film ask its controller once


class Link:
    """A thread starts it, and starts it again; requests never wait for that."""

    def __init__(self, farm: str, uri: str, pools: dict[str, Any]) -> None:
        self.what = (farm, uri, pools)
        self.handle: Any = None
        self.seen: dict[str, tuple[float, dict[str, Any] | None]] = {}
        threading.Thread(target=self._keep, daemon=True).start()

    def _keep(self) -> None:
        import ray

        from actors.controller import start_controller

        while True:
            try:
                self.handle = start_controller(*self.what, adopts=True)
            except (ray.exceptions.RayError, TimeoutError) as e:
                self.handle = None
                log.warning("the controller does not answer: %s", type(e).__name__)
            time.sleep(LINK_S)

    async def view(self, name: str) -> dict[str, Any] | None:
        """A rendering as its controller sees it; None where it has none, or does not answer."""
        import ray

        now = time.monotonic()
        if self.handle is None:
            return None
        if name in self.seen and now - self.seen[name][0] < VIEW_FRESH_S:
            return self.seen[name][1]
        told: dict[str, Any] | None = None
        with suppress(TimeoutError, ray.exceptions.RayError):
            told = await asyncio.wait_for(_answer(self.handle.view.remote(name)), VIEW_TIMEOUT_S)
        if len(self.seen) > 10_000:
            self.seen.clear()
        self.seen[name] = (now, told)
        return told


async def _answer(ref: Any) -> dict[str, Any]:
    found: dict[str, Any] = await ref
    return found
