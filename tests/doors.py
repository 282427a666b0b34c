"""A door made of two calls: submit a job that lies in the store to a controller, and wait for its end."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import ray

from farm.states import ENDED
from farm.store.journal import Wish

TIMEOUT_S = 60


def submit(controller: Any, job: str, *, container: str = "mp4", door: str = "door") -> str:
    """Returns the rendering's name."""
    wish = Wish(job, container, stills=False, farm="test")
    assert ray.get(controller.submit.remote(asdict(wish), door=door), timeout=TIMEOUT_S) is None
    return wish.name


def wait_for_end(controller: Any, name: str) -> dict[str, Any]:
    """The last view of a rendering."""
    while (view := ray.get(controller.view.remote(name, wait_s=0.5), timeout=TIMEOUT_S))["status"] not in ENDED:
        pass
    return dict(view)
