"""The store's queue: which films wait, and whose comes next."""

from __future__ import annotations

import heapq
import json
from collections import Counter, deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from itertools import groupby

from farm.store.journal import Wish
from farm.store.store import Store

MAX_OPEN = 64  # films that one controller renders at once; the others wait in the store
READ_AGAIN_S = 60.0  # a wish's priority may have been changed


def in_turn(waiting: Iterable[Wish], open_by: Mapping[str, int]) -> Iterator[Wish]:
    """All that wait, in the order in which they are taken on.

    The highest priority first; among equals that of whoever has the fewest open, so that a key with thousands of films
    holds up nobody; then the oldest.

    Args:
        open_by: how many films of each key are open now.
    """
    have = Counter(open_by)
    rows = sorted(waiting, key=lambda w: (-w.priority, w.at, w.name))
    for _, equals in groupby(rows, key=lambda w: w.priority):
        of: dict[str, deque[Wish]] = {}
        for wish in equals:
            of.setdefault(wish.by, deque()).append(wish)
        heap = [(have[by], queue[0].at, queue[0].name, by) for by, queue in of.items()]
        heapq.heapify(heap)
        while heap:
            by = heapq.heappop(heap)[-1]
            have[by] += 1
            yield of[by].popleft()
            if of[by]:
                heapq.heappush(heap, (have[by], of[by][0].at, of[by][0].name, by))


class Waiting:
    """The queue of a store, as one controller knows it. What has been read is kept: it may be thousands."""

    def __init__(self, store: Store, now: Callable[[], float]) -> None:
        self.store, self.now = store, now
        self.known: dict[str, tuple[Wish, float]] = {}

    def look(self, skip: Container[str] = ()) -> list[Wish]:
        """What waits now, but for these names."""
        names = [n for n in self.store.names("queue") if n.endswith(".json")]
        now, before = self.now(), self.known
        self.known = {n: before[n] for n in names if n in before}
        wanted = [n for n in names if n.removesuffix(".json") not in skip]
        to_read = [n for n in wanted if n not in before or now - before[n][1] > READ_AGAIN_S]
        read = self.store.cat_many("queue", to_read)
        for name in to_read:
            try:
                self.known[name] = (Wish(**json.loads(read[name])), now)
            except (KeyError, TypeError, ValueError):  # fulfilled meanwhile, or of another version
                self.known.pop(name, None)
        return [self.known[n][0] for n in wanted if n in self.known]
