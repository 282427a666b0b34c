"""The ends of workers' logs, as Ray keeps them: one pair of files a process, named by its id."""

from __future__ import annotations

import glob
import os
from pathlib import Path

NUM_LINES = 200  # that are kept with an attempt
MOST_BYTES = 64 * 2**10  # of a file
STATE_TIMEOUT_S = 5  # for the log of a process on another node


def own_folder() -> Path | None:
    """Where this process's own log lies, and those of its node's other workers; None outside of a worker."""
    try:
        path = Path(os.readlink("/proc/self/fd/2"))
    except OSError:
        return None
    return path.parent if path.name.startswith("worker-") else None


def last_lines(folder: Path | None, pid: int) -> str:
    """The last lines of a process of this node; empty where they cannot be had."""
    found = []
    for name in sorted(glob.glob(f"{glob.escape(str(folder))}/worker-*-{pid}.*")) if folder else ():
        try:
            with open(name, "rb") as file:
                file.seek(max(0, os.path.getsize(name) - MOST_BYTES))
                text = file.read(MOST_BYTES).decode("utf-8", "replace")
        except OSError:
            continue
        if lines := [line for line in text.splitlines() if not line.startswith(":")]:  # Ray's own marks
            found.append("\n".join([f"-- {'output' if name.endswith('.out') else 'log'}", *lines[-NUM_LINES:]]))
    return "\n".join(found)


def last_lines_elsewhere(node: str, pid: int) -> str:
    """The same of a process on another node, by Ray's state API; empty where that does not answer."""
    from ray.util.state import get_log

    found = []
    for suffix, title in (("out", "output"), ("err", "log")):
        try:
            text = "".join(get_log(node_id=node, pid=pid, suffix=suffix, tail=NUM_LINES, timeout=STATE_TIMEOUT_S))
        except Exception:  # noqa: BLE001  # no dashboard, a node that is gone: its log is gone as well
            continue
        if text.strip():
            found.append(f"-- {title}\n{text.strip()}")
    return "\n".join(found)
