"""The owner's side of a blended take: slices are given to idle replicas step by step, and taken back when they fail.

The owner could predict every slice by itself; a helper that is gone, slow or taken away costs its slices of one step.
Only slices of latents and of predictions travel, as safetensors.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray

from farm.control.scaling import share_out

log = logging.getLogger(__name__)
ASSIST_TIMEOUT_S = 600.0  # for the slices of one step; after it the owner does them and the helper is not asked again
LOOK_S = 0.5  # how soon the owner notices that a helper was taken away


class Helpers:
    """Idle replicas for one task. `handles` is replaced by another thread, and read before each slice."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.handles: dict[str, Any] = {}  # replica to its actor
        self.lost: set[str] = set()
        self.num_given = 0  # slices that helpers have predicted

    def hear(self, key: str, handles: dict[str, Any]) -> None:
        """Take the controller's word on who may help, if it is about this task."""
        if key == self.key:
            self.handles = handles

    def predict(self, parts: Mapping[int, Any], t: Any, own: Callable[[int], Any]) -> dict[int, Any]:
        """Predictions of slices, by number.

        Args:
            parts: the latents of each slice.
            own: predicts one slice here.
        """
        from safetensors.torch import load, save

        left, done, asked = list(parts), {}, {}
        while left:
            new = {n: h for n, h in self.handles.items() if n not in self.lost and n not in asked}
            left, *theirs = ([left[i] for i in share] for share in share_out(len(left), 1 + len(new)))
            for (name, handle), numbers in zip(new.items(), theirs, strict=True):
                payload = save({"t": t.reshape(1), **{str(i): parts[i].contiguous() for i in numbers}})
                asked[name] = (numbers, handle.assist.remote(self.key, payload) if numbers else None)
            if left:  # whoever is lent meanwhile takes a part of what is left then
                mine = left.pop(0)
                done[mine] = own(mine)
        for name, (numbers, answer) in asked.items():
            told = self._wait_for(name, answer) if answer is not None else None
            if told is not None:
                done |= {int(i): value.to(t.device) for i, value in load(told).items()}
                self.num_given += len(numbers)
            else:
                done |= {i: own(i) for i in numbers}
        return done

    def _wait_for(self, name: str, answer: Any) -> bytes | None:
        """A helper's answer; None where it was taken away, has failed or is too slow."""
        end = time.monotonic() + ASSIST_TIMEOUT_S
        while name in self.handles and time.monotonic() < end:
            if ray.wait([answer], timeout=LOOK_S)[0]:
                try:
                    return bytes(ray.get(answer))
                except ray.exceptions.RayError as e:
                    log.info("helper %s of %s failed: %s", name, self.key, str(e).strip().splitlines()[-1])
                    self.lost.add(name)
                    return None
        if name in self.handles:  # too slow; one that was taken away may come back
            self.lost.add(name)
        return None
